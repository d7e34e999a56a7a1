"""Networks are the same under any default dtype of torch, and train in true half precision."""

import pytest
import torch

from deltaflow import (
    CouplingFlowEstimator,
    GRUEstimator,
    GRUFlowEstimator,
    LinearFlowEstimator,
    ResNetFlowEstimator,
)

any_estimator = pytest.mark.parametrize(
    "cls",
    [
        GRUFlowEstimator,
        ResNetFlowEstimator,
        CouplingFlowEstimator,
        LinearFlowEstimator,
        GRUEstimator,
    ],
)


@pytest.fixture
def default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@any_estimator
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_training_run_does_not_depend_on_the_default_dtype(
    cls, dtype, univariate, make_estimator, trained, instances, default_dtype
):
    expected = trained(cls)
    default_dtype(dtype)
    predictor = make_estimator(cls).train(univariate)
    weights = predictor.network.state_dict()
    for name, weight in expected.network.state_dict().items():
        assert torch.equal(weights[name], weight), name
    entries = instances(univariate)[:2]
    found = [forecast.quantile(0.9) for forecast in predictor.predict(entries)]
    default_dtype(torch.float32)
    for one, other in zip(found, expected.predict(entries), strict=True):
        assert (one == other.quantile(0.9)).all()


@any_estimator
def test_bfloat16_trains_every_flow(cls, univariate, make_estimator, instances):
    options = {"max_epochs": 1, "enable_progress_bar": False, "precision": "bf16-true"}
    predictor = make_estimator(cls, trainer_kwargs=options).train(univariate)
    assert all(weight.isfinite().all() for weight in predictor.network.state_dict().values())
    for forecast in predictor.predict(instances(univariate)[:2]):
        assert torch.as_tensor(forecast.quantile(0.9)).isfinite().all()
