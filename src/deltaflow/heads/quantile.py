"""A quantile head whose quantiles cannot cross."""

from __future__ import annotations

from gluonts.core.component import validated
from gluonts.torch.distributions import QuantileOutput
from torch import Tensor
from torch.nn import functional as F


class MonotoneQuantileOutput(QuantileOutput):
    """GluonTS's quantile output, with quantiles that increase with their level by construction.

    The network gives the middle quantile and the distances between neighbours.

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
        steps = F.pad(F.softplus(raw[..., 1:]).cumsum(-1), (1, 0))
        return (raw[..., :1] + steps - steps[..., middle : middle + 1],)
