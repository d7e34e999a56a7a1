"""The states of all live items: updates and forecasts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaflow.data.dataset import MISSING_LEVEL
from deltaflow.data.reader import FARTHEST
from deltaflow.data.schema import TICKS_PER_SECOND, Schema, unit_seconds
from deltaflow.data.validation import FrameRows, TimeColumn, in_ticks_of
from deltaflow.errors import DataError
from deltaflow.forecast.columns import Queries
from deltaflow.forecast.live.frames import Observations
from deltaflow.forecast.live.item_table import FrozenTable, ItemTable
from deltaflow.forecast.live.members import Arrived, Asked, combined, members_of
from deltaflow.forecast.network_predictor import advising
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.process import one_thread
from deltaflow.randomness import derived_seed


class _Common(NamedTuple):
    """The part of the records of I items that all members share.

    Attributes
    ----------
    moments
        ``(I, 2 + C)`` times of the first and the last row, and of the last value of each channel,
        or of the first row if it has none: ticks, or elapsed numbers.
    count
        ``(I, 1)`` number of rows.
    seen
        ``(I, C)`` bool, whether a channel has been observed.
    static_real, static_cat
        ``(I, S)`` and ``(I, N)`` static features, as in `Observations`.
    """

    moments: np.ndarray
    count: np.ndarray
    seen: np.ndarray
    static_real: np.ndarray
    static_cat: np.ndarray


class States:
    """The state of each item, kept instead of its history. Several threads may use it.

    Parameters
    ----------
    predictor
        The predictor that forecasts.
    timestamp
        The name of the time column, for errors.

    Attributes
    ----------
    clock
        An empty column of times, in the finest unit of all updates.
    table
        The records of the items.

    Raises
    ------
    DeltaflowError
        If the predictor has no state.
    """

    def __init__(self, predictor: DeltaflowPredictor, timestamp: str) -> None:
        self.predictor, self.timestamp = predictor, timestamp
        self._channels = (*predictor.schema.target, *predictor.schema.past_feat_dynamic_real)
        self.members = members_of(predictor, predictor.schema)
        schema, channels = predictor.schema, len(self._channels)
        none = np.empty(0, np.float64 if schema.time == "elapsed" else np.int64)
        self.clock = TimeColumn(none, "" if schema.time == "elapsed" else "s", schema.time_zone)
        self._unit = unit_seconds(schema.time_unit)
        common = _Common(
            moments=np.zeros((1, 2 + channels), none.dtype),
            count=np.zeros((1, 1), np.int64),
            seen=np.zeros((1, channels), np.bool_),
            static_real=np.zeros((1, len(schema.feat_static_real))),
            static_cat=np.zeros((1, len(schema.feat_static_cat)), np.int64),
        )
        parts = [part for member in self.members for part in member.parts]
        self.table = ItemTable([*map(torch.from_numpy, common), *parts])
        self._lock = threading.Lock()

    @one_thread()
    def read(self, given: Observations) -> None:
        """Read all observations, or none if there is an error."""
        with self._lock:
            self._refine(given)
            rows = self.table.find(given.rows.items)
            packed = self.table.take(rows)
            self._advance(given, rows.numpy() < 0, packed)
            self.table.put(given.rows.items, rows, packed)

    @one_thread()
    def answer(
        self, asked: Queries, levels: Sequence[float], seed: int | None
    ) -> dict[str, np.ndarray]:
        """Return the forecasts for each row of the frame, ``(N, D)`` for each name of a column."""
        with self._lock:
            found = self.table.find(asked.rows.items)
            if (unknown := found.numpy() < 0).any():
                raise DataError(
                    "is not known",
                    "give at least one observation by update first",
                    frame="future_df",
                    **asked.rows.where(int(asked.rows.starts[unknown.argmax()])),
                )
            packed = self.table.take(found)
            clock = self.clock
        common, states = self._parts(packed)
        queries = self._queries(asked, common, clock)
        answers = []
        with torch.inference_mode(), advising():
            for number, (member, parts) in enumerate(zip(self.members, states, strict=True)):
                own = queries._replace(seed=derived_seed(seed, number))
                forecast = member.forecast(parts, own)
                answers.append(forecast.labelled(None, self.predictor.schema.target))
            forecast = combined(self.predictor, iter(answers), queries.gaps)
            columns = forecast.columns(levels)
        place = np.argsort(asked.rows.order)
        return {name: own.reshape(len(place), -1)[place] for name, own in columns.items()}

    def forget(self, names: Sequence[str]) -> None:
        """Delete items, or none if one of them is unknown."""
        with self._lock:
            for name in names:
                if name not in self.table:
                    raise DataError("is not known", "leave it out", item=name)
            self.table.forget(names)

    def about(self, name: str) -> dict[str, Any]:
        """Return a summary of an item, see `LiveForecaster.item`."""
        with self._lock:
            if name not in self.table:
                raise DataError("is not known", "give its observations by update", item=name)
            common, _ = self._parts(self.table.take(self.table.find([name])))
            clock = self.clock
        first, last, *since = map(clock.moment, common.moments[0].tolist())
        observed = {
            channel: time if known else None
            for channel, time, known in zip(self._channels, since, common.seen[0], strict=True)
        }
        count = int(common.count[0, 0])
        return {"num_observations": count, "first": first, "last": last, "observed": observed}

    @contextmanager
    def frozen(self) -> Iterator[tuple[TimeColumn, FrozenTable]]:
        """Yield the clock and the records of one moment, while updates and forecasts continue."""
        with self._lock:
            clock, table = self.clock, self.table.freeze(self._lock)
        try:
            yield clock, table
        finally:
            with self._lock:
                self.table.thaw()

    def fill(self, resolution: str, names: Sequence[str], packed: Tensor) -> None:
        """Load the packed records of items into empty states.

        Raises
        ------
        ValueError
            If the records do not fit.
        """
        with self._lock:
            if resolution not in (TICKS_PER_SECOND if self.clock.resolution else [""]):
                raise ValueError(f"{resolution!r} is not a unit of ticks")
            self.clock = self.clock._replace(resolution=resolution)
            self.table.fill(names, packed)

    def _parts(self, packed: Tensor) -> tuple[_Common, list[list[Tensor]]]:
        """Unpack records into the shared part and the parts of each member."""
        parts = iter(self.table.parts(packed))
        common = (part.numpy() for part in itertools.islice(parts, len(_Common._fields)))
        return _Common(*common), [
            list(itertools.islice(parts, len(member.parts))) for member in self.members
        ]

    def _refine(self, given: Observations) -> None:
        """Convert all times to the unit of new ones, if that is finer."""
        moments = self.clock._replace(ticks=self.table.all_of(0).numpy())
        refined = in_ticks_of(moments, given.times, self.timestamp)
        if refined is not moments:
            self.table.replace(0, torch.from_numpy(refined.ticks))
            self.clock = self.clock._replace(resolution=refined.resolution)

    def _advance(self, given: Observations, new: np.ndarray, packed: Tensor) -> None:
        """Read observations into the packed records of their items; ``new`` ones have none yet."""
        common, states = self._parts(packed)
        times = in_ticks_of(given.times, self.clock, self.timestamp)
        common.moments[new] = times.ticks[given.rows.starts[new], None]
        common.seen[new] = False
        common.count[new] = 0
        self._check_later(given, times.ticks, ~new, common)
        _keep_static(given, new, common, self.predictor.schema)

        starts, observed = given.rows.starts, np.isfinite(given.values)
        # For each row (N,): the item, the previous row, and when each channel was last seen.
        item = given.rows.item
        first, last, since = (common.moments[item, 0], common.moments[:, 1], common.moments[:, 2:])
        before = np.roll(times.ticks, 1)
        before[starts] = last
        newest = np.maximum.accumulate(np.where(observed, np.arange(len(item))[:, None], -1))
        newest[newest < starts[item, None]] = -1  # (N, C), of the same item
        known = np.where(newest >= 0, times.ticks[newest], since[item])
        earlier = np.roll(known, 1, axis=0)
        earlier[starts] = since
        arrived = Arrived(
            given,
            new,
            elapsed=times.seconds(times.ticks - first, self._unit),
            gaps=times.seconds(times.ticks - before, self._unit),
            ages=times.seconds(before[:, None] - earlier, self._unit),
            newest=newest,
        )
        self._check_near(arrived.gaps, given.rows)
        with torch.inference_mode():
            for member, parts in zip(self.members, states, strict=True):
                member.read(parts, arrived)
        ends = given.rows.ends
        common.moments[:, 1] = times.ticks[ends]
        common.moments[:, 2:] = known[ends]
        common.seen[:] |= newest[ends] >= 0
        common.count[:, 0] += given.rows.counts

    def _queries(self, asked: Queries, common: _Common, clock: TimeColumn) -> Asked:
        """Return the times of queries relative to the states of their items."""
        stored = clock._replace(ticks=common.moments)
        moments = in_ticks_of(stored, asked.times, self.timestamp)
        times = in_ticks_of(asked.times, stored, self.timestamp)
        first, last = moments.ticks[:, 0], moments.ticks[:, 1]
        item = asked.rows.item
        if (early := times.ticks < last[item]).any():
            row = int(early.argmax())
            raise DataError(
                f"the query lies before the last observation, at "
                f"{moments.moment(last[item[row]].item())}",
                "ask for later times",
                field=self.timestamp,
                frame="future_df",
                **asked.rows.where(row),
            )
        gaps = times.seconds(times.ticks - last[item], self._unit)
        self._check_near(gaps, asked.rows)
        return Asked(
            rows=asked.rows,
            elapsed=times.seconds(times.ticks - first[item], self._unit),
            gaps=gaps,
            ages=times.seconds(last[:, None] - moments.ticks[:, 2:], self._unit),
            times=times,
            known=asked.known,
        )

    def _check_later(
        self, given: Observations, ticks: np.ndarray, known: np.ndarray, common: _Common
    ) -> None:
        """Raise an error unless rows of known items begin after their last observation."""
        first, last = ticks[given.rows.starts], common.moments[:, 1]
        early = known & (first <= last)
        if early.any():
            number = int(early.argmax())
            moment, latest = (self.clock.moment(t[number].item()) for t in (first, last))
            relation = "is that of" if first[number] == last[number] else "lies before"
            raise DataError(
                f"the time {moment} {relation} the last observation, at {latest}",
                "drop the row; to insert earlier rows, forget the item and give its whole history",
                field=self.timestamp,
                **given.rows.where(int(given.rows.starts[number])),
            )

    def _check_near(self, gaps: np.ndarray, rows: FrameRows) -> None:
        """Raise an error if a gap in seconds is too long for float32."""
        farthest = min(member.farthest for member in self.members)
        rows.refuse(
            gaps > farthest,
            f"the gap is longer than {FARTHEST:g} typical gaps of the training set, which are "
            f"{farthest / FARTHEST:g} s long",
            "check the unit of the times, or train on such gaps",
            self.timestamp,
        )


def _keep_static(given: Observations, new: np.ndarray, common: _Common, schema: Schema) -> None:
    """Keep the static features of new items, and check that those of others are the same."""
    if given.absent and new.any():
        raise DataError(
            "the item is new, and its static feature is missing",
            "give the column with the first rows of an item, with missing values if necessary",
            field=given.absent[0],
            **given.rows.where(int(given.rows.starts[new.argmax()])),
        )
    real, cat = given.static_real, given.static_cat
    for mine, theirs, known, names in (
        (common.static_real, real, ~np.isnan(real), schema.feat_static_real),
        (common.static_cat, cat, cat != MISSING_LEVEL, list(schema.feat_static_cat)),
    ):
        mine[new] = theirs[new]
        changed = known & (mine != theirs)
        if changed.any():
            number, column = np.argwhere(changed)[0]
            raise DataError(
                "the static feature is not what it was when the item began",
                "leave it out; to change it, forget the item and give its whole history",
                field=names[column],
                **given.rows.where(int(given.rows.starts[number])),
            )
