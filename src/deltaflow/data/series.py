"""GluonTS entry → contiguous arrays: checked once, so that windows are plain slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, overload

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry

from deltaflow.data.schema import (
    LARGEST,
    LONGEST,
    TICKS_PER_SECOND,
    Schema,
    nanoseconds,
    unit_seconds,
)
from deltaflow.errors import DataError


class Series(NamedTuple):
    """One item as arrays. T observation times, Q query times, D targets, C = D + P channels.

    Attributes
    ----------
    item_id
        The item's name, None if it has none.
    times
        ``(T + Q,)`` float64 elapsed time: seconds, or periods of a regular series. NaN pads
        queries that are not asked.
    values
        ``(T, C)`` float64 targets, then past-only covariates; NaN where not observed.
    covariates
        ``(T + Q, K)`` float64 covariates known in advance, then calendar phases.
    static_real
        ``(S,)`` float64, NaN where unknown.
    static_cat
        ``(N,)`` int64 codes of the levels, -1 where unknown.
    """

    item_id: str | None
    times: np.ndarray
    values: np.ndarray
    covariates: np.ndarray
    static_real: np.ndarray
    static_cat: np.ndarray

    @property
    def length(self) -> int:
        """The number T of observation times."""
        return len(self.values)


def is_irregular(entry: DataEntry) -> bool:
    """Tell whether an entry keeps real time, as its ``info`` says by a ``time_origin``."""
    info = entry.get("info")
    return isinstance(info, Mapping) and "time_origin" in info


def schema_of(entries: Iterable[DataEntry]) -> Schema:
    """Infer the schema of a data set from its entries.

    Entries of an `IrregularDataset` carry theirs. An ordinary GluonTS data set names nothing, so
    its channels and features are numbered.
    """
    entries = iter(entries)
    first = next(entries, None)
    if first is None:
        raise DataError("the data set is empty", "give at least one item")
    if not isinstance(first, Mapping) or "target" not in first:
        raise DataError(
            f"the first entry is a {type(first).__name__} without a target",
            "give entries of a GluonTS data set, or make them with IrregularDataset",
        )
    if is_irregular(first):
        try:
            return Schema.from_dict(first["info"]["schema"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the info holds no schema ({type(error).__name__}: {error})",
                "make the entries with IrregularDataset",
                item=first.get("item_id"),
                field="info",
            ) from None
    target = np.asarray(first["target"])

    def numbered(field: str) -> tuple[str, ...]:
        return tuple(f"{field}_{i}" for i in range(len(first.get(field, ()))))

    channels = 1 if target.ndim == 1 else target.shape[0]
    num_codes = len(first.get("feat_static_cat", ()))
    codes = [
        _vector(entry, "feat_static_cat", num_codes, np.int64) for entry in chain([first], entries)
    ]
    levels = np.max(codes, axis=0) + 1
    return Schema(
        target=("target",) if channels == 1 else tuple(f"target_{i}" for i in range(channels)),
        univariate=target.ndim == 1,
        time="regular",
        time_unit=first["start"].freqstr,
        feat_dynamic_real=numbered("feat_dynamic_real"),
        past_feat_dynamic_real=numbered("past_feat_dynamic_real"),
        feat_static_real=numbered("feat_static_real"),
        feat_static_cat={
            f"feat_static_cat_{i}": tuple(map(str, range(count))) for i, count in enumerate(levels)
        },
    )


def read_series(
    entry: DataEntry,
    schema: Schema,
    seasonality: Iterable[str] = (),
    num_queries: int | None = None,
) -> Series:
    """Check one entry against the schema and turn it into arrays.

    Parameters
    ----------
    entry
        A GluonTS entry, irregular or regular.
    schema
        What the entry must hold.
    seasonality
        Calendar cycles whose phases are added to the covariates, see `calendar_phases`.
    num_queries
        How many periods of a regular entry are forecast; an irregular one has at least one query
        time after its last observation, and any number. None for an entry to train on.

    Raises
    ------
    DataError
        If a field is missing, has the wrong shape or type, holds values beyond `LARGEST`, if the
        times are float32, unsorted, duplicate or beyond `LONGEST`, or if a query time is unknown
        or before the last observation.
    """
    item = entry.get("item_id")
    if is_irregular(entry) != (schema.time != "regular"):
        expected = "a regular series" if schema.time == "regular" else "an info['time_origin']"
        raise DataError(f"expected {expected}", "use data like the training data",
                        item=item, field="info")  # fmt: skip
    if not isinstance(entry.get("start"), pd.Period):
        raise DataError("is no pandas Period", "give the period of the first observation",
                        item=item, field="start")  # fmt: skip

    target = _matrix(entry, "target", len(schema.target), schema.univariate)
    length = target.shape[1]
    past = _matrix(entry, "past_feat_dynamic_real", len(schema.past_feat_dynamic_real))
    past = past if len(past) else past.reshape(0, length)
    _check_length(past, length, item, "past_feat_dynamic_real")

    if schema.time == "regular":
        total = length + (num_queries or 0)
        times = np.arange(total, dtype=np.float64)
        known = _matrix(entry, "feat_dynamic_real", len(schema.feat_dynamic_real))
        known = known[:, :total] if len(known) else known.reshape(0, total)
        _check_length(known, total, item, "feat_dynamic_real")
    else:
        rows = _matrix(entry, "feat_dynamic_real", 1 + len(schema.feat_dynamic_real))
        if np.asarray(entry["feat_dynamic_real"]).dtype != np.float64:
            raise DataError(
                f"the elapsed times are {np.asarray(entry['feat_dynamic_real']).dtype}",
                "keep them in float64: float32 merges seconds within half a year "
                "(GluonTS's ListDataset and FileDataset cast to it; use IrregularDataset)",
                item=item,
                field="feat_dynamic_real",
            )
        _check_origin(entry["info"], item)
        _check_times(rows[0], length, num_queries, item)
        unit = unit_seconds(entry["info"].get("time_unit"))
        if (far := np.abs(rows[0]) > LONGEST / unit).any():
            raise DataError(f"the elapsed time is longer than {LONGEST:g} seconds",
                            "check its unit, or count from a later origin", item=item,
                            field="feat_dynamic_real[0]", position=int(far.argmax()))  # fmt: skip
        times = rows[0] * unit
        known = rows[1:]

    missing = np.isnan(known) & ~np.isnan(times)
    if missing.any():
        channel, position = np.argwhere(missing)[0]
        raise DataError(
            "a covariate known in advance is missing",
            "fill it in for the past and for every query",
            item=item,
            field=schema.feat_dynamic_real[channel],
            position=int(position),
        )
    phases = calendar_phases(entry, times, seasonality)
    codes = _vector(entry, "feat_static_cat", len(schema.feat_static_cat), np.int64)
    counts = np.array([len(levels) for levels in schema.feat_static_cat.values()], dtype=np.int64)
    return Series(
        item_id=item,
        times=times,
        values=np.ascontiguousarray(np.vstack([target, past]).T),
        covariates=np.ascontiguousarray(np.vstack([known, phases]).T),
        static_real=_vector(entry, "feat_static_real", len(schema.feat_static_real), np.float64),
        static_cat=np.where((codes >= 0) & (codes < counts), codes, -1),
    )


class SeriesOnDemand(Sequence[Series]):
    """The series of a data set in a file, each read and checked when it is asked for.

    Parameters
    ----------
    dataset
        Entries by number.
    schema, seasonality
        See `read_series`.
    """

    def __init__(
        self, dataset: Sequence[DataEntry], schema: Schema, seasonality: Iterable[str]
    ) -> None:
        self.dataset = dataset
        self.schema = schema
        self.seasonality = tuple(seasonality)

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> Series: ...
    @overload
    def __getitem__(self, index: slice) -> SeriesOnDemand: ...
    def __getitem__(self, index):
        entries = self.dataset[index]
        if isinstance(index, slice):
            return SeriesOnDemand(entries, self.schema, self.seasonality)
        return read_series(entries, self.schema, self.seasonality)


def _matrix(entry: DataEntry, field: str, rows: int, univariate: bool = False) -> np.ndarray:
    """Read a field of shape ``(rows, T)`` as float64, NaN where missing."""
    item = entry.get("item_id")
    if rows == 0:
        return np.empty((0, 0))
    if field not in entry:
        raise DataError("the field is missing", "use data like the training data",
                        item=item, field=field)  # fmt: skip
    values = _numbers(entry[field], np.float64, item, field)
    shape = "(T,)" if univariate else f"({rows}, T)"
    if values.ndim != (1 if univariate else 2) or (values.ndim == 2 and len(values) != rows):
        raise DataError(f"has shape {values.shape}, expected {shape}", "reshape it",
                        item=item, field=field)  # fmt: skip
    _check_size(values, item, field)
    return np.atleast_2d(values)


def _vector(entry: DataEntry, field: str, size: int, dtype: Any) -> np.ndarray:
    """Read a field of shape ``(size,)``; what is not in the schema, of size 0, is not read."""
    item = entry.get("item_id")
    values = _numbers(entry.get(field, ()) if size else (), dtype, item, field)
    if values.shape != (size,):
        raise DataError(f"has shape {values.shape}, expected ({size},)",
                        "use data like the training data", item=item, field=field)  # fmt: skip
    _check_size(values, item, field)
    return values


def _numbers(values: Any, dtype: Any, item: str | None, field: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"not an array of numbers ({error})", "convert it to numbers",
                        item=item, field=field) from None  # fmt: skip


def _check_size(values: np.ndarray, item: str | None, field: str) -> None:
    """Raise if a value cannot be computed with; its position is along the last axis."""
    if (beyond := np.abs(values) > LARGEST).any():
        infinite = np.isinf(values[beyond][0])
        raise DataError(
            "the value is infinite" if infinite else f"the value is larger than {LARGEST:g}",
            "replace it with a number, or with NaN if it was not observed",
            item=item,
            field=field,
            position=int(np.argwhere(beyond)[0, -1]),
        )


def _check_length(rows: np.ndarray, length: int, item: str | None, field: str) -> None:
    if len(rows) and rows.shape[1] != length:
        raise DataError(
            f"has {rows.shape[1]} columns, expected {length}",
            "give one column per time, for covariates known in advance also per query",
            item=item,
            field=field,
        )


def _check_origin(info: Mapping[str, Any], item: str | None) -> None:
    """Check that the timestamps of an entry can be told: its origin, and their resolution."""
    origin, resolution = info["time_origin"], info.get("time_resolution")
    if origin is None:
        return
    try:
        known = not np.isnat(np.datetime64(origin.removesuffix("Z")))
    except (AttributeError, TypeError, ValueError):
        known = False
    if not known or resolution not in TICKS_PER_SECOND:
        raise DataError(
            f"the time_origin {origin!r} in {resolution!r} is no timestamp",
            f"give it by ISO 8601, and a time_resolution of {', '.join(TICKS_PER_SECOND)}",
            item=item,
            field="info",
        )


def _check_times(elapsed: np.ndarray, length: int, num_queries: int | None, item: Any) -> None:
    """Check row 0 of ``feat_dynamic_real``: T observation times, then the query times."""
    field = "feat_dynamic_real[0]"
    queries = elapsed[length:]
    if len(elapsed) < length:
        raise DataError(f"has {len(elapsed)} times for {length} observations",
                        "give each observation its time", item=item, field=field)  # fmt: skip
    if np.isnan(elapsed[:length]).any():
        position = int(np.argmax(np.isnan(elapsed)))
        raise DataError("the time is missing", "drop this observation",
                        item=item, field=field, position=position)  # fmt: skip
    gaps = np.diff(elapsed[:length])
    if (gaps <= 0).any():
        position = int(np.argmax(gaps <= 0)) + 1
        problem = "is a duplicate" if gaps[position - 1] == 0 else "is not sorted"
        raise DataError(f"the time {problem}", "sort the observations and merge duplicates",
                        item=item, field=field, position=position)  # fmt: skip
    if num_queries is None:
        return
    if not len(queries):
        raise DataError(
            "has no query times after the last observation",
            "append them, or forecast a DataFrame with deltaflow.predict_df",
            item=item,
            field=field,
        )
    asked = ~np.isnan(queries)
    if (np.diff(asked.astype(int)) > 0).any():
        raise DataError("a missing query time stands before a known one",
                        "put the NaN padding last", item=item, field=field)  # fmt: skip
    if length and (queries[asked] < elapsed[length - 1]).any():
        position = int(np.argmax(queries < elapsed[length - 1]))
        raise DataError(
            "the query lies before the last observation",
            "forecast from a shorter history, or ask for later times",
            item=item,
            field=field,
            position=length + position,
        )


CALENDAR_CYCLES = {"hour": 3600.0, "day": 86400.0, "week": 604800.0, "year": 31556952.0}
"""Length in seconds of the calendar cycles; a year is the mean Gregorian one."""


def calendar_phases(entry: DataEntry, times: np.ndarray, seasonality: Iterable[str]) -> np.ndarray:
    """Sine and cosine of the phase of each calendar cycle, and of its first overtone, in UTC.

    Parameters
    ----------
    entry
        The entry, which says when ``times`` begin.
    times
        ``(T + Q,)`` its elapsed times, as in `Series`.
    seasonality
        Names out of ``"hour"``, ``"day"``, ``"week"``, ``"year"``.

    Returns
    -------
    numpy.ndarray
        ``(4 * cycles, T + Q)``.
    """
    cycles = list(seasonality)
    if not cycles:
        return np.empty((0, len(times)))
    unknown = [cycle for cycle in cycles if cycle not in CALENDAR_CYCLES]
    if unknown:
        raise DataError(f"unknown cycle {unknown[0]!r}", f"choose of {list(CALENDAR_CYCLES)}",
                        field="seasonality")  # fmt: skip
    if not is_irregular(entry):
        index = pd.period_range(entry["start"], periods=len(times))
        seconds = index.to_timestamp().to_numpy("datetime64[s]").astype(np.float64)
    elif entry["info"]["time_origin"] is None:
        raise DataError(
            "elapsed times have no calendar",
            "give timestamps, or no seasonality",
            item=entry.get("item_id"),
            field="seasonality",
        )
    else:
        origin = pd.Timestamp(entry["info"]["time_origin"].removesuffix("Z"))
        seconds = nanoseconds(origin) / 10**9 + times
    periods = np.array([CALENDAR_CYCLES[cycle] for cycle in cycles])
    phase = 2 * np.pi * (seconds / periods[:, None])
    return np.concatenate([np.sin(phase), np.cos(phase), np.sin(2 * phase), np.cos(2 * phase)])
