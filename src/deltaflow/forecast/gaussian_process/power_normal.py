"""Variables with a normally distributed power: the value, its square root or its logarithm."""

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

POWERS = (1.0, 0.5, 0.0)
"""The powers of values, where 0 stands for the logarithm, as Box & Cox do."""

_FURTHEST = 300.0
"""The largest logarithm, so that squares of values are finite."""

_TAIL = 3.0
"""The mean of a variable with a normal logarithm leaves out values beyond so many standard
deviations. Their probability is hardly known from data, but could dominate the mean."""


def to_power(values: np.ndarray, power: float) -> np.ndarray:
    """Return a power of values; where it is undefined, that of the smallest positive number."""
    if power == 1:
        return values
    if power == 0.5:
        return np.sqrt(np.maximum(values, 0))
    return np.log(np.maximum(values, np.finfo(float).tiny))


class PowerNormal(Distribution):
    """A variable with a normally distributed power. Where the root would be negative, it is 0.

    Parameters
    ----------
    loc, scale
        Location and scale of the normal variable.
    power
        One of `POWERS` for each variable, of the same shape.

    References
    ----------
    Box & Cox, *An Analysis of Transformations*, 1964.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, loc: Tensor, scale: Tensor, power: Tensor) -> None:
        self.normal = Normal(loc, scale)
        self.is_root, self.is_log = power == 0.5, power == 0
        super().__init__(self.normal.batch_shape, validate_args=False)

    def _select(self, plain: Tensor, root: Tensor, log: Tensor) -> Tensor:
        """Choose, for each variable, the value that belongs to its power."""
        return torch.where(self.is_log, log, torch.where(self.is_root, root, plain))

    def _value(self, normal: Tensor) -> Tensor:
        """Return the variable, given its power."""
        return self._select(normal, normal.clamp(min=0) ** 2, _exp(normal))

    @property
    def mean(self) -> Tensor:
        """The mean, including the probability at 0; for logarithms, without the outermost 0.3 %."""
        loc, scale = self.normal.loc, self.normal.scale
        ratio = loc / scale
        density = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
        of_root = (loc**2 + scale**2) * torch.special.ndtr(ratio) + loc * scale * density
        log_ndtr = torch.special.log_ndtr
        high, low = log_ndtr(_TAIL - scale), log_ndtr(-_TAIL - scale)
        share = math.log(math.erf(_TAIL / math.sqrt(2)))
        inside = loc + scale**2 / 2 + high + torch.log1p(-torch.exp(low - high)) - share
        return self._select(loc, of_root, _exp(inside))

    def icdf(self, value: Tensor) -> Tensor:
        """Return quantiles."""
        return self._value(self.normal.icdf(value))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw samples."""
        return self._value(self.normal.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density; at 0, that of a root is the logarithm of the probability."""
        positive = value.clamp(min=torch.finfo(value.dtype).tiny)
        root, log = positive.sqrt(), positive.log()
        at_zero = torch.special.log_ndtr(-self.normal.loc / self.normal.scale)
        return self._select(
            self.normal.log_prob(value),
            torch.where(value > 0, self.normal.log_prob(root) - torch.log(2 * root), at_zero),
            torch.where(value > 0, self.normal.log_prob(log) - log, -math.inf),
        )


def _exp(log: Tensor) -> Tensor:
    return log.clamp(-_FURTHEST, _FURTHEST).exp()
