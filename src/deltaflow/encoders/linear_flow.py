"""The linear-flow encoder: layers of oscillators that a whole series drives in one scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from deltaflow.encoders.encoder import Encoder, State
from deltaflow.encoders.scan import scan
from deltaflow.errors import DeltaflowError
from deltaflow.flows.linear import SPAN, LinearFlow, exponential

GATE_BIAS = -2.0
"""A new gate lets in about an eighth of what is observed, and keeps the rest of the state."""

Recur: TypeAlias = Callable[[slice, Tensor, Tensor], Tensor]
"""A map ``(oscillators, factors, added) -> states`` of a layer."""


class LinearFlowEncoder(Encoder):
    r"""Layers of oscillators: each moves by a `LinearFlow`, and is driven at the observations.

    At an observation, a layer whose input is :math:`u` goes from its state :math:`s` to

    .. math:: s \leftarrow (1 - f(u)) \odot e^{\Lambda \Delta t} s + f(u) \odot B u,
              \quad f(u) = \sigma(W u + w).

    The first layer's input are the values (0 where missing), their mask, the features and
    ``log(1 + Δt)``. Every other layer reads a hidden layer of neurons over these and the updated
    state of the layer before.

    Layers learn of each other at observations only. Between them every layer moves by its own flow,
    so that the state at a query is one product away, and two steps across a gap are exactly one. As
    factors and inputs of the recurrence do not depend on the layer's own state, a layer reads a
    series in one `scan`. For the same reason it is less expressive than a GRU of as many features:
    what depends on the order of observations has to be found by several layers.

    Parameters
    ----------
    num_channels, num_features, hidden_size
        See `Encoder`. The layers share the hidden size among them.
    num_layers
        The number of layers.
    width
        The number of neurons between two layers; by default the hidden size.
    span, cycles
        What the initial frequencies and rates of decay suit: the time that a series lasts, and
        known periods, both in typical gaps. See `LinearFlow`.

    References
    ----------
    Orvieto et al., *Resurrecting Recurrent Neural Networks for Long Sequences*, 2023,
    arXiv:2303.06349; Smith et al., *Simplified State Space Layers for Sequence Modeling*, 2023,
    arXiv:2208.04933; Scholz et al., *Latent Linear ODEs*, 2022.
    """

    def __init__(
        self,
        num_channels: int,
        num_features: int,
        hidden_size: int,
        *,
        num_layers: int = 2,
        width: int | None = None,
        span: float = SPAN,
        cycles: Sequence[float] = (),
    ) -> None:
        super().__init__(num_channels, num_features, hidden_size)
        # In each layer oscillators of every speed, and of every cycle.
        repeated = [cycle for cycle in cycles for _ in range(num_layers)]
        self.flow = LinearFlow(hidden_size, span=span, cycles=repeated)
        count = self.flow.num_modes
        if not 1 <= num_layers <= count:
            raise DeltaflowError(
                f"hidden_size {hidden_size} makes {count} oscillators, which cannot be shared "
                f"among {num_layers} layers: choose num_layers from 1 to {count}"
            )
        self.sizes = [len(part) for part in torch.arange(count).tensor_split(num_layers)]
        width = width or hidden_size
        num_inputs = 2 * num_channels + num_features + 1
        widths = [num_inputs, *[width] * (num_layers - 1)]
        # Gate, and real and imaginary part of what drives the oscillators.
        self.entries = nn.ModuleList(
            nn.Linear(inner, 3 * size) for inner, size in zip(widths, self.sizes, strict=True)
        )
        self.mixtures = nn.ModuleList(
            nn.Linear(2 * size + num_inputs, width) for size in self.sizes[:-1]
        )
        with torch.no_grad():
            layer = torch.arange(len(self.flow.frequency)) % num_layers
            self.flow.frequency.copy_(self.flow.frequency[layer.argsort(stable=True)])
            for entry, size in zip(self.entries, self.sizes, strict=True):
                cast(nn.Linear, entry).bias[:size] = GATE_BIAS

    def read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch, a layer at a time; see `Encoder.read`."""
        if not running.numel():
            return values.new_zeros(len(values), self.hidden_size)
        with _own_precision(values):
            padding = ~running.T
            gaps = delta_t.T.masked_fill(padding, 0.0)  # (T, B)
            seen = _columns(values, observed, features, delta_t).masked_fill(padding, 0.0)
            counts = running.sum(1)
            series = torch.arange(len(counts), device=counts.device)
            states = self._layers(seen, gaps, lambda _, factors, added: scan(factors, added))
            newest = torch.cat([part[:, :, counts - 1, series] for part in states], 1)
            return self._as_real(newest * (counts > 0))

    def step(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> Tensor:
        """Read one observation; see `Encoder.step`."""
        with _own_precision(values):
            seen = _columns(values, observed, features, delta_t)
            before = nn.functional.pad(state.hidden.T, (0, 0, 0, self.hidden_size % 2))
            before = before.unflatten(0, (2, -1))  # (2, N, B)

            def one_step(modes: slice, factors: Tensor, added: Tensor) -> Tensor:
                (a, b), (x, y) = factors, before[:, modes]
                return torch.stack([a * x - b * y, a * y + b * x]) + added

            return self._as_real(torch.cat([*self._layers(seen, delta_t, one_step)], 1))

    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Carry the state to the queries by its flow; see `Encoder.evolve`."""
        with _own_precision(delta_t):
            return self.flow.prepare()(delta_t.unsqueeze(-1), state.hidden.unsqueeze(-2))

    def _layers(self, seen: Tensor, gaps: Tensor, recur: Recur) -> Iterator[Tensor]:
        """Yield the states of each layer, ``(2, n, …)`` for n oscillators.

        ``seen`` is ``(R, …)``, R inputs at any number of observations, and ``gaps`` is ``(…)``.
        """
        rates, turns = (part.view(-1, *[1] * gaps.ndim) for part in self.flow.exponent())
        moved = exponential(rates, turns, gaps, seen.dtype)  # (2, N, …)
        inner, start = seen, 0
        for layer, (entry, size) in enumerate(zip(self.entries, self.sizes, strict=True)):
            gate, real, imaginary = _linear(entry, inner).split(size)
            gate = torch.sigmoid(gate)
            modes = slice(start, start + size)
            added = gate * torch.stack([real, imaginary])
            states = recur(modes, (1 - gate) * moved[:, modes], added)
            yield states
            if layer < len(self.mixtures):
                mixed = _linear(self.mixtures[layer], torch.cat([states.flatten(0, 1), seen]))
                inner, start = nn.functional.gelu(mixed), modes.stop

    def _as_real(self, states: Tensor) -> Tensor:
        """Turn ``(2, N, B)`` into the hidden state, ``(B, H)``."""
        return states.flatten(0, 1)[: self.hidden_size].T


def _columns(values: Tensor, observed: Tensor, features: Tensor, delta_t: Tensor) -> Tensor:
    """Return what is read of each observation, ``(R, T, B)`` of a batch ``(B, T, …)``."""
    gap = delta_t.log1p().unsqueeze(-1)
    parts = [values, observed.to(values.dtype), features, gap]
    return torch.cat([part.permute(*range(part.ndim)[::-1]) for part in parts])


def _linear(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Apply a linear layer to the first axis."""
    weight, bias = cast(nn.Linear, layer).weight, cast(nn.Linear, layer).bias
    flat = torch.addmm(bias.unsqueeze(-1), weight, inputs.flatten(1))
    return flat.view(-1, *inputs.shape[1:])


def _own_precision(tensor: Tensor) -> torch.autocast:
    """Leave autocast: a state carries its roundings along, over hundreds of steps."""
    return torch.autocast(tensor.device.type, enabled=False)
