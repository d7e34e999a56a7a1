"""How a series is read: entries → series, and windows of them → batches, scaled and cast once.

Δt is computed here: a difference of float64 times, divided by the training set's typical gap, and
only then cast to float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gluonts.dataset.common import DataEntry
from torch import Tensor

from deltaflow.data.scaling import SCALINGS, Scaling
from deltaflow.data.schema import Schema
from deltaflow.data.series import CALENDAR_CYCLES, Series, seconds_per_period, series_of
from deltaflow.data.statistics import LIMIT, Statistics
from deltaflow.errors import DataError, check_registered

FARTHEST = 1e30
"""The largest Δt in typical gaps; sums of such fit into float32."""

FEW_ROWS = 8
"""The longest context that is short, see `Reader.is_short`."""

_FAR = 1e6
"""The bound at which scaled training targets are clipped, far outside any useful range, to stay
finite in float32."""


class Batch(NamedTuple):
    """A padded batch of windows. B series, T observation times, Q queries, C channels of which
    the first D are targets, K covariates, S static features.

    Attributes
    ----------
    values
        ``(B, T, C)`` scaled values, 0 where not observed.
    observed
        ``(B, T, C)`` bool observed mask.
    levels
        ``(B, L · C)`` level features of the series at the origin, which scaled values hide; see
        `Scaling`.
    delta_t
        ``(B, T)`` time since the previous observation, in typical gaps; 0 at the first.
    lengths
        ``(B,)`` number of observation times of each series; the rest is padding at the end.
    covariates
        ``(B, T, K)`` scaled covariates at the observations.
    static_real
        ``(B, S)`` scaled static real features.
    static_cat
        ``(B, N)`` codes of the levels, 0 where unknown.
    query_delta_t
        ``(B, Q)`` time from the last observation to each query, in typical gaps.
    query_covariates
        ``(B, Q, K)`` scaled covariates at the queries.
    target
        ``(B, Q, D)`` scaled future values, 0 where not observed.
    target_observed
        ``(B, Q, D)`` bool mask of the future values.
    loc, scale
        ``(B, D)`` float64 location and scale of the targets:
        ``value = loc + scale · scaled value``.
    memory
        ``(B, M, C)`` float64, the scaling's memory of the values.
    """

    values: Tensor
    observed: Tensor
    levels: Tensor
    delta_t: Tensor
    lengths: Tensor
    covariates: Tensor
    static_real: Tensor
    static_cat: Tensor
    query_delta_t: Tensor
    query_covariates: Tensor
    target: Tensor
    target_observed: Tensor
    loc: Tensor
    scale: Tensor
    memory: Tensor


class Window(NamedTuple):
    """The position of a window in its series: the rows of the context, and those of the queries."""

    series: Series
    context: slice
    queries: slice


@dataclass(frozen=True)
class Reader:
    """How a network reads series, in training and in forecasting.

    It determines the context before a forecast origin, and the units of its values, but not the
    queries.

    Attributes
    ----------
    schema, statistics
        The schema of the data, and the statistics of the training set.
    context_length
        The largest number of observation times that are read before the forecast origin.
    context
        The longest time in seconds from the first to the last observation of the context; None if
        only ``context_length`` limits it.
    seasonality
        Calendar cycles given as covariates, see `calendar_phases`.
    centred
        Whether the targets are centred, or only scaled (for distributions on positive numbers).
    scaling
        The units of values: ``"running"``, mean and standard deviation of the values so far, or
        ``"last"``, so that the model forecasts the change from the last value in units of the
        training set. See `SCALINGS`.
    """

    schema: Schema
    statistics: Statistics
    context_length: int
    context: float | None = None
    seasonality: tuple[str, ...] = ()
    centred: bool = True
    scaling: str = "running"

    def __post_init__(self) -> None:
        check_registered("scaling", self.scaling, SCALINGS)
        for cycle in self.seasonality:
            check_registered("cycle", cycle, CALENDAR_CYCLES)

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-compatible values."""
        schema, statistics = self.schema.to_dict(), self.statistics.to_dict()
        seasonality = list(self.seasonality)
        own = {"schema": schema, "statistics": statistics, "seasonality": seasonality}
        return {**vars(self), **own}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Reader:
        """Rebuild from the result of :meth:`to_dict`, which may be untrusted.

        Raises
        ------
        UnknownNameError, ValueError, TypeError, KeyError or AttributeError
            If these are not the values of a reader.
        """
        reader = cls(
            schema=Schema.from_dict(plain["schema"]),
            statistics=Statistics.from_dict(plain["statistics"]),
            context_length=plain["context_length"],
            context=plain["context"],
            seasonality=tuple(plain["seasonality"]),
            centred=plain["centred"],
            scaling=plain["scaling"],
        )
        schema, statistics = reader.schema, reader.statistics
        for values, size in (
            (statistics.center, len(schema.target) + len(schema.past_feat_dynamic_real)),
            (
                statistics.covariate_center,
                len(schema.feat_dynamic_real) + 4 * len(reader.seasonality),
            ),
            (statistics.covariate_spread, len(statistics.covariate_center)),
            (statistics.static_center, len(schema.feat_static_real)),
            (statistics.static_spread, len(statistics.static_center)),
        ):
            if len(values) != size:
                raise ValueError(f"there are {len(values)} statistics of {size} columns")
        if type(reader.context_length) is not int or reader.context_length < 1:
            raise ValueError(f"context_length is not a positive integer: {reader.context_length!r}")
        seconds = reader.context
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            raise ValueError(f"context is not a duration in seconds: {seconds!r}")
        if not isinstance(reader.centred, bool):
            raise ValueError(f"centred is neither true nor false: {reader.centred!r}")
        return reader

    @property
    def span(self) -> float:
        """The typical length of series as they are read, in typical gaps."""
        gap, longest = self.statistics.typical_gap, self.statistics.typical_span
        if self.context is not None:
            longest = min(longest, self.context)
        return float(max(1.0, min(longest / gap, self.context_length)))

    @property
    def cycles(self) -> list[float]:
        """The calendar cycles of the covariates, in typical gaps, that series can resolve.

        These are at least two gaps long, and no longer than a series.
        """
        gap = self.statistics.typical_gap
        if self.schema.time == "regular":
            gap *= seconds_per_period(self.schema.time_unit)
        cycles = (CALENDAR_CYCLES[name] / gap for name in self.seasonality)
        return [cycle for cycle in cycles if 2 <= cycle <= self.span]

    @property
    def is_short(self) -> bool:
        """Whether the context is so short that a live forecaster keeps its rows.

        For a longer context it keeps a state, which is updated with each row and so depends on the
        whole history.
        """
        return self.context_length <= FEW_ROWS

    def read(self, entry: DataEntry, num_queries: int | None = None) -> Series:
        """Check an entry and turn it into arrays; see `series_of`."""
        return series_of(entry, self.schema, self.seasonality, num_queries)

    def context_of(self, series: Series, origin: int) -> slice:
        """Return the rows of the context for a forecast from row ``origin`` on."""
        start = max(0, origin - self.context_length)
        if self.context is not None and origin > 0:
            # Back from the last observation, so that the context does not depend on the queries.
            times = series.times[:origin]
            start = max(start, int(first_at(times, times[-1] - self.context)))
        return slice(start, origin)

    def window(self, series: Series, origin: int) -> Window:
        """Return the window whose queries are all rows of a series from row ``origin`` on."""
        return Window(series, self.context_of(series, origin), slice(origin, len(series.times)))

    def make_scaling(self) -> Scaling:
        """Return the scaling of all channels; past-only ones are always centred."""
        centred = np.ones(len(self.statistics.center), dtype=bool)
        centred[: len(self.schema.target)] = self.centred
        return SCALINGS[self.scaling](self.statistics, centred)

    @np.errstate(over="ignore")  # what overflows is clipped
    def collate(self, windows: Sequence[Window]) -> Batch:
        """Pad windows at the end of their time axes, stack and scale them.

        Raises
        ------
        DataError
            If a gap is longer than `FARTHEST`.
        """
        series, channels = [window.series for window in windows], len(self.schema.target)
        values = _padded([one.values[context] for one, context, _ in windows])
        times = _padded([one.times[context] for one, context, _ in windows])
        covariates = _padded([one.covariates[context] for one, context, _ in windows])
        asked = _padded([one.times[queries] for one, _, queries in windows])
        future = [one.values[queries, :channels] for one, _, queries in windows]
        future = _padded(future, asked.shape[1])
        query_covariates = _padded([one.covariates[queries] for one, _, queries in windows])
        static_real = np.stack([one.static_real for one in series])
        lengths = np.array([context.stop - context.start for _, context, _ in windows])

        scaling = self.make_scaling()
        rows, memory = scaling.read(torch.from_numpy(values))
        loc, scale = (part[:, :channels] for part in scaling.outputs(memory))
        target = (future - loc.numpy()[:, None]) / scale.numpy()[:, None]
        gaps = np.diff(times, prepend=times[:, :1])  # 0 at the first
        last = np.take_along_axis(times, np.maximum(lengths - 1, 0)[:, None], axis=1)
        ahead = self._in_gaps(asked - last, series)
        furthest = np.fmax.reduce(ahead, axis=1, keepdims=True, initial=0.0)  # instead of padding
        return Batch(
            values=rows.values,
            observed=rows.observed,
            levels=rows.levels,
            delta_t=_float32(_or_zero(self._in_gaps(gaps, series))),
            lengths=torch.from_numpy(lengths),
            covariates=self.scaled_covariates(covariates),
            static_real=self.scaled_static(static_real),
            static_cat=torch.from_numpy(np.stack([one.static_cat for one in series]) + 1),
            query_delta_t=_float32(np.where(np.isfinite(ahead), ahead, furthest)),
            query_covariates=self.scaled_covariates(query_covariates),
            target=_float32(_clip(_or_zero(target), _FAR)),
            target_observed=torch.from_numpy(np.isfinite(future)),
            loc=loc,
            scale=scale,
            memory=memory,
        )

    def scaled_covariates(self, covariates: np.ndarray) -> Tensor:
        """Return scaled covariates ``(…, K)``."""
        known = self.statistics.arrays
        return _float32(_scaled(covariates, known["covariate_center"], known["covariate_spread"]))

    def scaled_static(self, static_real: np.ndarray) -> Tensor:
        """Return scaled static real features ``(…, S)``."""
        known = self.statistics.arrays
        return _float32(_scaled(static_real, known["static_center"], known["static_spread"]))

    def blank(self) -> Window:
        """Return a window without observations and without queries."""
        statistics = self.statistics
        nothing = Series(
            item_id=None,
            times=np.empty(0),
            values=np.empty((0, len(statistics.center))),
            covariates=np.empty((0, len(statistics.covariate_center))),
            static_real=np.full(len(statistics.static_center), np.nan),
            static_cat=np.full(len(self.schema.feat_static_cat), -1),
        )
        return self.window(nothing, 0)

    def _in_gaps(self, differences: np.ndarray, series: Sequence[Series]) -> np.ndarray:
        """Return differences of times ``(B, …)`` in typical gaps of the training set."""
        delta_t = differences / self.statistics.typical_gap
        if (too_long := (delta_t > FARTHEST).any(axis=1)).any():
            raise DataError(
                f"a gap is longer than {FARTHEST:g} typical gaps of the training set, which are "
                f"{self.statistics.typical_gap:g} long",
                "check the unit of the times, or train on such gaps",
                item=series[int(too_long.argmax())].item_id,
                field="feat_dynamic_real[0]",
            )
        return delta_t


def first_at(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the row of the first time at or after each moment.

    Times that differ by a few rounding errors of float64 count as equal.
    """
    largest = max(abs(times[0]), abs(times[-1])) if len(times) else 0.0  # they increase
    return np.searchsorted(times, moments - 8 * np.spacing(largest))


def _padded(arrays: Sequence[np.ndarray], length: int = 1) -> np.ndarray:
    """Stack arrays whose first axes differ in length, and pad the shorter ones with NaN."""
    shape = len(arrays), max(length, *map(len, arrays)), *arrays[0].shape[1:]
    padded = np.full(shape, np.nan)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _scaled(values: np.ndarray, center: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Centre and scale, with 0 in place of NaN, and clip outliers."""
    return _clip(_or_zero((values - center) / spread))


def _or_zero(values: np.ndarray) -> np.ndarray:
    """Replace NaN by 0."""
    np.copyto(values, 0.0, where=np.isnan(values))
    return values


def _clip(values: np.ndarray, limit: float = LIMIT) -> np.ndarray:
    return np.minimum(np.maximum(values, -limit), limit)  # half the time of np.clip


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
