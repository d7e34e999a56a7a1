"""DataFrame in, DataFrame out: forecast an irregular series at any times.

python examples/forecast_dataframe.py [--quick]
"""

import sys

import pandas as pd

from deltaflow import GRUFlowEstimator, IrregularDataset, predict_df
from deltaflow.tasks import irregular_sine


def main(quick: bool) -> None:
    df = irregular_sine()  # item_id, timestamp, target; a period of a day, gaps of 2 h on average
    print(df.head(), end="\n\n")

    estimator = GRUFlowEstimator(
        prediction_length=24,
        context_length=24,
        trainer_kwargs={"max_epochs": 10, "fast_dev_run": quick},
        seed=0,
    )
    predictor = estimator.train(IrregularDataset.from_long_dataframe(df))

    last = df.loc[df["item_id"] == "series_0", "timestamp"].max()
    hours = pd.to_timedelta([0.5, 1, 2, 3, 6, 9, 12, 18, 24], unit="h")
    future = pd.DataFrame({"item_id": "series_0", "timestamp": last + hours})
    print(predict_df(predictor, df, future, quantile_levels=[0.1, 0.9]).round(2))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
