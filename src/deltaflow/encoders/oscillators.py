r"""Driven oscillators over whole series, as one autograd function with a hand-written derivative.

The recurrence is computed in a frame that rotates with the oscillators. With :math:`\theta_n` the
phase since the beginning of a series,

.. math:: \tilde s_n = e^{-i \theta_n} s_n
          = (1 - f_n) \, e^{-r \Delta t_n} \tilde s_{n-1} + e^{-i \theta_n} f_n d_n

has real factors, so that real and imaginary parts of states are scanned alike.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltaflow.encoders.fused.recurrence import once_only
from deltaflow.encoders.scan import last_state, scan_, scan_back_
from deltaflow.flows.linear import rotation


class Motion(NamedTuple):
    """The motion of the oscillators, ``(N, L, C, B)`` each.

    Attributes
    ----------
    decay
        The factor of their decay from one observation to the next; 0 where a series begins.
    cos, sin
        Cosine and sine of their phases at each observation, since the first one that is read.
    """

    decay: Tensor
    cos: Tensor
    sin: Tensor

    @staticmethod
    @torch.no_grad()
    def of(
        rates: Tensor, turns: Tensor, gaps: Tensor, elapsed: Tensor, begins: Tensor | None
    ) -> Motion:
        """Compute the motion of oscillators with rates and turns ``(N,)``.

        ``gaps`` and ``elapsed`` are the times since the previous observation and since the first
        one, the latter in float64; ``begins`` is True where a series begins: all ``(L, C, B)``.
        """
        rates, turns = (part.view(-1, 1, 1, 1) for part in (rates, turns))
        decay = (-rates * gaps).exp_()
        if begins is not None:
            decay.masked_fill_(begins, 0.0)
        return Motion(decay, *rotation(turns, elapsed, gaps.dtype))


def oscillate(
    inner: Tensor,
    weight: Tensor,
    bias: Tensor,
    rates: Tensor,
    turns: Tensor,
    gaps: Tensor,
    motion: Motion,
) -> Tensor:
    """Return the states of n oscillators after each observation, in their rotating frame.

    Parameters
    ----------
    inner
        ``(W, L · C · B)`` inputs, in an `Order`.
    weight, bias
        ``(3 n, W)`` and ``(3 n,)``: the gates f, and real and imaginary part of the drives d.
    rates, turns, gaps, motion
        ``(n,)`` r and turns per unit of time, ``(L, C, B)`` the times since the previous
        observations, and the resulting motion. ``motion`` is treated as constant: the whole
        gradient by rates, turns and gaps, also through `turned` states, is computed here.

    Returns
    -------
    Tensor
        ``(2, n, L, C, B)``, real and imaginary parts.
    """
    return _Oscillate.apply(inner, weight, bias, rates, turns, gaps, motion)  # type: ignore[return-value]


@torch.no_grad()
def last_oscillation(inner: Tensor, weight: Tensor, bias: Tensor, motion: Motion) -> Tensor:
    """Return the last of the states that `oscillate` returns, ``(2, n, B)``, without gradients."""
    gate, drive, _ = _driven(inner, weight, bias, motion)
    return last_state(_kept(gate, motion), drive.mul_(gate))


def carried(states: Tensor, rates: Tensor, turns: Tensor, t: Tensor) -> Tensor:
    r"""Return states :math:`e^{(-r + 2 \pi i \nu) t} s` after a time, ``(…, 2 N)``.

    Parameters
    ----------
    states
        ``(…, 2 N)``, real parts, then imaginary parts.
    rates, turns, t
        ``(N,)`` r and turns per unit of time, in float64, and ``(…, 1)`` or ``(…, N)`` times, which
        broadcast against the states.
    """
    return _Carry.apply(states, rates, turns, t)  # type: ignore[return-value]


def turned(numbers: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn states ``(2, n, …)`` back from the rotating frame, by e^iθ."""
    if not numbers.requires_grad:
        return _turned(numbers, cos, sin)
    return _Turn.apply(numbers, cos, sin)  # type: ignore[return-value]


