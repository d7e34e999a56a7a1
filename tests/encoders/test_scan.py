"""The scan equals the loop over its recurrence, in both directions."""

import pytest
import torch

from deltaflow.encoders.scan import (
    SHORT,
    Chunks,
    Order,
    delayed,
    last_state,
    scan_,
    scan_back_,
    since_first,
)

STEPS = [1, 2, SHORT, SHORT + 1, 36, 103, 3 * SHORT**2]
"""In one chunk, in several, and in chunks of chunks."""

any_length = pytest.mark.parametrize("num_steps", STEPS)
any_chunks = pytest.mark.parametrize("length", [1, 2, 10, SHORT, 1000])


def draw(num_steps: int, series: int = 2, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors ``(B, T, n)``, 0 at the first step, and inputs ``(B, T, 2, n)``."""
    random = torch.Generator().manual_seed(0)
    factors = torch.rand(series, num_steps, 3, generator=random, dtype=dtype)
    factors[:, 0] = 0.0
    return factors, torch.randn(series, num_steps, 2, 3, generator=random, dtype=dtype)


def loop(factors: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The recurrence, step by step: ``(B, T, 2, n)``."""
    state, states = torch.zeros_like(inputs[:, 0]), []
    for factor, added in zip(factors.unbind(1), inputs.unbind(1), strict=True):
        state = factor.unsqueeze(1) * state + added
        states.append(state)
    return torch.stack(states, 1)


def arranged(chunks: Chunks, rows: torch.Tensor) -> torch.Tensor:
    """Arrange ``(B, T, …)`` as ``(…, L, C, B)``."""
    places = chunks.arranged(torch.arange(rows.shape[:2].numel()).view(rows.shape[:2]))
    parts = rows.flatten(0, 1)[places]
    return parts.permute(*range(3, parts.ndim), 0, 1, 2).contiguous()


def in_order(chunks: Chunks, arranged: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Return the last T steps of ``(…, L, C, B)`` as ``(…, B, T)``."""
    return arranged.permute(*range(arranged.ndim - 3), -1, -2, -3).flatten(-2)[..., -num_steps:]


@any_length
@any_chunks
def test_states_are_those_of_the_loop(num_steps, length):
    factors, inputs = draw(num_steps)
    chunks = Chunks.of(num_steps, length)
    states = scan_(arranged(chunks, factors), arranged(chunks, inputs))
    expected = loop(factors, inputs).permute(2, 3, 0, 1)
    found = in_order(chunks, states, num_steps)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@any_length
@any_chunks
def test_its_derivative_is_that_of_the_loop(num_steps, length):
    factors, inputs = draw(num_steps)
    weights = torch.linspace(-1, 2, inputs.numel(), dtype=inputs.dtype).view_as(inputs)
    inputs.requires_grad_()
    (expected,) = torch.autograd.grad((loop(factors, inputs) * weights).sum(), inputs)
    chunks = Chunks.of(num_steps, length)
    found = scan_back_(arranged(chunks, factors), arranged(chunks, weights))
    found = in_order(chunks, found, num_steps)
    torch.testing.assert_close(found, expected.permute(2, 3, 0, 1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "lengths", [[37, 37, 37], [36] * 2, [1, 1], [1], [3000], [5, 0, 400, 1, 0], [0, 2, 0]]
)
def test_every_observation_is_read_once_and_each_series_begins_anew(lengths):
    lengths = torch.tensor(lengths)
    running = torch.arange(lengths.max()) < lengths.unsqueeze(-1)
    side_by_side = bool(running.all())
    order = Order.of(running)
    chunks = Chunks(*order.source.shape[:2])
    observations = running.flatten().nonzero().flatten()
    rows = observations.view(len(lengths) if side_by_side else 1, -1)
    assert torch.equal(in_order(chunks, order.source, rows.shape[1]), rows)
    fillers = chunks.length * chunks.count - rows.shape[1]
    assert fillers < chunks.count
    if order.begins is None:
        assert side_by_side
        assert fillers == 0
    else:
        first = in_order(chunks, order.begins, rows.shape[1]).flatten()
        assert (rows.flatten()[first] % running.shape[1] == 0).all()
        assert order.begins.sum() == first.sum() == (lengths > 0).sum()
    newest = order.at_end(order.source)[lengths > 0]
    assert torch.equal(
        newest, (torch.arange(len(lengths)) * running.shape[1] + lengths - 1)[lengths > 0]
    )


@any_chunks
def test_times_go_on_from_chunk_to_chunk(length):
    gaps = torch.rand(3, 37, dtype=torch.float64)
    gaps[:, 0] = 0.0
    chunks = Chunks.of(37, length)
    found = gaps.flatten()[chunks.arranged(torch.arange(3 * 37).view(3, 37))]
    elapsed = in_order(chunks, since_first(found), 37)
    torch.testing.assert_close(elapsed, gaps.cumsum(1))
    before = in_order(chunks, delayed(found), 37)
    assert torch.equal(before[:, 1:], gaps[:, :-1])


def test_a_long_series_is_as_exact_as_a_short_one():
    """Errors of float32 fade as the states do: ten thousand steps add up no more than a hundred."""
    factors, inputs = draw(10_000, series=1, dtype=torch.float32)
    factors = 0.99 * factors.sqrt()
    exact = loop(factors.double(), inputs.double())
    chunks = Chunks.of(10_000, 100)
    states = in_order(chunks, scan_(arranged(chunks, factors), arranged(chunks, inputs)), 10_000)
    error = (states - exact.permute(2, 3, 0, 1)).abs().amax((0, 1)).flatten()
    assert error[-100:].max() < 4 * error[:1000].max() < 1e-4


def test_numbers_fade_to_zero_where_they_would_be_slow():
    """Gradients of the distant past are 0, in place of numbers with a digit or two left."""
    chunks = Chunks.of(1600, 40)
    gradient = torch.zeros(1, 1600, 1, 1)
    gradient[:, -1] = 1.0
    factors = torch.full((1, 1600, 1), 0.8)
    found = scan_back_(arranged(chunks, factors), arranged(chunks, gradient))
    small = (found != 0) & (found.abs() < torch.finfo(found.dtype).tiny)
    assert (found > 0).sum() > 200
    assert not small.any()


@any_length
@any_chunks
def test_the_last_state_is_that_of_the_scan(num_steps, length):
    factors, inputs = draw(num_steps)
    chunks = Chunks.of(num_steps, length)
    factors, inputs = arranged(chunks, factors), arranged(chunks, inputs)
    last = last_state(factors, inputs)
    torch.testing.assert_close(last, scan_(factors, inputs)[..., -1, -1, :])
