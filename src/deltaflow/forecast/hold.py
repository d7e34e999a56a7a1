"""The naive baseline: hold the last value, with the spread of a random walk."""

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.model.estimator import Estimator
from torch.distributions import Normal

from deltaflow.data.series import Reader, Series, entries_of, schema_of
from deltaflow.data.statistics import Statistics
from deltaflow.forecast.baseline import BaselinePredictor


class HoldPredictor(BaselinePredictor):
    """Forecasts the last observed value of each channel, as a random walk in real time.

    ``x(t + Δt) ~ Normal(x(t), σ² Δt)``, with Δt counted from the last observation of the channel.
    A channel that was not observed is forecast by the mean and deviation of the training set.

    Parameters
    ----------
    prediction_length
        The number of queries.
    data_schema
        What the data hold, as `Schema.to_dict` gives it.
    rate
        ``(D,)`` variance σ² of each channel per second, or per period of a regular series.
    center, spread
        ``(D,)`` mean and standard deviation of each channel in the training set.
    """

    family = Normal

    @validated()
    def __init__(
        self, prediction_length: int, data_schema: dict, rate: list, center: list, spread: list
    ) -> None:
        super().__init__(prediction_length, data_schema)
        numbers = np.array([rate, center, spread], dtype=np.float64)
        if numbers.shape != (3, len(self.schema.target)) or not np.isfinite(numbers).all():
            raise ValueError("rate, center and spread are no number for each channel")
        if (numbers[0] < 0).any() or (numbers[2] <= 0).any():
            raise ValueError("a rate is negative, or a spread not positive")
        self.rate, self.center, self.spread = numbers

    @classmethod
    def fit(cls, training_data: Dataset, prediction_length: int) -> "HoldPredictor":
        """Fit the spread to the increments of a training set.

        The variance of a channel is the sum of its squared increments over the sum of the times
        that they took, the maximum-likelihood estimate for equal gaps.
        """
        entries = list(entries_of(training_data))
        schema = schema_of(entries)
        reader = Reader(schema)
        data = [reader.read(entry) for entry in entries]
        statistics = Statistics.fit(data, schema.target)
        rates = []
        for channel in range(len(schema.target)):
            squares = time = 0.0
            for series in data:
                values = series.values[:, channel]
                known = np.isfinite(values)
                squares += float((np.diff(values[known]) ** 2).sum())
                time += float(np.diff(series.times[: series.length][known]).sum())
            fallback = statistics.within[channel] ** 2 / statistics.typical_gap
            rates.append(squares / time if squares > 0 else fallback)
        channels = slice(len(schema.target))
        return cls(
            prediction_length=prediction_length,
            data_schema=schema.to_dict(),
            rate=rates,
            center=statistics.center[channels],
            spread=statistics.spread[channels],
        )

    def locate(self, series: Series, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return location and scale ``(Q, D)`` of the walk at the queries."""
        loc = np.tile(self.center, (len(queries), 1)).astype(float)
        scale = np.tile(self.spread, (len(queries), 1)).astype(float)
        for channel in range(len(self.rate)):
            known = np.flatnonzero(np.isfinite(series.values[:, channel]))
            if len(known):
                gaps = queries - series.times[known[-1]]
                loc[:, channel] = series.values[known[-1], channel]
                scale[:, channel] = np.sqrt(self.rate[channel] * gaps)
        # At Δt = 0 the walk has no spread; a distribution needs some.
        return loc, np.maximum(scale, 1e-9 * self.spread)


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
    ) -> "HoldPredictor":
        """Fit the spread of the walk to the training data; the other arguments are ignored."""
        return HoldPredictor.fit(training_data, self.prediction_length)
