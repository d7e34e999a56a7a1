"""The scan equals the loop over its recurrence, in values and in derivatives of any order."""

import pytest
import torch

from deltaflow.encoders.scan import SHORT, scan

STEPS = [0, 1, 2, SHORT, SHORT + 1, 36, 41, 103]
"""Without chunks, of whole chunks, and with a rest."""

any_length = pytest.mark.parametrize("num_steps", STEPS)


def loop(factors: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The recurrence, step by step."""
    state, states = torch.zeros_like(inputs[:1]).sum(0), []
    for factor, added in zip(factors, inputs, strict=True):
        state = factor * state + added
        states.append(state)
    return torch.stack(states) if states else inputs


def draw(num_steps: int, series: int = 2, dtype=torch.complex128) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shape = num_steps, series, 3
    factors, inputs = (torch.randn(shape, generator=random, dtype=dtype) for _ in range(2))
    return [(0.7 * factors).requires_grad_(), inputs.requires_grad_()]


def weighed(states: torch.Tensor) -> torch.Tensor:
    """A scalar that weighs all states differently, and not linearly."""
    return (states * torch.linspace(-1, 2, states.numel()).view_as(states)).sin().abs().sum()


@any_length
@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64], ids=str)
def test_states_are_those_of_the_loop(num_steps, dtype):
    factors, inputs = draw(num_steps, dtype=dtype)
    torch.testing.assert_close(scan(factors, inputs), loop(factors, inputs), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("num_steps", STEPS[1:])
def test_gradients_are_those_of_the_loop(num_steps):
    parts = draw(num_steps)
    fast, plain = (torch.autograd.grad(weighed(run(*parts)), parts) for run in (scan, loop))
    torch.testing.assert_close(fast, plain, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("num_steps", [5, 19])
def test_second_derivatives_are_right(num_steps):
    parts = draw(num_steps, series=1)
    assert torch.autograd.gradcheck(scan, parts)
    assert torch.autograd.gradgradcheck(scan, parts)


def test_it_is_differentiated_by_functions():
    parts = [part.detach() for part in draw(20)]
    fast, plain = (
        torch.func.grad(lambda a, b, run=run: weighed(run(a, b)), argnums=(0, 1))(*parts)
        for run in (scan, loop)
    )
    torch.testing.assert_close(fast, plain, atol=1e-11, rtol=1e-11)


def test_only_what_needs_a_gradient_gets_one():
    factors, inputs = draw(40)
    weighed(scan(factors.detach(), inputs)).backward()
    assert factors.grad is None
    weighed(scan(factors, inputs.detach())).backward()
    assert factors.grad.isfinite().all()


def test_memory_in_any_order_is_read():
    parts = [part.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0) for part in draw(40)]
    assert not parts[0].is_contiguous()
    torch.testing.assert_close(scan(*parts), loop(*parts), atol=1e-12, rtol=1e-12)


def test_a_long_series_is_as_exact_as_a_short_one():
    """Errors of float32 fade as the states do: ten thousand steps add up no more than a hundred."""
    factors, inputs = (part.detach() for part in draw(10_000, series=1, dtype=torch.complex64))
    factors = factors / factors.abs().clamp(min=1) * 0.99
    exact = loop(factors.cdouble(), inputs.cdouble())
    error = (scan(factors, inputs) - exact).abs().amax((1, 2))
    assert error[-100:].max() < 4 * error[:1000].max() < 1e-4
