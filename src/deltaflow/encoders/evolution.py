"""How a hidden state crosses a gap Δt during which nothing was observed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from deltaflow.encoders.fused import Stage, stages_of
from deltaflow.flows import Flow

Evolve: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A map ``(hidden, delta_t) -> hidden`` from ``(..., H)`` and ``(...)`` to ``(..., H)``."""


class Evolution(nn.Module, ABC):
    """The contract: carry a hidden state across a gap, and leave it as it is where Δt = 0.

    Attributes
    ----------
    bound
        States in the cube ``|h| <= bound`` stay there; infinite where nothing is promised.
    """

    bound: float = math.inf

    @abstractmethod
    def prepare(self) -> Evolve:
        """Return the map ``(hidden, delta_t) -> hidden``, with its weights prepared once.

        ``hidden`` is ``(..., H)`` and ``delta_t`` ``(...)``, in typical gaps; their leading axes
        broadcast. Prepare it once per forward pass, outside the loop over time.
        """

    def stages(self, gaps: Tensor, clock: Tensor) -> list[Stage] | None:
        """Return the evolution across all gaps as stages of the fused recurrence, if it has any.

        Without stages a batch is read in the plain loop, which is slower. An evolution that has
        stages overrides this together with :meth:`prepare`: both are the same map.

        Parameters
        ----------
        gaps
            The gaps at T steps of N series, ``(T, 1, N)``.
        clock
            Their `clock_of`, ``(T, 2, N)``.
        """
        return None

    def to_queries(self, hidden: Tensor, delta_t: Tensor) -> Tensor:
        """Carry one state to many times: ``(B, H)`` and ``(B, Q)`` to ``(B, Q, H)``.

        A flow answers all queries in one call. An evolution that has to go step by step overrides
        this.
        """
        return self.prepare()(hidden.unsqueeze(-2), delta_t)

    def to_each(self, hidden: Tensor, delta_t: Tensor, row: Tensor) -> Tensor:
        """Carry states ``(B, H)`` to any number of times each: ``(N, H)``.

        Query n crosses ``delta_t[n]`` from the state ``hidden[row[n]]``.
        """
        return self.prepare()(hidden[row], delta_t)


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


class NoEvolution(Evolution):
    """The state stays as it is: the network learns of Δt from its inputs alone."""

    bound = 1.0

    def prepare(self) -> Evolve:
        """Return the map that repeats the state."""
        return lambda hidden, delta_t: hidden.expand(*delta_t.shape, hidden.shape[-1])

    def stages(self, gaps: Tensor, clock: Tensor) -> list[Stage]:
        """Return no stages, which leave the state as it is."""
        return []


class VectorField(nn.Module, ABC):
    """The right-hand side ``f(h)`` of a differential equation, for an evolution that solves one.

    Its evaluations are what a solver costs. Each of them adds one to ``num_evaluations``, a plain
    number outside the module's state; see `Encoder.num_evaluations`.

    Attributes
    ----------
    bound
        Solutions that start in ``|h| <= bound`` stay there, so that a solver that leaves this cube
        has diverged; infinite where nothing is promised.
    """

    bound: float = math.inf

    def __init__(self) -> None:
        super().__init__()
        self.num_evaluations = 0

    @abstractmethod
    def forward(self, time: Tensor, hidden: Tensor) -> Tensor:
        """Return ``f(h)`` for states ``(..., H)``; the time of an autonomous field is ignored."""
