"""The linear-flow encoder: layers of driven oscillators, each computed by a parallel scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltaflow.encoders.encoder import Encoder, State, own_precision
from deltaflow.encoders.oscillators import Motion, carried, last_oscillation, oscillate, turned
from deltaflow.encoders.scan import Order, delayed, since_first
from deltaflow.errors import DeltaflowError
from deltaflow.flows.linear import SPAN, LinearFlow
from deltaflow.flows.time_embedding import is_transformed

GATE_BIAS = -2.0
"""The initial bias of the gates: an observation replaces about an eighth of the state."""

DRIVE_GAIN = 3.0
"""The initial weights that drive the oscillators, relative to torch's initialisation. States are
averages of about eight inputs at different phases, so they would be too small otherwise."""


CACHED = 20_000
"""The number of observations that a CPU reads at a time, which fit into its cache."""


class LinearFlowEncoder(Encoder):
    r"""Layers of oscillators, which evolve by a `LinearFlow` and are driven by the observations.

    At an observation, a layer with input :math:`u` and state :math:`s` is updated to

    .. math:: s \leftarrow (1 - f(u)) \odot e^{\Lambda \Delta t} s + f(u) \odot B u,
              \quad f(u) = \sigma(W u + w).

    The input of the first layer consists of the values (0 where missing), their mask, the features
    and ``log(1 + Δt)``. Every other layer reads a hidden layer of neurons over these and the
    updated state of the previous layer.

    Layers exchange information only at observations. Between observations every layer evolves by
    its own flow, so the state at a query is a single product, and two steps across a gap are
    exactly the same as one. The factors and inputs of the recurrence do not depend on the layer's
    own state, so a layer can read a series by a single `scan`. For the same reason a layer is less
    expressive than a GRU of the same size: patterns in the order of observations take several
    layers.

    Parameters
    ----------
    num_channels, num_features, hidden_size
        See `Encoder`. The hidden size is divided among the layers, with two numbers per oscillator.
    num_layers
        The number of layers.
    width
        The number of neurons between two layers; by default the hidden size.
    span, cycles
        The length of a series and its known periods, both in typical gaps, from which initial
        frequencies and decay rates are chosen. See `LinearFlow`. An estimator takes them from its
        training data, see `Reader.span` and `Reader.cycles`.
    tempo
        The largest factor by which a layer speeds its oscillators up or slows them down. If it
        exceeds 1, each layer sets its tempo :math:`c(u)` at every observation, and evolves by
        :math:`e^{\Lambda c \Delta t}` until the next one. So frequencies may depend on the
        observations, for example on an amplitude, and two steps are still exactly one. The tempi
        are part of the hidden state, one number per layer.

    References
    ----------
    Orvieto et al., *Resurrecting Recurrent Neural Networks for Long Sequences*, 2023,
    arXiv:2303.06349; Smith et al., *Simplified State Space Layers for Sequence Modeling*, 2023,
    arXiv:2208.04933; Scholz et al., *Latent Linear ODEs*, 2022.
    """

    oscillates = True
    length_ratio = 8.0  # only the inputs are padded, not what is computed from them
    layer_of: Tensor

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
        tempo: float = 1.0,
    ) -> None:
        super().__init__(num_channels, num_features, hidden_size)
        # Every layer gets slow and fast oscillators, and one for every cycle.
        repeated = [cycle for cycle in cycles for _ in range(num_layers)]
        if not 1 <= tempo < math.inf:
            raise DeltaflowError(f"tempo must be a factor of at least 1, got {tempo}")
        num_tempi = num_layers if tempo > 1 else 0
        count = max(0, hidden_size - num_tempi) // 2
        if not 1 <= num_layers <= count:
            raise DeltaflowError(
                f"hidden_size {hidden_size} makes {count} oscillators, which cannot be shared "
                f"among {num_layers} layers: choose num_layers from 1 to {count}, or a larger "
                "hidden_size"
            )
        # A spare number stays 0. If it decayed, it would take values beyond the trained lengths
        # that never occur within them.
        self.flow = LinearFlow(2 * count, span=span, cycles=repeated)
        self.left_over = hidden_size - num_tempi - 2 * count
        self.log_tempo = math.log(tempo)
        self.sizes = [len(part) for part in torch.arange(count).tensor_split(num_layers)]
        layer_of = torch.arange(num_layers).repeat_interleave(torch.tensor(self.sizes))
        self.register_buffer("layer_of", layer_of, persistent=False)
        width = width or hidden_size
        num_inputs = 2 * num_channels + num_features + 1
        widths = [num_inputs, *[width] * (num_layers - 1)]
        # For each oscillator: a gate, and real and imaginary part of the input.
        self.entries = nn.ModuleList(map(nn.Linear, widths, [3 * size for size in self.sizes]))
        self.mixtures = nn.ModuleList(
            nn.Linear(2 * size + num_inputs, width) for size in self.sizes[:-1]
        )
        self.tempi = nn.ModuleList(nn.Linear(size, 1) for size in widths[:num_tempi])
        with torch.no_grad():
            for parameter in self.tempi.parameters():
                parameter.zero_()
            layer = torch.arange(len(self.flow.frequency)) % num_layers
            self.flow.frequency.copy_(self.flow.frequency[layer.argsort(stable=True)])
            for size, entry in zip(self.sizes, self.entries, strict=True):
                weight, bias = entry.parameters()
                nn.init.constant_(bias[:size], GATE_BIAS)
                weight[size:].mul_(DRIVE_GAIN)

    def read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read a whole batch, a layer at a time; see `Encoder.read`.

        Inside `torch.func` and forward-mode differentiation, `read_plainly` reads it.
        """
        parts = values, observed, delta_t, running, features
        if is_transformed() or not running.any():
            return self.read_plainly(*parts)
        with own_precision(values):
            groups = _groups(running) if values.device.type == "cpu" else [slice(None)]
            hidden = [self._read(*(part[group] for part in parts)) for group in groups]
            return hidden[0] if len(hidden) == 1 else torch.cat(hidden)

    def _read(
        self, values: Tensor, observed: Tensor, delta_t: Tensor, running: Tensor, features: Tensor
    ) -> Tensor:
        """Read some of the series; see `read`."""
        order = Order.of(running)
        dtype = torch.promote_types(values.dtype, torch.float32)
        inputs = *_inputs(values, observed, features, delta_t), running.unsqueeze(-1)
        seen = torch.cat([order.take(part) for part in inputs]).to(dtype).flatten(1)
        gaps = order.take(delta_t.unsqueeze(-1))[0].contiguous().to(dtype)  # (L, C, B)
        if order.begins is not None:
            gaps = gaps.masked_fill(order.begins, 0.0)
        rates, turns = self.flow.exponent()
        rates = rates.to(dtype)
        exponents = zip(rates.split(self.sizes), turns.split(self.sizes), strict=True)
        inner, own, elapsed = seen[:-1], gaps, since_first(gaps)  # (R, L · C · B)
        hidden, tempi, last = [], [], len(self.entries) - 1
        for layer, exponent in enumerate(exponents):
            if self.tempi:
                tempo = self._tempo(layer, inner.T).view_as(gaps)
                tempi.append(order.at_end(tempo).unsqueeze(0))
                own = gaps * delayed(tempo).exp()
                elapsed = since_first(own)
            motion = Motion.of(*exponent, own, elapsed, order.begins)
            drive = inner, *_affine(self.entries[layer], dtype)
            if layer == last and order.newest is None and not torch.is_grad_enabled():
                newest = last_oscillation(*drive, motion)
            else:
                states = oscillate(*drive, *exponent, own, motion)  # (2, n, L, C, B)
                newest = order.at_end(states)
                if layer < last:
                    inner = _mixed(self.mixtures[layer], turned(states, *motion[1:]), seen)
            hidden.append(turned(newest, order.at_end(motion.cos), order.at_end(motion.sin)))
        hidden = torch.cat(hidden, 1).flatten(0, 1)
        hidden = torch.cat([hidden, *tempi]).T.to(values.dtype)
        if order.newest is not None:  # then some series may have no observation
            hidden = torch.where(running[:, :1], hidden, 0.0)
        return functional.pad(hidden, (0, self.left_over))

    def step(
        self, state: State, delta_t: Tensor, values: Tensor, observed: Tensor, features: Tensor
    ) -> Tensor:
        """Read one observation; see `Encoder.step`."""
        with own_precision(values):
            moved = self._moved(delta_t.unsqueeze(-1), state.hidden)
            moved = moved[:, : self.flow.dim].unflatten(-1, (2, -1))
            seen = torch.cat(_inputs(values, observed, features, delta_t), -1)
            inner, hidden, tempi = seen, [], []
            for layer, before in enumerate(moved.split(self.sizes, -1)):
                if self.tempi:
                    tempi.append(self._tempo(layer, inner))
                entries = self.entries[layer](inner).unflatten(-1, (3, -1))
                gate, drive = entries[:, :1].sigmoid(), entries[:, 1:]
                states = (1 - gate) * before + gate * drive  # (B, 2, n)
                hidden.append(states)
                if layer < len(self.mixtures):
                    mixed = self.mixtures[layer](torch.cat([states.flatten(1), seen], -1))
                    inner = functional.gelu(mixed)
            parts = torch.cat(hidden, -1).flatten(1), *tempi
            return functional.pad(torch.cat(parts, -1), (0, self.left_over))

    def evolve(self, state: State, delta_t: Tensor) -> Tensor:
        """Evolve the state to the queries by its flow; see `Encoder.evolve`."""
        with own_precision(delta_t):
            return self._moved(delta_t.unsqueeze(-1), state.hidden.unsqueeze(-2))

    def _moved(self, t: Tensor, hidden: Tensor) -> Tensor:
        """Evolve states ``(…, H)`` over times ``(…, 1)``; their tempi stay the same."""
        oscillators, others = hidden.tensor_split([self.flow.dim], -1)
        if self.tempi:
            t = t * others.exp()[..., self.layer_of]  # (…, N), a time for each oscillator
        if is_transformed():
            moved = self.flow.prepare()(t, oscillators)
        else:
            moved = carried(oscillators, *self.flow.exponent(), t)
        if not others.shape[-1]:
            return moved
        return torch.cat([moved, others.expand(*moved.shape[:-1], -1)], -1)

    def _tempo(self, layer: int, inner: Tensor) -> Tensor:
        """Return the logarithm of a layer's tempo, ``(…, 1)``, from its input ``(…, W)``."""
        weight, bias = (part.to(inner.dtype) for part in self.tempi[layer].parameters())
        # A mean, because a training step would change a sum over a hundred inputs by a lot.
        mean = functional.linear(inner, weight / inner.shape[-1], bias)
        return self.log_tempo * torch.tanh(mean)


