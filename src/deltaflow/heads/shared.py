"""One head for all channels, for networks with a state per channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gluonts.torch.distributions import Output
from torch import Tensor, nn
from torch.nn import functional

from deltaflow.heads.head import Head


class SharedHead(Head):
    r"""One small network for all channels, whose influence is reduced for rarely observed ones.

    The unbounded arguments of channel d are :math:`b_d + n_d / (n_d + \lambda) f(x)`. If the
    training set has few observations :math:`n_d` of a channel, little more than the constant
    :math:`b_d` is learned for it.

    Parameters
    ----------
    parts
        The numbers of features of a channel at a query, in the order of the weights: those of the
        query, and those of the channel that all its queries share, in turn.
    counts
        ``(D,)`` observations of each channel in the training set.
    output
        A GluonTS output of univariate distributions or quantiles.
    width
        The width of the network's two layers.
    shrinkage
        The :math:`\lambda`, as a number of observations; with 0, all channels are treated alike.
    dropout
        The share of the inner features that is dropped in training.
    """

    trust: Tensor

    def __init__(
        self,
        parts: Sequence[int],
        counts: Tensor,
        output: Output,
        width: int,
        *,
        shrinkage: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(sum(parts), 1, output, width, dropout)
        self.parts = list(parts)
        self.bias = nn.Parameter(torch.zeros(len(counts), sum(self.sizes)))
        counts = counts.clamp(min=1)
        self.register_buffer("trust", counts / (counts + shrinkage), persistent=False)

    def forward(
        self, features: Tensor, shared: Tensor, row: Tensor, channel: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the arguments at N queries, each ``(N,)`` (quantiles: ``(N, K)``).

        Parameters
        ----------
        features
            ``(N, I)`` features of the queries.
        shared
            ``(R, J)`` features of rows (series, channel), which all queries of a row share.
        row, channel
            ``(N,)`` row and channel of each query.
        """
        first, *others = self.network
        hidden = self._of_both(first, features, shared, row)
        for layer in others:
            hidden = layer(hidden)
        raw = hidden + self._of_both(self.skip, features, shared, row)
        trust = self.trust[channel].unsqueeze(-1)
        return self.arguments(torch.addcmul(self.bias[channel], trust, raw))

    def _of_both(self, layer: nn.Module, features: Tensor, shared: Tensor, row: Tensor) -> Tensor:
        """Apply a layer to the features of queries and rows, once per row for the latter."""
        assert isinstance(layer, nn.Linear)
        parts = layer.weight.split(self.parts, dim=1)
        of_features, of_shared = torch.cat(parts[::2], 1), torch.cat(parts[1::2], 1)
        by_row = functional.linear(shared, of_shared, layer.bias)
        return torch.addmm(by_row.index_select(0, row), features, of_features.T)
