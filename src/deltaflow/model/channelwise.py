"""The network with one state per channel, for channels that are observed at different times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from gluonts.torch.distributions import Output
from torch import Tensor, nn
from torch.nn import functional

from deltaflow.data import Batch, Reader
from deltaflow.data.scaling import Rows
from deltaflow.encoders import State, make_encoder
from deltaflow.errors import DeltaflowError
from deltaflow.heads.shared import SharedHead
from deltaflow.model.module import ForecastNetwork

TIMESCALES = (2.0, 8.0, 32.0)
"""The initial values of the learned timescales of the recent means, in typical gaps."""


TAME = 3.0
"""The absolute value up to which scaled values are hardly compressed before they are read."""

FEW = 128
"""The number of channels up to which attention weights are computed all at once on a CPU."""


class History(NamedTuple):
    """Sums over the observations of each channel, from which its summary is computed.

    Attributes
    ----------
    count, total, squares
        ``(B, C)`` number of values, their sum and the sum of their squares, in float64: sums over
        millions of observations, one by one, would lose digits in float32.
    lowest, highest, first
        ``(B, C)`` lowest, highest and first value. Before the first observation they are infinity,
        minus infinity and 0.
    recent_count, recent_total
        ``(B, C, K)`` number and sum, each value weighted by ``exp(-age / timescale)``.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    lowest: Tensor
    highest: Tensor
    first: Tensor
    recent_count: Tensor
    recent_total: Tensor

    def summary(self) -> Tensor:
        """Return features ``(B, C, 6 + 2K)``: mean, deviation, extremes, first, recent means."""
        count = self.count.clamp(min=1)
        mean = self.total / count
        deviation = (self.squares / count - mean**2).clamp(min=1e-6).sqrt()
        seen = self.count > 0
        extremes = [torch.where(seen, bound, 0.0) for bound in (self.lowest, self.highest)]
        plain = [mean, deviation, *extremes, self.first, self.count.log1p()]
        plain = [part.to(self.first.dtype) for part in plain]
        recent = self.recent_total / (self.recent_count + 0.1)
        return torch.cat([torch.stack(plain, -1), recent, self.recent_count.log1p()], dim=-1)


class ChannelsEncoded(NamedTuple):
    """A batch whose observations have been read.

    Attributes
    ----------
    state
        A state per channel. Its hidden state ``(B, C, H)`` is that at the channel's own last
        observation.
    history
        Sums over the observations of each channel.
    level
        ``(B, C, L)`` level features of each channel, see `Scaling`.
    static
        ``(B, S)`` static features.
    """

    state: State
    history: History
    level: Tensor
    static: Tensor


