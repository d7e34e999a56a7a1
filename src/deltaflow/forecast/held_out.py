"""Held-out values, and their forecasts by several predictors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry

from deltaflow.data.schema import Schema
from deltaflow.data.series import is_irregular, match_entry
from deltaflow.errors import DataError
from deltaflow.forecast.common_errors import Errors
from deltaflow.forecast.predictor import DeltaflowPredictor, leads_of, times_of
from deltaflow.heads import DECILES

INNER = (0.1, 0.5, 0.9)
"""The levels of the quantiles from which a model's spread is computed."""

Pairs = Iterable[tuple[DataEntry, DataEntry]]
"""Pairs of context and targets, as in GluonTS's ``TestData``."""


class HeldOut(NamedTuple):
    """The n observed targets after their contexts, and their forecasts by P predictors.

    Attributes
    ----------
    item, channel
        ``(n,)`` the item of each value, and the number of its channel.
    lead, time
        ``(n,)`` the time since the last observation, and on a clock common to all items.
    value
        ``(n,)`` the values.
    quantiles
        ``(P, K, n)`` the forecast quantiles; the first, middle and last ones are at the levels
        `INNER`.
    """

    item: np.ndarray
    channel: np.ndarray
    lead: np.ndarray
    time: np.ndarray
    value: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def of(
        cls,
        predictors: Sequence[DeltaflowPredictor],
        pairs: Pairs,
        schema: Schema,
        levels: Sequence[float] = tuple(DECILES),
    ) -> HeldOut:
        """Forecast the targets by each predictor, at K levels, for the channels of a schema."""
        pairs = list(pairs)
        if any(isinstance(pair, Mapping) for pair in pairs):
            raise DataError(
                "an entry is not a pair of context and targets",
                "give a GluonTS TestData, such as template.generate_instances(prediction_length)",
            )
        length = predictors[0].prediction_length
        known = [_with_every_query(past, label, length) for past, label in pairs]
        forecasts = [predictor.predict(known, seed=0) for predictor in predictors]
        empty = np.empty(0)
        nothing = np.empty((len(predictors), len(levels), 0))
        parts = [cls(empty.astype(object), empty.astype(int), empty, empty, empty, nothing)]
        for number, ((past, label), *answers) in enumerate(zip(pairs, *forecasts, strict=True)):
            own, target = match_entry(past, schema).own, answers[0].target
            values = np.atleast_2d(label["target"])[[own.target.index(name) for name in target]].T
            count = len(values)  # (Q, D); the targets may be fewer than the queries
            lead, time = leads_of(past, count)[:count], query_times(past, count)[:count]
            query, channel = np.nonzero(np.isfinite(values) & np.isfinite(lead)[:, None])
            name = past.get("item_id")
            quantiles = np.stack([answer.quantiles(levels)[:, :count] for answer in answers])
            quantiles = quantiles.reshape(*nothing.shape[:2], *values.shape)
            parts.append(
                cls(
                    np.full(len(query), f"#{number}" if name is None else str(name), dtype=object),
                    np.array([schema.target.index(name) for name in target])[channel],
                    lead[query],
                    time[query],
                    values[query, channel],
                    quantiles[:, :, query, channel],
                )
            )
        return cls(*(np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))

    @classmethod
    def joined(cls, parts: Sequence[HeldOut]) -> HeldOut:
        """Join all values. Items of different parts are distinct, even with equal names."""
        item = [f"{number}:{name}" for number, part in enumerate(parts) for name in part.item]
        others = zip(*(part[1:] for part in parts), strict=True)
        return cls(
            np.unique(item, return_inverse=True)[1],
            *(np.concatenate(part, axis=-1) for part in others),
        )

    def averaged(self, weights: Sequence[float]) -> HeldOut:
        """Return the values with a single forecast, the average of all with weights ``(P,)``."""
        return self._replace(quantiles=np.average(self.quantiles, axis=0, weights=weights)[None])

    def of_channel(self, channel: int) -> HeldOut:
        """Return the values of one channel."""
        own = self.channel == channel
        return HeldOut(*(part[..., own] for part in self))

    @property
    def inner(self) -> np.ndarray:
        """The `INNER` quantiles ``(3, n)`` of the first predictor."""
        return self.quantiles[0, [0, self.quantiles.shape[1] // 2, -1]]

    @property
    def side(self) -> np.ndarray:
        """The distance ``(n,)`` from the median to the end of the `INNER` interval on the side of
        the value.
        """
        low, median, high = self.inner
        return np.where(self.value < median, median - low, high - median)

    def errors(self, floor: float) -> Errors:
        """Return the scores, see `ConformalPredictor`, with units of at least ``floor``."""
        error = (self.value - self.inner[1]) / np.maximum(self.side, floor)
        return Errors(self.item, self.time, error)


def _with_every_query(past: DataEntry, label: DataEntry, prediction_length: int) -> DataEntry:
    """Return a context with covariates known in advance at all queries.

    A regular entry always has ``prediction_length`` queries, but targets may end earlier. After
    them the covariates keep their last values, as no forecast of a target depends on them.
    """
    field = "feat_dynamic_real"
    if is_irregular(past) or field not in past:
        return past
    covariates, length = np.asarray(past[field]), np.shape(past["target"])[-1]
    asked = length + np.shape(label["target"])[-1]
    missing = length + prediction_length - covariates.shape[-1]
    if missing <= 0 or covariates.shape[-1] < asked:  # too few for the targets is an error
        return past
    width = [(0, 0)] * (covariates.ndim - 1) + [(0, missing)]
    return {**past, field: np.pad(covariates, width, mode="edge")}


def query_times(entry: DataEntry, prediction_length: int) -> np.ndarray:
    """Return the times ``(Q,)`` of the queries, see `clock_times`."""
    return clock_times(entry, prediction_length)[np.shape(entry["target"])[-1] :]


def clock_times(entry: DataEntry, prediction_length: int) -> np.ndarray:
    """Return the times ``(T + Q,)`` of an entry on a clock common to all items, NaN for padding.

    They are seconds, or periods of a regular series; since 1970, if items have dates.
    """
    times = times_of(entry, prediction_length)
    if not is_irregular(entry):
        return times + entry["start"].ordinal
    origin = entry["info"]["time_origin"]
    return times if origin is None else times + pd.Timestamp(origin).timestamp()
