r"""A linear recurrence as a scan: :math:`s_n = a_n s_{n-1} + b_n` in a few large operations.

The T steps are cut into C chunks of L steps. A first loop, through all chunks in parallel, finds
the state at the end of each chunk if it began at 0. The states between chunks obey a recurrence of
the same kind, whose factors are the products of each chunk's factors; if there are many, they are
cut into chunks in turn. A second loop, again through all chunks in parallel, computes every state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 16
"""The largest number of steps in a chunk. Shorter series have as many chunks as steps in each."""

Between: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A map ``(products, ends) -> states``, all ``(…, C, B)``: the state at the start of each of C
chunks, which map a state s to product · s + end."""


class Chunks(NamedTuple):
    """T steps cut into C chunks of L steps, the first of which may begin with padding."""

    length: int
    count: int

    @staticmethod
    def of(num_steps: int, length: int) -> Chunks:
        """Cut steps into as few chunks of at most this length as possible."""
        count = max(1, -(-num_steps // max(1, length)))
        return Chunks(max(1, -(-num_steps // count)), count)

    def arranged(self, rows: Tensor) -> Tensor:
        """Arrange ``(B, T)`` as ``(L, C, B)``, padded with copies of the first step."""
        missing = self.length * self.count - rows.shape[1]
        if missing:
            rows = torch.cat([rows[:, :1].expand(-1, missing), rows], 1)
        return rows.unflatten(1, (self.count, self.length)).permute(2, 1, 0).contiguous()


class Order(NamedTuple):
    """The order ``(L, C, B)`` in which the observations of a batch ``(S, T)`` are read.

    One step of all chunks is one block of memory. Series of the same length are read side by side
    (B = S). Others are read one after the other, as a single series (B = 1) that restarts with each
    of them, so that no time is spent on padding.

    Attributes
    ----------
    source
        ``(L, C, B)``, the index of each observation among ``S · T``.
    newest
        ``(S,)``, the position of the last observation of each series among ``L · C``; arbitrary for
        empty series. None if the series are read side by side and all end at the last step.
    begins
        ``(L, C, B)``, True where a series begins, or None if nothing precedes it.
    """

    source: Tensor
    newest: Tensor | None
    begins: Tensor | None

    @staticmethod
    def of(running: Tensor) -> Order:
        """Order a batch by its mask: True at one or more observations, then False."""
        rows = torch.arange(running.numel(), device=running.device).view_as(running)
        side_by_side = bool(running.all())
        if not side_by_side:
            rows = rows[running].unsqueeze(0)
        length, count = chunks = Chunks.of(rows.shape[1], min(SHORT, math.isqrt(rows.shape[1])))
        source, missing = chunks.arranged(rows), length * count - rows.shape[1]
        if side_by_side and not missing:
            return Order(source, None, None)
        begins = torch.zeros_like(source, dtype=torch.bool)
        if side_by_side:
            begins[missing % length, missing // length] = True
            return Order(source, None, begins)
        lengths = running.sum(1)
        ends = lengths.cumsum(0) + missing

        def place(steps: Tensor) -> Tensor:
            return steps % length * count + steps // length

        begins.view(-1)[place((ends - lengths)[lengths > 0])] = True
        return Order(source, place((ends - 1).clamp(min=0)), begins)

    def take(self, observations: Tensor) -> Tensor:
        """Return observations ``(S, T, R)`` in this order, ``(R, L, C, B)``."""
        if self.begins is None:
            return observations.unflatten(1, self.source.shape[1::-1]).permute(3, 2, 1, 0)
        taken = observations.flatten(0, 1).index_select(0, self.source.view(-1))
        return taken.T.unflatten(1, self.source.shape)

    def at_end(self, numbers: Tensor) -> Tensor:
        """Return ``(…, S)``, the values of ``(…, L, C, B)`` at each series' last observation."""
        if self.newest is None:
            return numbers[..., -1, -1, :]
        return numbers.flatten(-3).index_select(-1, self.newest)


def delayed(steps: Tensor) -> Tensor:
    """Shift ``(L, C, B)`` by one step, with 0 at the first step."""
    before = F.pad(steps[-1:, :-1], (0, 0, 1, 0))
    return torch.cat([before, steps[:-1]])


def since_first(gaps: Tensor) -> Tensor:
    """Return the sums of gaps ``(L, C, B)`` up to each, in float64, and without gradients."""
    within = gaps.detach().double().cumsum(0)
    return within + (within[-1].cumsum(0) - within[-1])


def scan_(factors: Tensor, inputs: Tensor) -> Tensor:
    r"""Replace inputs by the states :math:`s_n = a_n s_{n-1} + b_n`, where :math:`s_{-1} = 0`.

    Parameters
    ----------
    factors, inputs
        :math:`a`, ``(…, L, C, B)``, and :math:`b`, which may have more dimensions before these.
    """
    _scan_(factors.unbind(-3), inputs.unbind(-3), factors.prod(-3), _between)
    return inputs


def last_state(factors: Tensor, inputs: Tensor) -> Tensor:
    """Return the last of the states ``(…, B)`` that `scan_` computes."""
    product, end = factors.prod(-3), _ends(factors.unbind(-3), inputs.unbind(-3))
    later = product[..., 1:, :].flip(-2).cumprod(-2).flip(-2)  # of all chunks that follow
    return (end[..., :-1, :] * later).sum(-2) + end[..., -1, :]


def scan_back_(factors: Tensor, inputs: Tensor) -> Tensor:
    r"""Replace inputs by the states :math:`s_n = a_{n+1} s_{n+1} + b_n`, in reverse order.

    If :math:`b` is the gradient of the states of `scan_`, this is the gradient of its inputs.
    """
    first, *others = factors.unbind(-3)
    after = F.pad(first[..., 1:, :], (0, 0, 0, 1))  # the first factor of the next chunk
    product = factors[..., 1:, :, :].prod(-3).mul_(after)
    _scan_([after, *reversed(others)], inputs.unbind(-3)[::-1], product, _between_back)
    return inputs


def _scan_(
    factors: Sequence[Tensor], inputs: Sequence[Tensor], product: Tensor, between: Between
) -> None:
    """Replace the inputs of L steps, in this order, by states; each is ``(…, C, B)``."""
    state = between(product, _ends(factors, inputs))
    for factor, added in zip(factors, inputs, strict=True):
        state = torch.addcmul(added, factor, state, out=added)


def _ends(factors: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Return the states after L steps from 0, ``(…, C, B)``."""
    end, other = inputs[0].clone(), torch.empty_like(inputs[0])
    for factor, added in zip(factors[1:], inputs[1:], strict=True):
        end, other = torch.addcmul(added, factor, end, out=other), end
    return end


def _between(product: Tensor, end: Tensor) -> Tensor:
    """Return the states between chunks that are read one after the other."""
    count, before = end.shape[-2], torch.zeros_like(end)
    if count <= 2 * SHORT:
        states = before.unbind(-2)
        steps = zip(product.unbind(-2), end.unbind(-2), states, states[1:], strict=False)
        for factor, added, state, out in steps:
            torch.addcmul(added, factor, state, out=out)
    else:
        chunks = Chunks.of(count, SHORT)
        fill = (0, 0, 0, chunks.length * chunks.count - count)
        product, end = (
            F.pad(part, fill).unflatten(-2, chunks[::-1]).transpose(-3, -2).contiguous()
            for part in (product, end)
        )
        after = scan_(product, end).transpose(-3, -2).flatten(-3, -2)
        before[..., 1:, :] = after[..., : count - 1, :]
    # Decaying numbers pass through subnormals, which are a hundred times as slow.
    numbers = torch.finfo(before.dtype)
    return F.hardshrink(before, numbers.tiny / numbers.eps**2)


def _between_back(product: Tensor, end: Tensor) -> Tensor:
    """Return the states between chunks that are read from the last to the first."""
    return _between(product.flip(-2), end.flip(-2)).flip(-2)
