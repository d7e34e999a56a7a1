"""Recurrent encoders: evolve the state across the gap, then update it with a GRU cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from inspect import Signature, signature
from typing import Any

import torch
from torch import Tensor, nn

from deltaflow.encoders.encoder import Encoder, State, own_precision, replaced, steps_of
from deltaflow.encoders.evolution import Evolution, FlowEvolution, NoEvolution
from deltaflow.encoders.fused.cell import ClampStage, GRUCellStage, cell_matrices
from deltaflow.encoders.fused.inputs import clock_of
from deltaflow.encoders.fused.layout import Layout
from deltaflow.encoders.fused.recurrence import recur
from deltaflow.encoders.fused.stage import Stage
from deltaflow.flows import Flow
from deltaflow.flows.initial import orthogonal_
from deltaflow.flows.time_embedding import is_transformed

STATE_LIMIT = 5.0
"""The largest absolute value of a state at an observation. The cell's own states lie in [-1, 1],
but a flow may stretch them, and over hundreds of steps the factors would overflow."""


class RecurrentEncoder(Encoder):
    """At each observation: ``h ← GRU(x, evolve(h, Δt))``.

    The cell reads the values (0 where missing), their mask, the features and ``log(1 + Δt)``.

    Parameters
    ----------
    num_channels, num_features, hidden_size
        See `Encoder`.
    evolution
        How the state crosses the gaps.

    References
    ----------
    Rubanova et al., *Latent ODEs for Irregularly-Sampled Time Series*, 2019, arXiv:1907.03907,
    algorithm 1, with the evolution in place of the ODE solver.
    """

    def __init__(
        self, num_channels: int, num_features: int, hidden_size: int, evolution: Evolution
    ) -> None:
        super().__init__(num_channels, num_features, hidden_size)
        self.evolution = evolution
        self.input_projection = nn.Linear(2 * num_channels + num_features + 1, 3 * hidden_size)
        self.hidden_projection = nn.Linear(hidden_size, 3 * hidden_size)
        for gate in self.hidden_projection.weight.chunk(3):
            orthogonal_(gate)

    def read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch; see `Encoder.read`.

        The fused recurrence reads it if the evolution has stages. Otherwise, and inside
        `torch.func` and forward-mode differentiation, `read_plainly` does.
        """
        with own_precision(values):
            if not is_transformed():
                layout = Layout(running)
                columns = layout.columns
                gaps = columns(delta_t.unsqueeze(-1))
                clock = clock_of(gaps)
                stages = self.evolution.stages(gaps, clock)
                if stages is not None:
                    mask = columns(observed).to(values.dtype)
                    inputs = torch.cat([columns(values), mask, columns(features), clock], 1)
                    return layout.rows(recur([*stages, *self._update(inputs)], layout.counts))
            return self.read_plainly(values, observed, delta_t, running, features)

    def _update(self, inputs: Tensor) -> Iterator[Stage]:
        """Yield the stages that update the state with observations ``(T, I + 1, N)``."""
        if self.evolution.bound > STATE_LIMIT:
            yield ClampStage(self.hidden_size, STATE_LIMIT)
        matrices = cell_matrices(self.input_projection, self.hidden_projection)
        yield GRUCellStage(*matrices, inputs)

    def read_plainly(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch step by step, differentiated by autograd; see `Encoder.read`."""
        evolve = self.evolution.prepare()
        projected = self._project(values, observed, delta_t, features)
        hidden = values.new_zeros(len(values), self.hidden_size)
        for inputs, gap, active in steps_of(projected, delta_t, running.unsqueeze(-1)):
            evolved = evolve(hidden, gap)
            hidden = torch.where(active, self._cell(inputs, evolved), hidden)
        return hidden

    def step(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> Tensor:
        """Read one observation; see `Encoder.step`."""
        with own_precision(values):
            hidden = self.evolution.prepare()(state.hidden, delta_t)
            return self._cell(self._project(values, observed, delta_t, features), hidden)

    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Evolve the state to the queries; see `Encoder.evolve`."""
        with own_precision(delta_t):
            return self.evolution.to_queries(state.hidden, delta_t)

    def evolve_each(self, state: State, delta_t: Tensor, row: Tensor) -> Tensor:
        """Evolve the states to the queries; see `Encoder.evolve_each`."""
        with own_precision(delta_t):
            return self.evolution.to_each(state.hidden, delta_t, row)

    def frozen(self) -> Encoder:
        """Return an encoder with the same weights and a prepared evolution."""
        return replaced(self, "evolution", self.evolution.frozen())

    def _project(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, features: Tensor
    ) -> Tensor:
        gap = delta_t.log1p().unsqueeze(-1)
        inputs = torch.cat([values, observed.to(values.dtype), features, gap], dim=-1)
        return self.input_projection(inputs)

    def _cell(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Update the state with a GRU cell (Cho et al., 2014), in the form of ``torch.nn.GRU``."""
        hidden = hidden.clamp(-STATE_LIMIT, STATE_LIMIT)
        sizes = [2 * self.hidden_size, self.hidden_size]
        input_gates, input_new = inputs.split(sizes, dim=-1)
        gates, new = self.hidden_projection(hidden).split(sizes, dim=-1)
        reset, keep = torch.sigmoid(input_gates + gates).chunk(2, dim=-1)
        candidate = torch.tanh(torch.addcmul(input_new, reset, new))
        return torch.lerp(candidate, hidden, keep)


def flow_encoder(flow: Callable[..., Flow], **defaults: Any) -> Callable[..., RecurrentEncoder]:
    """Return a function for `ENCODERS`, which builds a recurrent encoder with the given flow.

    Its ``encoder_kwargs`` are the options of the flow.

    Parameters
    ----------
    flow
        A flow class, or a function that makes a flow from a dimension and options.
    defaults
        Options of the flow whose defaults differ from the flow's own.

    Examples
    --------
    >>> from deltaflow.flows import GRUFlow
    >>> make = flow_encoder(GRUFlow)
    >>> make(num_channels=2, num_features=0, hidden_size=8, num_layers=3).hidden_size
    8
    """

    def make(
        num_channels: int, num_features: int, hidden_size: int, **options: Any
    ) -> RecurrentEncoder:
        evolution = FlowEvolution(flow(hidden_size, **{**defaults, **options}))
        return RecurrentEncoder(num_channels, num_features, hidden_size, evolution)

    *sizes, _ = signature(make).parameters.values()
    _, *options = signature(partial(flow, **defaults)).parameters.values()
    vars(make)["__signature__"] = Signature([*sizes, *options])
    return make


def gru(num_channels: int, num_features: int, hidden_size: int) -> RecurrentEncoder:
    """Plain GRU with Δt as an input, whose state does not change between observations."""
    return RecurrentEncoder(num_channels, num_features, hidden_size, NoEvolution())
