"""The scan equals the loop over its recurrence, in values and in derivatives of any order."""

import pytest
import torch

from deltaflow.encoders.scan import SHORT, scan

STEPS = [0, 1, 2, SHORT, SHORT + 1, 36, 41, 103]
"""Without chunks, of whole chunks, and with a rest."""

any_length = pytest.mark.parametrize("num_steps", STEPS)


def loop(factors: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The recurrence in complex numbers, step by step."""
    a, b = (torch.complex(*part) for part in (factors, inputs))
    state, states = torch.zeros_like(b[:, :0].sum(1)), []
    for factor, added in zip(a.unbind(1), b.unbind(1), strict=True):
        state = factor * state + added
        states.append(state)
    stacked = torch.stack(states, 1) if states else b
    return torch.stack([stacked.real, stacked.imag])


def draw(num_steps: int, series: int = 2, dtype=torch.float64) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shape = 2, 3, num_steps, series
    parts = [torch.randn(shape, generator=random, dtype=dtype) for _ in range(2)]
    parts[0] = 0.7 * parts[0]
    return [part.requires_grad_() for part in parts]


def weighed(states: torch.Tensor) -> torch.Tensor:
    """A scalar that weighs all states differently, and not linearly."""
    return (states * torch.linspace(-1, 2, states.numel()).view_as(states)).sin().sum()


@any_length
def test_states_are_those_of_the_loop(num_steps):
    factors, inputs = draw(num_steps)
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
    scan(factors.detach(), inputs).sum().backward()
    assert factors.grad is None
    scan(factors, inputs.detach()).sum().backward()
    assert factors.grad.isfinite().all()


def test_memory_in_any_order_is_read():
    parts = [
        part.detach().permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0) for part in draw(40)
    ]
    assert not parts[0].is_contiguous()
    torch.testing.assert_close(scan(*parts), loop(*parts), atol=1e-12, rtol=1e-12)


def test_a_long_series_is_as_exact_as_a_short_one():
    """Errors of float32 fade as the states do: ten thousand steps add up no more than a hundred."""
    factors, inputs = (part.detach() for part in draw(10_000, series=1, dtype=torch.float32))
    factors = factors / torch.linalg.vector_norm(factors, dim=0).clamp(min=1) * 0.99
    exact = loop(factors.double(), inputs.double())
    error = (scan(factors, inputs).double() - exact).abs().amax((0, 1, 3))
    assert error[-100:].max() < 4 * error[:1000].max() < 1e-4
