"""Live forecasting: observations in as they arrive, forecasts of any later time out."""

from __future__ import annotations

import itertools
import json
import os
import threading
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deltaflow.data import validation
from deltaflow.data.dataset import read_known
from deltaflow.data.reader import FARTHEST
from deltaflow.data.schema import TICKS_PER_SECOND, Schema, unit_seconds
from deltaflow.data.validation import (
    FrameRows,
    TimeColumn,
    as_text,
    check_columns,
    check_increasing,
    check_range,
    check_roles,
    gather_rows,
    in_ticks_of,
    read_constants,
    read_numbers,
)
from deltaflow.errors import DataError, DeltaflowError, in_frame
from deltaflow.forecast.forecasts import read_levels
from deltaflow.forecast.frame import item_names, read_known_times
from deltaflow.forecast.item_table import ItemTable, read_records, write_records
from deltaflow.forecast.live_member import UNKNOWN_LEVEL, Member, Static, combined, networks_in
from deltaflow.forecast.network_predictor import IrregularPredictor, advising
from deltaflow.forecast.predictor import DeltaflowPredictor, load_directory
from deltaflow.randomness import check_seed, derived_seed, seeded
from deltaflow.saving import FORMAT, check_format, reading, replacing_file

_MISSING = -2
"""The code of a category without a value; see `UNKNOWN_LEVEL`."""

_HEAD, _PREDICTOR = "live.json", "predictor"
"""What a snapshot holds beside its records: plain values, and the predictor."""


class _Given(NamedTuple):
    """N checked rows of I items. The items stand in order of their numbers of rows.

    Attributes
    ----------
    rows
        Where the rows stand in the frame, for errors.
    times, known, numbers
        ``(N,)``, ``(N, K)`` covariates and ``(N, C)`` values, gathered by item.
    names
        The items, the one with the most rows first.
    starts, counts
        ``(I,)`` the first row of each of these items, and the number of its rows.
    static
        The static features of these items.
    absent
        The static features that the frame does not have.
    """

    rows: FrameRows
    times: TimeColumn
    known: np.ndarray
    numbers: np.ndarray
    names: list[str]
    starts: np.ndarray
    counts: np.ndarray
    static: Static
    absent: list[str]


class _Asked(NamedTuple):
    """N questions, gathered by item: rows, names of the items, times, and covariates."""

    rows: FrameRows
    names: list[str]
    times: TimeColumn
    known: np.ndarray


class _Common(NamedTuple):
    """What all members of an ensemble share of the records of I items.

    Attributes
    ----------
    clock
        ``(I, 2 + C)`` times of the first and the last observation, and of the last value of each
        channel, or of the first observation if it has none: ticks, or elapsed numbers.
    count
        ``(I, 1)`` number of rows.
    seen
        ``(I, C)`` bool, whether a channel has been observed.
    static_real, static_cat
        Static features, see `Static`.
    """

    clock: Tensor
    count: Tensor
    seen: Tensor
    static_real: Tensor
    static_cat: Tensor

    @classmethod
    def example(cls, schema: Schema) -> _Common:
        """Return a record of zeros."""
        channels = len(schema.target) + len(schema.past_feat_dynamic_real)
        ticks = torch.float64 if schema.time == "elapsed" else torch.int64
        return cls(
            clock=torch.zeros(1, 2 + channels, dtype=ticks),
            count=torch.zeros(1, 1, dtype=torch.int64),
            seen=torch.zeros(1, channels, dtype=torch.bool),
            static_real=torch.zeros(1, len(schema.feat_static_real), dtype=torch.float64),
            static_cat=torch.zeros(1, len(schema.feat_static_cat), dtype=torch.int64),
        )


