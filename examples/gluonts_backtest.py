"""A GluonTS backtest: split by real time, train every flow, and evaluate with GluonTS.

python examples/gluonts_backtest.py [--quick]
"""

import sys

import pandas as pd
from gluonts.ev.metrics import MSE, MeanWeightedSumQuantileLoss
from gluonts.model import Predictor, evaluate_model

from deltaflow import (
    CouplingFlowEstimator,
    GRUEstimator,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataset,
    ResNetFlowEstimator,
    TimeSplitter,
)
from deltaflow.tasks import sparse_multivariate

ESTIMATORS = [GRUFlowEstimator, CouplingFlowEstimator, ResNetFlowEstimator, GRUEstimator]


def main(quick: bool) -> None:
    df = sparse_multivariate()  # three correlated channels, half of the values missing
    channels = ["target_0", "target_1", "target_2"]
    data = IrregularDataset.from_long_dataframe(df, target=channels)
    splitter = TimeSplitter(after="72h", horizon="12h")
    length = splitter.prediction_length(data)
    train, template = splitter.split(data)
    instances = template.generate_instances(length)

    models: dict[str, Predictor] = {"hold": HoldPredictor.fit(train, length)}
    for estimator in ESTIMATORS:
        models[estimator.__name__] = estimator(
            prediction_length=length,
            context_length=32,
            seed=0,
            blend=False,  # the networks alone, without simple forecasts, to compare them
            trainer_kwargs={"max_epochs": 10, "fast_dev_run": quick, "enable_progress_bar": False},
        ).train(train)

    metrics = [MeanWeightedSumQuantileLoss([0.1, 0.5, 0.9]), MSE()]
    rows = [
        evaluate_model(model, test_data=instances, metrics=metrics) for model in models.values()
    ]
    print(pd.concat(rows).set_axis(list(models)).round(3))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
