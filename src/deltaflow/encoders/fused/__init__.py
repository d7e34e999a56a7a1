"""The fused recurrence: one autograd function that reads a whole series.

A recurrence of small steps spends most of its time not on arithmetic but on the autograd graph, on
calls and on memory. Here every map of a step is a `Stage` with a hand-written derivative. `recur`
runs the stages forward and backward, and autograd records nothing per step.

A flow takes part if its layers are listed in `STAGES`. Otherwise the plain loop is used, with the
same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from torch import Tensor

from deltaflow.encoders.fused.coupling import coupling_stages
from deltaflow.encoders.fused.gru import gru_stages
from deltaflow.encoders.fused.resnet import resnet_stages
from deltaflow.encoders.fused.stage import Stage
from deltaflow.flows import CouplingLayer, Flow, FlowStack, GRULayer, ResNetLayer


def stages_of(flow: Flow, t: Tensor, clock: Tensor) -> list[Stage] | None:
    """Return a flow as stages of a recurrence, or None if one of its layers has no stage.

    Parameters
    ----------
    flow
        A flow, or a `FlowStack` of any depth.
    t
        The gap that the flow crosses at each of T steps of each of N series, ``(T, 1, N)``.
    clock
        The `clock_of` of ``t``, ``(T, 2, N)``.
    """
    stages: list[Stage] = []
    for formula, layers in groupby(_layers(flow), key=_formula):
        made = STAGES[formula]([*layers], t, clock) if formula in STAGES else None
        if made is None:
            return None
        stages += made
    return stages


def _layers(flow: Flow) -> Iterator[Flow]:
    """Yield the flows that a stack is made of, or the flow itself."""
    if _formula(flow) is FlowStack:
        for part in flow:  # type: ignore[attr-defined]
            yield from _layers(part)
    else:
        yield flow


def _formula(flow: Flow) -> type:
    """Return the class that defines the flow's map; a subclass may have replaced it."""
    return next(cls for cls in type(flow).__mro__ if "prepare" in vars(cls))


STAGES: dict[type, Callable[[list[Any], Tensor, Tensor], list[Stage] | None]] = {
    GRULayer: gru_stages,
    ResNetLayer: resnet_stages,
    CouplingLayer: coupling_stages,
}
"""Functions that return the stages of consecutive layers, by the class that defines `prepare`.
Their arguments are the layers, the times and the clock. They return None for unsupported layers."""
