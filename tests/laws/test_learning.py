"""What every flow estimator must be able to learn."""

import numpy as np
import pytest
from gluonts.dataset.split import split
from gluonts.ev.metrics import MSE, Coverage
from gluonts.model.evaluation import evaluate_model

import deltaflow
from deltaflow.tasks import irregular_sine

PERIODIC = {"time_embedding": "fourier"}
FLOW_ESTIMATORS = [
    (deltaflow.GRUFlowEstimator, PERIODIC),
    (deltaflow.CouplingFlowEstimator, PERIODIC),
    (deltaflow.ResNetFlowEstimator, PERIODIC),
    (deltaflow.LinearFlowEstimator, {}),
]


@pytest.fixture(scope="module")
def sines():
    """Noisy sines with random phases and exponential gaps: training items, and unseen ones."""
    frame = irregular_sine(num_series=150, length=50, seed=0)
    dataset = deltaflow.IrregularDataset.from_long_dataframe(frame)
    train, test = deltaflow.split_items(dataset, 0.3)
    _, template = split(test, offset=-10)
    return train, template.generate_instances(10)


@pytest.mark.parametrize(
    ("estimator_class", "encoder_kwargs"),
    FLOW_ESTIMATORS,
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_irregular_sine_is_forecast_with_a_quarter_of_the_error_of_hold(
    estimator_class, encoder_kwargs, sines
):
    train, test_data = sines
    metrics = [MSE(), Coverage(0.1), Coverage(0.9)]
    hold = evaluate_model(
        deltaflow.HoldEstimator(10).train(train), test_data=test_data, metrics=metrics
    )
    estimator = estimator_class(
        prediction_length=10,
        context_length=30,
        encoder_kwargs=encoder_kwargs,
        lr=0.01,
        seed=0,
        folds=0,
        trainer_kwargs={"max_epochs": 4, "enable_progress_bar": False},
    )
    scores = evaluate_model(estimator.train(train), test_data=test_data, metrics=metrics)

    assert scores["MSE[mean]"].item() < 0.25 * hold["MSE[mean]"].item()
    covered = np.diff(scores[["coverage[0.1]", "coverage[0.9]"]].to_numpy())
    # 450 forecasts, of which ten each share a context: a deviation of some 4 points is chance.
    assert 0.65 < covered.item() < 0.95
