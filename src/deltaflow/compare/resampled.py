"""The usual workaround: resampling irregular series to a regular grid, and forecasting on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.model.estimator import Estimator
from gluonts.model.forecast import Forecast
from gluonts.model.predictor import Predictor
from gluonts.torch.model.deepar import DeepAREstimator
from pandas.tseries.frequencies import to_offset

from deltaflow.data.schema import Schema, read_seconds
from deltaflow.data.series import Series, entries_of, schema_of, series_of
from deltaflow.data.statistics import Statistics
from deltaflow.errors import DataError, DeltaflowError
from deltaflow.forecast.forecasts import SampleForecast
from deltaflow.forecast.location_scale import finite_queries
from deltaflow.forecast.predictor import ReadEntry, read_data

_BATCH = 64
"""The number of items forecast together."""

ROUNDING = 1e-6
"""The part of a step by which a grid point may miss an observation at the same time."""


class ResampledEstimator(Estimator):
    """Trains a GluonTS estimator for regular series on an irregular data set.

    Every series is put on a grid that ends at its last observation: a grid point takes the last
    value observed up to it, and the training mean before a channel's first value. Each channel
    becomes a separate univariate series, with the channel's number as ``feat_static_cat``. Other
    features are not used.

    Parameters
    ----------
    prediction_length
        The largest number of queries per forecast, as for `IrregularEstimator`.
    step
        The step of the grid, a duration such as ``"1h"`` or ``"30min"``.
    estimator
        Any GluonTS estimator for univariate series whose forecasts can be sampled. Its own
        ``prediction_length`` counts grid steps. By default :func:`deepar`, with a horizon of half
        the longest training series.

    Examples
    --------
    >>> from deltaflow import IrregularDataset
    >>> from deltaflow.tasks import irregular_sine
    >>> data = IrregularDataset.from_long_dataframe(irregular_sine(num_series=4))
    >>> estimator = ResampledEstimator(8, step="2h", estimator=deepar("2h", horizon="24h"))
    >>> predictor = estimator.train(data)  # doctest: +SKIP
    """

    def __init__(
        self, prediction_length: int, step: str = "1h", estimator: Estimator | None = None
    ) -> None:
        super().__init__()
        self.prediction_length = prediction_length
        self.step = step
        self.estimator = estimator
        read_seconds(step, "step")

    def train(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        *,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        ckpt_path: str | None = None,
    ) -> ResampledPredictor:
        """Resample the data, and train the estimator on them.

        Parameters
        ----------
        training_data, validation_data
            Irregular data sets. The estimator validates on the last ``estimator.prediction_length``
            grid steps of each validation item.
        shuffle_buffer_length, cache_data, ckpt_path
            Passed on to the estimator if given.
        """
        entries = list(entries_of(training_data))
        schema = schema_of(entries)
        if schema.time == "regular":
            raise DataError(
                "the data set is regular already", "train the GluonTS estimator on it directly"
            )
        data = [series_of(entry, schema) for entry in entries]
        grid = _Grid(self.step, schema, Statistics.fit(data, schema.target))
        estimator = self.estimator
        if estimator is None:
            longest = max(float(np.ptp(one.times)) if one.length else 0.0 for one in data)
            horizon = max(read_seconds(self.step, "step"), longest / 2)
            estimator = deepar(self.step, f"{horizon}s", len(schema.target))
        validation = None
        if validation_data is not None:
            validation = grid.resample(
                [(entry, series_of(entry, schema)) for entry in validation_data]
            )
        training = grid.resample(list(zip(entries, data, strict=True)))
        given = {"cache_data": cache_data, "ckpt_path": ckpt_path}
        given["shuffle_buffer_length"] = shuffle_buffer_length
        options = {name: value for name, value in given.items() if value}
        predictor = estimator.train(training, validation, **options)
        return ResampledPredictor(predictor, grid, self.prediction_length)


class ResampledPredictor(Predictor):
    """Forecasts on the grid, and interpolates linearly at the query times.

    Beyond the horizon of the grid's predictor, it continues from the median of the previous
    forecast. It can be pickled; it has no ``serialize``.

    Parameters
    ----------
    predictor
        The predictor of the regular series.
    grid
        The resampling of series.
    prediction_length
        The number of queries.
    """

    def __init__(self, predictor: Predictor, grid: _Grid, prediction_length: int) -> None:
        super().__init__(prediction_length)
        self.predictor = predictor
        self.grid = grid

    def predict(self, dataset: Dataset, num_samples: int | None = None) -> Iterator[SampleForecast]:
        """Forecast each entry at its query times, by independent samples for each channel."""
        options = {} if num_samples is None else {"num_samples": num_samples}
        read = read_data(dataset, self.grid.schema, self.prediction_length)
        while batch := list(islice(read, _BATCH)):
            yield from self._forecast_batch(batch, options)

    def _forecast_batch(
        self, batch: list[ReadEntry], options: dict[str, Any]
    ) -> Iterator[SampleForecast]:
        steps = [self.grid.steps_ahead(asked.series) for asked in batch]  # (Q,) each
        regular = self.grid.resample([(asked.entry, asked.series) for asked in batch])
        rounds = math.ceil(max(part.max() for part in steps) / self.predictor.prediction_length)
        paths = self._roll(regular, max(1, rounds), options)  # (B · D, N, 1 + S)

        channels = len(self.grid.schema.target)
        for number, asked in enumerate(batch):
            own = paths[number * channels : (number + 1) * channels]
            samples = np.moveaxis(_interpolate(own, steps[number]), 0, -1)  # (N, Q, D)
            yield asked.answer(SampleForecast(samples[..., asked.found.channels]))

    def _roll(self, regular: list[DataEntry], rounds: int, options: dict[str, Any]) -> np.ndarray:
        """Return sampled paths ``(B · D, N, 1 + S)`` of each series, starting at its last value."""
        last = np.array([entry["target"][-1] for entry in regular])
        parts = []
        for _ in range(rounds):
            drawn = np.stack([_samples(f) for f in self.predictor.predict(regular, **options)])
            parts.append(drawn)
            medians = np.median(drawn, axis=1)
            regular = [
                {**entry, "target": np.concatenate([entry["target"], median])}
                for entry, median in zip(regular, medians, strict=True)
            ]
        start = np.broadcast_to(last[:, None, None], (*parts[0].shape[:2], 1))
        return np.concatenate([start, *parts], axis=-1)


def deepar(step: str, horizon: str, num_channels: int = 1, **options: Any) -> DeepAREstimator:
    """Return GluonTS's DeepAR, set up for resampled series.

    Parameters
    ----------
    step
        The step of the grid.
    horizon
        The horizon of a single forecast.
    num_channels
        The number of channels, which it distinguishes by an embedding.
    options
        Further arguments of ``DeepAREstimator``.
    """
    length = math.ceil(read_seconds(horizon, "horizon") / read_seconds(step, "step"))
    return DeepAREstimator(
        freq=_freq(step),
        prediction_length=max(1, length),
        num_feat_static_cat=1,
        cardinality=[num_channels],
        **options,
    )


class _Grid:
    """Irregular series → regular ones, one per channel."""

    def __init__(self, step: str, schema: Schema, statistics: Statistics) -> None:
        self.step = read_seconds(step, "step")
        self.freq = _freq(step)
        self.schema = schema
        self.center = np.array(statistics.center[: len(schema.target)])

    def resample(self, items: Sequence[tuple[DataEntry, Series]]) -> list[DataEntry]:
        """Return the regular entries of all items, with the channels of an item in sequence."""
        return [regular for item in items for regular in self._channels(*item)]

    def steps_ahead(self, series: Series) -> np.ndarray:
        """Return the time from the last observation to each query ``(Q,)``, in steps.

        Padding repeats the last query.
        """
        return (finite_queries(series) - _end(series)) / self.step

    def _channels(self, entry: DataEntry, series: Series) -> Iterator[DataEntry]:
        targets = pd.DataFrame(series.values[:, : len(self.schema.target)])  # noqa: PD011
        known = targets.ffill().fillna(dict(enumerate(self.center)))
        end, times = _end(series), series.times[: series.length]
        steps = (end - times[0]) / self.step if series.length else 0.0
        points = end - self.step * np.arange(1 + int(steps + ROUNDING))[::-1]
        rows = np.searchsorted(times, points + ROUNDING * self.step, side="right")
        values = np.vstack([self.center, known])[rows]
        origin = entry["info"]["time_origin"] or "1970-01-01"
        start = pd.Timestamp(origin.removesuffix("Z")) + pd.Timedelta(points[0], unit="s")
        for channel, target in enumerate(values.T):
            yield {
                "item_id": f"{series.item_id}/{self.schema.target[channel]}",
                "start": pd.Period(start, freq=self.freq),
                "target": target.astype(np.float32),
                "feat_static_cat": np.array([channel]),
            }


def _end(series: Series) -> float:
    """Return the time of the last observation, 0 if there is none."""
    return float(series.times[series.length - 1]) if series.length else 0.0


def _freq(step: str) -> str:
    """Return a duration as a frequency of pandas: ``"90min"`` for ``"1.5h"``."""
    offset = to_offset(pd.Timedelta(step))
    assert offset is not None
    return offset.freqstr


def _samples(forecast: Forecast) -> np.ndarray:
    """Return the samples ``(N, S)`` of a forecast, drawn from its distribution if necessary."""
    draw = getattr(forecast, "to_sample_forecast", None)
    samples = getattr(draw() if draw else forecast, "samples", None)
    if samples is None:
        raise DeltaflowError(
            f"a {type(forecast).__name__} cannot be sampled: choose an estimator that forecasts "
            "samples or distributions"
        )
    return samples


def _interpolate(paths: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Interpolate paths ``(D, N, 1 + S)`` at fractional steps ``(Q,)``: ``(D, N, Q)``."""
    low = np.minimum(steps.astype(int), paths.shape[-1] - 2)
    share = steps - low
    return (1 - share) * paths[..., low] + share * paths[..., low + 1]
