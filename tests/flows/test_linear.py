"""What a linear flow promises beyond the laws of all flows, at any time scale."""

import math

import pytest
import torch
from scipy.linalg import expm

from deltaflow.flows import FlowInversionError, LinearFlow

DIMS = [1, 2, 5, 32]
GAPS = [0.0, 1e-9, 1e-3, 1.0, 1e3, 1e6]
"""Gaps in typical gaps."""

any_dim = pytest.mark.parametrize("dim", DIMS)


def states(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=dtype) - 1


def slow(dim: int, rate: float = 1e-8, dtype=torch.float64) -> LinearFlow:
    """A flow that turns at many frequencies and hardly decays in a million gaps."""
    flow = LinearFlow(dim).to(dtype)
    with torch.no_grad():
        flow.rate.fill_(math.log(math.expm1(rate)))
    return flow


def generator(flow: LinearFlow) -> torch.Tensor:
    """The matrix A of the ODE dx/dt = A x."""
    rates, turns = flow.exponent()
    matrix = torch.zeros(flow.dim, flow.dim, dtype=torch.float64)
    for mode in range(flow.num_modes):
        matrix[mode, mode] = -rates[mode]
        other = flow.num_modes + mode
        if other < flow.dim:
            matrix[other, other] = -rates[mode]
            matrix[other, mode] = 2 * math.pi * turns[mode]
            matrix[mode, other] = -2 * math.pi * turns[mode]
    return matrix.detach()


@any_dim
@pytest.mark.parametrize("time", [1e-9, 0.1, 3.0, 50.0])
def test_it_is_the_matrix_exponential(dim, time):
    flow, x = LinearFlow(dim).double(), states(4, dim)
    expected = x @ torch.from_numpy(expm(generator(flow).numpy() * time)).mT
    t = torch.tensor([time], dtype=torch.float64)
    torch.testing.assert_close(flow(t, x), expected, atol=1e-12, rtol=1e-11)
    field = flow(t, x) @ generator(flow).mT
    torch.testing.assert_close(flow.vector_field(t, x), field, atol=1e-12, rtol=1e-11)


@any_dim
@pytest.mark.parametrize("s", GAPS)
@pytest.mark.parametrize("t", GAPS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-9)], ids=["f32", "f64"]
)
def test_two_steps_are_one_at_any_time_scale(dim, s, t, dtype, tolerance):
    """A million gaps are up to 4e5 turns. Of them, float64 times keep ten digits, and float32 as
    many as a float32 state has: times are not rounded to the state's dtype."""
    flow, x = slow(dim, dtype=dtype), states(8, dim, dtype=dtype)
    s, t = (torch.tensor([time], dtype=torch.float64) for time in (s, t))
    two = flow(t, flow(s, x))
    assert two.dtype == dtype
    torch.testing.assert_close(two, flow(s + t, x), atol=tolerance, rtol=0)


def test_float32_states_are_right_after_a_million_gaps():
    """Where a phase that is formed in float32 has no digit left."""
    exact = slow(16)
    flow, x = slow(16, dtype=torch.float32), states(8, 16)
    exact.load_state_dict(flow.state_dict())
    t = torch.linspace(9e5, 1e6, 8, dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(flow(t, x.float()).double(), exact(t, x), atol=1e-6, rtol=0)
    of_float32 = t.float()
    near = exact(of_float32.double(), x)
    torch.testing.assert_close(flow(of_float32, x.float()).double(), near, atol=1e-6, rtol=0)


@any_dim
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_time_changes_not_a_bit(dim, dtype):
    x = torch.cat([states(4, dim), 1e30 * states(4, dim), 1e-30 * states(4, dim)]).to(dtype)
    assert torch.equal(LinearFlow(dim).to(dtype)(torch.zeros(1, dtype=dtype), x), x)


@any_dim
def test_time_runs_back(dim):
    flow, x = LinearFlow(dim).double(), states(6, dim)
    t = torch.tensor([1e-9, 1e-3, 1.0, 3.0, 10.0, 30.0], dtype=torch.float64).unsqueeze(-1)
    back = flow.inverse(t, flow(t, x))
    torch.testing.assert_close(back, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(flow.inverse(t, x), flow.prepare()(-t, x), atol=0, rtol=1e-12)


def test_an_inverse_holds_as_long_as_numbers_do():
    """A dimension that has decayed to 1e-35 is as exact as one that has not."""
    flow, x = slow(4, rate=1.0, dtype=torch.float32), states(8, 4, dtype=torch.float32)
    for time in (1.0, 40.0, 80.0):
        t = torch.tensor([time])
        torch.testing.assert_close(flow.inverse(t, flow(t, x)), x, atol=2e-5, rtol=0)


@pytest.mark.parametrize("time", [90.0, 1e6, 1e30])
def test_an_inverse_that_numbers_cannot_hold_is_refused(time):
    flow = slow(4, rate=1.0, dtype=torch.float32)
    t, y = torch.tensor([[1.0], [time]]), torch.rand(2, 4)
    with pytest.raises(FlowInversionError, match="decay below the smallest number"):
        flow.inverse(t, y)
    with pytest.raises(FlowInversionError, match="decay below the smallest number"):
        flow(-t, y)


def test_an_inverse_less_exact_than_asked_for_is_refused():
    flow, t = slow(4, rate=1.0, dtype=torch.float32), torch.tensor([20.0])
    y = torch.full((1, 4), 1e-3)
    assert flow.inverse(t, y, tol=math.inf).isfinite().all()
    with pytest.raises(FlowInversionError, match=r"exceeds tol=0\.0001"):
        flow.inverse(t, y, tol=1e-4)


@any_dim
def test_log_determinant_is_time_times_trace(dim):
    flow = LinearFlow(dim).double()
    t = torch.tensor([[0.0], [2.5], [1e6]], dtype=torch.float64)
    expected = t.squeeze(-1) * generator(flow).trace()
    torch.testing.assert_close(flow.log_abs_det_jacobian(t, states(3, dim)), expected)


@any_dim
def test_it_is_stable_whatever_its_weights(dim):
    flow, x = LinearFlow(dim).double(), states(8, dim)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(100 * torch.randn_like(parameter))
    rates, turns = flow.exponent()
    assert (rates >= 0).all()
    assert (turns >= 0).all()
    for time in GAPS:
        moved = flow(torch.tensor([time], dtype=torch.float64), x)
        assert (moved.square().sum(-1) <= x.square().sum(-1) * (1 + 1e-12)).all()


def test_frequencies_start_between_the_span_and_the_gap():
    rates, turns = LinearFlow(32, span=200.0).exponent()
    assert (turns.diff() > 0).all()
    assert 2 / 200 < turns[0] < 2 / 100
    assert 0.25 < turns[-1] < 0.5
    assert 1 / 4000 < rates.min() < 1 / 2000
    assert 1 / 80 < rates.max() < 1 / 40


def test_frequencies_start_at_known_cycles():
    _, turns = LinearFlow(8, cycles=[24.0, 168.0]).exponent()
    torch.testing.assert_close(
        1 / turns[:2], torch.tensor([24.0, 168.0]).double(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    "options",
    [{"span": 0.0}, {"span": math.inf}, {"cycles": [0.0]}, {"cycles": [math.nan]}],
    ids=str,
)
def test_times_that_are_none_are_refused(options):
    with pytest.raises(ValueError, match=r"span|cycles"):
        LinearFlow(4, **options)
