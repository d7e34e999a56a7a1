"""The linear-flow encoder: layers of driven oscillators, each of which reads a series in a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from deltaflow.encoders.encoder import Encoder, State, own_precision
from deltaflow.encoders.scan import scan
from deltaflow.errors import DeltaflowError
from deltaflow.flows.linear import SPAN, LinearFlow, exponential

GATE_BIAS = -2.0
"""The initial bias of the gates: an observation replaces about an eighth of the state."""

DRIVE_GAIN = 3.0
"""The initial weights that drive the oscillators, relative to torch's initialisation. States are
averages of about eight inputs at different phases, so they would be too small otherwise."""

Recur: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]
"""A map ``(number of the layer, factors, added) -> states`` of a layer."""


class LinearFlowEncoder(Encoder):
    r"""Layers of oscillators, which move by a `LinearFlow` and are driven by the observations.

    At an observation, a layer whose input is :math:`u` goes from its state :math:`s` to

    .. math:: s \leftarrow (1 - f(u)) \odot e^{\Lambda \Delta t} s + f(u) \odot B u,
              \quad f(u) = \sigma(W u + w).

    The input of the first layer consists of the values (0 where missing), their mask, the features
    and ``log(1 + Δt)``. Every other layer reads a hidden layer of neurons over these and the
    updated state of the previous layer.

    Layers exchange information only at observations. Between observations every layer moves by its
    own flow, so the state at a query is a single product, and two steps across a gap are exactly
    the same as one. The factors and inputs of the recurrence do not depend on the layer's own
    state, so a layer can read a series in one `scan`. For the same reason a layer is less
    expressive than a GRU of the same size: patterns in the order of observations take several
    layers.

    Parameters
    ----------
    num_channels, num_features, hidden_size
        See `Encoder`. The layers share the hidden size among them.
    num_layers
        The number of layers.
    width
        The number of neurons between two layers; by default the hidden size.
    span, cycles
        The length of a series and its known periods, both in typical gaps, from which initial
        frequencies and decay rates are chosen. See `LinearFlow`.

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
        # Every layer gets slow and fast oscillators, and one for every cycle.
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
        self.gates = nn.ModuleList(map(nn.Linear, widths, self.sizes))
        self.drives = nn.ModuleList(map(nn.Linear, widths, [2 * size for size in self.sizes]))
        self.mixtures = nn.ModuleList(
            nn.Linear(2 * size + num_inputs, width) for size in self.sizes[:-1]
        )
        with torch.no_grad():
            layer = torch.arange(len(self.flow.frequency)) % num_layers
            self.flow.frequency.copy_(self.flow.frequency[layer.argsort(stable=True)])
            for gate, drive in zip(self.gates, self.drives, strict=True):
                nn.init.constant_(cast(nn.Linear, gate).bias, GATE_BIAS)
                cast(nn.Linear, drive).weight.mul_(DRIVE_GAIN)

    def read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch, a layer at a time; see `Encoder.read`."""
        if not running.numel():
            return values.new_zeros(len(values), self.hidden_size)
        with own_precision(values):
            gaps = delta_t.T.contiguous()  # (T, B)
            seen = _inputs(values, observed, features, delta_t).transpose(0, 1).contiguous()
            counts = running.sum(1)
            newest = (counts - 1).clamp(min=0), torch.arange(len(counts), device=counts.device)
            layers = self._layers(seen, gaps, lambda _, factors, added: scan(factors, added))
            states = torch.cat([states[newest] for states in layers], -1)
            states = states.masked_fill((counts == 0).unsqueeze(-1), 0.0)
            return self._as_real(states, values.dtype)

    def step(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> Tensor:
        """Read one observation; see `Encoder.step`."""
        with own_precision(values):
            before = nn.functional.pad(state.hidden, (0, self.hidden_size % 2))
            before = _numbers(torch.stack(before.chunk(2, -1), -1).flatten(-2))
            before = before.split(self.sizes, -1)
            seen = _inputs(values, observed, features, delta_t)

            def one_step(layer: int, factors: Tensor, added: Tensor) -> Tensor:
                return factors * before[layer] + added

            states = torch.cat([*self._layers(seen, delta_t, one_step)], -1)
            return self._as_real(states, values.dtype)

    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Carry the state to the queries by its flow; see `Encoder.evolve`."""
        with own_precision(delta_t):
            return self.flow.prepare()(delta_t.unsqueeze(-1), state.hidden.unsqueeze(-2))

    def _layers(self, seen: Tensor, gaps: Tensor, recur: Recur) -> Iterator[Tensor]:
        """Yield the states ``(…, n)`` of each layer's n oscillators.

        ``seen`` is ``(…, R)``, R inputs at each of any number of observations; ``gaps`` is ``(…)``.
        """
        moved = exponential(*self.flow.exponent(), gaps.unsqueeze(-1), seen.dtype)
        moved = torch.stack(moved, -1).flatten(-2)  # as `_parts` are
        inner = seen
        # Products of real and complex numbers are slow, so gates are repeated for both parts.
        for layer, moved_by in enumerate(moved.split([2 * n for n in self.sizes], -1)):
            weight, bias = (part.repeat_interleave(2, 0) for part in self.gates[layer].parameters())
            gate = torch.sigmoid(nn.functional.linear(inner, weight, bias))
            factors, added = (1 - gate) * moved_by, gate * self.drives[layer](inner)
            states = recur(layer, _numbers(factors), _numbers(added))
            yield states
            if layer < len(self.mixtures):
                mixed = self.mixtures[layer](torch.cat([_parts(states).to(seen.dtype), seen], -1))
                inner = nn.functional.gelu(mixed)

    def _as_real(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """Turn complex states ``(B, N)`` into the hidden state, ``(B, H)``."""
        return torch.cat([states.real, states.imag], -1)[:, : self.hidden_size].to(dtype)


def _parts(numbers: Tensor) -> Tensor:
    """Return real and imaginary parts, ``(…, 2n)``, of complex numbers ``(…, n)``."""
    return torch.view_as_real(numbers).flatten(-2)


def _numbers(parts: Tensor) -> Tensor:
    """Undo `_parts`, in float32 for half precision, which has no complex numbers."""
    parts = parts.to(torch.promote_types(parts.dtype, torch.float32))
    return torch.view_as_complex(parts.unflatten(-1, (-1, 2)))


def _inputs(values: Tensor, observed: Tensor, features: Tensor, delta_t: Tensor) -> Tensor:
    """Return the input of the first layer, ``(…, R)``."""
    return torch.cat(
        [values, observed.to(values.dtype), features, delta_t.log1p().unsqueeze(-1)], -1
    )
