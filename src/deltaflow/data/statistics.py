"""Statistics of the training set, and the scaling of a window that rests on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deltaflow.data.series import Series
from deltaflow.errors import DataError

PRIOR_WEIGHT = 3.0
"""How many observations the training set's scale counts for beside a window's own."""

MINIMUM_SCALE = 1e-3
"""The smallest scale of a window, as a share of the training set's."""

LIMIT = 10.0
"""Scaled inputs of the network are clipped to this many scales around the window's centre."""


@dataclass(frozen=True)
class Statistics:
    """What a model must remember of its training set.

    Attributes
    ----------
    typical_gap
        Median time between two observations of an item: seconds, or periods if regular. It is
        the unit of Δt inside a network.
    center, spread
        Mean and standard deviation of each of the C channels over all observations.
    within
        Typical (median) standard deviation of a channel within one item.
    variation
        Root mean square deviation of a channel from its mean within one item, over all items
        that observed it more than once.
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Statistics:
        """Rebuild from :meth:`to_dict`."""
        return cls(**plain)

    @classmethod
    def fit(cls, data: Sequence[Series], target: Sequence[str]) -> Statistics:
        """Compute the statistics of a training set.

        Raises
        ------
        DataError
            If a target has no observed value at all.
        """
        if not data:
            raise DataError("the training set is empty", "give at least one item")
        values = np.concatenate([series.values for series in data])
        counts = np.isfinite(values).sum(axis=0)
        for channel, name in enumerate(target):
            if counts[channel] == 0:
                raise DataError("the target is missing everywhere", "remove this channel",
                                field=name)  # fmt: skip
        gaps = np.concatenate([np.diff(series.times[: series.length]) for series in data])
        center, spread, magnitude = _moments(values)
        magnitude = _first_positive(magnitude, np.ones_like(magnitude))
        spread = _first_positive(spread, MINIMUM_SCALE * magnitude)
        owns = np.stack([_moments(series.values)[1] for series in data])
        within = _first_positive(_median_of_positive(owns), spread)
        repeated = np.stack([np.isfinite(series.values).sum(axis=0) for series in data])
        repeated = np.where(repeated > 1, repeated, 0)
        variation = np.sqrt((owns**2 * repeated).sum(axis=0) / np.maximum(repeated.sum(axis=0), 1))
        variation = _first_positive(variation, spread)
        covariates = _moments(np.concatenate([s.covariates[: s.length] for s in data]))
        static = _moments(np.stack([series.static_real for series in data]))
        return cls(
            typical_gap=float(np.median(gaps)) if len(gaps) else 1.0,
            center=center.tolist(),
            spread=spread.tolist(),
            within=within.tolist(),
            variation=variation.tolist(),
            count=counts.tolist(),
            magnitude=magnitude.tolist(),
            covariate_center=covariates[0].tolist(),
            covariate_spread=_first_positive(covariates[1], 1.0).tolist(),
            static_center=static[0].tolist(),
            static_spread=_first_positive(static[1], 1.0).tolist(),
        )


def scale_of(
    values: np.ndarray, statistics: Statistics, centred: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale of each channel of a window, from its observed values alone.

    The location is the window's mean and the scale its standard deviation. With few
    observations the scale leans, by a geometric mean, on the typical one of the training set;
    without any, both are the training set's. A channel that is not centred (its distribution
    lives on the positive numbers) keeps location 0 and is scaled by its mean absolute value.

    Parameters
    ----------
    values
        ``(T, C)`` float64, NaN where not observed.
    statistics
        Those of the training set.
    centred
        ``(C,)`` bool.

    Returns
    -------
    tuple of numpy.ndarray
        ``loc`` and ``scale``, both ``(C,)`` float64; ``scale`` is positive.
    """
    count = np.isfinite(values).sum(axis=0)
    mean, deviation, magnitude = _moments(values)
    center, spread = np.array(statistics.center), np.array(statistics.spread)
    overall = np.where(centred, spread, statistics.magnitude)
    typical = np.where(centred, statistics.within, statistics.magnitude)
    own = np.where(centred, deviation, magnitude)
    own = np.maximum(own, MINIMUM_SCALE * typical)
    # One observation says nothing of a deviation, but it does say something of a magnitude.
    evidence = np.where(centred, np.maximum(count - 1, 0), count)
    weight = evidence / (evidence + PRIOR_WEIGHT)
    scale = np.exp(weight * np.log(own) + (1 - weight) * np.log(typical))
    scale = np.where(count > 0, scale, overall)
    loc = np.where(centred, np.where(count > 0, mean, center), 0.0)
    return loc, scale


def anchor_of(
    values: np.ndarray, statistics: Statistics, centred: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Location at each channel's last observed value, and the training set's `variation` as scale.

    A model then forecasts the change from the last value, in a unit that is the same for all
    windows. Without an observation the location is the training set's mean. A channel that is not
    centred keeps location 0 and the training set's mean absolute value as scale.

    Parameters and returned values are those of `scale_of`.
    """
    observed = np.isfinite(values)
    last = np.array(statistics.center)
    if len(values):
        newest = len(values) - 1 - observed[::-1].argmax(axis=0)
        last = np.where(observed.any(axis=0), values[newest, np.arange(values.shape[1])], last)
    scale = np.where(centred, statistics.variation, statistics.magnitude)
    return np.where(centred, last, 0.0), scale


SCALINGS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "window": scale_of,
    "last": anchor_of,
}
"""How values are located and scaled: functions of (values, statistics, centred)."""


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and mean absolute value of the columns, ignoring NaN.

    A column without values has zeros. Columns are divided by their largest absolute value first,
    so that no square overflows.
    """
    observed = np.isfinite(values)
    filled = np.where(observed, values, 0.0)
    largest = np.abs(filled).max(axis=0, initial=0.0)
    unit = np.where(largest > 0, largest, 1.0)
    filled = filled / unit
    count = np.maximum(observed.sum(axis=0), 1)
    mean = filled.sum(axis=0) / count
    deviation = np.sqrt((np.where(observed, filled - mean, 0.0) ** 2).sum(axis=0) / count)
    magnitude = np.abs(filled).sum(axis=0) / count
    return mean * unit, deviation * unit, magnitude * unit


def _median_of_positive(deviations: np.ndarray) -> np.ndarray:
    """Median over the items of the positive deviations, 0 where none is positive."""
    positive = np.where(deviations > 0, deviations, np.nan)
    medians = np.zeros(deviations.shape[1])
    known = np.isfinite(positive).any(axis=0)
    medians[known] = np.nanmedian(positive[:, known], axis=0)
    return medians


def _first_positive(scale: np.ndarray, fallback: np.ndarray | float) -> np.ndarray:
    return np.where(scale > 0, scale, fallback)
