r"""A linear recurrence as a scan: :math:`s_n = a_n s_{n-1} + b_n` in :math:`O(\sqrt T)` operations.

Numbers are complex and stored as pairs of real ones, which vectorised code is faster on: the first
axis of every tensor holds the real and the imaginary part.

The T steps are cut into about :math:`\sqrt T` chunks. A loop through all chunks side by side finds
how each of them maps the state before it to the state at its end. A loop over the chunks composes
these maps. A last loop, again through all chunks side by side, computes every state. The derivative
of the recurrence is a recurrence of the same kind that runs backwards.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 16
"""Up to so many steps are taken one by one."""


def scan(factors: Tensor, inputs: Tensor) -> Tensor:
    r"""Return :math:`s_n = a_n s_{n-1} + b_n` for all n, where :math:`s_{-1} = 0`.

    It can be differentiated any number of times.

    Parameters
    ----------
    factors, inputs
        :math:`a` and :math:`b`, both ``(2, N, T, B)``: real and imaginary parts of N numbers at T
        steps of B series.

    Returns
    -------
    Tensor
        The states, ``(2, N, T, B)``.
    """
    return _Scan.apply(factors, inputs, False)  # type: ignore[return-value]


class _Scan(torch.autograd.Function):
    """The recurrence, from the first step to the last one or in reverse."""

    @staticmethod
    def forward(factors: Tensor, inputs: Tensor, reverse: bool) -> Tensor:
        return _states(factors, inputs, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        factors, _, ctx.reverse = inputs
        ctx.save_for_backward(factors, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        # A state moves the loss by itself, and through the state after it:
        # dL/ds_n = g_n + conj(a_{n+1}) dL/ds_{n+1}; and dL/da_n = dL/ds_n conj(s_{n-1}).
        factors, states = ctx.saved_tensors
        later = -1 if ctx.reverse else 1
        real, imaginary = _shifted(factors, -later)
        total = _Scan.apply(torch.stack([real, -imaginary]), gradient, not ctx.reverse)
        of_factors = None
        if ctx.needs_input_grad[0]:
            (x, y), (u, v) = total, _shifted(states, later)
            of_factors = torch.stack([x * u + y * v, y * u - x * v])
        return of_factors, total, None


def _shifted(steps: Tensor, by: int) -> Tensor:
    """Return what stood one step before (1) or after (-1) each step, and 0 where nothing did."""
    return F.pad(steps, (0, 0, by, -by)) if steps.shape[2] else steps


def _states(factors: Tensor, inputs: Tensor, reverse: bool) -> Tensor:
    """Compute all states, in chunks as far as whole ones go, and one by one beyond."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    num_steps = inputs.shape[2]
    length = math.isqrt(num_steps) if num_steps > SHORT else num_steps + 1
    whole = num_steps // length * length

    def cut(steps: slice) -> tuple[Tensor, Tensor, Tensor]:
        return factors[:, :, steps], inputs[:, :, steps], states[:, :, steps]

    state = torch.zeros_like(inputs[:, :, :1]).squeeze(2)
    if reverse:
        state = _one_by_one(state, *cut(slice(whole, None)), reverse)
    if whole:
        state = _in_chunks(state, *cut(slice(whole)), length, reverse)
    if not reverse:
        _one_by_one(state, *cut(slice(whole, None)), reverse)
    return states


def _one_by_one(
    state: Tensor, factors: Tensor, inputs: Tensor, states: Tensor, reverse: bool
) -> Tensor:
    """Write states ``(2, N, T, …)`` from the one before them, and return the last one."""
    now = state.unbind()
    for factor, added, out in _steps(factors, inputs, states, reverse=reverse):
        now = _step(factor, now, added, out)
    return torch.stack(now)


def _in_chunks(
    state: Tensor, factors: Tensor, inputs: Tensor, states: Tensor, length: int, reverse: bool
) -> Tensor:
    """Do as `_one_by_one`, in chunks of some length side by side."""
    # The steps of a chunk come before the chunks: (2, N, length, C, B).
    factors, inputs, states = (
        part.unflatten(2, (-1, length)).transpose(2, 3) for part in (factors, inputs, states)
    )
    product, end = _whole_chunks(factors, inputs, reverse)  # (2, N, C, B)
    after = torch.empty_like(end)
    last = _one_by_one(state, product, end, after, reverse)
    state = state.unsqueeze(2)
    before = [after[:, :, 1:], state] if reverse else [state, after[:, :, :-1]]
    _one_by_one(torch.cat(before, 2), factors, inputs, states, reverse)
    return last


def _whole_chunks(factors: Tensor, inputs: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return ``(2, N, C, B)`` each: a chunk of steps maps a state s to product · s + end."""
    (product, end), *others = _steps(factors, inputs, reverse=reverse)
    nothing = torch.zeros_like(product[0])
    memory = torch.empty(2, 4, *nothing.shape, dtype=nothing.dtype, device=nothing.device)
    outs = [part.unbind() for part in memory]
    for number, (factor, added) in enumerate(others):
        out = outs[number % 2]
        product = _step(factor, product, (nothing, nothing), out[:2])
        end = _step(factor, end, added, out[2:])
    return torch.stack(product), torch.stack(end)


Pair: TypeAlias = tuple[Tensor, ...]
"""Real and imaginary part."""


def _steps(*parts: Tensor, reverse: bool) -> list[tuple[Pair, ...]]:
    """Take tensors ``(2, N, T, …)`` apart into pairs of ``(N, …)``, for each of T steps."""
    pairs = [list(zip(*(half.unbind(1) for half in part.unbind()), strict=True)) for part in parts]
    steps = list(zip(*pairs, strict=True))
    return steps[::-1] if reverse else steps


def _step(factor: Pair, state: Pair, added: Pair, out: Pair) -> Pair:
    """Write ``factor · state + added`` to ``out``, and return it."""
    a, b = factor
    torch.addcmul(added[0], a, state[0], out=out[0]).addcmul_(b, state[1], value=-1)
    torch.addcmul(added[1], a, state[1], out=out[1]).addcmul_(b, state[0])
    return out
