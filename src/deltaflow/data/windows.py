"""Series → windows: a context, the queries after it, and everything scaled and cast once.

This is the place where Δt is formed: a difference of float64 times, divided by the training set's
typical gap, and only then cast to float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gluonts.dataset.common import DataEntry
from torch import Tensor
from torch.utils.data import Dataset

from deltaflow.data.scaling import SCALINGS, Scaling
from deltaflow.data.schema import Schema
from deltaflow.data.series import Reader, Series
from deltaflow.data.statistics import LIMIT, Statistics, last_known
from deltaflow.errors import DataError, UnknownNameError, warn_once

FARTHEST = 1e30
"""The largest Δt in typical gaps; sums of such fit into float32."""

_FAR = 1e6
"""Scaled training targets are clipped here, far outside of any use, to stay finite in float32."""


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
        ``(B, L · C)`` where the series stand at the origin, which scaled values hide; see
        `Scaling`.
    delta_t
        ``(B, T)`` time since the observation before, in typical gaps; 0 at the first.
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
        ``(B, D)`` float64 units of the targets: ``value = loc + scale · scaled value``.
    memory
        ``(B, M, C)`` float64, what the scaling remembers of the values.
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


@dataclass(frozen=True)
class WindowSpec:
    """How a series becomes a window; training and forecasting share it.

    Attributes
    ----------
    schema, statistics
        What the data hold, and the statistics of the training set.
    context_length
        The largest number of observation times that are read before the forecast origin.
    prediction_length
        The largest number of queries Q.
    context
        The longest time in seconds from the first observation that is read to the last one; None
        if ``context_length`` alone limits them.
    horizon
        Queries of a training window lie less than so many seconds after the first of them, all
        that were observed there; None if they are the next ``prediction_length`` ones.
    seasonality
        Calendar cycles given as covariates, see `calendar_phases`.
    centred
        Whether the targets are centred, or only scaled (for distributions on positive numbers).
    scaling
        The units of values: ``"running"``, mean and deviation of what was observed so far, or
        ``"last"``, so that the model forecasts the change from the last value in units of the
        training set. See `SCALINGS`.
    """

    schema: Schema
    statistics: Statistics
    context_length: int
    prediction_length: int
    context: float | None = None
    horizon: float | None = None
    seasonality: tuple[str, ...] = ()
    centred: bool = True
    scaling: str = "running"

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise UnknownNameError("scaling", self.scaling, SCALINGS)

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-compatible values."""
        return {
            "schema": self.schema.to_dict(),
            "statistics": self.statistics.to_dict(),
            "context_length": self.context_length,
            "prediction_length": self.prediction_length,
            "context": self.context,
            "horizon": self.horizon,
            "seasonality": list(self.seasonality),
            "centred": self.centred,
            "scaling": self.scaling,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> WindowSpec:
        """Rebuild from :meth:`to_dict`, whoever wrote it.

        Raises
        ------
        UnknownNameError, ValueError, TypeError, KeyError or AttributeError
            If it is no such spec.
        """
        spec = cls(
            schema=Schema.from_dict(plain["schema"]),
            statistics=Statistics.from_dict(plain["statistics"]),
            context_length=plain["context_length"],
            prediction_length=plain["prediction_length"],
            context=plain["context"],
            horizon=plain["horizon"],
            seasonality=tuple(plain["seasonality"]),
            centred=plain["centred"],
            scaling=plain["scaling"],
        )
        schema, statistics = spec.schema, spec.statistics
        for values, size in (
            (statistics.center, len(schema.target) + len(schema.past_feat_dynamic_real)),
            (
                statistics.covariate_center,
                len(schema.feat_dynamic_real) + 4 * len(spec.seasonality),
            ),
            (statistics.covariate_spread, len(statistics.covariate_center)),
            (statistics.static_center, len(schema.feat_static_real)),
            (statistics.static_spread, len(statistics.static_center)),
        ):
            if len(values) != size:
                raise ValueError(f"there are {len(values)} statistics of {size} columns")
        if not all(type(n) is int and n > 0 for n in (spec.context_length, spec.prediction_length)):
            raise ValueError("context_length and prediction_length are no positive integers")
        for seconds in (spec.context, spec.horizon):
            if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
                raise ValueError(f"{seconds!r} is no length of time")
        if not isinstance(spec.centred, bool):
            raise ValueError(f"{spec.centred!r} is neither true nor false")
        return spec

    def reader(self) -> Reader:
        """Return what turns the entries of a data set into arrays."""
        return Reader(self.schema, self.seasonality)

    def read(self, entry: DataEntry, num_queries: int | None = None) -> Series:
        """Check a single entry and turn it into arrays."""
        return self.reader().read(entry, num_queries)

    def cut(self, series: Series, origin: int, *, blind: bool = False) -> Window:
        """Cut the window whose first query is row ``origin`` of the series.

        Parameters
        ----------
        series
            The series.
        origin
            Number of rows before the forecast origin.
        blind
            Leave the context out, as if nothing had been observed yet.
        """
        context = slice(origin, origin) if blind else self.context_of(series, origin)
        end = origin + self.prediction_length
        if origin < series.length:
            end = int(self.horizon_ends(series, np.array([origin]))[0])
        return Window(series, context, slice(origin, end))

    def make_scaling(self) -> Scaling:
        """Return the scaling of all channels; past-only ones are always centred."""
        centred = np.ones(len(self.statistics.center), dtype=bool)
        centred[: len(self.schema.target)] = self.centred
        return SCALINGS[self.scaling](self.statistics, centred)

    @np.errstate(over="ignore")  # what overflows is clipped
    def collate(self, windows: Sequence[Window]) -> Batch:
        """Pad windows at the end of their time axes, stack them and scale them.

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

        known, scaling = self.statistics.arrays, self.make_scaling()
        rows, memory = scaling.read(torch.from_numpy(values))
        loc, scale = (part[:, :channels] for part in scaling.outputs(memory))
        target = (future - loc.numpy()[:, None]) / scale.numpy()[:, None]
        gaps = np.diff(times, prepend=times[:, :1])  # 0 at the first
        last = np.take_along_axis(times, np.maximum(lengths - 1, 0)[:, None], axis=1)
        return Batch(
            values=rows.values,
            observed=rows.observed,
            levels=rows.levels,
            delta_t=_float32(_or_zero(self._in_gaps(gaps, series))),
            lengths=torch.from_numpy(lengths),
            covariates=self.scaled_covariates(covariates),
            static_real=_float32(
                _scaled(static_real, known["static_center"], known["static_spread"])
            ),
            static_cat=torch.from_numpy(np.stack([one.static_cat for one in series]) + 1),
            query_delta_t=_float32(_repeat_last(self._in_gaps(asked - last, series))),
            query_covariates=self.scaled_covariates(query_covariates),
            target=_float32(_clip(_or_zero(target), _FAR)),
            target_observed=torch.from_numpy(np.isfinite(future)),
            loc=loc,
            scale=scale,
            memory=memory,
        )

    def gaps_between(self, before: np.ndarray, after: np.ndarray) -> Tensor:
        """Return Δt in typical gaps, from float64 times; 0 where there is no time before."""
        return _float32(_or_zero((after - before) / self.statistics.typical_gap))

    def scaled_covariates(self, covariates: np.ndarray) -> Tensor:
        """Return covariates ``(…, K)`` as a network reads them."""
        known = self.statistics.arrays
        return _float32(_scaled(covariates, known["covariate_center"], known["covariate_spread"]))

    def horizon_ends(self, series: Series, origins: np.ndarray) -> np.ndarray:
        """Return the row behind the last query of a window at each origin, the last row at most.

        Raises
        ------
        DataError
            If more than ``prediction_length`` observations lie within the horizon.
        """
        times = series.times[: series.length]
        if self.horizon is None:
            return np.minimum(origins + self.prediction_length, len(times))
        ends = _first_at(times, times[origins] + self.horizon)
        queries = ends - origins
        if len(origins) and queries.max() > self.prediction_length:
            raise DataError(
                f"{queries.max()} observations follow within the horizon, but prediction_length "
                f"is {self.prediction_length}",
                "choose a larger prediction_length or a shorter horizon",
                item=series.item_id,
                position=int(origins[queries.argmax()]),
            )
        return ends

    def context_of(self, series: Series, origin: int) -> slice:
        """Return the rows that are read for a forecast from row ``origin`` on."""
        start = max(0, origin - self.context_length)
        if self.context is not None and origin > 0:
            # Back from the last observation, so that the queries do not decide what is read.
            times = series.times[:origin]
            start = max(start, int(_first_at(times, times[-1] - self.context)))
        return slice(start, origin)

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
        return self.cut(nothing, 0)

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


class Window(NamedTuple):
    """Where a window lies in its series: the rows that are read, and those that are asked for."""

    series: Series
    context: slice
    queries: slice


class TrainingWindows(Dataset[Window]):
    """Windows with random forecast origins, drawn evenly from all items.

    The ``i``-th window depends on the seed and on ``i`` alone: every pass over the items is a new
    permutation, and every window has a new origin. So it does not matter which worker or which
    process draws it.

    Parameters
    ----------
    data
        The series. One warning counts those that have nothing to learn from: no target observed
        after some first observation.
    spec
        How windows are cut.
    seed
        Seed of the permutations and origins.
    within
        Earliest and latest origin, in seconds since the start of an item; None draws them from
        whole items.
    blind_share
        Share of windows whose context is left out, so that the model learns what to say of an
        item of which nothing is known.

    Raises
    ------
    DataError
        If no item has anything to learn from.
    """

    def __init__(
        self,
        data: Sequence[Series],
        spec: WindowSpec,
        *,
        seed: int,
        within: tuple[float, float] | None = None,
        blind_share: float = 0.02,
    ) -> None:
        self.data = data
        self.items, self.origins = _usable(data, spec, within=within)
        self.spec = spec
        self.seed = seed
        self.blind_share = blind_share
        self._shuffled = _Shuffled()
        if len(self.items) < len(data):
            left_out = np.setdiff1d(np.arange(len(data)), self.items)
            first = data[int(left_out[0])].item_id
            warn_once(
                f"{len(left_out)} of {len(data)} items have no observed target after another "
                f"observation, such as {first!r}; training passes over them"
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Window:
        number = self._shuffled(index, len(self), self.seed, 0)
        random = np.random.default_rng([self.seed, 1, index])
        low, high = self.origins[number]
        origin = int(random.integers(low, high + 1))
        series = self.data[int(self.items[number])]
        return self.spec.cut(series, origin, blind=random.random() < self.blind_share)


class SlidingWindows(Dataset[Window]):
    """The windows at every ``stride``-th origin of each series, from its first one on.

    Parameters
    ----------
    data, spec
        The series, and how windows are cut.
    stride
        Rows from one origin to the next.
    seed
        Every pass over the windows is a new permutation that depends on the seed and on the
        number of the pass alone; if None, there is one pass, in the order of the data.
    """

    def __init__(
        self, data: Sequence[Series], spec: WindowSpec, *, stride: int = 1, seed: int | None = None
    ) -> None:
        if stride < 1:
            raise DataError(f"{stride} is less than 1", "give a number of rows", field="stride")
        self.data = data
        self.items, self.origins = _usable(data, spec)
        self.spec = spec
        self.stride = stride
        self.seed = seed
        low, high = self.origins.T
        self._ends = ((high - low) // stride + 1).cumsum()
        self._shuffled = _Shuffled()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Window:
        if self.seed is not None:
            index = self._shuffled(index, len(self), self.seed)
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        origin = int(self.origins[number, 0]) + self.stride * (index - first)
        return self.spec.cut(self.data[int(self.items[number])], origin)


class _Shuffled:
    """The numbers below a size, in another order at each pass over them."""

    def __init__(self) -> None:
        self._key: tuple[int, ...] = ()
        self._order = np.empty(0, dtype=int)

    def __call__(self, index: int, size: int, *seed: int) -> int:
        """Return the number at an index; the order depends on the seed and the pass alone."""
        turn, place = divmod(index, size)
        if self._key != (key := (*seed, turn)):
            self._key, self._order = key, np.random.default_rng(key).permutation(size)
        return int(self._order[place])


class LastWindows(Dataset[Window]):
    """The last window of every series that has one.

    It is as long as the horizon, but no longer than leaves the earlier half of the possible
    origins to the context: a horizon as long as the series would leave nothing to forecast from.

    Parameters
    ----------
    data, spec
        The series, and how windows are cut.
    """

    def __init__(self, data: Sequence[Series], spec: WindowSpec) -> None:
        self.data = data
        self.items, ranges = _usable(data, spec, "validation item")
        self.spec = spec
        self.origins = [
            self._last_origin(data[item], low, high)
            for item, (low, high) in zip(self.items.tolist(), ranges.tolist(), strict=True)
        ]

    def _last_origin(self, series: Series, low: int, high: int) -> int:
        origins = np.arange((low + high) // 2, high + 1)
        ends = self.spec.horizon_ends(series, origins)
        return int(origins[np.argmax(ends > high)])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Window:
        return self.spec.cut(self.data[int(self.items[index])], self.origins[index])


class SpreadWindows(Dataset[Window]):
    """A few windows of every series that has any, at origins spread evenly over it.

    The last one is that of `LastWindows`.

    Parameters
    ----------
    data, spec
        The series, and how windows are cut.
    most
        The largest number of windows of a series.
    """

    def __init__(self, data: Sequence[Series], spec: WindowSpec, *, most: int = 8) -> None:
        last = LastWindows(data, spec)
        _, ranges = _usable(data, spec, "validation item")
        self.data, self.spec = data, spec
        self.items: list[int] = []
        self.origins: list[int] = []
        for item, first, end in zip(last.items, ranges[:, 0], last.origins, strict=True):
            origins = np.unique(np.linspace(first, end, most).round().astype(int))
            self.items += [int(item)] * len(origins)
            self.origins += origins.tolist()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Window:
        return self.spec.cut(self.data[self.items[index]], self.origins[index])


def _usable(
    data: Sequence[Series],
    spec: WindowSpec,
    what: str = "item",
    within: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the items that have windows, and their first and last origins.

    Raises
    ------
    DataError
        If there are none, or a horizon holds more than ``prediction_length`` observations.
    """
    ranges = np.empty((len(data), 2), dtype=np.int64)
    for number, series in enumerate(data):
        low, high = _origins(series, len(spec.schema.target))
        times = series.times[: series.length]
        if within is not None and len(times):
            first, last = _first_at(times, times[0] + np.array(within))
            low, high = max(low, int(first)), min(high, int(last))
        ranges[number] = low, high
        spec.horizon_ends(series, np.arange(low, high + 1))
    items = np.flatnonzero(ranges[:, 0] <= ranges[:, 1])
    if not len(items):
        where = "" if within is None else " at an origin within the times given"
        raise DataError(
            f"no {what} has an observed target after another observation{where}",
            "give longer series",
        )
    return items, ranges[items]


def _origins(series: Series, channels: int) -> tuple[int, int]:
    """First and last row that can be a first query: something observed before, a target after."""
    observed = np.isfinite(series.values)
    seen = np.flatnonzero(observed.any(axis=1))
    wanted = np.flatnonzero(observed[:, :channels].any(axis=1))
    if not len(wanted):
        return 1, 0
    return int(seen[0]) + 1, int(wanted[-1])


def _first_at(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the row of the first time at or after each moment.

    Times that differ by a few roundings of float64 are the same.
    """
    largest = max(abs(times[0]), abs(times[-1])) if len(times) else 0.0  # they increase
    return np.searchsorted(times, moments - 8 * np.spacing(largest))


def _padded(arrays: Sequence[np.ndarray], length: int = 1) -> np.ndarray:
    """Stack arrays whose first axes differ in length, with NaN behind the shorter ones."""
    shape = len(arrays), max(length, *map(len, arrays)), *arrays[0].shape[1:]
    padded = np.full(shape, np.nan)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _scaled(values: np.ndarray, center: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Centre and scale, with 0 in place of NaN, clipped so that no outlier blinds the network."""
    return _clip(_or_zero((values - center) / spread))


def _or_zero(values: np.ndarray) -> np.ndarray:
    """Put 0 in place of NaN."""
    np.copyto(values, 0.0, where=np.isnan(values))
    return values


def _clip(values: np.ndarray, limit: float = LIMIT) -> np.ndarray:
    return np.minimum(np.maximum(values, -limit), limit)  # half the time of np.clip


def _repeat_last(delta_t: np.ndarray) -> np.ndarray:
    """Put each row's last known query in place of the padding behind it; 0 if none is known."""
    return np.where(np.isfinite(delta_t), delta_t, last_known(delta_t[..., None], 0.0))


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
