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
from typing import Any

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
    if by > 0:
        return F.pad(steps[:, :, :-1], (0, 0, 1, 0))
    return F.pad(steps[:, :, 1:], (0, 0, 0, 1))


def _states(factors: Tensor, inputs: Tensor, reverse: bool) -> Tensor:
    """Compute all states, in chunks as far as whole ones go, and one by one beyond."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    num_steps = inputs.shape[2]
    length = math.isqrt(num_steps) if num_steps > SHORT else num_steps + 1
    whole = num_steps // length * length
    whole_part, rest = (
        [part[:, :, steps] for part in (factors, inputs, states)]
        for steps in (slice(whole), slice(whole, None))
    )
    state = inputs.new_zeros(inputs[:, :, :1].shape).squeeze(2)
    if reverse:
        state = _one_by_one(state, rest, reverse)
    if whole:
        state = _in_chunks(state, whole_part, length, reverse)
    if not reverse:
        _one_by_one(state, rest, reverse)
    return states


def _one_by_one(state: Tensor, parts: list[Tensor], reverse: bool) -> Tensor:
    """Compute states ``(2, N, T, …)`` from the one before them, and return the last one."""
    steps = list(zip(*(part.unbind(2) for part in parts), strict=True))
    for factor, added, out in reversed(steps) if reverse else steps:
        state = _step(factor, state, added, out)
    return state


def _in_chunks(state: Tensor, parts: list[Tensor], length: int, reverse: bool) -> Tensor:
    """Compute states as `_one_by_one` does, in chunks of some length side by side."""
    # The steps of a chunk come before the chunks: (2, N, length, C, B).
    parts = [part.unflatten(2, (-1, length)).transpose(2, 3) for part in parts]
    product, end = _whole_chunks(*parts[:2], reverse)  # (2, N, C, B)
    after = torch.empty_like(end)
    last = _one_by_one(state, [product, end, after], reverse)
    state = state.unsqueeze(2)
    before = [after[:, :, 1:], state] if reverse else [state, after[:, :, :-1]]
    _one_by_one(torch.cat(before, 2), parts, reverse)
    return last


def _whole_chunks(factors: Tensor, inputs: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return ``(2, N, C, B)`` each: a chunk of steps maps a state s to product · s + end."""
    steps = list(zip(factors.unbind(2), inputs.unbind(2), strict=True))
    (product, end), *others = reversed(steps) if reverse else steps
    nothing = torch.zeros_like(product)
    memory = [torch.empty_like(product) for _ in range(4)]
    for number, (factor, added) in enumerate(others):
        of_product, of_end = memory[:2] if number % 2 else memory[2:]
        product = _step(factor, product, nothing, of_product)
        end = _step(factor, end, added, of_end)
    return product, end


def _step(factor: Tensor, state: Tensor, added: Tensor, out: Tensor) -> Tensor:
    """Write ``factor · state + added`` to ``out``, and return it."""
    real, imaginary = factor
    torch.addcmul(added[0], real, state[0], out=out[0]).addcmul_(imaginary, state[1], value=-1)
    torch.addcmul(added[1], real, state[1], out=out[1]).addcmul_(imaginary, state[0])
    return out
