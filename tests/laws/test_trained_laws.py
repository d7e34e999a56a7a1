"""The laws of the flows hold for weights as training leaves them, in both precisions."""

import copy

import pytest
import torch

from deltaflow import CouplingFlowEstimator, GRUFlowEstimator, ResNetFlowEstimator
from deltaflow.flows import GRULayer, ResNetLayer, spectral_normalise

ESTIMATORS = {
    "gru": GRUFlowEstimator, "resnet": ResNetFlowEstimator, "coupling": CouplingFlowEstimator
}  # fmt: skip
DTYPES = {"float32": torch.float32, "float64": torch.float64}
EPSILON = {torch.float32: 1e-6, torch.float64: 1e-14}
SEEDS = (0, 1, 2)

any_flow = pytest.mark.parametrize("name", ESTIMATORS)
any_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
any_seed = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(scope="module")
def encoder_of(univariate, make_estimator):
    """A function ``(flow, seed, dtype) -> encoder``, trained with large steps for a moment."""
    trained = {}

    def get(name: str, seed: int, dtype: torch.dtype):
        if (name, seed) not in trained:
            estimator = make_estimator(
                ESTIMATORS[name], seed=seed, lr=0.05, num_batches_per_epoch=30
            )
            trained[name, seed] = estimator.train(univariate).network.encoder
        return copy.deepcopy(trained[name, seed]).to(dtype)

    return get


def flow_of(encoder):
    return encoder.evolution.flow


def layers_of(encoder) -> list:
    layers = [part for part in encoder.modules() if isinstance(part, (GRULayer, ResNetLayer))]
    assert layers
    return layers


def norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach().double(), 2))


def states(count: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return (2 * torch.rand(count, dim, generator=random, dtype=torch.float64) - 1).to(dtype)


@any_seed
@any_dtype
@pytest.mark.parametrize("name", ["gru", "resnet"])
def test_trained_matrices_keep_to_their_bound(name, seed, dtype, encoder_of):
    pressed = 0
    for layer in layers_of(encoder_of(name, seed, dtype)):
        if name == "gru":
            raw, bound = list(layer.weight), layer.coefficient
            matrices = spectral_normalise(layer.weight, bound)
        else:
            raw, bound = list(layer.g.weights), layer.g.lipschitz ** (1 / len(layer.g.weights))
            matrices = layer.g.matrices()
        pressed += sum(norm(matrix) > bound for matrix in raw)
        assert max(map(norm, matrices)) <= bound * (1 + EPSILON[dtype])
    assert pressed  # without the normalisation the bound would not hold


@any_seed
@any_dtype
@pytest.mark.parametrize("name", ["gru", "resnet"])
def test_trained_residuals_contract(name, seed, dtype, encoder_of):
    for layer in layers_of(encoder_of(name, seed, dtype)):
        one, other = states(256, layer.dim, dtype), states(256, layer.dim, dtype).flip(0)
        t = 10 ** torch.linspace(-3, 6, 256, dtype=dtype).unsqueeze(-1)
        step = layer.prepare()
        moved = ((step(t, one) - one) - (step(t, other) - other)).norm(dim=-1)
        apart = (one - other).norm(dim=-1)
        assert (moved <= layer.lipschitz_bound * apart + EPSILON[dtype] * 10).all()


@any_seed
@any_dtype
@any_flow
def test_a_trained_flow_is_inverted(name, seed, dtype, encoder_of):
    flow = flow_of(encoder_of(name, seed, dtype))
    x = states(64, flow.dim, dtype)
    t = 10 ** torch.linspace(-3, 1, 64, dtype=dtype).unsqueeze(-1)
    with torch.no_grad():
        back = flow.inverse(t, flow(t, x))
    # A layer with Lipschitz constant L of its residual magnifies errors by at most 1 / (1 - L).
    magnified = 1e4 if name != "coupling" else 1e2
    assert (back - x).abs().max() <= EPSILON[dtype] * magnified


@any_dtype
@any_flow
@pytest.mark.parametrize(("gap", "seed"), [(0.0, 0), (1.0, 1), (1e6, 2)])
def test_ten_thousand_observations_do_not_drift(name, seed, dtype, gap, encoder_of):
    encoder = encoder_of(name, seed, dtype)
    length, random = 10_000, torch.Generator().manual_seed(seed)
    values = torch.randn(1, length, encoder.num_channels, generator=random).clamp(-10, 10).to(dtype)
    observed = torch.rand(values.shape, generator=random) < 0.7
    state = encoder(
        values * observed,
        observed,
        torch.full((1, length), gap, dtype=dtype),
        torch.tensor([length]),
        torch.zeros(1, length, encoder.num_features, dtype=dtype),
    )
    assert state.hidden.isfinite().all()
    assert state.hidden.abs().max() <= (1.0 if name == "gru" else 1e3)


@any_seed
@any_dtype
@any_flow
def test_gradients_of_trained_weights_are_finite_after_a_million_gaps(
    name, seed, dtype, encoder_of
):
    flow = flow_of(encoder_of(name, seed, dtype))
    x = states(16, flow.dim, dtype).requires_grad_()
    t = torch.full((16, 1), 1e6, dtype=dtype, requires_grad=True)
    flow(t, x).square().mean().backward()
    for part in (x, t, *flow.parameters()):
        assert part.grad is None or part.grad.isfinite().all()
