r"""A linear recurrence as a scan: :math:`s_n = a_n s_{n-1} + b_n` in :math:`O(\sqrt T)` operations.

The T steps are cut into about :math:`\sqrt T` chunks. A first loop, through all chunks in parallel,
finds the map from the state before each chunk to the state at its end. A second loop, over the
chunks, composes these maps. A third loop, again through all chunks in parallel, computes every
state. The derivative of the recurrence is a recurrence of the same kind that runs backwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 16
"""The largest number of steps that are taken one by one."""


def scan(factors: Tensor, inputs: Tensor) -> Tensor:
    r"""Return :math:`s_n = a_n s_{n-1} + b_n` for all n, where :math:`s_{-1} = 0`.

    It can be differentiated any number of times.

    Parameters
    ----------
    factors, inputs
        :math:`a` and :math:`b`, real or complex, both ``(T, …)``, with the T steps first.

    Returns
    -------
    Tensor
        The states, ``(T, …)``.
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
        total = _Scan.apply(_shifted(factors, -later).conj_physical(), gradient, not ctx.reverse)
        if not ctx.needs_input_grad[0]:
            return None, total, None
        return total * _shifted(states, later).conj(), total, None


def _shifted(steps: Tensor, by: int) -> Tensor:
    """Return the previous (1) or the next (-1) entry of each step, and 0 if there is none."""
    return F.pad(steps, [*[0, 0] * (steps.ndim - 1), by, -by]) if len(steps) else steps


def _states(factors: Tensor, inputs: Tensor, reverse: bool) -> Tensor:
    """Compute all states: in whole chunks, and the remaining steps one by one."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    length = math.isqrt(len(inputs)) if len(inputs) > SHORT else len(inputs) + 1
    whole = len(inputs) // length * length

    def cut(steps: slice) -> tuple[Tensor, Tensor, Tensor]:
        return factors[steps], inputs[steps], states[steps]

    state = torch.zeros_like(inputs[:1]).squeeze(0) if len(inputs) else inputs
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
    """Write the states ``(T, …)`` that follow ``state``, and return the last one."""
    for factor, added, out in _steps(factors, inputs, states, reverse=reverse):
        state = torch.addcmul(added, factor, state, out=out)
    return state


def _in_chunks(
    state: Tensor, factors: Tensor, inputs: Tensor, states: Tensor, length: int, reverse: bool
) -> Tensor:
    """Do the same as `_one_by_one`, in C chunks of ``length`` steps in parallel."""
    factors, inputs, states = (
        part.unflatten(0, (-1, length)).transpose(0, 1) for part in (factors, inputs, states)
    )  # (length, C, …)
    product, end = _whole_chunks(factors, inputs, reverse)
    after = torch.empty_like(end)
    last = _one_by_one(state, product, end, after, reverse)
    state = state.unsqueeze(0)
    before = [after[1:], state] if reverse else [state, after[:-1]]
    _one_by_one(torch.cat(before), factors, inputs, states, reverse)
    return last


def _whole_chunks(factors: Tensor, inputs: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return ``(C, …)`` each: a chunk of steps maps a state s to product · s + end."""
    (factor, added), *others = _steps(factors, inputs, reverse=reverse)
    product, end, other = factor.clone(), added.clone(), torch.empty_like(added)
    for factor, added in others:
        product.mul_(factor)
        end, other = torch.addcmul(added, factor, end, out=other), end
    return product, end


def _steps(*parts: Tensor, reverse: bool) -> list[tuple[Tensor, ...]]:
    """Split tensors ``(T, …)`` into steps, in the order in which they are taken."""
    steps = list(zip(*(part.unbind() for part in parts), strict=True))
    return steps[::-1] if reverse else steps
