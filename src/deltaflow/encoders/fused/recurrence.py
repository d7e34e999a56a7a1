"""The recurrence itself: one autograd function that repeats stages over the steps of a series.

Steps are computed in blocks, in scratch memory that stays in the cache. What the backward pass
needs is copied out once per block, unless it is the last one in that memory. Series are columns,
the longest first. Those that have ended are dropped between blocks; until then their further steps
are computed and ignored.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, pairwise
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from deltaflow.encoders.fused.stage import NamedRows, Stage, names_of, rows_of
from deltaflow.errors import DeltaflowError

BLOCK, SHORT_BLOCK = 10, 5
"""The largest and the smallest number of steps in a block."""

CACHE = 2**21
"""The size of scratch memory, in bytes, above which blocks are shortened."""

NARROWER = 0.9
"""The share of series still running below which the ended ones are dropped. Dropping them is not
free, because it takes new memory."""

LARGE = 2**25
"""The size, in bytes, above which memory is requested in huge pages."""

Program: TypeAlias = "list[tuple[tuple[Callable[..., None], tuple[Tensor, ...]], ...]]"
"""For each step of a block, the calls to make and their arguments."""


def recur(stages: Sequence[Stage], counts: Sequence[int]) -> Tensor:
    """Repeat stages, step after step, starting from a zero state.

    The result can be differentiated once, by `backward` or `torch.autograd.grad`.

    Parameters
    ----------
    stages
        The stages of each step, in the order in which they are applied.
    counts
        The number of series that take part in each step. They are the first ones, and the number
        never increases.

    Raises
    ------
    DeltaflowError
        In the backward pass, if second derivatives are requested (``create_graph=True``).

    Returns
    -------
    Tensor
        ``(D, N)`` the state of each series after its last step.
    """
    recurrence = _Recurrence(stages, counts)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in recurrence.tensors):
        return _Differentiable.apply(recurrence, *recurrence.tensors)  # type: ignore[return-value]
    return recurrence.forward()


class _Differentiable(torch.autograd.Function):
    """A recurrence as a function of its tensors."""

    @staticmethod
    def forward(ctx: Any, recurrence: _Recurrence, *tensors: Tensor) -> Tensor:
        ctx.recurrence, ctx.kept = recurrence, {}
        ctx.save_for_backward(*tensors)
        return recurrence.forward(ctx.kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        once_only()
        _ = ctx.saved_tensors  # here autograd raises if they were changed or freed
        with torch.autocast(gradient.device.type, enabled=False):
            return None, *ctx.recurrence.backward(ctx.kept, gradient)


def once_only() -> None:
    """Raise a `DeltaflowError` in a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():  # by create_graph
        raise DeltaflowError(
            "the fused recurrence can be differentiated once, not twice (create_graph=True): "
            "for second derivatives use torch.func, or encoder.read_plainly in place of "
            "encoder.read"
        )


class _Block(NamedTuple):
    """Consecutive steps, and the number of series in memory, some of which may have ended."""

    start: int
    stop: int
    width: int

    @property
    def steps(self) -> int:
        return self.stop - self.start

    @property
    def region(self) -> tuple[slice, slice, slice]:
        """The block's part of a tensor (T, R, N)."""
        return slice(self.start, self.stop), slice(None), slice(self.width)


