"""Quantile outputs whose quantiles cannot cross."""

from __future__ import annotations

from gluonts.core.component import validated
from gluonts.torch.distributions import QuantileOutput
from torch import Tensor
from torch.nn import functional as F


class MonotoneQuantileOutput(QuantileOutput):
    """GluonTS's quantile output, with quantiles that increase with their level by construction.

    The network predicts the middle quantile and the distances between neighbouring ones.

    Parameters
    ----------
    quantiles
        The levels, between 0 and 1.

    Examples
    --------
    >>> import torch
    >>> output = MonotoneQuantileOutput([0.9, 0.1, 0.5])
    >>> output.domain_map(torch.tensor([0.0, -1.0, -5.0]))[0].diff().min() > 0
    tensor(True)
    """

    @validated()
    def __init__(self, quantiles: list[float]) -> None:
        super().__init__(quantiles)

    def domain_map(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Map ``(..., K)`` unbounded numbers to ``(..., K)`` increasing quantiles."""
        (raw,) = args
        middle = self.num_quantiles // 2
        # On a non-contiguous slice, softplus takes twenty times as long.
        steps = F.pad(F.softplus(raw[..., 1:].contiguous()).cumsum(-1), (1, 0))
        return (raw[..., :1] + steps - steps[..., middle : middle + 1],)


class MeanQuantileOutput(MonotoneQuantileOutput):
    """Monotone quantiles together with the mean, which is learned by the squared error.

    The mean of a skewed or heavy-tailed distribution is far from its median and cannot be computed
    from a few quantiles. The loss is the quantile loss, which is twice the mean of the pinball
    losses, plus the weighted squared error.

    Parameters
    ----------
    quantiles
        The levels, between 0 and 1.
    mean_weight
        The weight of the squared error.
    """

    @validated()
    def __init__(self, quantiles: list[float], mean_weight: float = 2.0) -> None:
        super().__init__(quantiles)
        self.args_dim = {"mean": 1, **self.args_dim}
        self.mean_weight = mean_weight

    def domain_map(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Map ``(..., 1)`` and ``(..., K)`` numbers to the mean ``(...)`` and the quantiles."""
        mean, quantiles = args
        return mean.squeeze(-1), *super().domain_map(quantiles)

    def loss(
        self,
        target: Tensor,
        distr_args: tuple[Tensor, ...],
        loc: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each target ``(...)``."""
        mean, quantiles = distr_args
        if scale is not None:
            mean = mean * scale
        if loc is not None:
            mean = mean + loc
        return (
            super().loss(target, (quantiles,), loc, scale) + self.mean_weight * (target - mean) ** 2
        )
