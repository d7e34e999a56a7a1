"""Scalings: the units in which a network reads and forecasts a series.

Scalings are causal: the scaled values of a row depend only on the rows up to it and on the training
set. A scaling's memory of a series has a fixed size, and reading row by row gives the same result
as reading the whole series at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaflow.data.statistics import (
    LIMIT,
    MINIMUM_SCALE,
    Statistics,
    last_known,
    typical_deviation,
)

PRIOR_WEIGHT = 3.0
"""The weight of the training set's scale in the scale of a series, in observations."""

_AT_ONCE = 2**14
"""The number of values scaled together. Blocks that fit into the cache take half the time."""

_SMALLEST_UNIT = 1e-50
"""The smallest unit in which squares of values up to 1e100 are finite in float64."""


class Rows(NamedTuple):
    """Scaled rows for a network, in float32.

    Attributes
    ----------
    values
        ``(…, C)`` scaled values, 0 where not observed; clipped at `LIMIT`.
    observed
        ``(…, C)`` bool observed mask.
    levels
        ``(B, L · C)`` level features after the last row, which scaled values hide.
    """

    values: Tensor
    observed: Tensor
    levels: Tensor


class Scaling(ABC):
    """The contract of a scaling: the units in which values are read and forecast.

    A value is read as (value − location) / scale, both of which are in the units of the channel. A
    channel that is not centred, because its distribution allows only positive numbers, has
    location 0.

    Parameters
    ----------
    statistics
        The statistics of the training set.
    centred
        ``(C,)`` bool, whether the values of a channel are centred.

    Attributes
    ----------
    num_levels
        The number L of level features of each channel. They tell the network the location and scale
        of a series, which its scaled values do not show.
    """

    num_levels: ClassVar[int]

    def __init__(self, statistics: Statistics, centred: np.ndarray) -> None:
        is_centred = torch.from_numpy(np.asarray(centred, dtype=bool))
        magnitude = torch.tensor(statistics.magnitude, dtype=torch.float64)

        def unless_positive(statistic: list[float], otherwise: Tensor | float) -> Tensor:
            given = torch.tensor(statistic, dtype=torch.float64)
            return torch.where(is_centred, given, otherwise)

        self.centred = is_centred.double()
        self.center = unless_positive(statistics.center, 0.0)
        self.spread = unless_positive(statistics.spread, magnitude)
        self.within = unless_positive(statistics.within, magnitude)
        self.variation = unless_positive(statistics.variation, magnitude)

    @abstractmethod
    def read(self, values: Tensor) -> tuple[Rows, Tensor]:
        """Read a batch of whole series.

        Parameters
        ----------
        values
            ``(B, T, C)`` float64, NaN where not observed; T is at least 1.

        Returns
        -------
        Rows, Tensor
            All rows, and the memory ``(B, M, C)`` after the last one: M float64 numbers of each
            channel. Before the first observation it is that of a row without observations.
        """

    @abstractmethod
    def read_next(self, memory: Tensor, values: Tensor) -> tuple[Rows, Tensor]:
        """Read one more row ``(B, C)`` of each series, given the memory of the previous rows."""

    @abstractmethod
    def outputs(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale ``(B, C)`` of forecasts, in the units of the channels.

        Both are in float64, and ``value = location + scale · scaled value``.
        """

    def _move_to(self, device: torch.device) -> None:
        if self.center.device != device:
            for name, part in vars(self).items():
                setattr(self, name, part.to(device))


class RunningScaling(Scaling):
    """Mean and standard deviation of the values observed so far, including those of the row itself.

    With few values, the scale is a weighted geometric mean with the training set's typical scale;
    without any, location and scale are the training set's. A channel that is not centred is scaled
    by its mean absolute value. At the origin, level features tell the network location and scale
    relative to those of the training set.

    The memory holds the number of values, the first value, the sums of the differences from it and
    of their squares, in units of the training set's scale, and the sum of absolute values.
    Differences from a value of the series lose no digits even if its mean is far from 0.
    """

    num_levels = 2

    def __init__(self, statistics: Statistics, centred: np.ndarray) -> None:
        super().__init__(statistics, centred)
        self.unit = self.spread.clamp(min=_SMALLEST_UNIT)
        self.log_spread, self.log_within = self.spread.log(), self.within.log()

    def read(self, values: Tensor) -> tuple[Rows, Tensor]:
        """Read whole series; see `Scaling.read`."""
        size = max(1, _AT_ONCE // values[0].numel())
        parts = [self._read(part) for part in values.split(size)]
        *rows, memory = map(torch.cat, zip(*parts, strict=True))
        return Rows(*rows), memory

    def _read(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        observed = values.isfinite()
        mask = observed.double()  # products are much faster than torch.where
        count = mask.cumsum(1)
        filled = values.nan_to_num(0.0)
        beginning = (count == 0).sum(1, keepdim=True).clamp(max=values.shape[1] - 1)
        first = filled.gather(1, beginning)
        apart = (filled - first) * mask / self.unit
        sums = [apart.cumsum(1), (apart * apart).cumsum(1), filled.abs().cumsum(1)]
        loc, log_scale = self._units(count, first, *sums)
        scaled = _float32((values - loc) / log_scale.exp())
        levels = self._levels(loc[:, -1], log_scale[:, -1])
        newest = (count[:, -1], first[:, 0], *(part[:, -1] for part in sums))
        return scaled, observed, levels, torch.stack(newest, dim=1)

    def read_next(self, memory: Tensor, values: Tensor) -> tuple[Rows, Tensor]:
        """Read one more row; see `Scaling.read_next`."""
        self._move_to(memory.device)
        count, first, total, squares, size = memory.unbind(1)
        observed = values.isfinite()
        filled = values.nan_to_num(0.0)
        first = torch.where(count == 0, filled, first)
        apart = (filled - first) * observed / self.unit
        parts = (
            count + observed, first, total + apart, squares + apart * apart, size + filled.abs()
        )  # fmt: skip
        loc, log_scale = self._units(*parts)
        scaled = _float32((values - loc) / log_scale.exp())
        return Rows(scaled, observed, self._levels(loc, log_scale)), torch.stack(parts, dim=1)

    def outputs(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the location and scale of the values so far."""
        self._move_to(memory.device)
        loc, log_scale = self._units(*memory.unbind(1))
        return loc, log_scale.exp()

    def _levels(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        """Return ``(B, C)`` location and log-scale relative to the training set's."""
        levels = [(loc - self.center) / self.spread, log_scale - self.log_spread]
        return _float32(torch.cat(levels, dim=-1))

    def _units(
        self, count: Tensor, first: Tensor, total: Tensor, squares: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return location and log-scale ``(…, C)``."""
        number = count.clamp(min=1)
        mean = total / number
        variance = (squares / number - mean * mean).clamp(min=0)
        own = self.unit * typical_deviation(variance.sqrt(), number)
        own = self.centred * own + (1 - self.centred) * (size / number)
        # Items may be of quite unlike scale, but none has a scale of 0.
        own = torch.where(own > 0, own, MINIMUM_SCALE * self.within)
        # A single value carries no information about a deviation, but some about a magnitude.
        evidence = (count - self.centred).clamp(min=0)
        weight = evidence / (evidence + PRIOR_WEIGHT)
        log_scale = self.log_within + weight * (own.log() - self.log_within)
        seen = count.clamp(max=1)
        loc = self.centred * (seen * (first + self.unit * mean) + (1 - seen) * self.center)
        return loc, seen * log_scale + (1 - seen) * self.log_spread


class LastScaling(Scaling):
    """Forecasts with the last value as location, and the training set's `variation` as scale.

    A network thus forecasts the change from the last value. Input values are scaled by location and
    scale of the training set, the same for all series. Before the first value, the location of
    forecasts is the training set's mean.

    The memory holds the last value, NaN before the first.
    """

    num_levels = 0

    def read(self, values: Tensor) -> tuple[Rows, Tensor]:
        """Read whole series; see `Scaling.read`."""
        last = last_known(values.numpy())
        return self._rows(values), torch.from_numpy(last).unsqueeze(1)

    def read_next(self, memory: Tensor, values: Tensor) -> tuple[Rows, Tensor]:
        """Read one more row; see `Scaling.read_next`."""
        self._move_to(memory.device)
        last = torch.where(values.isfinite(), values, memory[:, 0])
        return self._rows(values), last.unsqueeze(1)

    def outputs(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last value and the typical variation."""
        self._move_to(memory.device)
        last = memory[:, 0]
        loc = self.centred * torch.where(last.isnan(), self.center, last)
        return loc, self.variation.expand_as(loc)

    def _rows(self, values: Tensor) -> Rows:
        return Rows(
            values=_float32((values - self.center) / self.spread),
            observed=values.isfinite(),
            levels=values.new_zeros(len(values), 0, dtype=torch.float32),
        )


SCALINGS: dict[str, type[Scaling]] = {"running": RunningScaling, "last": LastScaling}
"""Every scaling by its name."""


def _float32(scaled: Tensor) -> Tensor:
    """Replace NaN by 0, and clip outliers to `LIMIT`."""
    return scaled.nan_to_num(0.0, LIMIT, -LIMIT).clamp(-LIMIT, LIMIT).float()
