"""Spectral norms, Lipschitz bounds, and the fixed points that rest on them."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaflow.errors import DeltaflowError
from deltaflow.flows import (
    ContractiveMLP,
    FlowInversionError,
    GRUFlow,
    GRULayer,
    ResNetFlow,
    ResNetLayer,
    spectral_normalise,
)

LAYERS = {"resnet": ResNetLayer, "gru": GRULayer}
any_layer = pytest.mark.parametrize("name", LAYERS)


def make_states(*shape: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64) - 1


def make_layer(name: str, dim: int, factor: float = 1.0):
    layer = LAYERS[name](dim).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= factor
    return layer


def residual_norm(layer, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The exact norm of each row's Jacobian of ``F(t, x) - x``."""
    jacobian = torch.func.vmap(torch.func.jacrev(layer.prepare(), argnums=1))(t, x)
    return torch.linalg.matrix_norm(jacobian - torch.eye(layer.dim), 2)


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    exponent=st.integers(-6, 6),
    coefficient=st.floats(0.1, 0.999),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_spectral_norm_is_at_most_the_coefficient(rows, columns, exponent, coefficient, dtype):
    """Up to the rounding of a singular value, which grows with the size of the matrix."""
    weight = torch.randn(rows, columns, dtype=dtype) * 10.0**exponent
    norm = torch.linalg.matrix_norm(weight, 2)
    normalised = spectral_normalise(weight, coefficient)
    rounding = 4 * (rows + columns) * torch.finfo(dtype).eps
    expected = norm.clamp(max=coefficient)
    torch.testing.assert_close(
        torch.linalg.matrix_norm(normalised, 2), expected, atol=0, rtol=rounding
    )


def test_small_matrices_are_left_alone():
    weight = 0.1 * torch.eye(3)
    assert torch.equal(spectral_normalise(weight, 0.9), weight)
    assert torch.equal(spectral_normalise(torch.zeros(3, 3), 0.9), torch.zeros(3, 3))


def test_matrices_are_normalised_one_by_one():
    weights = torch.randn(3, 5, 5)
    expected = torch.stack([spectral_normalise(weight, 0.9) for weight in weights])
    torch.testing.assert_close(spectral_normalise(weights, 0.9), expected)


def test_gradient_passes_through_the_norm():
    weight = (3 * torch.randn(2, 4, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda weight: spectral_normalise(weight, 0.9), weight)


def test_a_zero_matrix_has_a_finite_gradient():
    weight = torch.zeros(3, 3, requires_grad=True)
    spectral_normalise(weight, 0.9).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 3))


@pytest.mark.parametrize("hidden_dims", [(), (16,), (16, 16)], ids=str)
def test_network_contracts_by_its_coefficient(hidden_dims):
    network = ContractiveMLP(4, 4, hidden_dims, lipschitz=0.7).double()
    with torch.no_grad():
        for weight in network.weights:
            weight *= 10
    jacobian = torch.func.jacrev(network.prepare(), argnums=1)
    x = 3 * make_states(64, 4)
    slopes = torch.func.vmap(jacobian)(torch.rand(64, 1, dtype=torch.float64), x)
    assert torch.linalg.matrix_norm(slopes, 2).max() <= 0.7 + 1e-12


@pytest.mark.parametrize("coefficient", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_coefficient_outside_the_open_interval_is_refused(coefficient):
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        ResNetFlow(3, lipschitz=coefficient)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        GRUFlow(3, coefficient=coefficient)


@any_layer
@pytest.mark.parametrize("dim", [1, 2, 32])
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0, 1000.0])
def test_residual_contracts_by_the_stated_bound(name, dim, factor):
    layer = make_layer(name, dim, factor)
    t = 10 ** torch.linspace(-2, 6, 64, dtype=torch.float64).unsqueeze(-1)
    norm = residual_norm(layer, t, make_states(64, dim))
    assert norm.max() <= layer.lipschitz_bound + 1e-12
    assert layer.lipschitz_bound < 1


@any_layer
def test_residual_contracts_at_the_worst_state_that_can_be_found(name):
    """Gradient ascent over weights, state and time comes nearer to the bound, but not past it."""
    torch.manual_seed(0)
    layer = make_layer(name, 2)
    log_t = torch.zeros(16, 1, dtype=torch.float64, requires_grad=True)
    raw_x = make_states(16, 2).requires_grad_()
    optimiser = torch.optim.Adam([*layer.parameters(), log_t, raw_x], lr=0.05, maximize=True)
    norms = []
    for _ in range(150):
        optimiser.zero_grad()
        norm = residual_norm(layer, log_t.exp(), raw_x.tanh()).max()
        norm.backward()
        optimiser.step()
        norms.append(norm.item())
    assert max(norms) > norms[0]
    assert max(norms) > 0.6  # the search does press against the bound
    assert max(norms) <= layer.lipschitz_bound + 1e-12