def _groups(running: Tensor) -> list[slice]:
    """Cut a batch ``(B, T)`` into groups of series with at most `CACHED` observations each.

    A longer series forms its own group. Every group has an observation, if the batch has one.
    """
    if running.numel() <= CACHED:
        return [slice(None)]
    starts, total = [0], 0
    for row, length in enumerate(running.sum(1).tolist()):
        if length and total and total + length > CACHED:
            starts.append(row)
            total = 0
        total += length
    return [slice(*bounds) for bounds in pairwise([*starts, len(running)])]


def _affine(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer."""
    assert isinstance(layer, nn.Linear)
    return layer.weight.to(dtype), layer.bias.to(dtype)


def _mixed(mixture: nn.Module, states: Tensor, seen: Tensor) -> Tensor:
    """Return the hidden layer over states ``(2, n, L, C, B)`` and inputs ``(R, L · C · B)``."""
    weight, bias = _affine(mixture, seen.dtype)
    states = states.flatten(2).flatten(0, 1)
    of_states, of_seen = torch.cat([weight, bias.unsqueeze(1)], 1).split(
        [len(states), len(seen)], 1
    )
    mixed = (of_seen @ seen).addmm_(of_states, states)
    activate = functional.gelu if mixed.requires_grad else torch.ops.aten.gelu_  # in place
    return activate(mixed)


def _inputs(
    values: Tensor, observed: Tensor, features: Tensor, delta_t: Tensor
) -> tuple[Tensor, ...]:
    """Return the parts of the input of the first layer, with R features in total."""
    return values, observed, features, delta_t.log1p().unsqueeze(-1)
