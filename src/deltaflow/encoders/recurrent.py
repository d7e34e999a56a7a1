"""Recurrent encoders: evolve the state across the gap, then update it by a GRU cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltaflow.encoders.cell import ClampStage, GRUCellStage, cell_matrices
from deltaflow.encoders.encoder import Encoder, State
from deltaflow.encoders.evolution import Evolution, FlowEvolution, NoEvolution
from deltaflow.encoders.recurrence import recur
from deltaflow.flows import CouplingFlow, GRUFlow, ResNetFlow
from deltaflow.flows.initial import orthogonal_
from deltaflow.flows.stage import clock_of

STATE_LIMIT = 5.0
"""A cell's own states lie in [-1, 1]. A flow that stretches them is stopped here at the next
observation: a factor per step, over hundreds of steps, would overflow."""


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
    algorithm 1, with the evolution in the place of the ODE solver.
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

        An evolution that has stages is read by `recur`, any other one by `read_plainly`. The states
        are the same, to within rounding.
        """
        counts = [count for count in running.sum(0).tolist() if count]
        num_steps, num_series = len(counts), max(counts, default=0)
        lengths = running.sum(1)
        is_sorted = bool((lengths.diff() <= 0).all())
        order = slice(num_series) if is_sorted else lengths.argsort(descending=True)[:num_series]

        def columns(rows: Tensor) -> Tensor:
            """Turn ``(B, T, R)`` into ``(T, R, N)``, the longest series first."""
            rows = rows[order, :num_steps]
            return rows.flatten(1).T.contiguous().view(num_steps, rows.shape[-1], num_series)

        with _own_precision(values):
            gaps = columns(delta_t.unsqueeze(-1))
            clock = clock_of(gaps)
            stages = self.evolution.stages(gaps, clock)
            if stages is None:
                return self.read_plainly(values, observed, delta_t, running, features)
            if any(stage.stretches for stage in stages):
                stages = [*stages, ClampStage(self.hidden_size, STATE_LIMIT)]
            parts = [columns(values), columns(observed).to(values.dtype), columns(features)]
            observations = torch.cat([*parts, clock], 1)
            matrices = cell_matrices(self.input_projection, self.hidden_projection)
            states = recur([*stages, GRUCellStage(*matrices, observations)], counts).T
            if is_sorted and num_series == len(values):
                return states
            hidden = states.new_zeros(len(values), self.hidden_size)
            hidden[order] = states
            return hidden

    def read_plainly(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch step by step, differentiated by autograd; see `Encoder.read`."""
        evolve = self.evolution.prepare()
        projected = self._project(values, observed, delta_t, features)
        hidden = values.new_zeros(len(values), self.hidden_size)
        # One unbind before the loop: an index per step would make the backward pass quadratic.
        for inputs, gap, active in zip(
            projected.unbind(1), delta_t.unbind(1), running.unsqueeze(-1).unbind(1), strict=True
        ):
            evolved = evolve(hidden, gap)
            hidden = torch.where(active, self._cell(inputs, evolved), hidden)
        return hidden

    def step(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> Tensor:
        """Read one observation; see `Encoder.step`."""
        with _own_precision(values):
            hidden = self.evolution.prepare()(state.hidden, delta_t)
            return self._cell(self._project(values, observed, delta_t, features), hidden)

    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Carry the state to the queries; see `Encoder.evolve`."""
        with _own_precision(delta_t):
            return self.evolution.to_queries(state.hidden, delta_t)

    def evolve_each(self, state: State, delta_t: Tensor, row: Tensor) -> Tensor:
        """Carry the states to the queries; see `Encoder.evolve_each`."""
        with _own_precision(delta_t):
            return self.evolution.to_each(state.hidden, delta_t, row)

    def _project(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, features: Tensor
    ) -> Tensor:
        return self.input_projection(self._inputs(values, observed, delta_t, features))

    def _inputs(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, features: Tensor
    ) -> Tensor:
        gap = delta_t.log1p().unsqueeze(-1)
        return torch.cat([values, observed.to(values.dtype), features, gap], dim=-1)

    def _cell(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Update by a GRU cell (Cho et al., 2014), in the form of ``torch.nn.GRU``."""
        hidden = hidden.clamp(-STATE_LIMIT, STATE_LIMIT)
        input_gates, input_new = inputs.split([2 * self.hidden_size, self.hidden_size], dim=-1)
        gates, new = self.hidden_projection(hidden).split(
            [2 * self.hidden_size, self.hidden_size], dim=-1
        )
        reset, keep = torch.sigmoid(input_gates + gates).chunk(2, dim=-1)
        candidate = torch.tanh(torch.addcmul(input_new, reset, new))
        return torch.lerp(candidate, hidden, keep)


def _own_precision(tensor: Tensor) -> torch.autocast:
    """Leave autocast: a state carries its roundings along, over hundreds of steps."""
    return torch.autocast(tensor.device.type, enabled=False)


def gru_flow(
    num_channels: int,
    num_features: int,
    hidden_size: int,
    *,
    num_layers: int = 2,
    time_embedding: str = "tanh",
) -> RecurrentEncoder:
    """GRU flow across the gaps; its states stay in [-1, 1]. Options as in `GRUFlow`."""
    flow = GRUFlow(hidden_size, num_layers=num_layers, time_embedding=time_embedding)
    return RecurrentEncoder(num_channels, num_features, hidden_size, FlowEvolution(flow))


def resnet_flow(
    num_channels: int,
    num_features: int,
    hidden_size: int,
    *,
    num_layers: int = 2,
    time_embedding: str = "tanh",
) -> RecurrentEncoder:
    """ResNet flow across the gaps. Options as in `ResNetFlow`."""
    flow = ResNetFlow(
        hidden_size,
        hidden_dims=(hidden_size,),
        num_layers=num_layers,
        time_embedding=time_embedding,
    )
    return RecurrentEncoder(num_channels, num_features, hidden_size, FlowEvolution(flow))


def coupling_flow(
    num_channels: int,
    num_features: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    time_embedding: str = "tanh",
) -> RecurrentEncoder:
    """Affine coupling flow across the gaps. Options as in `CouplingFlow`.

    One layer is a pair of affine steps, as deep as two layers of the other flows.
    """
    flow = CouplingFlow(
        hidden_size,
        hidden_dims=(hidden_size,),
        num_layers=num_layers,
        time_embedding=time_embedding,
    )
    return RecurrentEncoder(num_channels, num_features, hidden_size, FlowEvolution(flow))


def gru(num_channels: int, num_features: int, hidden_size: int) -> RecurrentEncoder:
    """Plain GRU that is fed Δt, the baseline that lets the state rest between observations."""
    return RecurrentEncoder(num_channels, num_features, hidden_size, NoEvolution())
