"""The naive baseline: the last value, with quantiles of the change over a given time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.model.estimator import Estimator
from scipy.special import ndtri

from deltaflow.data.schema import LONGEST, Schema
from deltaflow.data.series import Series, read_series
from deltaflow.data.statistics import Statistics, last_known
from deltaflow.forecast.forecasts import QuantileForecast, SampleForecast
from deltaflow.forecast.location_scale import finite_queries
from deltaflow.forecast.predictor import DeltaflowPredictor, numbers_of, read_data, sampled

LEVELS = (
    0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5,
    0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99,
)  # fmt: skip
"""The levels of the quantiles; GluonTS interpolates between them and extrapolates beyond."""

MOST_LEADS = 16
"""The largest number of lead times with stored quantiles of a channel's change."""

CHANGES_PER_LEAD = 30
"""The number of changes per lead time, if there are enough."""

MOST_CHANGES = 4096
"""The largest number of changes per item for each of `ROWS_APART`."""

ROWS_APART = tuple(sorted({round(2 ** (power / 2)) for power in range(30)}))
"""The distances, in rows, between the two observations of a change."""


class HoldPredictor(DeltaflowPredictor):
    """Forecasts the last observed value of each channel, with intervals for its change since then.

    The mean is the last value, unless ``drift`` is set. The quantiles are the last value plus those
    of the changes in the training set over the same time, including drift: so the intervals have
    their nominal coverage, and a model with a lower quantile loss has learned something. Between
    the fitted lead times, quantiles are interpolated; beyond them they grow like those of a random
    walk, with the square root of time. Time counts from the last observation of the channel. A
    channel that was never observed is forecast by the mean and the quantiles of its values in the
    training set.

    Usually created by :meth:`fit`.

    Parameters
    ----------
    prediction_length
        The number of queries.
    data_schema
        The schema of the data, as `Schema.to_dict` gives it.
    levels
        ``(K,)`` levels of the quantiles, increasing.
    leads
        For each of the D channels, increasing lead times: seconds, or periods of a regular series.
    changes
        For each channel, ``(lead times, K)`` quantiles of the change over that time.
    values
        ``(D, K)`` quantiles of each channel's values.
    center
        ``(D,)`` mean of each channel.
    drift
        Whether the mean includes the average change, as the quantiles do.
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        data_schema: dict,
        levels: list,
        leads: list,
        changes: list,
        values: list,
        center: list,
        drift: bool = False,
    ) -> None:
        super().__init__(prediction_length, Schema.from_dict(data_schema))
        self.levels = numbers_of(levels, (len(levels),), "levels")
        self.leads = [numbers_of(own, (len(own),), "leads") for own in leads]
        shapes = [(len(own), len(levels)) for own in leads]
        self.changes = [
            numbers_of(own, shape, "changes") for own, shape in zip(changes, shapes, strict=True)
        ]
        channels = len(self.schema.target)
        self.values = numbers_of(values, (channels, len(levels)), "values")
        self.center = numbers_of(center, (channels,), "center")
        self.drift = drift
        # The probability that each quantile stands for.
        self._shares = np.diff([0.0, *(self.levels[1:] + self.levels[:-1]) / 2, 1.0])
        if len(self.leads) != channels or not all(map(len, [self.levels, *self.leads])):
            raise ValueError(f"leads, changes and levels are not those of {channels} channels")
        if not ((self.levels > 0) & (self.levels < 1)).all():
            raise ValueError("a level is not between 0 and 1")
        if any((np.diff(own) <= 0).any() for own in (self.levels, *self.leads)):
            raise ValueError("levels or leads do not increase")
        if any((np.diff(own) < 0).any() for own in (*self.changes, self.values)):
            raise ValueError("quantiles decrease with their level")

    @classmethod
    def fit(cls, training_data: Dataset, prediction_length: int) -> HoldPredictor:
        """Fit the quantiles of change to pairs of values, from neighbouring to distant ones.

        If no item of the training set was observed twice, the quantiles of change are those of the
        values around their mean.
        """
        schema, data = read_series(training_data)
        statistics = Statistics.fit(data, schema.target)
        leads, changes, values = [], [], []
        normal = ndtri(LEVELS)
        for channel in range(len(schema.target)):
            # Quantiles differ, if only slightly, even for a channel that never changes.
            least = 1e-9 * statistics.spread[channel] * normal
            known = np.concatenate([one.values[np.isfinite(one.values[:, channel]), channel]
                                    for one in data])  # fmt: skip
            values.append(quantiles_of(known) + least)
            own_leads, own_changes = _by_lead(*_moves(data, channel))
            if not len(own_leads):
                own_leads = np.array([LONGEST])  # growth with time is unknown too
                own_changes = quantiles_of(known - known.mean())[None]
            leads.append(own_leads.tolist())
            changes.append((own_changes + least).tolist())
        return cls(
            prediction_length=prediction_length,
            data_schema=schema.to_dict(),
            levels=list(LEVELS),
            leads=leads,
            changes=changes,
            values=np.array(values).tolist(),
            center=statistics.center[: len(schema.target)],
        )

    def with_drift(self) -> HoldPredictor:
        """Return the predictor with a mean that includes the average change."""
        return HoldPredictor(**{**self._arguments(), "drift": True})

    def without_width(self) -> HoldPredictor:
        """Return the predictor as a point forecast: every quantile is the mean."""
        changes = [np.zeros_like(own).tolist() for own in self.changes]
        values = np.repeat(self.center[:, None], len(self.levels), axis=1).tolist()
        return HoldPredictor(**{**self._arguments(), "changes": changes, "values": values})

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[QuantileForecast | SampleForecast]:
        """Forecast each entry: quantiles, or ``num_samples`` samples drawn with ``seed``."""
        forecasts = (
            asked.answer(self.forecast_from(*self._last(asked.series), asked.found.channels))
            for asked in read_data(dataset, self.schema, self.prediction_length)
        )
        return sampled(forecasts, num_samples, seed)

    def forecast_from(
        self, last: np.ndarray, lead: np.ndarray, channels: int | list[int]
    ) -> QuantileForecast:
        """Return the forecast of some channels at queries.

        Parameters
        ----------
        last
            ``(Q, D)`` the last value of each channel before each query, NaN if there is none.
        lead
            ``(Q, D)`` the time since then.
        channels
            The channels.
        """
        seen = np.isfinite(last)
        mean = np.where(seen, last, self.center)
        quantiles = np.repeat(self.values.T[:, None], len(last), axis=1)
        for channel, own in enumerate(seen.T):
            change = self._change(lead[own, channel], channel)
            quantiles[:, own, channel] = last[own, channel] + change
            if self.drift:
                mean[own, channel] += self._shares @ change
        parts = np.concatenate([mean[None], quantiles])[..., channels]
        return QuantileForecast(parts, ["mean", *map(str, self.levels)])

    def _last(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Return the last value of each channel, and the time since then, both ``(Q, D)``."""
        queries = finite_queries(series)
        values = series.values[:, : len(self.center)]
        observed = np.where(np.isfinite(values), series.times[: len(values), None], np.nan)
        last, since = map(last_known, (values, observed))
        return np.tile(last, (len(queries), 1)), queries[:, None] - since

    def _change(self, lead: np.ndarray, channel: int) -> np.ndarray:
        """Return the quantiles ``(K, Q)`` of a channel's change over lead times ``(Q,)``."""
        fitted = self.leads[channel]
        within = np.array([np.interp(lead, fitted, own) for own in self.changes[channel].T])
        return within * np.sqrt(np.maximum(lead / fitted[-1], 1.0))