class _Recurrence:
    """The repeated stages and their derivative; see `recur`."""

    def __init__(self, stages: Sequence[Stage], counts: Sequence[int]) -> None:
        self.stages = stages
        self.num_series = max(counts, default=0)
        self.tensors = [tensor for stage in stages for tensor in stage.tensors()]
        rows = sum(sum(stage.tape.values()) for stage in stages)
        step = rows * max(1, self.num_series) * self.tensors[-1].element_size()
        self.block_steps = min(max(CACHE // step, SHORT_BLOCK), BLOCK, max(1, len(counts)))
        self.blocks: list[_Block] = []
        width = self.num_series
        for start in range(0, len(counts), self.block_steps):
            if counts[start] <= NARROWER * width:
                width = counts[start]
            self.blocks.append(_Block(start, min(start + self.block_steps, len(counts)), width))
        self.ends = {
            step: slice(after, now)
            for step, (now, after) in enumerate(pairwise([*counts, 0]))
            if after < now
        }

    def forward(self, kept: dict[_Block, list[Tensor]] | None = None) -> Tensor:
        """Return the last states, and add what the backward pass will need to ``kept``."""
        final = self.tensors[-1].new_full((self.stages[0].dim, self.num_series), 0.5)
        self._forward(final, kept)
        return 2 * final - 1

    def backward(self, kept: dict[_Block, list[Tensor]], gradient: Tensor) -> list[Tensor | None]:
        """Return the gradients of the tensors that require one."""
        totals = [torch.zeros_like(t) if t.requires_grad else None for t in self.tensors]
        self._backward(kept, 2 * gradient, totals)
        return totals

    # Autograd never sees scratch memory. Inference mode says so, and saves a tenth of the time.
    @torch.inference_mode()
    def _forward(self, final: Tensor, kept: dict[_Block, list[Tensor]] | None) -> None:
        last = final
        for width, group in groupby(self.blocks, key=lambda block: block.width):
            *earlier, newest = group
            tapes = [self._scratch(stage.tape, width, final) for stage in self.stages]
            own = [tape[stage.kept] for stage, tape in zip(self.stages, tapes, strict=True)]
            copies = [
                _memory((len(earlier), self.block_steps, *rows.shape[1:]), final)
                for rows in own
                if kept is not None and earlier
            ]
            states, *later = [
                tape[stage.state] for stage, tape in zip(self.stages, tapes, strict=True)
            ]
            # The last stage of a step writes to where the first stage of the next step reads.
            outs = [*(entering[:-1] for entering in later), states[1:]]
            program = _program(
                (stage.forward, stage.forward_arguments(tape.steps(0, self.block_steps), out))
                for stage, tape, out in zip(self.stages, tapes, outs, strict=True)
            )
            for number, block in enumerate([*earlier, newest]):
                states[0] = last[:, :width]
                for stage, tape in zip(self.stages, tapes, strict=True):
                    for name, values in stage.inputs.items():
                        tape[name][: block.steps] = values[block.region]
                for calls in program[: block.steps]:
                    for call, views in calls:
                        call(*views)
                last = states[block.steps]
                for step in range(block.steps):
                    if ended := self.ends.get(block.start + step):
                        final[:, ended] = states[step + 1][:, ended]
                if kept is not None:
                    kept[block] = [rows[: block.steps] for rows in own]
                    if block is not newest:  # to whose place no other block is written
                        pairs = zip(copies, kept[block], strict=True)
                        kept[block] = [copy[number].copy_(rows) for copy, rows in pairs]

    @torch.inference_mode()
    def _backward(
        self, kept: dict[_Block, list[Tensor]], gradient: Tensor, totals: list[Tensor | None]
    ) -> None:
        remaining = iter(totals)
        sums = [_Sums(stage, self.block_steps, remaining) for stage in self.stages]
        sizes = [
            {name: stage.tape[name] for name in names_of(stage.kept, stage.tape)}
            for stage in self.stages
        ]
        carry = torch.zeros_like(gradient)
        for width, blocks in groupby(reversed(self.blocks), key=lambda block: block.width):
            scratch = [self._scratch(stage.work, width, gradient) for stage in self.stages]
            works = [work.steps(1, self.block_steps + 1) for work in scratch]
            *earlier, gradients = [
                work[stage.gradient] for stage, work in zip(self.stages, scratch, strict=True)
            ]
            # The first stage of a step writes to where the last stage of the previous step reads.
            outs = [gradients[:-1], *(entering[1:] for entering in earlier)]
            program = _program(
                (stage.backward, stage.backward_arguments(work, out))
                for stage, work, out in reversed([*zip(self.stages, works, outs, strict=True)])
            )
            for block in blocks:
                tapes = [
                    _with_inputs(NamedRows(rows, names), stage, block)
                    for stage, rows, names in zip(self.stages, kept[block], sizes, strict=True)
                ]
                parts = [work.steps(0, block.steps) for work in works]
                for stage, tape, work in zip(self.stages, tapes, parts, strict=True):
                    stage.factors(tape, work)
                gradients[block.steps] = carry[:, :width]
                for step in reversed(range(block.steps)):
                    if ended := self.ends.get(block.start + step):
                        gradients[step + 1][:, ended] = gradient[:, ended]
                    for call, views in program[step]:
                        call(*views)
                carry[:, :width] = gradients[0]
                for total, tape, work in zip(sums, tapes, parts, strict=True):
                    total.add(tape, work, block)
        for total in sums:
            total.close()

    def _scratch(self, sizes: dict[str, int], width: int, like: Tensor) -> NamedRows:
        """Return memory for the steps of a block, and one more.

        The extra step holds the state after the last step, or the gradient of the state before the
        first.
        """
        rows = like.new_empty(self.block_steps + 1, sum(sizes.values()), width)
        return NamedRows(rows, sizes)


def _with_inputs(tape: NamedRows, stage: Stage, block: _Block) -> NamedRows:
    """Return what was kept of a stage's tape for a block, and its inputs."""
    for name, values in stage.inputs.items():
        tape.parts.setdefault(name, values[block.region])
    return tape


class _Sums:
    """The gradients of a stage's tensors, summed over blocks."""

    def __init__(self, stage: Stage, steps: int, totals: Iterator[Tensor | None]) -> None:
        self.products = [(product, next(totals)) for product in stage.products]
        self.inputs = {name: next(totals) for name in stage.inputs}
        # One sum per position in a block, added up at the end: batched products are faster.
        self.places = [p.weight.new_zeros(steps, *p.weight.T.shape) for p in stage.products]
        self.own, self.sizes = stage.input_gradients, stage.tape

    def add(self, tape: NamedRows, work: NamedRows, block: _Block) -> None:
        """Add the gradients of a block."""
        for (product, _), sums in zip(self.products, self.places, strict=True):
            sums[: block.steps].baddbmm_(tape[product.of], work[product.gradient].mT)
        for name, total in self.inputs.items():
            if total is None:
                continue
            if name in self.own:
                total[block.region] = work[self.own[name]]
            for product, _ in self.products:
                if name in names_of(product.of, self.sizes):
                    begin, _ = rows_of(product.of, self.sizes)
                    start, stop = rows_of(name, self.sizes)
                    weight = product.weight[:, start - begin : stop - begin]
                    total[block.region] += weight.mT @ work[product.gradient]

    def close(self) -> None:
        """Write the gradients of the weights."""
        for (_, total), sums in zip(self.products, self.places, strict=True):
            if total is not None:
                torch.sum(sums.mT, 0, out=total)


def _memory(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return memory; if it is large, in huge pages where the system supports them.

    The system provides large memory anew for every batch. In pages of 4 KiB, this can take as long
    as the computation itself.
    """
    num_bytes = prod(shape) * like.element_size()
    if num_bytes < LARGE or like.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(shape)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # raised by a system without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)


def _program(calls: Iterable[tuple[Callable[..., None], tuple[Tensor, ...]]]) -> Program:
    """Split the views of all calls into steps."""
    by_call = []
    for call, views in calls:
        steps = zip(*(view.unbind(0) for view in views), strict=True)
        by_call.append([(call, arguments) for arguments in steps])
    return list(zip(*by_call, strict=True))
