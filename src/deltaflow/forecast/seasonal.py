"""A linear regression on the values one or more calendar cycles ago."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from scipy.special import ndtri

from deltaflow.data.schema import Schema
from deltaflow.data.series import CALENDAR_CYCLES, read_series, seconds_per_period
from deltaflow.data.statistics import MINIMUM_SCALE, Statistics
from deltaflow.errors import DataError, check_whole
from deltaflow.forecast.forecasts import QuantileForecast
from deltaflow.forecast.hold import LEVELS, groups_of, quantiles_of
from deltaflow.forecast.location_scale import Curve, CurvePredictor, curves_of
from deltaflow.forecast.predictor import numbers_of

CYCLES = ("day", "week", "year")
"""The calendar cycles that a forecast may repeat."""

FEWEST_CYCLES = 3
"""A cycle is used if a typical item is at least so many times as long."""

MOST_ROWS = 1500
"""The largest number of rows in a cycle: a forecast reads several cycles."""

REPEATED = 3
"""The number of values at the same phase, of the latest cycles, whose mean is an input."""

PAIRS, PAIRS_PER_VALUE = 30_000, 10
"""The largest numbers of pairs of an origin and a later value that coefficients are fitted to, in
all and on average per value."""

MOST_LEADS = 8
"""The largest number of lead times with coefficients of their own."""

FEWEST_PAIRS, FEWEST_VALUES = 100, 30
"""A lead time gets coefficients of its own if it has at least so many pairs, and so many values."""

RIDGE = 1e-3
"""The ridge penalty, relative to the mean square of an input."""


class SeasonalPredictor(CurvePredictor):
    """Forecasts each channel from its last value, and from those one or more cycles ago.

    With the last value :math:`y(s)` and the least number k of cycles of length P that reaches back
    from a query t to no later than s, the forecast is :math:`y(s)` plus a linear function, for each
    cycle, of :math:`y(t - kP) - y(s)`, of the mean of this and of earlier such differences, and of
    :math:`y(t - kP) - y(s - kP)`. Values between observations are interpolated. The coefficients
    depend on the lead time, and are those of a ridge regression on the training set. So the level
    may be that of the last value, or that of the same hour yesterday or last week, or between them.

    The quantiles are those of the residuals at a lead time, proportional to the changes of the
    same item over the shortest cycle. The mean has no residual.

    Usually created by :meth:`fit`.

    Parameters
    ----------
    prediction_length
        The number of queries.
    data_schema
        The schema of the data, as `Schema.to_dict` gives it.
    periods
        Increasing lengths of the cycles: seconds, or periods of a regular series.
    leads
        For each of the D channels, increasing lead times since its last value.
    coefficients
        For each channel, ``(lead times, 3 · cycles)`` coefficients.
    levels
        ``(K,)`` levels of the quantiles, increasing.
    residuals
        For each channel, ``(lead times, K)`` quantiles of the residuals, relative to the changes
        of an item.
    center, spread
        ``(D,)`` mean and standard deviation of each channel. A channel without values is forecast
        by a normal distribution with these.
    context
        The largest number of values that a forecast uses.
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        data_schema: dict,
        periods: list,
        leads: list,
        coefficients: list,
        levels: list,
        residuals: list,
        center: list,
        spread: list,
        context: int,
    ) -> None:
        super().__init__(prediction_length, data_schema)
        channels = len(self.schema.target)
        self.periods = numbers_of(periods, (len(periods),), "periods")
        self.leads = [numbers_of(own, (len(own),), "leads") for own in leads]
        self.coefficients = [
            numbers_of(own, (len(times), 3 * len(periods)), "coefficients")
            for own, times in zip(coefficients, leads, strict=True)
        ]
        self.levels = numbers_of(levels, (len(levels),), "levels")
        self.residuals = [
            numbers_of(own, (len(times), len(levels)), "residuals")
            for own, times in zip(residuals, leads, strict=True)
        ]
        self.center = numbers_of(center, (channels,), "center")
        self.spread = numbers_of(spread, (channels,), "spread")
        check_whole(1, context=context)
        self.context = context
        if len(self.leads) != channels or not all(map(len, [self.periods, *self.leads])):
            raise ValueError(f"periods and leads are not those of {channels} channels")
        if any((np.diff(own, prepend=0) <= 0).any() for own in (self.periods, *self.leads)):
            raise ValueError("periods or leads are not positive, or do not increase")
        if (np.diff(self.levels, prepend=0, append=1) <= 0).any():
            raise ValueError("the levels do not increase from 0 to 1")
        if any((np.diff(own) < 0).any() for own in self.residuals):
            raise ValueError("quantiles decrease with their level")

    @classmethod
    def fit(
        cls,
        training_data: Dataset,
        prediction_length: int,
        periods: Sequence[float] | None = None,
    ) -> SeasonalPredictor:
        """Fit coefficients and residuals to pairs of origins and later values.

        Parameters
        ----------
        training_data
            The items.
        prediction_length
            The number of queries.
        periods
            Increasing lengths of the cycles, by default those of `cycles_of`.

        Raises
        ------
        DataError
            If a typical item is too short for any cycle, see `cycles_of`.
        """
        schema, data = read_series(training_data)
        statistics = Statistics.fit(data, schema.target)
        cycles = np.array(cycles_of(schema, statistics) if periods is None else periods)
        if not len(cycles):
            raise DataError(
                f"a typical item is shorter than {FEWEST_CYCLES} cycles of any of {CYCLES}, or "
                "its times are no dates",
                "give longer items, or fit a HoldPredictor",
            )
        gap, longest = statistics.typical_gap, cycles[-1]
        farthest = max(gap * prediction_length, cycles[0])
        random = np.random.default_rng(0)
        order, longest_item = random.permutation(len(data)), max(one.length for one in data)
        fits = []
        for channel, spread in enumerate(statistics.spread[: len(schema.target)]):
            curves = curves_of(data, order, channel, longest_item)
            num_values = sum(len(curve.values) for curve in curves)
            share = min(PAIRS / num_values, PAIRS_PER_VALUE)
            drawn = [
                _pairs(curve, cycles, spread, (gap, farthest), share, random) for curve in curves
            ]
            lead, inputs, changes = map(np.concatenate, zip(*drawn, strict=True))
            most = min(len(lead) // FEWEST_PAIRS, num_values // FEWEST_VALUES, MOST_LEADS)
            fits.append(_fit(lead, inputs, changes, most, gap))
        leads, coefficients, residuals = (
            [part.tolist() for part in own] for own in zip(*fits, strict=True)
        )
        count = REPEATED + math.ceil(farthest / longest)
        channels = len(schema.target)
        return cls(
            prediction_length=prediction_length,
            data_schema=schema.to_dict(),
            periods=cycles.tolist(),
            leads=leads,
            coefficients=coefficients,
            levels=list(LEVELS),
            residuals=residuals,
            center=statistics.center[:channels],
            spread=statistics.spread[:channels],
            context=math.ceil(count * longest / gap) + 1,
        )

    def locate_from(
        self, curves: Sequence[Curve], queries: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean ``(Q, D)`` and the quantiles ``(Q, D, K)``; see `CurvePredictor`."""
        normal = self.center[:, None] + self.spread[:, None] * ndtri(self.levels)
        mean = np.tile(self.center, (len(queries), 1))
        quantiles = np.tile(normal, (len(queries), 1, 1))
        for channel, curve in enumerate(curves):
            if len(curve.values):
                own = self._forecast(curve, queries, channel)
                mean[:, channel], quantiles[:, channel] = own
        return mean, quantiles

    def _forecast(
        self, curve: Curve, queries: np.ndarray, channel: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean ``(Q,)`` and the quantiles ``(Q, K)`` of a channel."""
        leads, lead = self.leads[channel], queries - curve.times[-1]

        def at_lead(fitted: np.ndarray) -> np.ndarray:
            return np.transpose([np.interp(lead, leads, own) for own in fitted.T])

        last = np.full(len(queries), len(curve.values) - 1)
        inputs = _inputs(curve, last, queries, self.periods)
        mean = curve.values[-1] + (inputs * at_lead(self.coefficients[channel])).sum(axis=1)
        unit = _unit(curve, self.periods[0], self.spread[channel])
        size = unit * np.sqrt(np.maximum(lead / leads[-1], 1.0))
        return mean, mean[:, None] + size[:, None] * at_lead(self.residuals[channel])

    def forecasts_from(
        self, located: Sequence[tuple[np.ndarray, ...]], channels: Sequence[int | list[int]]
    ) -> list[QuantileForecast]:
        """Return the forecast of some channels from each mean and its quantiles."""
        keys = ["mean", *map(str, self.levels)]
        return [
            QuantileForecast(
                np.concatenate([mean[None], np.moveaxis(quantiles, -1, 0)])[..., own], keys
            )
            for (mean, quantiles), own in zip(located, channels, strict=True)
        ]


def cycles_of(schema: Schema, statistics: Statistics) -> list[float]:
    """Return the lengths of the calendar cycles that typical items resolve and repeat.

    Their unit is that of the statistics: seconds, or periods of a regular series.
    """
    if schema.time == "elapsed":
        return []
    unit = seconds_per_period(schema.time_unit) if schema.time == "regular" else 1.0
    lengths = [CALENDAR_CYCLES[name] / unit for name in CYCLES]
    # The mean year is not exactly twelve mean months.
    lengths = [round(own) if abs(own - round(own)) < 1e-3 else own for own in lengths]
    gap, span = statistics.typical_gap, statistics.typical_span
    return [
        float(own)
        for own in lengths
        if 2 * gap <= own <= min(MOST_ROWS * gap, span / FEWEST_CYCLES)
    ]


def _inputs(
    curve: Curve, origins: np.ndarray, times: np.ndarray, periods: np.ndarray
) -> np.ndarray:
    """Return the inputs ``(n, 3 · cycles)`` of forecasts at times ``(n,)``.

    ``origins`` are the numbers of the last values that they use. What lies before the first value
    is replaced by what a shorter cycle has, or by 0.
    """
    start, last = curve.times[origins], curve.values[origins]
    known, columns = np.zeros((3, len(times))), []
    for period in periods:
        back = np.maximum(np.ceil((times - start) / period - 1e-9), 1.0)
        before = times - (back + np.arange(REPEATED)[:, None]) * period
        values = _at(curve, before) - last
        values = np.where(np.isfinite(values), values, values[0])
        counterpart = _at(curve, start - back * period) - last
        own = np.array([values[0], values.mean(axis=0), values[0] - counterpart])
        known = np.where(np.isfinite(own), own, known)
        columns.append(known)
    return np.concatenate(columns).T


def _at(curve: Curve, times: np.ndarray) -> np.ndarray:
    """Return interpolated values at times of any shape; NaN before the first one."""
    return np.interp(times, curve.times, curve.values, left=math.nan)


def _unit(curve: Curve, period: float, default: float) -> float:
    """Return the root mean square of the changes over a period, or a default without any."""
    changes = curve.values - _at(curve, curve.times - period)
    changes = changes[np.isfinite(changes)]
    if not len(changes):
        return default
    # However small the unit of an item may be beside those of others, it is not 0.
    return float(np.sqrt((changes**2).mean())) or MINIMUM_SCALE * default


def _pairs(
    curve: Curve,
    periods: np.ndarray,
    spread: float,
    reach: tuple[float, float],
    share: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw lead times ``(n,)`` within ``reach``, inputs ``(n, 3 · cycles)`` and changes ``(n,)``.

    They are about ``share`` times as many as the values. Inputs and changes are relative to the
    unit of the curve.
    """
    size = math.ceil(share * len(curve.values))
    targets = random.integers(len(curve.values), size=size)
    low, high = np.log(reach)
    lead = np.exp(random.uniform(low, high, size))
    times = curve.times[targets]
    origins = np.searchsorted(curve.times, times - lead, side="right") - 1
    # Every cycle reaches back to known values.
    kept = (origins >= 0) & (times - lead - periods[-1] >= curve.times[0])
    targets, times, origins = targets[kept], times[kept], origins[kept]
    unit = _unit(curve, periods[0], spread)
    changes = curve.values[targets] - curve.values[origins]
    inputs = _inputs(curve, origins, times, periods)
    return times - curve.times[origins], inputs / unit, changes / unit


def _fit(
    lead: np.ndarray, inputs: np.ndarray, changes: np.ndarray, count: int, gap: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit coefficients and quantiles of residuals, for at most ``count`` groups of lead times."""
    if not count:  # the last value, with the changes over a cycle
        return np.array([gap]), np.zeros((1, inputs.shape[1])), ndtri(LEVELS)[None]
    leads, coefficients, residuals = [], [], []
    for own in groups_of(lead, count):
        x, y = inputs[own], changes[own]
        square = x.T @ x
        penalty = RIDGE * np.diag(np.maximum(square.diagonal(), np.finfo(float).tiny))
        weights = np.linalg.solve(square + penalty, x.T @ y)
        leads.append(np.median(lead[own]))
        coefficients.append(weights)
        residuals.append(quantiles_of(y - x @ weights))
    return np.array(leads), np.array(coefficients), np.array(residuals)
