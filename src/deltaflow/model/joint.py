"""The network with one state per series, which all channels share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from gluonts.torch.distributions import Output
from torch import Tensor

from deltaflow.data import Batch, Reader
from deltaflow.data.scaling import Rows
from deltaflow.encoders import State, make_encoder
from deltaflow.heads import Head
from deltaflow.model.module import ForecastNetwork


class Encoded(NamedTuple):
    """A batch whose observations have been read.

    Attributes
    ----------
    state
        The state of each series.
    levels
        ``(B, L)`` level features of each series, see `Scaling`.
    static
        ``(B, S)`` static features.
    """

    state: State
    levels: Tensor
    static: Tensor


class JointNetwork(ForecastNetwork[Encoded]):
    """A network with one hidden state per series, updated by each observation of any channel.

    At each query the head reads the evolved hidden state, Δt, each channel's last value and its
    age, the level features, the covariates at the query and the static features.

    Parameters
    ----------
    reader, balance, channel_weights
        See `ForecastNetwork`.
    output
        The GluonTS output.
    encoder, encoder_kwargs
        Name of a registered encoder, and its options.
    hidden_size
        The size of the encoder's state and of the head.
    dropout
        The share of the head's inner features that is dropped in training.
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
    ) -> None:
        super().__init__(reader, balance, channel_weights)
        num_features = self.num_covariates + self.num_static
        self.encoder = make_encoder(
            encoder, self.num_channels, num_features, hidden_size, **(encoder_kwargs or {})
        )
        self.head = Head(
            hidden_size + (3 + self.scaling.num_levels) * self.num_channels + 1 + num_features,
            self.num_targets,
            output,
            width=2 * hidden_size,
            dropout=dropout,
        )

    def encode(self, batch: Batch) -> Encoded:
        """Read the observations of a batch."""
        static = self.static_features(batch)
        state = self.encoder(
            batch.values,
            batch.observed,
            batch.delta_t,
            batch.lengths,
            _beside(batch.covariates, static),
        )
        return Encoded(state, batch.levels, static)

    def decode(self, encoded: Encoded, delta_t: Tensor, covariates: Tensor) -> tuple[Tensor, ...]:
        """Return the distribution's arguments at queries; see `ForecastNetwork.decode`."""
        return self.head(self._features_at(encoded, delta_t, covariates))

    def _features_at(self, encoded: Encoded, delta_t: Tensor, covariates: Tensor) -> Tensor:
        """Return the features for the head at queries, ``(B, Q, I)``."""
        state = encoded.state
        hidden = self.encoder.evolve(state, delta_t)  # (B, Q, H)
        age = state.age.unsqueeze(1) + delta_t.unsqueeze(-1)  # (B, Q, C)
        seen = state.seen.to(hidden.dtype)
        known = torch.cat([state.last, seen, encoded.static, encoded.levels], dim=-1)
        features = [hidden, delta_t.log1p().unsqueeze(-1), age.log1p()]
        return torch.cat([*features, _beside(covariates, known)], dim=-1)

    def at_targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments at the observed targets; see `ForecastNetwork.at_targets`."""
        features = self._features_at(
            self.encode(batch), batch.query_delta_t, batch.query_covariates
        )
        return self.head.at(features, batch.target_observed)

    def update(self, encoded: Encoded, delta_t: Tensor, rows: Rows, covariates: Tensor) -> Encoded:
        """Read one more observation of each series; see `ForecastNetwork.update`."""
        features = torch.cat([covariates, encoded.static], dim=-1)
        state = self.encoder.update(encoded.state, delta_t, rows.values, rows.observed, features)
        return Encoded(state, rows.levels, encoded.static)


def _beside(sequence: Tensor, static: Tensor) -> Tensor:
    """Append static features ``(B, S)`` to each step of ``(B, T, K)``: ``(B, T, K + S)``."""
    repeated = static.unsqueeze(1).expand(-1, sequence.shape[1], -1)
    return torch.cat([sequence, repeated], dim=-1)
