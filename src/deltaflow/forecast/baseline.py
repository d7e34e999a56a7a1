"""What the predictors without a network share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from gluonts.dataset.common import Dataset
from torch.distributions import Distribution

from deltaflow.data.schema import Schema
from deltaflow.data.series import Series, read_series
from deltaflow.forecast.forecasts import DistributionForecast, SampleForecast
from deltaflow.forecast.network_predictor import query_times_of
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.randomness import derived_seed, seeded


class BaselinePredictor(DeltaflowPredictor):
    """Forecasts each channel at each query by a location and a scale; no network is involved.

    Parameters
    ----------
    prediction_length
        The number of queries.
    data_schema
        What the data hold, as `Schema.to_dict` gives it.

    Attributes
    ----------
    family
        The distributions, made of a location and a scale.
    """

    family: ClassVar[Any]

    def __init__(self, prediction_length: int, data_schema: dict) -> None:
        super().__init__(prediction_length, Schema.from_dict(data_schema))

    def locate(self, series: Series, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return location and scale of each query and channel, both ``(Q, D)``.

        Parameters
        ----------
        series
            What was observed.
        queries
            ``(Q,)`` the times asked for, finite: one that only pads repeats the one before.
        """
        raise NotImplementedError

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[DistributionForecast | SampleForecast]:
        """Forecast each entry; exact distributions, or ``num_samples`` samples of a ``seed``."""
        for number, entry in enumerate(dataset):
            series = read_series(entry, self.schema, num_queries=self.prediction_length)
            forecast = DistributionForecast(
                self._distribution(series),
                entry["start"] + series.length,
                series.item_id,
                entry.get("info"),
            )
            forecast.on_real_time(query_times_of(entry), self.schema.target)
            if num_samples:
                with seeded(None if seed is None else derived_seed(seed, number)):
                    forecast = forecast.to_sample_forecast(num_samples)
            yield forecast

    def _distribution(self, series: Series) -> Distribution:
        queries = series.times[series.length :]
        asked = np.isfinite(queries)
        start = series.times[series.length - 1] if series.length else 0.0
        queries = np.where(asked, queries, queries[asked].max() if asked.any() else start)
        loc, scale = self.locate(series, queries)
        if self.schema.univariate:
            loc, scale = loc[:, 0], scale[:, 0]
        return self.family(torch.from_numpy(loc), torch.from_numpy(scale))