def test_the_bound_of_the_gru_flow_is_one_where_the_theorem_ends():
    bounds = [GRULayer(2, coefficient=c).lipschitz_bound for c in (0.1, 0.5, 0.9, 0.999999)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    dim=st.sampled_from([1, 2, 32]),
    factor=st.floats(0.01, 100),
    exponent=st.floats(-3, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_gru_flow_stays_in_the_cube(dim, factor, exponent, dtype):
    flow = GRUFlow(dim, num_layers=4).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter *= factor
    h = make_states(64, dim).to(dtype)
    h[:32] = h[:32].sign()  # corners
    step, t = flow.prepare(), torch.full((1,), 10.0**exponent, dtype=dtype)
    for _ in range(20):
        h = step(t, h)
        assert h.abs().max() <= 1


def test_a_value_that_the_gru_flow_does_not_take_has_no_inverse():
    """A strong pull towards the centre leaves the corners without a pre-image."""
    flow = GRUFlow(3, num_layers=1).double()
    t = torch.full((1,), 100.0, dtype=torch.float64)
    y = torch.ones(2, 3, dtype=torch.float64)
    y[0] = flow(t, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(FlowInversionError, match="1 of 2 rows have no pre-image"):
        flow.inverse(t, y)


def test_the_inverse_of_the_gru_flow_is_sought_in_the_cube_only():
    """With open gates and the candidate -1, the layer is 0.6 h - 0.4: it takes 1 to 0.2."""
    layer = GRULayer(1).double()
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([[50.0], [0.0], [-50.0]]))
    t = torch.full((1,), 1e6, dtype=torch.float64)
    inside, outside = torch.tensor([0.19]).double(), torch.tensor([0.21]).double()
    torch.testing.assert_close(layer.inverse(t, inside), (inside + 0.4) / 0.6)
    with pytest.raises(FlowInversionError, match="no pre-image"):
        layer.inverse(t, outside)


@pytest.mark.parametrize("value", [1.5, -30.0])
def test_a_value_outside_the_cube_has_no_inverse(value):
    flow = GRUFlow(3)
    with pytest.raises(FlowInversionError, match="no pre-image"):
        flow.inverse(torch.ones(1), torch.full((3,), value))


@any_layer
def test_too_few_iterations_raise(name):
    layer = make_layer(name, 3)
    t, x = torch.ones(1, dtype=torch.float64), make_states(4, 3)
    with pytest.raises(FlowInversionError, match="4 of 4 rows did not converge"):
        layer.inverse(t, layer(t, x), max_iter=2)
    with pytest.raises(FlowInversionError, match="max_iter=0"):
        layer.inverse(t, x, max_iter=0)


@any_layer
def test_a_single_unfinished_row_raises(name):
    layer = make_layer(name, 3)
    t = torch.tensor([[0.0], [50.0]], dtype=torch.float64)
    with pytest.raises(FlowInversionError, match="1 of 2 rows"):
        layer.inverse(t, layer(t, make_states(2, 3)), max_iter=3)


@any_layer
def test_nan_has_no_inverse(name):
    layer = make_layer(name, 3)
    with pytest.raises(FlowInversionError, match="1 of 2 rows"):
        layer.inverse(
            torch.ones(1, dtype=torch.float64),
            torch.tensor([[0.0] * 3, [0.0, float("nan"), 0.0]], dtype=torch.float64),
        )


@any_layer
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
def test_error_of_the_inverse_keeps_to_the_tolerance(name, tol):
    layer = make_layer(name, 8, 10.0)
    t, x = torch.full((1,), 5.0, dtype=torch.float64), make_states(64, 8)
    error = (layer.inverse(t, layer(t, x), tol=tol) - x).norm(dim=-1)
    assert error.max() <= tol


def test_inversion_errors_are_caught_as_ours_and_travel_between_processes():
    assert issubclass(FlowInversionError, DeltaflowError)
    assert issubclass(FlowInversionError, RuntimeError)
    assert str(pickle.loads(pickle.dumps(FlowInversionError("lost")))) == "lost"


@any_layer
def test_log_determinants_of_large_flows_are_refused(name):
    layer = make_layer(name, 65)
    with pytest.raises(ValueError, match="up to dim=64"):
        layer.log_abs_det_jacobian(torch.ones(1), make_states(2, 65))