class HoldEstimator(Estimator):
    """Fits a `HoldPredictor`, so that the baseline trains like any other estimator.

    Parameters
    ----------
    prediction_length
        The number of queries.
    """

    @validated()
    def __init__(self, prediction_length: int) -> None:
        super().__init__()
        self.prediction_length = prediction_length

    def train(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        *,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        num_workers: int | None = None,
    ) -> HoldPredictor:
        """Fit the quantiles of change to the training data; the other arguments are ignored."""
        return HoldPredictor.fit(training_data, self.prediction_length)


def _moves(data: Sequence[Series], channel: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lead times and changes ``(n,)`` between pairs of observations of a channel."""
    leads, changes = [np.empty(0)], [np.empty(0)]
    for series in data:
        known = np.isfinite(series.values[:, channel])
        values, times = series.values[known, channel], series.times[: series.length][known]
        for apart in ROWS_APART:
            if apart >= len(values):
                break
            every = -(-(len(values) - apart) // MOST_CHANGES)
            first, second = slice(0, len(values) - apart, every), slice(apart, None, every)
            leads.append(times[second] - times[first])
            changes.append(values[second] - values[first])
    return np.concatenate(leads), np.concatenate(changes)


def _by_lead(leads: np.ndarray, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lead times ``(B,)`` and the quantiles ``(B, K)`` of the changes within them."""
    count = int(np.clip(len(leads) // CHANGES_PER_LEAD, 1, MOST_LEADS))
    if not len(leads):
        return np.empty(0), np.empty((0, len(LEVELS)))
    groups = groups_of(leads, count)
    return (
        np.array([np.median(leads[own]) for own in groups]),
        np.array([quantiles_of(changes[own]) for own in groups]),
    )


def groups_of(leads: np.ndarray, count: int) -> list[np.ndarray]:
    """Return masks ``(n,)`` of at most ``count`` groups of similar lead times, shortest first."""
    edges = np.unique(np.quantile(leads, np.linspace(0, 1, count + 1)[1:-1]))
    group = np.searchsorted(edges, leads, side="left")
    return [group == number for number in np.unique(group)]


def quantiles_of(values: np.ndarray) -> np.ndarray:
    """Return the quantiles at `LEVELS` of one further value, exchangeable with the ``n`` given.

    With ranks out of n + 1, the interval between two quantiles covers a new value with its nominal
    probability (David & Nagaraja, *Order Statistics*, 2003), except for levels beyond the extremes.
    """
    return np.quantile(values, LEVELS, method="weibull")
