"""The scan equals the loop over its recurrence, in both directions."""

import pytest
import torch

from deltaflow.encoders.scan import SHORT, Chunks, last_state, scan_, scan_back_

STEPS = [1, 2, SHORT, SHORT + 1, 36, 103, 3 * SHORT**2]
"""In one chunk, in several, and in chunks of chunks."""

any_length = pytest.mark.parametrize("num_steps", STEPS)
any_chunks = pytest.mark.parametrize("length", [1, 2, 10, SHORT, 1000])


def draw(num_steps: int, series: int = 2, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors ``(B, T, n)`` and inputs ``(B, T, 2, n)``."""
    random = torch.Generator().manual_seed(0)
    factors = torch.rand(series, num_steps, 3, generator=random, dtype=dtype)
    return factors, torch.randn(series, num_steps, 2, 3, generator=random, dtype=dtype)


def loop(factors: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The recurrence, step by step: ``(B, T, 2, n)``."""
    state, states = torch.zeros_like(inputs[:, 0]), []
    for factor, added in zip(factors.unbind(1), inputs.unbind(1), strict=True):
        state = factor.unsqueeze(1) * state + added
        states.append(state)
    return torch.stack(states, 1)


@any_length
@any_chunks
def test_states_are_those_of_the_loop(num_steps, length):
    factors, inputs = draw(num_steps)
    chunks = Chunks.of(num_steps, length)
    states = scan_(chunks.arranged(factors), chunks.arranged(inputs))
    expected = chunks.arranged(loop(factors, inputs))
    steps = torch.arange(chunks.length * chunks.count).view(1, -1, 1, 1)
    within = (chunks.arranged(steps) < num_steps).expand_as(states)
    torch.testing.assert_close(states[within], expected[within], atol=1e-12, rtol=1e-12)


@any_length
@any_chunks
def test_its_derivative_is_that_of_the_loop(num_steps, length):
    factors, inputs = draw(num_steps)
    weights = torch.linspace(-1, 2, inputs.numel(), dtype=inputs.dtype).view_as(inputs)
    inputs.requires_grad_()
    (expected,) = torch.autograd.grad((loop(factors, inputs) * weights).sum(), inputs)
    chunks = Chunks.of(num_steps, length)
    found = scan_back_(chunks.arranged(factors), chunks.arranged(weights))
    torch.testing.assert_close(found, chunks.arranged(expected), atol=1e-12, rtol=1e-12)


@any_chunks
def test_any_step_is_found_again(length):
    steps = torch.tensor([0, 5, 36, 11])
    chunks = Chunks.of(37, length)
    numbers = torch.arange(4 * 37).view(4, 37)
    found = chunks.arranged(numbers).flatten()[chunks.places(steps)]
    assert torch.equal(found, numbers[torch.arange(4), steps])


@any_chunks
def test_times_go_on_from_chunk_to_chunk(length):
    gaps = torch.rand(3, 37, dtype=torch.float64)
    chunks = Chunks.of(37, length)
    arranged = chunks.arranged(gaps)
    before = torch.cat([torch.zeros_like(gaps[:, :1]), gaps[:, :-1]], 1)
    for step in (0, 1, 20, 36):
        place = chunks.places(torch.full((3,), step))
        assert torch.equal(chunks.delayed(arranged).flatten()[place], before[:, step])
        elapsed = chunks.elapsed(arranged).flatten()[place]
        torch.testing.assert_close(elapsed, gaps[:, : step + 1].sum(1))


def test_a_long_series_is_as_exact_as_a_short_one():
    """Errors of float32 fade as the states do: ten thousand steps add up no more than a hundred."""
    factors, inputs = draw(10_000, series=1, dtype=torch.float32)
    factors = 0.99 * factors.sqrt()
    exact = loop(factors.double(), inputs.double())
    chunks = Chunks.of(10_000, 100)
    states = scan_(chunks.arranged(factors), chunks.arranged(inputs))
    error = (states - chunks.arranged(exact)).abs().amax((0, 1)).mT.flatten()
    assert error[-100:].max() < 4 * error[:1000].max() < 1e-4


def test_numbers_fade_to_zero_where_they_would_be_slow():
    """Gradients of the distant past are 0, in place of numbers with a digit or two left."""
    chunks = Chunks.of(1600, 40)
    gradient = torch.zeros(1, 1600, 1, 1)
    gradient[:, -1] = 1.0
    found = scan_back_(chunks.arranged(torch.full((1, 1600, 1), 0.8)), chunks.arranged(gradient))
    small = (found != 0) & (found.abs() < torch.finfo(found.dtype).tiny)
    assert (found > 0).sum() > 200
    assert not small.any()


@any_length
@any_chunks
def test_the_last_state_is_that_of_the_scan(num_steps, length):
    factors, inputs = draw(num_steps)
    chunks = Chunks.of(num_steps, length)
    factors, inputs = chunks.arranged(factors), chunks.arranged(inputs)
    last = last_state(factors, inputs)
    torch.testing.assert_close(last, scan_(factors, inputs)[..., -1, -1, :])
