"""Statistics of the training set, computed in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from deltaflow.data.schema import LARGEST
from deltaflow.data.series import Series, in_chunks
from deltaflow.errors import DataError

MINIMUM_SCALE = 1e-3
"""The scale of a series that does not vary, as a share of the training set's scale."""

LIMIT = 10.0
"""The absolute value at which scaled inputs of a network are clipped."""

SMALLEST_SCALE = float(np.finfo(np.float64).tiny)
"""The smallest scale of a channel, in its units. Below it, float64 loses digits."""

SAMPLE_SIZE = 2**20
"""The largest number of gaps, or of items' deviations, whose median is exact. The median of a
sample of this size lies between the 49.9th and the 50.1th percentile with 95 % probability."""

_CHUNK_ROWS = 2**16
"""The approximate number of rows that are processed together."""

Numbers = TypeVar("Numbers", np.ndarray, Tensor)

_BEYOND = 10 * LARGEST
"""The upper bound of the statistics of values up to `LARGEST`."""

_TIMES = ("typical_gap", "typical_span")
_PER_CHANNEL = ("center", "spread", "within", "variation", "count", "magnitude")


@dataclass(frozen=True)
class Statistics:
    """Statistics of the training set, in the units of the channels unless stated otherwise.

    Attributes
    ----------
    typical_gap
        Median time between two observations of an item: seconds, or periods if regular. It is
        the unit of Δt inside a network.
    typical_span
        Median time from an item's first observation to its last one, in the same unit.
    center, spread
        Mean and standard deviation of each of the C channels over all observations.
    within
        Typical (median) standard deviation of a channel within one item.
    variation
        Standard deviation of a channel within one item, pooled over all items: the square root of
        the summed squared deviations from the items' means over the summed degrees of freedom.
    count
        The number of observations of each channel.
    magnitude
        Mean absolute value of each channel.
    covariate_center, covariate_spread
        The same for the K covariates known in advance, calendar phases included.
    static_center, static_spread
        The same for the S static real features.
    """

    typical_gap: float
    typical_span: float
    center: list[float]
    spread: list[float]
    within: list[float]
    variation: list[float]
    count: list[int]
    magnitude: list[float]
    covariate_center: list[float]
    covariate_spread: list[float]
    static_center: list[float]
    static_spread: list[float]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The statistics of channels, covariates and static features as arrays, by name."""
        return {name: np.array(value) for name, value in asdict(self).items() if name not in _TIMES}

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Statistics:
        """Rebuild statistics from the plain values of :meth:`to_dict`, and check them.

        Raises
        ------
        ValueError or TypeError
            If they are not the statistics of any data.
        """
        for name, value in plain.items():
            numbers = np.asarray(value)
            located = name in ("center", "covariate_center", "static_center", "count")
            least = -_BEYOND if located else np.nextafter(0, 1)
            if numbers.dtype.kind not in "if" and numbers.size:
                raise ValueError(f"the statistics {name!r} are not numbers")
            if numbers.ndim != (name not in _TIMES):
                raise ValueError(f"the statistics {name!r} have {numbers.ndim} dimensions")
            if not ((least <= numbers) & (numbers <= _BEYOND)).all():
                raise ValueError(f"the statistics {name!r} have impossible values")
        statistics = cls(**plain)
        if len({len(getattr(statistics, name)) for name in _PER_CHANNEL}) > 1:
            raise ValueError("the statistics have different numbers of channels")
        return statistics

    @classmethod
    def fit(cls, data: Iterable[Series], target: Sequence[str]) -> Statistics:
        """Compute the statistics of a training set in one pass.

        Series are read in chunks and not kept. Means and deviations are exact, and depend on the
        chunks by no more than 1e-12. Medians are exact up to `SAMPLE_SIZE` numbers. Beyond that,
        they are those of a random sample of this size.

        Raises
        ------
        DataError
            If a target has no observed value at all.
        """
        values = covariates = static = None
        num_rows = 0
        gaps, spans, deviations = _Sample(), _Sample(), _Sample()
        freedom = variation = 0.0  # degrees of freedom, and root of the squares, within items
        for chunk in in_chunks(data, lambda series: series.length + 1, _CHUNK_ROWS):
            num_rows += sum(series.length for series in chunk)
            values = _merged(values, np.concatenate([series.values for series in chunk]))
            known = np.concatenate([series.covariates[: series.length] for series in chunk])
            covariates = _merged(covariates, known)
            static = _merged(static, np.stack([series.static_real for series in chunk]))
            gaps.add(np.concatenate([np.diff(series.times[: series.length]) for series in chunk]))
            ends = [series.times[: series.length][[0, -1]] for series in chunk if series.length]
            spans.add(np.diff(np.reshape(ends, (-1, 2))).ravel())
            owns = [_moments(series.values) for series in chunk]
            typical = [typical_deviation(own.deviation, own.count) for own in owns]
            deviations.add(np.stack(typical))
            for own in owns:
                freedom = freedom + np.maximum(own.count - 1, 0)
                variation = np.hypot(variation, np.sqrt(own.count) * own.deviation)
        if values is None or covariates is None or static is None:
            raise DataError("the training set is empty", "give at least one item")
        if not num_rows:
            raise DataError(
                "no item of the training set has an observation",
                "if the data were split, split them later, because nothing was observed before the "
                "split (after= counts from each item's first timestamp, or from zero if time is "
                "given as numbers)",
            )
        for channel, name in enumerate(target):
            if values.count[channel] == 0:
                raise DataError("the target is missing everywhere", "remove this channel",
                                field=name)  # fmt: skip
        magnitude = _first_positive(values.magnitude, 1.0)
        spread = _first_positive(values.deviation, MINIMUM_SCALE * magnitude)
        within = _first_positive(_median_of_positive(deviations.rows), spread)
        variation = _first_positive(variation / np.sqrt(np.maximum(freedom, 1)), spread)
        gap = float(np.median(gaps.rows)) if len(gaps.rows) else 1.0
        return cls(
            typical_gap=gap,
            typical_span=max(float(np.median(spans.rows)), gap),
            center=values.mean.tolist(),
            spread=spread.tolist(),
            within=within.tolist(),
            variation=variation.tolist(),
            count=values.count.tolist(),
            magnitude=magnitude.tolist(),
            covariate_center=covariates.mean.tolist(),
            covariate_spread=_first_positive(covariates.deviation, 1.0).tolist(),
            static_center=static.mean.tolist(),
            static_spread=_first_positive(static.deviation, 1.0).tolist(),
        )


def last_known(values: np.ndarray) -> np.ndarray:
    """Return the last observed value ``(…, C)`` of each column of ``(…, T, C)``, or NaN."""
    if values.shape[-2] == 0:
        return np.full((*values.shape[:-2], values.shape[-1]), np.nan)
    # Without a value, the first maximum is that of the last row, which is NaN.
    row = values.shape[-2] - 1 - np.isfinite(values[..., ::-1, :]).argmax(axis=-2)
    return np.take_along_axis(values, row[..., None, :], axis=-2).squeeze(-2)


class _Moments(NamedTuple):
    """Count, mean, root mean square deviation from the mean, and mean absolute value of columns."""

    count: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    magnitude: np.ndarray


def _moments(values: np.ndarray) -> _Moments:
    """Compute the moments ``(…, C)`` of the columns of ``(…, T, C)``, ignoring NaN.

    All moments of a column without values are 0. Columns are first divided by their largest
    absolute value, so that no square overflows.
    """
    observed = np.isfinite(values)
    filled = np.where(observed, values, 0.0)
    size = np.abs(filled)
    largest = size.max(axis=-2, initial=0.0, keepdims=True)
    unit = np.where(largest > 0, largest, 1.0)
    filled /= unit
    size /= unit
    number = observed.sum(axis=-2, keepdims=True)
    count = np.maximum(number, 1)
    mean = filled.sum(axis=-2, keepdims=True) / count
    apart = np.subtract(filled, mean, out=filled) * observed
    deviation = np.sqrt((apart * apart).sum(axis=-2, keepdims=True) / count)
    magnitude = size.sum(axis=-2, keepdims=True) / count
    moments = number, mean * unit, deviation * unit, magnitude * unit
    return _Moments(*(moment.squeeze(-2) for moment in moments))


def typical_deviation(deviation: Numbers, count: Numbers) -> Numbers:
    r"""Return median-unbiased standard deviations, which are 0 for fewer than two values.

    The sum of the squared deviations of n normally distributed values from their mean has
    :math:`k = n - 1` degrees of freedom and the median :math:`k (1 - 2 / 9k)^3 \sigma^2` (Wilson
    and Hilferty, 1931). Dividing by the factor of :math:`\sigma^2` makes the estimate
    median-unbiased, and it stays so when logarithms are taken.

    Parameters
    ----------
    deviation
        Root mean square deviations of n values from their mean.
    count
        The numbers n of the values.
    """
    freedom = (count - 1).clip(1)
    return deviation * (count / (freedom * (1 - 2 / (9 * freedom)) ** 3)) ** 0.5


def _merged(one: _Moments | None, values: np.ndarray) -> _Moments:
    """Return the joint moments of the values of ``one`` and further ones (Chan et al., 1983)."""
    other = _moments(values)
    if one is None:
        return other
    count = one.count + other.count
    new = other.count / np.maximum(count, 1)
    old = 1 - new
    # Values are never squared here, and hypot adds deviations without overflow.
    apart = np.sqrt(old * new) * other.mean - np.sqrt(old * new) * one.mean
    deviation = np.hypot(np.sqrt(old) * one.deviation, np.sqrt(new) * other.deviation)
    return _Moments(
        count=count,
        mean=old * one.mean + new * other.mean,
        deviation=np.hypot(deviation, apart),
        magnitude=old * one.magnitude + new * other.magnitude,
    )


class _Sample:
    """The rows of a stream, or a random sample of them if there are too many to keep."""

    def __init__(self) -> None:
        self.rows = np.empty(0)
        self._keys = np.empty(0)
        self._random = np.random.default_rng(0)

    def add(self, rows: np.ndarray) -> None:
        # Every row gets a random key. Those with the smallest keys are a uniform random sample.
        self._keys = np.append(self._keys, self._random.random(len(rows)))
        self.rows = np.concatenate([self.rows.reshape(-1, *rows.shape[1:]), rows])
        limit = max(1, SAMPLE_SIZE // math.prod(rows.shape[1:]))
        if len(self.rows) > limit:
            kept = np.argpartition(self._keys, limit)[:limit]
            self._keys, self.rows = self._keys[kept], self.rows[kept]


def _median_of_positive(deviations: np.ndarray) -> np.ndarray:
    """Return the median over items of the positive deviations, or 0 if none is positive."""
    positive = [own[own > 0] for own in deviations.T]
    return np.array([np.median(own) if len(own) else 0.0 for own in positive])


def _first_positive(scale: np.ndarray, fallback: np.ndarray | float) -> np.ndarray:
    return np.maximum(np.where(scale > 0, scale, fallback), SMALLEST_SCALE)