class LiveForecaster:
    """Reads observations of any number of items as they arrive, and forecasts them at any moment.

    It keeps a state of fixed size for each item, instead of its history. An observation costs one
    step of the encoder, however long the history is.

    **What is promised.** After any updates, in any batches, :meth:`forecast` returns what
    ``predict_df(live.predictor, history, future_df)`` returns for all rows of these updates: equal
    to 1e-5 of the scale, by rounding in float32. ``live.predictor`` is the given predictor with
    unlimited context. The given one reads the last ``context_length`` observations only, so its
    forecasts are the same as long as an item has no more of them. A network reads much longer
    series than it was trained on at your own risk: compare the two by a backtest, or begin an item
    anew now and then, by :meth:`forget` and an update with its recent history.

    It may be used by several threads. An update is done as a whole or not at all.

    Parameters
    ----------
    predictor
        A trained predictor with marginal forecasts, an ensemble of such, or a calibrated one.
    item_id, timestamp
        The names of these columns in all DataFrames; ``item_id`` is None for a single series.

    Attributes
    ----------
    predictor
        The predictor with unlimited context. It is not to be changed.

    Raises
    ------
    DeltaflowError
        If the predictor keeps no state, as a `HoldPredictor`; draws paths; or has an encoder that
        cannot read one observation at a time.

    Examples
    --------
    >>> import pandas as pd
    >>> from deltaflow import GRUFlowEstimator, IrregularDataset, LiveForecaster
    >>> from deltaflow.tasks import irregular_sine
    >>> data = IrregularDataset.from_long_dataframe(irregular_sine(num_series=4))
    >>> trainer_kwargs = {"fast_dev_run": True, "enable_progress_bar": False, "logger": False}
    >>> estimator = GRUFlowEstimator(prediction_length=8, folds=0, trainer_kwargs=trainer_kwargs)
    >>> live = LiveForecaster(estimator.train(data))
    >>> def rows(items, times, **columns):
    ...     return pd.DataFrame({"item_id": items, "timestamp": pd.to_datetime(times), **columns})
    >>> live.update(rows("a", ["2024-01-01 08:00", "2024-01-01 08:20"], target=[1.0, 0.8]))
    >>> live.update(rows(["b", "a"], ["2024-01-01 08:21", "2024-01-01 08:30"], target=0.5))
    >>> len(live), live.item("a")["num_observations"]
    (2, 3)
    >>> future = rows("a", ["2024-01-01 08:40", "2024-01-02 08:00"])
    >>> live.forecast(future, quantile_levels=[0.9]).columns
    Index(['item_id', 'timestamp', 'target_name', 'predictions', '0.9'], dtype='object')
    """

    def __init__(
        self,
        predictor: DeltaflowPredictor,
        *,
        item_id: str | None = "item_id",
        timestamp: str = "timestamp",
    ) -> None:
        _check_kind(predictor)
        list(networks_in(predictor))  # refuses what keeps no state
        self.predictor = predictor.with_unlimited_context()
        self.item_id, self.timestamp = item_id, timestamp
        schema = self.schema
        self._static = [*schema.feat_static_real, *schema.feat_static_cat]
        self._known = [*self._keys, *schema.feat_dynamic_real]
        self._observed = [*schema.target, *schema.past_feat_dynamic_real]
        check_roles(
            {
                "item_id": self._keys[:-1],
                "timestamp": self._keys[-1:],
                "target": self._observed,
                "covariates": [*schema.feat_dynamic_real, *self._static],
            }
        )
        self._members = [Member(one, schema) for one in networks_in(self.predictor)]
        common = _Common.example(schema)
        self._table = ItemTable([*common, *(p for one in self._members for p in one.parts)])
        self._resolution = "" if self._is_elapsed else "s"
        self._lock, self._saving = threading.Lock(), threading.Lock()

    @property
    def schema(self) -> Schema:
        """What the data hold."""
        return self.predictor.schema

    @property
    def bytes_per_item(self) -> int:
        """The memory of an item in bytes, without its name."""
        return self._table.bytes_per_item

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._table)

    def __contains__(self, item: object) -> bool:
        return as_text(item) in self._table

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items, {self.bytes_per_item} bytes each)"

    def update(self, df: pd.DataFrame) -> None:
        """Read further observations of known items, and the first ones of new items.

        Parameters
        ----------
        df
            A row per item and time, sorted by time within each item, with the channels and
            covariates of the training data by name; NaN where not observed. Every row is read as
            an observation time, even if nothing was observed there. A new item also needs its
            static features; for known items they may be left out.

        Raises
        ------
        DataError
            As `predict_df`; and if a row is not later than all earlier ones of its item, also of
            earlier updates, or a static feature changes. All items are then left as they were.
        """
        given = self._read(df)
        with self._lock:
            self._refine(given.times)
            rows = self._table.find(given.names)
            packed = self._table.take(rows)
            self._advance(given, rows.numpy() < 0, packed)
            self._table.put(given.names, rows, packed)

    def forecast(
        self,
        future_df: pd.DataFrame,
        *,
        quantile_levels: Sequence[float] = (0.1, 0.5, 0.9),
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Forecast every row of ``future_df``.

        Parameters
        ----------
        future_df
            The questions: item and timestamp, in any order and number, and the covariates known in
            advance.
        quantile_levels
            The levels, between 0 and 1.
        seed
            Seed of the samples, where a distribution has no quantile function.

        Returns
        -------
        pandas.DataFrame
            As `predict_df` returns it.

        Raises
        ------
        DataError
            If an item is unknown, or a question lies before its last observation.
        """
        levels = read_levels(quantile_levels)
        check_seed(seed)
        answers_in = ["target_name", "predictions", *map(str, levels)]
        for key in self._keys:
            if key in answers_in:
                raise DataError("is also the name of a column of the answer", "rename", field=key)
        asked = self._read_questions(future_df)
        with self._lock:
            found = self._table.find(asked.names)
            for number, row in enumerate(found.tolist()):
                if row < 0:
                    raise DataError(
                        "is not known",
                        "give at least one observation by update first",
                        frame="future_df",
                        **asked.rows.where(int(asked.rows.bounds[number])),
                    )
            packed = self._table.take(found)
            resolution = self._resolution
        values = self._answer(asked, packed, resolution, levels, seed)  # (L, N, D)

        channels = len(self.schema.target)
        answers = np.empty_like(values)
        answers[:, asked.rows.order] = values
        row = np.arange(len(future_df)).repeat(channels)
        names = np.array(self.schema.target, dtype=object)
        columns = {key: future_df[key].array.take(row) for key in self._keys}
        columns["target_name"] = np.tile(names, len(future_df))
        for name, answer in zip(answers_in[1:], answers, strict=True):
            columns[name] = answer.reshape(-1)
        return pd.DataFrame(columns)

    def forget(self, items: Iterable[object]) -> None:
        """Delete items: an update may begin them anew.

        Raises
        ------
        DataError
            If one of them is unknown; none is deleted then.
        """
        names = list(dict.fromkeys(map(as_text, items)))
        with self._lock:
            for name in names:
                if name not in self._table:
                    raise DataError("is not known", "leave it out", item=name)
            self._table.forget(names)

    def item(self, item: object) -> dict[str, Any]:
        """Return what is kept of an item in plain terms.

        Returns
        -------
        dict
            ``item_id``; ``num_observations``, the number of its rows; ``first`` and ``last``, the
            times of the first and the last one; and ``observed``, the time of the last value of
            each channel, None if there is none.

        Raises
        ------
        DataError
            If the item is unknown.
        """
        name = as_text(item)
        with self._lock:
            if name not in self._table:
                raise DataError("is not known", "give its observations by update", item=name)
            common, _ = self._parts(self._table.take(self._table.find([name])))
            resolution = self._resolution
        first, last, *since = (self._moment(t, resolution) for t in common.clock[0].tolist())
        seen = zip(self._observed, since, common.seen[0].tolist(), strict=True)
        return {
            "item_id": name,
            "num_observations": int(common.count),
            "first": first,
            "last": last,
            "observed": {channel: time if known else None for channel, time, known in seen},
        }

    def is_of(self, predictor: DeltaflowPredictor) -> bool:
        """Tell whether the states are those of a predictor: of its weights, and all else."""
        return _are_same(self.predictor, predictor.with_unlimited_context())

    def save(self, path: str | Path) -> None:
        """Write the states of all items, and the predictor, to a file.

        The file is replaced at once: a process that is killed at any moment leaves the former
        snapshot. Updates and forecasts go on while it is written.

        Parameters
        ----------
        path
            The file.
        """
        with self._saving, replacing_file(path) as new:
            with self._lock:
                names, packed = self._table.copy()
                resolution = self._resolution
            head = {
                "format": FORMAT,
                "class": type(self).__name__,
                "item_id": self.item_id,
                "timestamp": self.timestamp,
                "resolution": resolution,
            }
            with open(new, "wb") as file:
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr(_HEAD, json.dumps(head))
                    with TemporaryDirectory() as folder:
                        self.predictor.serialize(folder)
                        for written in sorted(Path(folder).rglob("*")):
                            inner = Path(_PREDICTOR, written.relative_to(folder))
                            archive.write(written, inner.as_posix())
                    write_records(archive, names, packed)
                file.flush()
                os.fsync(file.fileno())

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> LiveForecaster:
        """Read what :meth:`save` wrote, executing nothing of it.

        Parameters
        ----------
        path
            The file.
        device
            Where to compute, ``"auto"`` for a GPU if there is one.

        Raises
        ------
        DeltaflowError
            If there is no snapshot, or it is damaged.
        """
        with reading(path), zipfile.ZipFile(path) as archive:
            head = json.loads(archive.read(_HEAD))
            if head["class"] != cls.__name__:
                raise DeltaflowError(f"{path} is not a snapshot of a {cls.__name__}")
            check_format(head["format"], path)
            with TemporaryDirectory() as folder:
                inside = [name for name in archive.namelist() if name.startswith(_PREDICTOR)]
                archive.extractall(folder, inside)
                predictor = load_directory(Path(folder, _PREDICTOR), device)
            live = cls(predictor, item_id=head["item_id"], timestamp=head["timestamp"])
            if head["resolution"] not in ({""} if live._is_elapsed else TICKS_PER_SECOND):
                raise ValueError(f"{head['resolution']!r} is not a unit of ticks")
            live._resolution = head["resolution"]
            live._table.fill(*read_records(archive))
        return live

    @property
    def _keys(self) -> list[str]:
        return [self.timestamp] if self.item_id is None else [self.item_id, self.timestamp]

    @property
    def _is_elapsed(self) -> bool:
        return self.schema.time == "elapsed"

    def _read(self, df: pd.DataFrame) -> _Given:
        """Check a DataFrame of observations, as far as no state is needed for it."""
        schema = self.schema
        check_columns(df, [*self._known, *self._observed])
        rows = gather_rows(df, self.item_id)
        times = self._times(df, rows)
        check_increasing(times, times.ticks, rows, self.timestamp)
        numbers = [read_numbers(df[name], rows) for name in self._observed]
        counts = np.diff(rows.bounds)
        turn = np.argsort(-counts, kind="stable")
        names = item_names(df, rows, self.item_id)
        return _Given(
            rows=rows,
            times=times,
            known=read_known(df, rows, schema.feat_dynamic_real).T,
            numbers=np.stack(numbers, axis=-1),
            names=[names[number] for number in turn.tolist()],
            starts=rows.bounds[turn],
            counts=counts[turn],
            static=Static(*(part[turn] for part in self._read_static(df, rows))),
            absent=[name for name in self._static if name not in df.columns],
        )

    def _read_static(self, df: pd.DataFrame, rows: FrameRows) -> Static:
        """Read the static features as far as the frame has them."""
        schema, count = self.schema, len(rows.items)
        check_columns(df, [name for name in self._static if name in df.columns])
        real = np.full((count, len(schema.feat_static_real)), np.nan)
        cat = np.full((count, len(schema.feat_static_cat)), _MISSING)
        for column, name in enumerate(schema.feat_static_real):
            if name in df.columns:
                numbers = np.empty(len(df))
                numbers[rows.order] = read_numbers(df[name], rows)
                real[:, column] = read_constants(pd.Series(numbers, name=name), rows)
        for column, (name, levels) in enumerate(schema.feat_static_cat.items()):
            if name in df.columns:
                code_of = {level: code for code, level in enumerate(levels)}
                own = read_constants(validation.read_levels(df[name]), rows)
                missing = own.isna().to_numpy()
                cat[~missing, column] = [
                    code_of.get(level, UNKNOWN_LEVEL) for level in own[~missing]
                ]
        return Static(real, cat)

    def _read_questions(self, future_df: pd.DataFrame) -> _Asked:
        check_columns(future_df, self._known, "future_df")
        if len(future_df) == 0:
            raise DataError("future_df has no rows", "give at least one time to forecast")
        with in_frame("future_df"):
            rows = gather_rows(future_df, self.item_id)
            return _Asked(
                rows=rows,
                names=item_names(future_df, rows, self.item_id),
                times=self._times(future_df, rows),
                known=read_known(future_df, rows, self.schema.feat_dynamic_real).T,
            )

    def _times(self, df: pd.DataFrame, rows: FrameRows) -> TimeColumn:
        times = read_known_times(df, rows, self.timestamp, self.schema)
        if self._is_elapsed:
            check_range(times.ticks, unit_seconds(self.schema.time_unit), rows, self.timestamp)
        return times

    def _clock_of(self, ticks: np.ndarray, resolution: str) -> TimeColumn:
        kind = "elapsed" if self._is_elapsed else "timestamp"
        return TimeColumn(ticks, kind, resolution, self.schema.time_zone)

    def _refine(self, times: TimeColumn) -> None:
        """Count the times of all items in the unit of a column, if that is the finer one."""
        if (
            self._is_elapsed
            or TICKS_PER_SECOND[times.resolution] <= TICKS_PER_SECOND[self._resolution]
        ):
            return
        clock = self._clock_of(self._table.all_of(0).numpy(), self._resolution)
        refined = in_ticks_of(clock, times, self.timestamp)
        self._table.replace(0, torch.from_numpy(refined.ticks))
        self._resolution = refined.resolution

    def _moment(self, ticks: Any, resolution: str) -> Any:
        """Return a time as the caller gave it: a timestamp, or an elapsed number."""
        if self._is_elapsed:
            return ticks
        moment = pd.Timestamp(np.datetime64(ticks, resolution))
        zone = self.schema.time_zone
        return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)

    def _seconds(self, ticks: np.ndarray, resolution: str) -> np.ndarray:
        """Return differences of ticks in seconds."""
        if self._is_elapsed:
            return ticks * unit_seconds(self.schema.time_unit)
        return ticks / float(TICKS_PER_SECOND[resolution])

    def _parts(self, packed: Sequence[Tensor]) -> tuple[_Common, list[list[Tensor]]]:
        """Return what packed records hold: what all members share, and what each of them keeps."""
        parts = iter(self._table.parts(packed))
        common = _Common(*itertools.islice(parts, len(_Common._fields)))
        return common, [list(itertools.islice(parts, len(one.parts))) for one in self._members]

    def _advance(self, given: _Given, new: np.ndarray, packed: Sequence[Tensor]) -> None:
        """Read observations into packed records, in the order of the items that are given.

        ``new`` ``(I,)`` tells which items have no record yet.
        """
        common, states = self._parts(packed)
        resolution = self._resolution
        times = in_ticks_of(given.times, self._clock_of(np.empty(0), resolution), self.timestamp)
        clock, seen = common.clock.numpy(), common.seen.numpy()
        clock[new] = times.ticks[given.starts[new], None]
        last, since = clock[:, 1], clock[:, 2:]
        self._check_later(given, times, ~new, last, resolution)
        self._keep_static(given, new, common)
        seen[new] = False
        common.count[new] = 0
        for member, parts in zip(self._members, states, strict=True) if new.any() else ():
            started = member.start(Static(*(part[new] for part in given.static)))
            for part, beginning in zip(parts, started, strict=True):
                part[new] = beginning

        covariates = [one.covariates(times, given.known) for one in self._members]
        for step in range(int(given.counts.max(initial=0))):
            # The items with the most rows are first, so those that go on are the first ones.
            own = slice(int(np.searchsorted(-given.counts, -step)))
            rows = given.starts[own] + step
            now, values = times.ticks[rows], given.numbers[rows]
            gaps = self._seconds(now - last[own], resolution)
            ages = self._seconds(last[own, None] - since[own], resolution)
            self._check_near(gaps, given.rows, rows)
            for member, parts, known in zip(self._members, states, covariates, strict=True):
                member.read([part[own] for part in parts], gaps, ages, values, known[rows])
            last[own] = now
            since[own] = np.where(observed := np.isfinite(values), now[:, None], since[own])
            seen[own] |= observed
        common.count[:, 0] += torch.from_numpy(given.counts)
        if not all(
            member.is_finite(parts) for member, parts in zip(self._members, states, strict=True)
        ):
            raise DeltaflowError(
                "the network's state is not a number: train again, at a lower learning rate"
            )

    def _check_later(
        self,
        given: _Given,
        times: TimeColumn,
        known: np.ndarray,
        last: np.ndarray,
        resolution: str,
    ) -> None:
        """Raise unless the first row of each known item is later than its last observation."""
        first = times.ticks[given.starts]
        early = known & (first <= last)
        if early.any():
            number = int(early.argmax())
            moment, latest = (self._moment(t[number].item(), resolution) for t in (first, last))
            relation = "is that of" if first[number] == last[number] else "lies before"
            raise DataError(
                f"the time {moment} {relation} the last observation, at {latest}",
                "drop the row; to insert earlier rows, forget the item and give its whole history",
                field=self.timestamp,
                **given.rows.where(int(given.starts[number])),
            )

    def _check_near(self, gaps: np.ndarray, rows: FrameRows, positions: np.ndarray) -> None:
        """Raise if a gap in seconds is too long for float32."""
        for member in self._members:
            typical_gap = member.predictor.reader.statistics.typical_gap
            if (far := gaps > FARTHEST * typical_gap).any():
                raise DataError(
                    f"the gap is longer than {FARTHEST:g} typical gaps of the training set, which "
                    f"are {typical_gap:g} s long",
                    "check the unit of the times, or train on such gaps",
                    field=self.timestamp,
                    **rows.where(int(positions[far.argmax()])),
                )

    def _keep_static(self, given: _Given, new: np.ndarray, common: _Common) -> None:
        """Keep the static features of new items, and check that those of others are the same."""
        if not self._static:
            return
        if given.absent and new.any():
            raise DataError(
                "the item is new, and its static feature is missing",
                "give the column with the first rows of an item, if need be with missing values",
                field=given.absent[0],
                **given.rows.where(int(given.starts[new.argmax()])),
            )
        kept = common.static_real.numpy(), common.static_cat.numpy()
        for mine, theirs, known, names in zip(
            kept,
            given.static,
            (~np.isnan(given.static.real), given.static.cat != _MISSING),
            (self.schema.feat_static_real, list(self.schema.feat_static_cat)),
            strict=True,
        ):
            mine[new] = theirs[new]
            changed = known & (mine != theirs)
            if changed.any():
                number, column = np.argwhere(changed)[0]
                raise DataError(
                    "the static feature is not what it was when the item began",
                    "leave it out; to change it, forget the item and give its whole history",
                    field=names[column],
                    **given.rows.where(int(given.starts[number])),
                )

    def _answer(
        self,
        asked: _Asked,
        packed: Sequence[Tensor],
        resolution: str,
        levels: Sequence[float],
        seed: int | None,
    ) -> np.ndarray:
        """Return the median and the quantiles of all questions, ``(1 + L, N, D)``."""
        common, states = self._parts(packed)
        stored = self._clock_of(common.clock.numpy(), resolution)
        clock = in_ticks_of(stored, asked.times, self.timestamp)
        times = in_ticks_of(asked.times, stored, self.timestamp)
        bounds, unit = asked.rows.bounds, clock.resolution
        last = clock.ticks[:, 1]
        item = np.arange(len(last)).repeat(np.diff(bounds))
        if (early := times.ticks < last[item]).any():
            row = int(early.argmax())
            raise DataError(
                f"the query lies before the last observation, at "
                f"{self._moment(last[item[row]].item(), unit)}",
                "ask for later times",
                field=self.timestamp,
                frame="future_df",
                **asked.rows.where(row),
            )
        gaps = self._seconds(times.ticks - last[item], unit)
        ages = self._seconds(last[:, None] - clock.ticks[:, 2:], unit)
        self._check_near(gaps, asked.rows, np.arange(len(gaps)))
        answers = []
        with torch.no_grad(), advising():
            for number, (member, parts) in enumerate(zip(self._members, states, strict=True)):
                known = member.covariates(times, asked.known)
                with seeded(None if seed is None else derived_seed(seed, number)):
                    answers.append(member.forecast(parts, gaps, ages, known, bounds))
            forecast = combined(self.predictor, iter(answers), gaps)
            values = forecast.quantiles([0.5, *levels])
        return values.reshape(len(values), len(gaps), -1)


def _check_kind(predictor: DeltaflowPredictor) -> None:
    if not isinstance(predictor, DeltaflowPredictor):
        raise DeltaflowError(
            f"a {type(predictor).__name__} does not say what its data hold: give a predictor that "
            "deltaflow has trained or loaded"
        )
    if predictor.schema.time == "regular":
        raise DataError(
            "the predictor was trained on a regular data set, which has no real time",
            "train it on an IrregularDataset",
        )


def _are_same(one: DeltaflowPredictor, other: DeltaflowPredictor) -> bool:
    """Tell whether two predictors have the same arguments and weights."""
    if one.description() != other.description():
        return False
    if not all(map(_are_same, one.members, other.members)):
        return False
    if not isinstance(one, IrregularPredictor) or not isinstance(other, IrregularPredictor):
        return True
    weights, others = one.network.state_dict(), other.network.state_dict()
    return all(torch.equal(value.cpu(), others[name].cpu()) for name, value in weights.items())
