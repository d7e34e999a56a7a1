"""The network: a batch of windows in, the arguments of distributions at the queries out."""

from __future__ import annotations

from collections.abc import Sized
from typing import NamedTuple

import torch
from gluonts.torch.distributions import Output
from torch import Tensor, nn

from deltaflow.data import Batch, WindowSpec
from deltaflow.data.statistics import LIMIT
from deltaflow.encoders import State, make_encoder
from deltaflow.heads import Head, is_discrete


class Encoded(NamedTuple):
    """A batch after its observations were read: the state, and the static features ``(B, S)``."""

    state: State
    static: Tensor

    def repeat(self, count: int) -> Encoded:
        """Return each series ``count`` times in a row: ``(B · count, …)``."""
        state = State(*(part.repeat_interleave(count, dim=0) for part in self.state))
        return Encoded(state, self.static.repeat_interleave(count, dim=0))


class ForecastNetwork(nn.Module):
    """Encoder, evolution to the queries, and head.

    What the head reads at a query: the evolved hidden state, Δt, each channel's last value and
    its age, the covariates at the query and the static features.

    Parameters
    ----------
    spec
        What the windows hold.
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
        spec: WindowSpec,
        output: Output,
        *,
        encoder: str,
        encoder_kwargs: dict | None = None,
        hidden_size: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        statistics, schema = spec.statistics, spec.schema
        num_channels = len(statistics.center)
        num_covariates = len(statistics.covariate_center)
        # Code 0, an unknown level, is embedded as zero.
        self.embeddings = nn.ModuleList(
            nn.Embedding(len(levels) + 1, _embedding_size(levels), padding_idx=0)
            for levels in schema.feat_static_cat.values()
        )
        embedded = sum(_embedding_size(levels) for levels in schema.feat_static_cat.values())
        num_static = len(statistics.static_center) + 2 * num_channels + embedded
        num_features = num_covariates + num_static
        self.num_targets = len(schema.target)
        self.encoder = make_encoder(
            encoder, num_channels, num_features, hidden_size, **(encoder_kwargs or {})
        )
        self.head = Head(
            hidden_size + 3 * num_channels + 1 + num_features,
            self.num_targets,
            output,
            width=2 * hidden_size,
            dropout=dropout,
        )

    def encode(self, batch: Batch) -> Encoded:
        """Read the observations of a batch."""
        embedded = [embed(batch.static_cat[:, i]) for i, embed in enumerate(self.embeddings)]
        static = torch.cat([batch.static_real, *embedded], dim=-1)  # (B, S)
        state = self.encoder(
            batch.values,
            batch.observed,
            batch.delta_t,
            batch.lengths,
            _beside(batch.covariates, static),
        )
        return Encoded(state, static)

    def decode(self, encoded: Encoded, delta_t: Tensor, covariates: Tensor) -> tuple[Tensor, ...]:
        """Return the distribution's arguments at queries.

        Parameters
        ----------
        encoded
            A batch whose observations were read.
        delta_t
            ``(B, Q)`` time from the last observation to each query, in typical gaps.
        covariates
            ``(B, Q, K)`` scaled covariates at the queries.

        Returns
        -------
        tuple of Tensor
            The arguments, each ``(B, Q, D)``, of the distributions of scaled values.
        """
        state = encoded.state
        hidden = self.encoder.evolve(state, delta_t)  # (B, Q, H)
        age = state.age.unsqueeze(1) + delta_t.unsqueeze(-1)  # (B, Q, C)
        known = torch.cat([state.last, state.seen.to(hidden.dtype), encoded.static], dim=-1)
        features = [hidden, delta_t.log1p().unsqueeze(-1), age.log1p()]
        return self.head(torch.cat([*features, _beside(covariates, known)], dim=-1))

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the distribution's arguments at the queries of a batch, each ``(B, Q, D)``."""
        return self.decode(self.encode(batch), batch.query_delta_t, batch.query_covariates)

    def loss(self, batch: Batch, args: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Return the summed loss of the observed targets of a batch, and their number.

        ``args`` are the distribution's arguments, where they were computed already.
        """
        given = self(batch) if args is None else args
        losses = self.head.loss(batch.target, batch.target_observed, given, batch.scale)
        return losses[batch.target_observed].sum(), batch.target_observed.sum()

    def sample_paths(self, batch: Batch, num_samples: int) -> Tensor:
        """Draw coherent trajectories: sample a query, feed it back, go on to the next in time.

        Returns
        -------
        Tensor
            ``(B, num_samples, Q, D)`` scaled values; for a head of counts, the counts themselves.
        """
        encoded = self.encode(batch).repeat(num_samples)
        gaps = batch.query_delta_t.repeat_interleave(num_samples, dim=0)
        covariates = batch.query_covariates.repeat_interleave(num_samples, dim=0)
        scale = batch.scale.repeat_interleave(num_samples, dim=0).to(gaps.dtype)
        gaps, order = gaps.sort(dim=1)
        covariates = covariates.gather(1, order.unsqueeze(-1).expand_as(covariates))
        unread = self.encoder.num_channels - self.num_targets
        discrete = is_discrete(self.head.output)

        paths = []
        before = torch.zeros_like(gaps[:, 0])
        for gap, known in zip(gaps.unbind(1), covariates.unbind(1), strict=True):
            delta_t = gap - before
            args = self.decode(encoded, delta_t.unsqueeze(1), known.unsqueeze(1))
            args = tuple(arg.squeeze(1) for arg in args)
            drawn = self.head.distribution(args, scale=scale if discrete else None).sample()
            paths.append(drawn)
            values = (drawn / scale if discrete else drawn).clamp(-LIMIT, LIMIT)
            values = nn.functional.pad(values, (0, unread))
            observed = nn.functional.pad(torch.ones_like(drawn, dtype=torch.bool), (0, unread))
            features = torch.cat([known, encoded.static], dim=-1)
            state = self.encoder.update(encoded.state, delta_t, values, observed, features)
            encoded = encoded._replace(state=state)
            before = gap
        stacked = torch.stack(paths, dim=1)  # (B · num_samples, Q, D), in order of time
        unsorted = torch.empty_like(stacked)
        unsorted.scatter_(1, order.unsqueeze(-1).expand_as(stacked), stacked)
        return unsorted.unflatten(0, (-1, num_samples))


def _embedding_size(levels: Sized) -> int:
    return min(16, (len(levels) + 3) // 2)


def _beside(sequence: Tensor, static: Tensor) -> Tensor:
    """Put static features ``(B, S)`` beside each step of ``(B, T, K)``: ``(B, T, K + S)``."""
    repeated = static.unsqueeze(1).expand(-1, sequence.shape[1], -1)
    return torch.cat([sequence, repeated], dim=-1)
