"""What a time embedding promises: zero at zero, a sign, a bound, and its derivative."""

import math

import pytest
import torch

from deltaflow.errors import UnknownNameError
from deltaflow.flows import BOUNDED_TIME_EMBEDDINGS, TIME_EMBEDDINGS, GRUFlow
from deltaflow.flows.time_embedding import (
    FASTEST_RATE,
    SLOWEST_RATE,
    FourierTime,
    Rate,
    once_per_time,
)

MAKERS = [
    pytest.param(make, id=f"{name}-{kind}")
    for kind, registry in (("free", TIME_EMBEDDINGS), ("bounded", BOUNDED_TIME_EMBEDDINGS))
    for name, make in registry.items()
]
any_embedding = pytest.mark.parametrize("make", MAKERS)
any_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@any_embedding
@any_dtype
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_zero_time_is_exactly_zero(make, dtype, rows):
    assert torch.equal(
        make(5).to(dtype)(torch.zeros(rows, 1, dtype=dtype)), torch.zeros(rows, 5, dtype=dtype)
    )


@pytest.mark.parametrize("name", BOUNDED_TIME_EMBEDDINGS)
@pytest.mark.parametrize("factor", [-100.0, -1.0, 1.0, 100.0])
def test_bounded_embeddings_lie_between_zero_and_one(name, factor):
    """Whatever the weights; to within the rounding of a sum of four convex weights."""
    phi = BOUNDED_TIME_EMBEDDINGS[name](32)
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter.mul_(factor).add_(torch.randn_like(parameter))
    values = phi(10 ** torch.linspace(-6, 6, 1000).unsqueeze(-1))
    assert values.min() >= 0
    assert values.max() <= 1 + 4 * torch.finfo(values.dtype).eps


@any_embedding
def test_derivative_equals_finite_differences(make):
    phi, step = make(5).double(), 1e-5
    t = 10 ** torch.linspace(-2, 2, 50, dtype=torch.float64).unsqueeze(-1)
    difference = (phi(t + step) - phi(t - step)) / (2 * step)
    torch.testing.assert_close(phi.derivative(t), difference, atol=1e-8, rtol=1e-8)


@any_embedding
@any_dtype
def test_a_million_gaps_are_finite(make, dtype):
    phi = make(5).to(dtype)
    t = torch.tensor([[0.0], [1e-6], [1.0], [1e6]], dtype=dtype, requires_grad=True)
    values = phi(t)
    values.sum().backward()
    assert values.isfinite().all()
    assert t.grad is not None
    assert t.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in phi.parameters())


@any_embedding
@pytest.mark.parametrize("time", [-2.0, -1e-3, math.nan, math.inf])
@pytest.mark.parametrize("method", ["forward", "derivative"])
def test_times_before_zero_are_refused(make, time, method):
    with pytest.raises(ValueError, match="times must be finite"):
        getattr(make(5), method)(torch.tensor([[1.0], [time]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@any_embedding
def test_the_default_dtype_does_not_change_the_initial_weights(make, dtype):
    expected = make(5).state_dict()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        found = make(5)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, weight in found.state_dict().items():
        assert torch.equal(weight, expected[name].to(dtype))


@any_embedding
def test_batch_axes_are_kept(make):
    assert make(5)(torch.rand(2, 3, 1)).shape == (2, 3, 5)


def test_equal_times_are_embedded_once_with_the_same_gradients():
    phi = FourierTime(5)
    with torch.no_grad():
        phi.raw_weight.normal_()
    plain, sizes = phi.prepare(), []

    def counted(t):
        sizes.append(len(t))
        return plain(t)

    moments = torch.rand(4, 1)
    t = moments[torch.randint(4, (30, 20))]  # (30, 20, 1)
    torch.testing.assert_close(once_per_time(counted)(t), plain(t.clone().requires_grad_()))
    assert sizes == [4]
    weight = torch.randn(30, 20, 5)
    parameters = list(phi.parameters())
    gradients = [
        torch.autograd.grad((phi.prepare()(times) * weight).sum(), parameters)
        for times in (t, t.clone().requires_grad_())  # with a derivative, each time is its own
    ]
    for mine, plain_one in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain_one, rtol=1e-4, atol=1e-4)


def test_rates_cover_the_decades():
    rate = Rate(64)()
    assert rate.min() >= SLOWEST_RATE * 0.999
    assert rate.max() <= FASTEST_RATE * 1.001
    per_decade = torch.histc(rate.log10(), bins=2, min=-2, max=0)
    assert (per_decade > 20).all()


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"tanh.*'fourier'"):
        GRUFlow(3, time_embedding="tan")
