"""The contract of a network: a batch of windows in, distributions at the queries out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from deltaflow.data import Batch, Reader
from deltaflow.data.scaling import Rows
from deltaflow.encoders import Encoder
from deltaflow.errors import DeltaflowError
from deltaflow.heads import Head
from deltaflow.randomness import derived_seed, seeded

E = TypeVar("E")
"""The encoded observations of a batch: named tuples of tensors whose first axis is that of the
series."""


class ForecastNetwork(nn.Module, ABC, Generic[E]):
    """Encoder, evolution to the queries, and head.

    Parameters
    ----------
    reader
        How series are read.
    balance
        The exponent b that gives rare channels more weight in the loss: a target of channel d has
        the weight :math:`n_d^{-b}`, where :math:`n_d` is the number of its observations in the
        training set. With 0 every value counts the same, with 1 every channel.
    channel_weights
        Further factors, one per target channel. A channel of weight 0 is read, but its forecasts
        are not trained.

    Raises
    ------
    DeltaflowError
        If there is not one finite, non-negative weight for each target channel, or no training
        target has a positive weight.
    """

    encoder: Encoder
    head: Head
    channel_weights: Tensor

    def __init__(
        self,
        reader: Reader,
        balance: float = 0.0,
        channel_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        schema, statistics = reader.schema, reader.statistics
        self.num_channels = len(statistics.center)
        self.num_targets = len(schema.target)
        self.scaling = reader.make_scaling()
        self.num_covariates = len(statistics.covariate_center)
        # Code 0, an unknown level, is embedded as zero.
        embeddings = [
            nn.Embedding(len(levels) + 1, min(16, (len(levels) + 3) // 2), padding_idx=0)
            for levels in schema.feat_static_cat.values()
        ]
        self.embeddings = nn.ModuleList(embeddings)
        embedded = sum(embedding.embedding_dim for embedding in embeddings)
        self.num_static = len(statistics.static_center) + embedded
        counts = dict(zip(schema.target, statistics.count, strict=False))
        weights = _loss_weights(counts, balance, channel_weights)
        self.register_buffer("channel_weights", weights, persistent=False)

    def static_features(self, batch: Batch) -> Tensor:
        """Return the static features ``(B, S)``, with embedded categories."""
        embedded = [embed(batch.static_cat[:, i]) for i, embed in enumerate(self.embeddings)]
        return torch.cat([batch.static_real, *embedded], dim=-1)

    @abstractmethod
    def encode(self, batch: Batch) -> E:
        """Read the observations of a batch."""

    @abstractmethod
    def decode(self, encoded: E, delta_t: Tensor, covariates: Tensor) -> tuple[Tensor, ...]:
        """Return the distribution's arguments at queries.

        Parameters
        ----------
        encoded
            A batch whose observations have been read.
        delta_t
            ``(B, Q)`` time from the last observation to each query, in typical gaps.
        covariates
            ``(B, Q, K)`` scaled covariates at the queries.

        Returns
        -------
        tuple of Tensor
            The arguments, each ``(B, Q, D)``, of the distributions of scaled values.
        """

    @abstractmethod
    def update(self, encoded: E, delta_t: Tensor, rows: Rows, covariates: Tensor) -> E:
        """Read one more observation of each series.

        Reading a whole series at once or one observation at a time gives the same result.

        Parameters
        ----------
        encoded
            The result of reading the previous observations.
        delta_t
            ``(B,)`` time since the previous observation, in typical gaps; 0 at the first.
        rows
            The observation ``(B, …)``, as `Scaling.read_next` returns it.
        covariates
            ``(B, K)`` scaled covariates.
        """

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the distribution's arguments at the queries of a batch, each ``(B, Q, D)``."""
        return self.decode(self.encode(batch), batch.query_delta_t, batch.query_covariates)

    def at_targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments ``(N,)`` at the N observed targets, in the order of ``nonzero``."""
        return tuple(arg[batch.target_observed] for arg in self(batch))

    def loss(self, batch: Batch, args: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the observed targets' losses, and the number of targets.

        ``args`` is the result of :meth:`at_targets`, if it has been computed already.
        """
        series, _, channel = place = batch.target_observed.nonzero(as_tuple=True)
        args = self.at_targets(batch) if args is None else args
        losses = self.head.loss(batch.target[place], args, batch.scale[series, channel])
        total = (losses * self.channel_weights[channel]).sum()
        return total, torch.tensor(len(channel), device=total.device)

    def sample_paths(
        self, batch: Batch, num_samples: int, seeds: Sequence[int | None] | None = None
    ) -> Tensor:
        """Draw coherent trajectories: sample at a query, read the sample, continue to the next.

        Parameters
        ----------
        batch
            The B series.
        num_samples
            The number of trajectories of each.
        seeds
            The seed of each series, so that its trajectories do not depend on the other series of
            the batch. If they are None, torch's random state is used.

        Returns
        -------
        Tensor
            ``(B, num_samples, Q, D)`` float64 values in the units of the data.
        """
        read = self.encode(batch), batch.query_delta_t, batch.query_covariates, batch.memory
        encoded, gaps, covariates, memory = mapped(
            lambda part: part.repeat_interleave(num_samples, dim=0), read
        )
        gaps, order = gaps.sort(dim=1, stable=True)
        covariates = covariates.gather(1, order.unsqueeze(-1).expand_as(covariates))
        unread = self.num_channels - self.num_targets

        paths = []
        before = torch.zeros_like(gaps[:, 0])
        for step, (gap, known) in enumerate(zip(gaps.unbind(1), covariates.unbind(1), strict=True)):
            delta_t = gap - before
            args = self.decode(encoded, delta_t.unsqueeze(1), known.unsqueeze(1))
            args = tuple(arg.squeeze(1).double() for arg in args)
            loc, scale = (part[:, : self.num_targets] for part in self.scaling.outputs(memory))
            own = None
            if seeds is not None and None not in seeds:
                own = [derived_seed(seed, step) for seed in seeds]
            drawn = self._drawn([loc, scale, *args], own)
            paths.append(drawn)
            values = nn.functional.pad(drawn, (0, unread), value=torch.nan)
            rows, memory = self.scaling.read_next(memory, values)
            encoded = self.update(encoded, delta_t, rows, known)
            before = gap
        stacked = torch.stack(paths, dim=1)  # (B · num_samples, Q, D), in order of time
        place = order.argsort(dim=1).unsqueeze(-1).expand_as(stacked)
        return stacked.gather(1, place).unflatten(0, (-1, num_samples))

    def _drawn(self, parts: Sequence[Tensor], seeds: Sequence[int | None] | None) -> Tensor:
        """Return one sample of each distribution, drawn with the seed of its series.

        ``parts`` are locations, scales and arguments, with the same number of rows per series. If
        ``seeds`` is None, all are drawn together from torch's random state.
        """
        if seeds is None:
            loc, scale, *args = parts
            return self.head.distribution(args, loc, scale).sample()
        each = []
        pieces = zip(*(part.chunk(len(seeds)) for part in parts), strict=True)
        for seed, own in zip(seeds, pieces, strict=True):
            with seeded(seed, own[0].device):
                each.append(self._drawn(own, None))
        return torch.cat(each)


