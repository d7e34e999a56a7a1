"""The members of a live forecaster, each with its own states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaflow.data.dataset import UNKNOWN_LEVEL
from deltaflow.data.matching import match
from deltaflow.data.reader import FARTHEST
from deltaflow.data.schema import TICKS_PER_SECOND, Schema
from deltaflow.data.series import Series, phases_at
from deltaflow.data.validation import FrameRows, TimeColumn
from deltaflow.errors import DeltaflowError
from deltaflow.forecast.forecasts import RealTimeForecast, SampleForecast
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.hold import HoldPredictor
from deltaflow.forecast.live.frames import Observations
from deltaflow.forecast.location_scale import Curve, CurvePredictor
from deltaflow.forecast.network_predictor import IrregularPredictor, finite
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.seasonal import SeasonalPredictor
from deltaflow.model.module import mapped
from deltaflow.model.running import Running, RunningNetwork
from deltaflow.randomness import ItemSeeds

QUERIES_AT_ONCE = 2**14
"""The approximate number of queries that are forecast together."""

VALUES_AT_ONCE = 2**18
"""The approximate number of values of new items, rows × channels, that are read together."""

MANY_ROWS = 32
"""A new item with at least so many rows is read as a whole instead of row by row."""


class Arrived(NamedTuple):
    """N rows of observations of I items, with their times relative to earlier rows.

    Attributes
    ----------
    given
        The observations.
    new
        ``(I,)`` bool, whether the item has no state yet.
    elapsed, gaps
        ``(N,)`` seconds since the first row of the item, and since the previous row; 0 at the
        first.
    ages
        ``(N, C)`` seconds from the last value of each channel to the previous row; from the item's
        first row if there is no value.
    newest
        ``(N, C)`` the row of the last value of each channel up to this one, -1 if there is none.
    """

    given: Observations
    new: np.ndarray
    elapsed: np.ndarray
    gaps: np.ndarray
    ages: np.ndarray
    newest: np.ndarray


class Asked(NamedTuple):
    """N queries of I items.

    Attributes
    ----------
    rows
        The queries of each item.
    elapsed, gaps
        ``(N,)`` seconds since the first row of the item, and since its last one.
    ages
        ``(I, C)`` seconds from the last value of each channel to the last row.
    times, known
        ``(N,)`` times and ``(N, K)`` covariates.
    seed
        Seed of the samples, if any.
    """

    rows: FrameRows
    elapsed: np.ndarray
    gaps: np.ndarray
    ages: np.ndarray
    times: TimeColumn
    known: np.ndarray
    seed: int | None = None


class Member(ABC):
    """A predictor with a state of fixed size per item. It finds its channels by name.

    Parameters
    ----------
    predictor
        The predictor.
    schema
        The schema of the data.

    Attributes
    ----------
    parts
        An example ``(1, …)`` of each part of the state of an item.
    farthest
        The longest gap in seconds that can be read.
    """

    parts: list[Tensor]
    farthest: float = np.inf

    def __init__(self, predictor: DeltaflowPredictor, schema: Schema) -> None:
        self._found = match(schema, predictor.schema)
        rows = self._found.rows
        past = [len(schema.target) + row for row in rows["past_feat_dynamic_real"]]
        self._targets, self._channels = rows["target"], [*rows["target"], *past]

    @abstractmethod
    def read(self, parts: Sequence[Tensor], arrived: Arrived) -> None:
        """Read rows into the parts ``(I, …)`` of the states of their items.

        Raises
        ------
        DeltaflowError
            If a state would not be a number.
        """

    @abstractmethod
    def forecast(self, parts: Sequence[Tensor], asked: Asked) -> RealTimeForecast:
        """Return one forecast of all queries."""


class NetworkMember(Member):
    """A network: the state is that of its encoder.

    Raises
    ------
    DeltaflowError
        If it draws paths, or has an encoder that cannot read one observation at a time.
    """

    def __init__(self, predictor: IrregularPredictor, schema: Schema) -> None:
        if predictor.sampling != "marginal":
            raise DeltaflowError(
                f"a predictor with sampling={predictor.sampling!r} draws paths, which a live "
                "forecaster does not: train one with sampling='marginal'"
            )
        super().__init__(predictor, schema)
        self.predictor = predictor
        self.network = RunningNetwork(predictor.reader, predictor.network)
        self.farthest = FARTHEST * predictor.reader.statistics.typical_gap
        fields = "feat_dynamic_real", "feat_static_real", "feat_static_cat"
        self._known, self._real, self._cat = (self._found.rows[field] for field in fields)
        self.parts = self._prepare()

    def _prepare(self) -> list[Tensor]:
        """Prepare the states, and return an example of their parts."""
        static = np.full((1, len(self._real)), np.nan), np.full((1, len(self._cat)), UNKNOWN_LEVEL)
        self._started = self.network.start(*static)
        nothing = np.full((1, len(self._channels)), np.nan)
        known = np.zeros((1, len(self.predictor.reader.statistics.covariate_center)))
        try:
            read = self.network.read(
                self._started, np.zeros(1), np.zeros_like(nothing), nothing, known
            )
        except DeltaflowError as error:
            raise DeltaflowError(
                f"the encoder {self.predictor.network_arguments['encoder']!r} cannot read one "
                f"observation at a time: {error}"
            ) from error
        return [leaf.cpu() for leaf in _leaves(read)]

    def read(self, parts: Sequence[Tensor], arrived: Arrived) -> None:
        """Read rows: those of new items with many rows all at once, others row by row."""
        given = arrived.given
        known = self._covariates(given.times, given.known)
        if arrived.new.any():
            static = self._static(given, arrived.new)
            _put(parts, np.flatnonzero(arrived.new), self.network.start(*static))
        order = np.argsort(-given.rows.counts, kind="stable")  # the items with the most rows first
        whole = arrived.new[order] & (given.rows.counts[order] >= MANY_ROWS)
        limit = VALUES_AT_ONCE // len(self._channels)
        for group in _groups(order[whole], given.rows.counts, limit):
            _put(parts, group, self._read_whole(arrived, known, group))
        self._read_steps(parts, arrived, known, order[~whole])
        if not self._running(parts).encoded.state.hidden.isfinite().all():
            raise DeltaflowError(
                "the network's state is not a number: train again, at a lower learning rate"
            )

    def _read_whole(self, arrived: Arrived, known: np.ndarray, items: np.ndarray) -> Running:
        """Return the states of new items after all their rows."""
        given = arrived.given
        series, static = [], self._static(given, items)
        for own, real, cat in zip(map(given.rows.of, items), *static, strict=True):
            values = given.values[own][:, self._channels]
            series.append(Series(None, arrived.elapsed[own], values, known[own], real, cat))
        return self.network.read_whole(series)

    def _read_steps(
        self, parts: Sequence[Tensor], arrived: Arrived, known: np.ndarray, items: np.ndarray
    ) -> None:
        """Read the rows of some items into their states, one row after the other.

        The items with the most rows come first, so those with further rows are the first ones.
        """
        given = arrived.given
        starts, counts = given.rows.starts[items], given.rows.counts[items]
        current = [part[items] for part in parts]
        for step in range(int(counts.max(initial=0))):
            own = slice(int(np.searchsorted(-counts, -step)))
            rows = starts[own] + step
            running = self._running([part[own].to(self.predictor.device) for part in current])
            ages = arrived.ages[rows][:, self._channels]
            values = given.values[rows][:, self._channels]
            read = self.network.read(running, arrived.gaps[rows], ages, values, known[rows])
            _put(current, own, read)
        for part, new in zip(parts, current, strict=True):
            part[items] = new

    def forecast(self, parts: Sequence[Tensor], asked: Asked) -> RealTimeForecast:
        """Return one forecast of all queries."""
        covariates = self._covariates(asked.times, asked.known)
        counts = asked.rows.counts
        numbers, pieces = [], []
        for own in _groups(np.argsort(-counts, kind="stable"), counts, QUERIES_AT_ONCE):
            most = int(counts[own[0]])
            # Items with fewer queries repeat their last one.
            rows = asked.rows.starts[own, None] + np.minimum(np.arange(most), counts[own, None] - 1)
            running, ages = self._present([part[own] for part in parts], asked.ages[own])
            args, loc, scale = self.network.forecast(
                running, asked.gaps[rows], ages, covariates[rows]
            )
            numbers.append(rows.ravel())
            units = (unit.unsqueeze(1).expand(-1, most, -1) for unit in (loc, scale))
            args = (finite(arg).double() for arg in args)
            pieces.append([part.flatten(0, 1) for part in (*units, *args)])
        # For each query its first forecast, in the original order.
        first = torch.from_numpy(np.unique(np.concatenate(numbers), return_index=True)[1])
        columns = (torch.cat(column).cpu() for column in zip(*pieces, strict=True))
        loc, scale, *args = (column[first] for column in columns)
        bounds, seeds = np.array([0, len(first)]), None
        if asked.seed is not None and not self.predictor.network.head.has_quantiles:
            bounds, each = asked.rows.bounds, ItemSeeds(asked.seed)
            seeds = [each.of(item, None) for item in asked.rows.items]
        channels = [self._found.channels] * (len(bounds) - 1)
        forecasts = self.predictor.forecasts_from(args, loc, scale, bounds, channels, seeds=seeds)
        if len(forecasts) == 1:
            return forecasts[0]
        samples = [one.samples for one in forecasts]  # pyright: ignore[reportAttributeAccessIssue]
        return SampleForecast(np.concatenate(samples, axis=1))

    def _present(self, parts: Sequence[Tensor], ages: np.ndarray) -> tuple[Running, np.ndarray]:
        """Return the states of some items, and the ages of the values of the network's channels."""
        running = self._running([part.to(self.predictor.device) for part in parts])
        return running, ages[:, self._channels]

    def _static(self, given: Observations, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers and codes ``(I, …)`` of some items, in the order of the network."""
        real, cat = given.static_real[items][:, self._real], given.static_cat[items][:, self._cat]
        for column, code_of in zip(cat.T, self._found.codes, strict=True):
            column[:] = code_of[np.maximum(column, UNKNOWN_LEVEL)]
        return real, cat

    def _covariates(self, times: TimeColumn, known: np.ndarray) -> np.ndarray:
        """Return the network's covariates and calendar phases ``(N, K)`` at times ``(N,)``."""
        known = known[:, self._known]
        cycles = self.predictor.reader.seasonality
        if not cycles:
            return known
        seconds = times.ticks / float(TICKS_PER_SECOND[times.resolution])
        return np.hstack([known, phases_at(seconds, cycles).T])

    def _running(self, parts: Sequence[Tensor]) -> Running:
        """Return the state whose parts these are."""
        leaves = iter(parts)
        return mapped(lambda _: next(leaves), self._started)


class ShortNetworkMember(NetworkMember):
    """A network with a short context: the last rows are kept, and read anew for each forecast."""

    def _prepare(self) -> list[Tensor]:
        """Return an example of the parts: the last rows, and the static features."""
        reader = self.predictor.reader
        self._length = reader.context_length
        columns = 1 + len(self._channels) + len(reader.statistics.covariate_center)
        rows = torch.zeros(1, self._length, columns, dtype=torch.float64)
        real = torch.zeros(1, len(self._real), dtype=torch.float64)
        return [rows, real, torch.zeros(1, len(self._cat), dtype=torch.int64)]

    def read(self, parts: Sequence[Tensor], arrived: Arrived) -> None:
        """Keep the last rows: the time since the first one, values and covariates."""
        given, (kept, *static) = arrived.given, (part.numpy() for part in parts)
        kept[arrived.new] = np.nan
        for part, new in zip(static, self._static(given, arrived.new), strict=True):
            part[arrived.new] = new
        known = self._covariates(given.times, given.known)
        rows = np.column_stack([arrived.elapsed, given.values[:, self._channels], known])
        # Of each kept row, the number among the new rows; negative for one that was kept before.
        number = given.rows.counts[:, None] + np.arange(-self._length, 0)
        before = np.minimum(number + self._length, self._length - 1)[..., None]
        kept[:] = np.where(
            number[..., None] < 0,
            np.take_along_axis(kept, before, axis=1),
            rows[given.rows.starts[:, None] + np.maximum(number, 0)],
        )

    def _present(self, parts: Sequence[Tensor], ages: np.ndarray) -> tuple[Running, np.ndarray]:
        """Read the kept rows; ages are those within them."""
        series, since, reader = [], [], self.predictor.reader
        for rows, real, cat in zip(*(part.numpy() for part in parts), strict=True):
            rows = rows[~np.isnan(rows[:, 0])]
            times, values, known = np.split(rows, [1, 1 + len(self._channels)], axis=1)
            one = Series(None, times[:, 0], values, known, real, cat)
            times, values = (part[reader.context_of(one, one.length)] for part in (times, values))
            since.append(times[-1] - np.where(np.isnan(values), times[0], times).max(axis=0))
            series.append(one)
        return self.network.read_whole(series), np.stack(since)


def network_member(predictor: IrregularPredictor, schema: Schema) -> NetworkMember:
    """Return the live member of a network, by the length of its context."""
    kind = ShortNetworkMember if predictor.reader.is_short else NetworkMember
    return kind(predictor, schema)


class HoldMember(Member):
    """A `HoldPredictor`: the state is the last value of each channel."""

    def __init__(self, predictor: HoldPredictor, schema: Schema) -> None:
        super().__init__(predictor, schema)
        self.predictor = predictor
        self.parts = [torch.zeros(1, len(self._targets), dtype=torch.float64)]

    def read(self, parts: Sequence[Tensor], arrived: Arrived) -> None:
        """Keep the last value of each channel, NaN if there is none yet."""
        last = parts[0].numpy()
        last[arrived.new] = np.nan
        row = arrived.newest[arrived.given.rows.ends][:, self._targets]  # (I, D)
        last[:] = np.where(row >= 0, arrived.given.values[row, self._targets], last)

    def forecast(self, parts: Sequence[Tensor], asked: Asked) -> RealTimeForecast:
        """Return one forecast of all queries."""
        item = asked.rows.item
        lead = asked.ages[item][:, self._targets] + asked.gaps[:, None]
        last = parts[0].numpy()[item]
        return self.predictor.forecast_from(last, lead, self._found.channels)


class CurveMember(Member):
    """A `CurvePredictor`: the state is the last values of each channel and their times.

    It uses at most its `context` of them, so 16 bytes for each are enough.
    """

    def __init__(self, predictor: CurvePredictor, schema: Schema) -> None:
        super().__init__(predictor, schema)
        self.predictor = predictor
        kept = torch.zeros(1, len(self._targets), 2, predictor.context, dtype=torch.float64)
        self.parts = [kept]

    def read(self, parts: Sequence[Tensor], arrived: Arrived) -> None:
        """Keep the last values, and their times since the first row; missing ones are NaN."""
        kept = parts[0].numpy()  # (I, D, 2, context)
        kept[arrived.new] = np.nan
        for item, curves in enumerate(kept):
            own = arrived.given.rows.of(item)
            for channel, curve in zip(self._targets, curves, strict=True):
                more = np.stack([arrived.elapsed[own], arrived.given.values[own, channel]])
                known = np.isfinite(more[1])
                curve[:] = np.hstack([curve, more[:, known]])[:, -self.predictor.context :]

    def forecast(self, parts: Sequence[Tensor], asked: Asked) -> RealTimeForecast:
        """Return one forecast of all queries."""
        kept = parts[0].numpy()
        located = [
            self.predictor.locate_from(
                [Curve(*curve[:, ~np.isnan(curve[0])]) for curve in curves],
                asked.elapsed[asked.rows.of(item)],
            )
            for item, curves in enumerate(kept)
        ]
        loc, scale = map(np.concatenate, zip(*located, strict=True))
        (forecast,) = self.predictor.forecasts_from([(loc, scale)], [self._found.channels])
        return forecast


KINDS: dict[type[DeltaflowPredictor], Callable[[Any, Schema], Member]] = {
    IrregularPredictor: network_member,
    HoldPredictor: HoldMember,
    GaussianProcessPredictor: CurveMember,
    SeasonalPredictor: CurveMember,
}
"""What makes the live member of a predictor, by its class."""


def members_of(predictor: DeltaflowPredictor, schema: Schema) -> list[Member]:
    """Return the live members of a predictor, within any wrappers, in their order.

    Raises
    ------
    DeltaflowError
        If one of the predictors has no state.
    """
    if predictor.members:
        return [member for one in predictor.members for member in members_of(one, schema)]
    if type(predictor) not in KINDS:
        raise DeltaflowError(
            f"a {type(predictor).__name__} keeps no state that could be updated: forecast by "
            f"predict_df, or build a predictor of {', '.join(kind.__name__ for kind in KINDS)} only"
        )
    return [KINDS[type(predictor)](predictor, schema)]


def combined(
    predictor: DeltaflowPredictor, given: Iterator[RealTimeForecast], lead: np.ndarray
) -> RealTimeForecast:
    """Compute the forecast of a predictor from those of its members, in the same order.

    ``lead`` ``(N,)`` are the seconds from the last observations to the queries.
    """
    if not predictor.members:
        return next(given)
    return predictor.combine([combined(one, given, lead) for one in predictor.members], lead)


def _groups(items: np.ndarray, counts: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Split items, sorted by number of rows, into groups of about ``limit`` rows."""
    while len(items):
        size = max(1, limit // int(counts[items[0]]))
        yield items[:size]
        items = items[size:]


def _leaves(part: Any) -> list[Tensor]:
    """Return the tensors in nested tuples."""
    return [part] if isinstance(part, Tensor) else [leaf for own in part for leaf in _leaves(own)]


def _put(parts: Sequence[Tensor], items: Any, running: Running) -> None:
    """Write the states of some items into the parts of all."""
    for part, new in zip(parts, _leaves(running), strict=True):
        part[items] = new.to(part.device)
