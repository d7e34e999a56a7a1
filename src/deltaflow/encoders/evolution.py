"""How a hidden state crosses a gap Δt between two observations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from deltaflow.encoders.fused import stages_of
from deltaflow.encoders.fused.stage import Stage
from deltaflow.flows import Flow

Evolve: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A map ``(hidden, delta_t) -> hidden`` from ``(..., H)`` and ``(...)`` to ``(..., H)``."""


class Evolution(nn.Module, ABC):
    """The contract: evolve a hidden state across a gap, and return it unchanged if Δt = 0.

    Attributes
    ----------
    bound
        States in the cube ``|h| <= bound`` stay there; infinite if this is not guaranteed.
    """

    bound: float = math.inf

    @abstractmethod
    def prepare(self) -> Evolve:
        """Return the map ``(hidden, delta_t) -> hidden``, with its weights prepared once.

        ``hidden`` is ``(..., H)`` and ``delta_t`` ``(...)``, in typical gaps; their leading axes
        broadcast. Prepare it once per forward pass, outside the loop over time.
        """

    def stages(self, gaps: Tensor, clock: Tensor) -> list[Stage] | None:
        """Return the evolution across all gaps as stages of the fused recurrence, or None.

        If there are no stages, batches are read in the plain loop, which is slower. A subclass that
        overrides this method also overrides :meth:`prepare`, and both must give the same map.

        Parameters
        ----------
        gaps
            The gaps at T steps of N series, ``(T, 1, N)``.
        clock
            Their `clock_of`, ``(T, 2, N)``.
        """
        return None

    def frozen(self) -> Evolution:
        """Return the evolution for fixed weights, which are prepared once."""
        return self

    def to_queries(self, hidden: Tensor, delta_t: Tensor) -> Tensor:
        """Evolve one state to many times: ``(B, H)`` and ``(B, Q)`` to ``(B, Q, H)``.

        A flow reaches all queries in one call. An evolution that proceeds step by step overrides
        this method.
        """
        evolved = self.prepare()(hidden.unsqueeze(-2), delta_t)
        return evolved.expand(*delta_t.shape, hidden.shape[-1])  # if it does not depend on time

    def to_each(self, hidden: Tensor, delta_t: Tensor, row: Tensor) -> Tensor:
        """Evolve states ``(B, H)`` to any number of times each: ``(N, H)``.

        Query n crosses ``delta_t[n]`` from the state ``hidden[row[n]]``.
        """
        return self.prepare()(hidden.index_select(0, row), delta_t)


class FlowEvolution(Evolution):
    """Evolution by a neural flow: ``F(Δt, h)``.

    Parameters
    ----------
    flow
        The flow, whose dimension is the hidden size.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.bound = flow.bound

    def prepare(self) -> Evolve:
        """Return ``F(Δt, h)``."""
        step = self.flow.prepare()
        return lambda hidden, delta_t: step(delta_t.unsqueeze(-1), hidden)

    def stages(self, gaps: Tensor, clock: Tensor) -> list[Stage] | None:
        """Return the stages of the flow."""
        return stages_of(self.flow, gaps, clock)

    def frozen(self) -> Evolution:
        """Return the evolution by the same flow, with its weights prepared."""
        return _FrozenFlow(self.flow)


class _FrozenFlow(FlowEvolution):
    """Evolution by a flow with fixed weights."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        with torch.no_grad():
            self._prepared = super().prepare()

    def prepare(self) -> Evolve:
        """Return the prepared ``F(Δt, h)``."""
        return self._prepared


class NoEvolution(Evolution):
    """The state does not change between observations: Δt is only an input of the network."""

    bound = 1.0

    def prepare(self) -> Evolve:
        """Return the map that repeats the state at every time."""
        return lambda hidden, delta_t: hidden.expand(*delta_t.shape, hidden.shape[-1])

    def stages(self, gaps: Tensor, clock: Tensor) -> list[Stage]:
        """Return an empty list: without a stage, the state does not change."""
        return []


class VectorField(nn.Module, ABC):
    """The right-hand side ``f(h)`` of a differential equation, for an evolution that solves one.

    The cost of a solver is the number of evaluations. Each of them adds one to ``num_evaluations``,
    which is not part of the module's state dict; see `Encoder.num_evaluations`.

    Attributes
    ----------
    bound
        Solutions that start in ``|h| <= bound`` stay there, so a solver that leaves this cube has
        diverged; infinite if this is not guaranteed.
    """

    bound: float = math.inf

    def __init__(self) -> None:
        super().__init__()
        self.num_evaluations = 0

    @abstractmethod
    def forward(self, time: Tensor, hidden: Tensor) -> Tensor:
        """Return ``f(h)`` for states ``(..., H)``; the time of an autonomous field is ignored."""
