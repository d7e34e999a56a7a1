"""Recurrent encoders: evolve the state across the gap, then update it by a GRU cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltaflow.encoders.encoder import Encoder, State
from deltaflow.encoders.evolution import Evolution, FlowEvolution, NoEvolution
from deltaflow.flows import CouplingFlow, GRUFlow, ResNetFlow

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
            nn.init.orthogonal_(gate)

    def read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch; see `Encoder.read`."""
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
        hidden = self.evolution.prepare()(state.hidden, delta_t)
        return self._cell(self._project(values, observed, delta_t, features), hidden)

    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Carry the state to the queries; see `Encoder.evolve`."""
        return self.evolution.to_queries(state.hidden, delta_t)

    def _project(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, features: Tensor
    ) -> Tensor:
        gap = delta_t.log1p().unsqueeze(-1)
        inputs = torch.cat([values, observed.to(values.dtype), features, gap], dim=-1)
        return self.input_projection(inputs)

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
    flow = ResNetFlow(hidden_size, num_layers=num_layers, time_embedding=time_embedding)
    return RecurrentEncoder(num_channels, num_features, hidden_size, FlowEvolution(flow))


def coupling_flow(
    num_channels: int,
    num_features: int,
    hidden_size: int,
    *,
    num_layers: int = 2,
    time_embedding: str = "tanh",
) -> RecurrentEncoder:
    """Affine coupling flow across the gaps. Options as in `CouplingFlow`."""
    flow = CouplingFlow(hidden_size, num_layers=num_layers, time_embedding=time_embedding)
    return RecurrentEncoder(num_channels, num_features, hidden_size, FlowEvolution(flow))


def gru(num_channels: int, num_features: int, hidden_size: int) -> RecurrentEncoder:
    """Plain GRU that is fed Δt, the baseline that lets the state rest between observations."""
    return RecurrentEncoder(num_channels, num_features, hidden_size, NoEvolution())