class _Oscillate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inner: Tensor,
        weight: Tensor,
        bias: Tensor,
        rates: Tensor,
        turns: Tensor,
        gaps: Tensor,
        motion: Motion,
    ) -> Tensor:
        gate, drive, states = _driven(inner, weight, bias, motion)
        torch.mul(drive, gate, out=states)
        scan_(_kept(gate, motion), states)
        ctx.save_for_backward(inner, weight, rates, turns, gaps, gate, drive, states, *motion)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        once_only()
        inner, weight, rates, turns, gaps, gate, drive, states, *motion = ctx.saved_tensors
        motion = Motion(*motion)
        with torch.autocast(gradient.device.type, enabled=False):
            # The gradient of each state, including that through all later states.
            total, kept = gradient.clone(memory_format=torch.contiguous_format), _kept(gate, motion)
            scan_back_(kept, total)
            by_drive, by_state = _dot(total, drive), _dot(total, states)
            left = _left(kept, states)
            shrinking = _dot(total, left).flatten(1)
            turning = torch.mul(total[1], left[0]).addcmul_(total[0], left[1], value=-1).flatten(1)
            of_rates = -(shrinking @ gaps.flatten())
            of_turns = 2 * math.pi * (turning @ gaps.flatten()).to(turns.dtype)
            of_gaps = None
            if ctx.needs_input_grad[5]:
                speed = 2 * math.pi * turns.to(rates.dtype)
                of_gaps = (speed @ turning - rates @ shrinking).view_as(gaps)
            of_entries = inner.new_empty(len(weight), gaps.numel())
            of_gate, of_drive = _gate_and_numbers(of_entries, motion)
            torch.sub(by_drive, by_state, out=of_gate).mul_(gate)
            torch.mul(_turned(total, motion.cos, motion.sin), gate, out=of_drive)
            of_inner = weight.T @ of_entries if ctx.needs_input_grad[0] else None
            of_weight = of_entries @ inner.T
            return of_inner, of_weight, of_entries.sum(1), of_rates, of_turns, of_gaps, None


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(numbers, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        once_only()
        return _turned(gradient, *ctx.saved_tensors, sign=-1), None, None


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, rates: Tensor, turns: Tensor, t: Tensor) -> Tensor:
        size = (rates * t).neg_().exp_().to(states.dtype)
        cos, sin = rotation(turns, t, states.dtype)
        factor = cos.mul_(size), sin.mul_(size)
        shape = torch.broadcast_shapes(states.shape[:-1], t.shape[:-1])
        after = _multiplied(states.expand(*shape, -1), *factor)
        ctx.save_for_backward(rates, turns, t, after, *factor)
        ctx.shape = states.shape
        return after

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        once_only()
        rates, turns, t, after, real, imaginary = ctx.saved_tensors
        (x, y), (of_x, of_y) = after.chunk(2, -1), gradient.chunk(2, -1)
        of_states = _multiplied(gradient, real, -imaginary).sum_to_size(ctx.shape)
        shrinking = (of_x * x).addcmul_(of_y, y)
        turning = (of_y * x).addcmul_(of_x, y, value=-1)
        others = tuple(range(shrinking.ndim - 1))
        of_rates = -(shrinking * t).sum(others)
        of_turns = 2 * math.pi * (turning * t).sum(others)
        of_t = None
        if ctx.needs_input_grad[3]:
            speed = (2 * math.pi * turns).to(rates.dtype)
            of_t = (speed * turning - rates * shrinking).sum_to_size(t.shape).to(t.dtype)
        return of_states, of_rates.to(rates.dtype), of_turns.to(turns.dtype), of_t


def _multiplied(states: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """Multiply complex numbers ``(…, 2 N)`` by others ``(…, N)``."""
    out = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    (x, y), (x_out, y_out) = states.chunk(2, -1), out.chunk(2, -1)
    torch.mul(real, x, out=x_out).addcmul_(imaginary, y, value=-1)
    torch.mul(real, y, out=y_out).addcmul_(imaginary, x)
    return out


def _driven(
    inner: Tensor, weight: Tensor, bias: Tensor, motion: Motion
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gates and drives in the rotating frame, and memory of the same shape as the drives."""
    entries = torch.addmm(bias.unsqueeze(1), weight, inner)
    gate, drive = _gate_and_numbers(entries, motion)
    return gate.sigmoid_(), _turned(drive, motion.cos, motion.sin, sign=-1), drive


def _gate_and_numbers(entries: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    parts = entries.view(3, *motion.decay.shape)
    return parts[0], parts[1:]


def _kept(gate: Tensor, motion: Motion) -> Tensor:
    """Return the factors of the recurrence."""
    return torch.addcmul(motion.decay, motion.decay, gate, value=-1)


def _left(kept: Tensor, states: Tensor) -> Tensor:
    """Return the remainder of the previous state at each observation.

    As the difference between a state and its input, it would have no correct digits after a long
    gap.
    """
    left = torch.empty_like(states)
    torch.mul(kept[:, 1:], states[:, :, :-1], out=left[:, :, 1:])
    torch.mul(kept[:, 0, 1:], states[:, :, -1, :-1], out=left[:, :, 0, 1:])
    left[:, :, 0, 0] = 0.0
    return left


def _turned(numbers: Tensor, cos: Tensor, sin: Tensor, sign: int = 1) -> Tensor:
    """Turn complex numbers ``(2, …)`` by e^iθ, or back by e^-iθ if the sign is -1."""
    (real, imaginary), out = numbers, torch.empty_like(numbers)
    torch.mul(cos, numbers, out=out)
    out[0].addcmul_(sin, imaginary, value=-sign)
    out[1].addcmul_(sin, real, value=sign)
    return out


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of the products of real parts and of imaginary parts, ``(n, …)``."""
    return torch.mul(one[0], other[0]).addcmul_(one[1], other[1])
