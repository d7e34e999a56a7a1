"""One head for all channels, for networks with a state per channel."""

from __future__ import annotations

import torch
from gluonts.torch.distributions import Output
from torch import Tensor, nn

from deltaflow.heads.head import Head


class SharedHead(Head):
    r"""One small network for all channels, whose influence is reduced for rarely observed ones.

    The unbounded arguments of channel d are :math:`b_d + n_d / (n_d + \lambda) f(x)`. If the
    training set has few observations :math:`n_d` of a channel, little more than the constant
    :math:`b_d` is learned for it.

    Parameters
    ----------
    in_features
        The number of features I of a channel at a query.
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
        in_features: int,
        counts: Tensor,
        output: Output,
        width: int,
        *,
        shrinkage: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_features, 1, output, width, dropout)
        self.bias = nn.Parameter(torch.zeros(len(counts), sum(self.sizes)))
        counts = counts.clamp(min=1)
        self.register_buffer("trust", counts / (counts + shrinkage), persistent=False)

    def forward(self, features: Tensor, channel: Tensor) -> tuple[Tensor, ...]:
        """Map features ``(N, I)`` of channels ``(N,)`` to the arguments, each ``(N,)``."""
        trust = self.trust[channel].unsqueeze(-1)
        return self.arguments(torch.addcmul(self.bias[channel], trust, self.raw(features)))