def _loss_weights(
    counts: Mapping[str, float], balance: float, channel_weights: Sequence[float] | None
) -> Tensor:
    """Return the weight of each target channel in the loss, 1 on average over training targets.

    ``counts`` is the number of observations of each channel in the training set.
    """
    if not math.isfinite(balance):
        raise DeltaflowError(f"balance must be a finite number, got {balance}")
    if channel_weights is None:
        channel_weights = [1.0] * len(counts)
    if len(channel_weights) != len(counts):
        raise DeltaflowError(
            f"channel_weights needs one number for each of the {len(counts)} target channels "
            f"({', '.join(counts)}), got {list(channel_weights)}"
        )
    for channel, weight in zip(counts, channel_weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise DeltaflowError(
                f"channel_weights must be finite and not negative, got {weight} for {channel!r}"
            )
    count = torch.tensor([*counts.values()], dtype=torch.float64)
    factor = torch.tensor(channel_weights, dtype=torch.float64)
    learned = (factor > 0) & (count > 0)
    if not learned.any():
        raise DeltaflowError(
            "there is nothing to learn: the training set has no observation of a target channel "
            f"with a weight above 0; channel_weights {list(channel_weights)}, observations {counts}"
        )
    # In logarithms, so that nothing overflows or underflows. A channel without training data may
    # still be validated; it then gets the weight of the rarest channel.
    log_weight = factor.log() - balance * count.clamp(min=float(count[learned].min())).log()
    weight = (log_weight - log_weight[learned].max()).clamp(max=0.0).exp()
    return (weight * count.sum() / (weight * count).sum()).float()


def mapped(function: Callable[[Tensor], Tensor], nested: Any) -> Any:
    """Apply a function to every tensor of nested tuples."""
    if isinstance(nested, Tensor):
        return function(nested)
    parts = [mapped(function, part) for part in nested]
    return type(nested)(*parts) if hasattr(nested, "_fields") else tuple(parts)