class ChannelwiseNetwork(ForecastNetwork[ChannelsEncoded]):
    """A network with one hidden state per channel, which only the channel's observations update.

    One encoder reads all channels and distinguishes them by an embedding. The states are evolved to
    the forecast origin, where they attend to each other in a transformer (with the embedding in
    place of positions), and then on to the queries. The cost grows with the number of observed
    values, not with series × channels.

    For each channel and query, the shared head reads the evolved hidden state (and that at the
    forecast origin, if the encoder oscillates), Δt, the last value and its age, a summary of the
    history, the level features, the embedding, the covariates at the query and the static features.

    Parameters
    ----------
    reader, balance, channel_weights
        See `ForecastNetwork`.
    output
        The GluonTS output.
    encoder, encoder_kwargs
        Name of a registered encoder, and its options.
    hidden_size
        The size of a channel's hidden state; a multiple of `num_heads`.
    dropout
        The share of inner features of the head and the transformer that is dropped in training.
    embedding_size
        The size of a channel's embedding.
    num_exchange_layers, num_heads
        The number of transformer layers, and of their attention heads, through which channels
        exchange information. With 0 layers, each channel is forecast on its own.
    summary
        Whether the head reads a summary of the history in addition to the state.
    shrinkage
        The number of observations in the training set at which the network's influence on a channel
        is halved, see `SharedHead`. A few thousand suit many patients with rare measurements.
    """

    def __init__(
        self,
        reader: Reader,
        output: Output,
        *,
        encoder: str,
        encoder_kwargs: Mapping[str, Any] | None = None,
        hidden_size: int = 32,
        dropout: float = 0.0,
        balance: float = 0.0,
        channel_weights: Sequence[float] | None = None,
        embedding_size: int = 16,
        num_exchange_layers: int = 2,
        num_heads: int = 4,
        summary: bool = True,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__(reader, balance, channel_weights)
        if hidden_size % num_heads:
            raise DeltaflowError(
                f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}: change one"
            )
        self.embedding = nn.Parameter(torch.randn(self.num_channels, embedding_size) / 2)
        self.encoder = make_encoder(
            encoder, 1, embedding_size + self.num_covariates, hidden_size, **(encoder_kwargs or {})
        )
        self.log_timescales = nn.Parameter(torch.tensor(TIMESCALES).log()) if summary else None
        num_known = 3 + self.scaling.num_levels + embedding_size + self.num_static
        if summary:
            num_known += 6 + 2 * len(TIMESCALES)
        self.token = nn.Linear(hidden_size + num_known, hidden_size)
        self.exchange = nn.ModuleList(
            _ExchangeLayer(
                hidden_size,
                num_heads,
                dim_feedforward=2 * hidden_size,
                dropout=dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(num_exchange_layers)
        )
        for layer in self.exchange:
            layer.self_attn.dropout = 0.0  # type: ignore[union-attr]
        self.norm = nn.LayerNorm(hidden_size)
        num_present = hidden_size if self.encoder.oscillates else 0
        self.head = SharedHead(
            [hidden_size + 2, num_known, self.num_covariates, num_present],
            torch.tensor(reader.statistics.count[: self.num_targets], dtype=torch.float32),
            output,
            width=2 * hidden_size,
            shrinkage=shrinkage,
            dropout=dropout,
        )

    def encode(self, batch: Batch) -> ChannelsEncoded:
        """Read the observations of a batch, each channel as its own series."""
        size, _, channels = batch.values.shape
        batch = batch._replace(values=_tamed(batch.values))
        # In float64, because the gaps of a channel are differences of long sums.
        elapsed = batch.delta_t.double().cumsum(-1)  # (B, T)
        age = (elapsed[:, -1:] - elapsed).to(batch.delta_t.dtype)
        end = elapsed[:, -1:].to(age.dtype)
        state = self.encoder.initial_state(size * channels)
        state = state._replace(age=end.repeat(1, channels).view(-1, 1))
        # The rows (series, channel), the longest first, as the recurrence needs them.
        lengths, rows = batch.observed.sum(1).flatten().sort(descending=True, stable=True)
        for group in _groups(lengths, self.encoder.length_ratio):
            own = self._read(batch, elapsed, rows[group], lengths[group])
            parts = zip(state, own, strict=True)
            state = State(*(part.index_copy(0, rows[group], new) for part, new in parts))
        return ChannelsEncoded(
            State(*(part.view(size, channels, -1) for part in state)),
            self._history(batch.values, batch.observed, age),
            self._by_channel(batch.levels),
            self.static_features(batch),
        )

    def _read(self, batch: Batch, elapsed: Tensor, rows: Tensor, lengths: Tensor) -> State:
        """Read the observations of N rows (series, channel), the longest first."""
        series, channel = rows // self.num_channels, rows % self.num_channels
        observed = batch.observed[series, :, channel]  # (N, T)
        longest = int(lengths[0])
        # A stable sort puts the observed steps of a row first and keeps their order.
        order = observed.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
        running = torch.arange(longest, device=order.device) < lengths.unsqueeze(-1)
        times = elapsed[series].gather(1, order)
        values = batch.values[series, :, channel].gather(1, order)
        delta_t = times.diff(dim=1, prepend=torch.zeros_like(times[:, :1])).to(values.dtype)
        own = self.encoder(
            values.unsqueeze(-1),
            running.unsqueeze(-1),
            delta_t,
            lengths,
            self._features(channel, batch.covariates[series.unsqueeze(-1), order]),
        )
        newest = times.gather(1, lengths.unsqueeze(-1) - 1)
        return own._replace(age=(elapsed[series, -1:] - newest).to(values.dtype))

    def decode(
        self, encoded: ChannelsEncoded, delta_t: Tensor, covariates: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the distribution's arguments at queries; see `ForecastNetwork.decode`."""
        shape = (*delta_t.shape, self.num_targets)
        all_of_them = torch.ones(shape, dtype=torch.bool, device=delta_t.device)
        args = self._arguments_at(encoded, all_of_them, delta_t, covariates)
        return tuple(arg.unflatten(0, shape) for arg in args)

    def at_targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments at the observed targets only."""
        encoded = self.encode(batch)
        mask, covariates = batch.target_observed, batch.query_covariates
        return self._arguments_at(encoded, mask, batch.query_delta_t, covariates)

    def update(
        self,
        encoded: ChannelsEncoded,
        delta_t: Tensor,
        rows: Rows,
        covariates: Tensor,
    ) -> ChannelsEncoded:
        """Read one more observation of each series. Only observed channels get a new state."""
        state, values, observed = encoded.state, _tamed(rows.values), rows.observed
        age = state.age + delta_t.view(-1, 1, 1)
        channel = torch.arange(self.num_channels, device=age.device).repeat(len(age))
        beside = covariates.repeat_interleave(self.num_channels, dim=0).unsqueeze(1)
        updated = self.encoder.update(
            _at_own_time(State(*(part.flatten(0, 1) for part in state))),
            age.flatten(),
            values.reshape(-1, 1),
            observed.reshape(-1, 1),
            self._features(channel, beside).squeeze(1),
        )
        mask = observed.unsqueeze(-1)
        state = State(
            hidden=torch.where(mask, updated.hidden.view_as(state.hidden), state.hidden),
            last=updated.last.view_as(state.last),
            age=torch.where(mask, 0.0, age),
            seen=updated.seen.view_as(state.seen),
        )
        history = self._extended(encoded.history, delta_t, values, observed)
        return ChannelsEncoded(state, history, self._by_channel(rows.levels), encoded.static)

    def _arguments_at(
        self, encoded: ChannelsEncoded, mask: Tensor, delta_t: Tensor, covariates: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the arguments ``(N,)`` at the N channels and queries where ``mask`` is True.

        ``mask`` is ``(B, Q, D)``, ``delta_t`` ``(B, Q)`` and ``covariates`` ``(B, Q, K)``.
        """
        series, query, channel = mask.nonzero(as_tuple=True)
        hidden, known = self._present(encoded)
        state = State(*(part.flatten(0, 1) for part in (hidden, *encoded.state[1:])))
        row = series * self.num_channels + channel
        gap = delta_t[series, query]
        evolved = self.encoder.evolve_each(state, gap, row)
        spans = torch.stack([gap, state.age[row].squeeze(-1) + gap], dim=-1).log1p()
        features = torch.cat([evolved, spans, covariates[series, query]], dim=-1)
        shared = known.flatten(0, 1)
        if self.encoder.oscillates:
            shared = torch.cat([shared, state.hidden], dim=-1)
        return self.head(features, shared, row, channel)

    def _present(self, encoded: ChannelsEncoded) -> tuple[Tensor, Tensor]:
        """Evolve all channels to the forecast origin, and let them exchange information.

        Returns
        -------
        hidden, known
            ``(B, C, H)`` states in [-1, 1], and ``(B, C, …)`` other features of the channels.
        """
        state = encoded.state
        size, channels = state.hidden.shape[:2]
        rows = State(*(part.flatten(0, 1) for part in state))
        hidden = self.encoder.evolve(_at_own_time(rows), rows.age).view_as(state.hidden)
        parts = [
            torch.cat([state.last, state.age.log1p(), state.seen.to(hidden.dtype)], dim=-1),
            encoded.level,
            self.embedding.expand(size, -1, -1),
            encoded.static.unsqueeze(1).expand(-1, channels, -1),
        ]
        if self.log_timescales is not None:
            parts.append(encoded.history.summary())
        known = torch.cat(parts, dim=-1)
        tokens = self.token(torch.cat([hidden, known], dim=-1))
        for layer in self.exchange:
            tokens = layer(tokens)
        # Back from autocast's lower precision, which does not suffice for flows and solvers.
        return torch.tanh(self.norm(tokens)).to(hidden.dtype), known

    def _by_channel(self, levels: Tensor) -> Tensor:
        """Turn the levels ``(B, L · C)`` of all channels into ``(B, C, L)``."""
        return levels.unflatten(1, (-1, self.num_channels)).transpose(1, 2)

    def _features(self, channel: Tensor, covariates: Tensor) -> Tensor:
        """Concatenate the embeddings of channels ``(N,)`` with covariates ``(N, T, K)``."""
        embedding = self.embedding[channel].unsqueeze(1).expand(-1, covariates.shape[1], -1)
        return torch.cat([embedding, covariates], dim=-1)

    def _decay(self, age: Tensor) -> Tensor:
        """Return the weights ``(…, K)`` of values of an age ``(…)``."""
        if self.log_timescales is None:
            return age.new_zeros(*age.shape, 0)
        return torch.exp(-age.unsqueeze(-1) / self.log_timescales.exp())

    def _history(self, values: Tensor, observed: Tensor, age: Tensor) -> History:
        """Return the sums over values ``(B, T, C)`` of ages ``(B, T)``."""
        mask = observed.to(values.dtype)
        values = torch.where(observed, values, 0.0)
        decay = self._decay(age)
        first = observed.to(torch.uint8).argmax(1, keepdim=True)
        return History(
            count=observed.sum(1).double(),
            total=values.sum(1, dtype=torch.float64),
            squares=(values**2).sum(1, dtype=torch.float64),
            lowest=torch.where(observed, values, math.inf).amin(1),
            highest=torch.where(observed, values, -math.inf).amax(1),
            first=values.gather(1, first).squeeze(1),
            recent_count=(decay.mT @ mask).mT,
            recent_total=(decay.mT @ values).mT,
        )

    def _extended(
        self, history: History, delta_t: Tensor, values: Tensor, observed: Tensor
    ) -> History:
        """Return the history with one more observation ``(B, C)``, after a gap ``(B,)``."""
        new = self._history(
            values.unsqueeze(1), observed.unsqueeze(1), torch.zeros_like(delta_t[:, None])
        )
        decay = self._decay(delta_t).unsqueeze(1)
        return History(
            count=history.count + new.count,
            total=history.total + new.total,
            squares=history.squares + new.squares,
            lowest=torch.minimum(history.lowest, new.lowest),
            highest=torch.maximum(history.highest, new.highest),
            first=torch.where(history.count > 0, history.first, new.first),
            recent_count=decay * history.recent_count + new.recent_count,
            recent_total=decay * history.recent_total + new.recent_total,
        )


class _ExchangeLayer(nn.TransformerEncoderLayer):
    """A transformer layer that trains faster on a CPU: torch's attention is slow for small heads.

    It computes the same attention in two products, with the features of a head before its channels.
    """

    def _sa_block(
        self,
        x: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        if x.device.type != "cpu" or x.shape[1] > FEW:
            return super()._sa_block(x, attn_mask, key_padding_mask, is_causal)
        attention = self.self_attn
        projected = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        parts = projected.mT.contiguous().unflatten(1, (3, attention.num_heads, -1))
        query, key, value = parts.unbind(1)  # (B, heads, H / heads, C)
        weights = (key.mT @ (query / math.sqrt(query.shape[2]))).softmax(2)
        return self.dropout1(attention.out_proj((value @ weights).flatten(1, 2).mT))


def _tamed(values: Tensor) -> Tensor:
    """Compress values beyond `TAME`: linear near 0, logarithmic further out.

    The outliers of heavy-tailed measurements would dominate the summaries and the gradients.
    """
    return TAME * torch.asinh(values / TAME)


def _groups(lengths: Tensor, ratio: float) -> Iterator[slice]:
    """Yield groups of rows whose lengths differ by a factor of at most ``ratio``, longest first.

    Rows of length 0 are in no group.
    """
    start = 0
    while start < len(lengths) and lengths[start] > 0:
        stop = int((ratio * lengths >= lengths[start]).sum())
        yield slice(start, stop)
        start = stop


def _at_own_time(state: State) -> State:
    """Return the state of a channel with age 0, as it was just after its last observation."""
    return state._replace(age=torch.zeros_like(state.age))
