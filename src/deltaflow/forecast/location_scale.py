"""The base of predictors that forecast a location and a scale, without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gluonts.dataset.common import Dataset

from deltaflow.data.schema import Schema
from deltaflow.data.series import Series, in_chunks
from deltaflow.forecast.forecasts import DistributionForecast, SampleForecast, SharedDistribution
from deltaflow.forecast.predictor import DeltaflowPredictor, ReadEntry, read_data, sampled
from deltaflow.process import one_thread

BATCH_SIZE = 64
"""The number of series that are forecast together."""

MOST_ITEMS = 64
"""The largest number of items to which a channel's parameters are fitted."""


class LocationScalePredictor(DeltaflowPredictor):
    """Forecasts each channel at each query by a distribution with a location and a scale.

    Parameters
    ----------
    prediction_length
        The number of queries.
    data_schema
        The schema of the data, as `Schema.to_dict` gives it.

    Attributes
    ----------
    family
        The distribution, as a function of location and scale.
    """

    family: ClassVar[Any]

    def __init__(self, prediction_length: int, data_schema: dict) -> None:
        super().__init__(prediction_length, Schema.from_dict(data_schema))

    def locate(self, series: Series, queries: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what :meth:`forecasts_from` takes: location and scale, both ``(Q, D)``.

        Parameters
        ----------
        series
            The observations.
        queries
            ``(Q,)`` the query times, finite: padding repeats the last query.
        """
        raise NotImplementedError

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[DistributionForecast | SampleForecast]:
        """Forecast each entry: exact distributions, or ``num_samples`` seeded samples."""
        read = read_data(dataset, self.schema, self.prediction_length)
        batches = in_chunks(read, lambda _: 1, BATCH_SIZE)
        forecasts = chain.from_iterable(map(self._forecast_batch, batches))
        return sampled(forecasts, num_samples, seed)

    def _forecast_batch(self, batch: list[ReadEntry]) -> Iterator[DistributionForecast]:
        with one_thread():
            located = [self.locate(a.series, finite_queries(a.series)) for a in batch]
        forecasts = self.forecasts_from(located, [asked.found.channels for asked in batch])
        for asked, forecast in zip(batch, forecasts, strict=True):
            yield asked.answer(forecast)

    def forecasts_from(
        self,
        located: Sequence[tuple[np.ndarray, ...]],
        channels: Sequence[int | list[int]],
    ) -> list[DistributionForecast]:
        """Return the forecast of some channels from each location and scale."""
        args = [np.concatenate(parts) for parts in zip(*located, strict=True)]
        bounds = np.cumsum([0, *(len(loc) for loc, *_ in located)])
        shared = SharedDistribution(self.family, args, bounds)
        return [DistributionForecast(shared, *numbered) for numbered in enumerate(channels)]


class Curve(NamedTuple):
    """Values ``(n,)`` of a channel, and their times ``(n,)`` since the first row of the item."""

    times: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(series: Series, channel: int, most: int) -> Curve:
        """Return the last ``most`` observed values of a channel."""
        known = np.flatnonzero(np.isfinite(series.values[:, channel]))[-most:]
        return Curve(series.times[known] - series.times[:1], series.values[known, channel])


def curves_of(data: Sequence[Series], order: np.ndarray, channel: int, most: int) -> list[Curve]:
    """Return a channel's last ``most`` values in each of the first items that have any.

    There are at most `MOST_ITEMS`, the first ones in an ``order`` of all items.
    """
    every = (Curve.of(data[item], channel, most) for item in order)
    return list(islice((one for one in every if len(one.values)), MOST_ITEMS))


class CurvePredictor(LocationScalePredictor):
    """Forecasts each channel from its own last values, whatever was observed besides.

    Attributes
    ----------
    context
        The largest number of values of a channel that a forecast uses.
    """

    context: int

    def locate(self, series: Series, queries: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what `forecasts_from` takes; see `LocationScalePredictor.locate`."""
        channels = range(len(self.schema.target))
        curves = [Curve.of(series, channel, self.context) for channel in channels]
        return self.locate_from(curves, queries - (series.times[0] if series.length else 0.0))

    def locate_from(self, curves: Sequence[Curve], queries: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what `forecasts_from` takes, given the last `context` values of each channel.

        The queries ``(Q,)`` are also times since the first row of the item.
        """
        raise NotImplementedError


def finite_queries(series: Series) -> np.ndarray:
    """Return the query times, with padding replaced by the last query."""
    queries = series.times[series.length :]
    asked = np.isfinite(queries)
    last = series.times[series.length - 1] if series.length else 0.0
    return np.where(asked, queries, queries[asked].max() if asked.any() else last)
