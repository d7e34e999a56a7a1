"""Forecast many series with Dask, on a cluster or on the cores of one machine.

A series must not be split, so the rows are shuffled into partitions of whole items, and
`predict_df` runs on each partition. Needs `pip install "deltaflow[dask]"`.

python examples/forecast_with_dask.py [--quick]
"""

import sys

import dask
import dask.dataframe as dd
import pandas as pd

from deltaflow import GRUFlowEstimator, IrregularDataset, IrregularPredictor, predict_df
from deltaflow.tasks import irregular_sine


def forecast_partition(rows: pd.DataFrame, predictor: IrregularPredictor) -> pd.DataFrame:
    """Forecast a partition: past rows and query rows of the same items."""
    rows = rows.sort_values(["item_id", "timestamp"], kind="stable")
    past, future = rows[~rows["asked"]], rows[rows["asked"]]
    if future.empty:
        return _columns(rows)
    return predict_df(predictor, past, future, quantile_levels=[0.1, 0.9])


def _columns(rows: pd.DataFrame) -> pd.DataFrame:
    """Return an empty forecast, which tells Dask the types of the columns."""
    numbers = pd.DataFrame(columns=["predictions", "mean", "0.1", "0.9"], dtype="float64")
    return rows[["item_id", "timestamp"]].iloc[:0].assign(target_name="").join(numbers)


def forecast(
    predictor: IrregularPredictor, past: dd.DataFrame, future: dd.DataFrame
) -> dd.DataFrame:
    """Return the forecasts of `predict_df`, in partitions of whole items."""
    rows = dd.concat([past.assign(asked=False), future.assign(asked=True)])
    return rows.shuffle("item_id").map_partitions(
        forecast_partition,
        dask.delayed(predictor),  # is sent to each worker once
        meta=_columns(rows._meta),
    )


def main(quick: bool) -> None:
    df = irregular_sine(num_series=10 if quick else 100)
    estimator = GRUFlowEstimator(
        prediction_length=8, seed=0, trainer_kwargs={"max_epochs": 10, "fast_dev_run": quick}
    )
    predictor = estimator.train(IrregularDataset.from_long_dataframe(df))

    last = df.groupby("item_id")["timestamp"].max()
    future = pd.concat(
        [(last + pd.Timedelta(hours=hours)).reset_index() for hours in (1, 6, 24)]
    ).sort_values(["item_id", "timestamp"], ignore_index=True)

    dask.config.set({"dataframe.convert-string": False})  # items keep their type
    parts = [dd.from_pandas(frame, npartitions=4) for frame in (df, future)]
    forecasts = forecast(predictor, *parts).compute(scheduler="processes", num_workers=2)
    forecasts = forecasts.sort_values(["item_id", "timestamp"], ignore_index=True)
    print(forecasts.round(2).head(9))
    alone = predict_df(predictor, df, future, quantile_levels=[0.1, 0.9])
    difference = (forecasts["predictions"] - alone["predictions"]).abs().max()
    print("largest difference to predict_df on all series at once:", difference)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
