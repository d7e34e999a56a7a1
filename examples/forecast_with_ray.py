"""Forecast many series on a Ray cluster, or on the cores of one machine.

A series must not be split, so the rows are grouped by item, and `predict_df` runs on each group, in
actors that get the predictor once. Needs `pip install "deltaflow[ray]"`.

python examples/forecast_with_ray.py [--quick]
"""

import sys

import pandas as pd
import ray

from deltaflow import GRUFlowEstimator, IrregularDataset, IrregularPredictor, predict_df
from deltaflow.tasks import irregular_sine


class Forecaster:
    """Forecasts a group: past rows and query rows of the same items."""

    def __init__(self, predictor: ray.ObjectRef) -> None:
        self.predictor: IrregularPredictor = ray.get(predictor)

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the forecasts of the query rows."""
        rows = rows.sort_values("timestamp", kind="stable")
        past, future = rows[~rows["asked"]], rows[rows["asked"]]
        return predict_df(self.predictor, past, future, quantile_levels=[0.1, 0.9])


def forecast(
    predictor: IrregularPredictor, past: pd.DataFrame, future: pd.DataFrame, num_actors: int
) -> pd.DataFrame:
    """Return the forecasts of `predict_df`, sorted by item and time."""
    past = past[past["item_id"].isin(future["item_id"])]
    rows = pd.concat([past.assign(asked=False), future.assign(asked=True)])
    forecasts = (
        ray.data.from_pandas(rows)
        .groupby("item_id", num_partitions=2 * num_actors)
        .map_groups(
            Forecaster,
            fn_constructor_args=(ray.put(predictor),),
            concurrency=num_actors,
            batch_format="pandas",
        )
    )
    table = forecasts.to_pandas().sort_values(["item_id", "timestamp"], ignore_index=True)
    # Convert Arrow types back to the caller's types.
    numbers = dict.fromkeys(["predictions", "mean", "0.1", "0.9"], "float64")
    return table.astype({**future.dtypes.to_dict(), "target_name": object, **numbers})


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

    ray.init(num_cpus=4, include_dashboard=False)  # enough for two actors and the grouping
    forecasts = forecast(predictor, df, future, num_actors=2)
    ray.shutdown()
    print(forecasts.round(2).head(9))
    alone = predict_df(predictor, df, future, quantile_levels=[0.1, 0.9])
    difference = (forecasts["predictions"] - alone["predictions"]).abs().max()
    print("largest difference to predict_df on all series at once:", difference)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
