"""Series: GluonTS entries, checked once and stored as arrays, from which windows are slices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry, Dataset, TrainDatasets
from gluonts.dataset.split import TestData

from deltaflow.data.matching import Match, common_schema, match, schema_in
from deltaflow.data.schema import (
    ROLES,
    TICKS_PER_SECOND,
    TIME_UNITS,
    Schema,
    nanoseconds,
    unit_seconds,
)
from deltaflow.data.validation import check_numbers, check_range
from deltaflow.errors import DataError, located, warn_once

T = TypeVar("T")

_TIMES = "feat_dynamic_real[0]"
"""The place of the times in an entry, for errors."""

_UNREAD = ("feat_dynamic_cat", "past_feat_dynamic_cat", "dynamic_feat", "past_feat_dynamic")
"""GluonTS covariate fields that no model here reads."""


class Series(NamedTuple):
    """One item as arrays. T observation times, Q query times, D targets, C = D + P channels.

    Attributes
    ----------
    item_id
        The item's identifier; None if it has none.
    times
        ``(T + Q,)`` float64 time since the time origin: in seconds, or in periods of a regular
        series. Queries are padded with NaN.
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

    @property
    def num_queries(self) -> int:
        """The number Q of query times."""
        return len(self.times) - len(self.values)


def is_irregular(entry: DataEntry) -> bool:
    """Return whether an entry has real time, that is, a ``time_origin`` in its ``info``."""
    info = entry.get("info")
    return isinstance(info, Mapping) and "time_origin" in info


def entries_of(dataset: Dataset) -> Iterator[DataEntry]:
    """Yield the entries of a data set.

    Raises
    ------
    DataError
        If it is no data set, for example a DataFrame or a single entry, or contains anything but
        entries.
    """
    kind = type(dataset).__name__
    if hasattr(dataset, "columns"):
        raise DataError(
            f"a {kind} is not a data set",
            "make one with IrregularDataset.from_long_dataframe, or forecast it directly with "
            "predict_df",
        )
    if isinstance(dataset, TestData):
        raise DataError("a TestData holds pairs of input and label", "give its .input")
    if isinstance(dataset, TrainDatasets):
        raise DataError("a TrainDatasets holds several data sets", "give its .train or its .test")
    if isinstance(dataset, Mapping):
        raise DataError("a single entry is not a data set", "put it into a list")
    if isinstance(dataset, str) or not isinstance(dataset, Iterable):
        raise DataError(f"a {kind} is not a data set", "make one with IrregularDataset")
    return map(_checked, dataset)


def _checked(entry: Any) -> Any:
    if not isinstance(entry, Mapping) or "target" not in entry:
        raise DataError(
            f"an entry of the data set is a {type(entry).__name__} without a target",
            "give entries of a GluonTS data set, or make them with "
            "IrregularDataset.from_long_dataframe",
        )
    dynamic = [field for field in ROLES[:3] if entry.get(field) is not None]
    with located(item=entry.get("item_id")):
        return {**entry, **{field: _floats(entry[field], field) for field in dynamic}}


def _floats(values: Any, field: str) -> np.ndarray:
    """Return a list, a tensor or an array of any kind as an array of floats, NaN for None."""
    array = _numbers(values, None, field)
    return array if array.dtype.kind == "f" else _numbers(array, np.float64, field)


def schema_of(entries: Iterable[DataEntry]) -> Schema:
    """Infer the schema of a data set from its entries.

    Entries of an `IrregularDataset` carry their schema. Entries of several data sets may be mixed:
    they need the same names, in any order, and the levels of a category are those of all of them.
    An ordinary GluonTS data set has no names, so its channels and features are numbered.

    Raises
    ------
    DataError
        If there is no entry, or an entry lacks a name that another one has.
    """
    entries = entries_of(entries)  # pyright: ignore[reportArgumentType]
    first = next(entries, None)
    if first is None:
        raise DataError("the data set is empty", "give at least one item")
    entries = chain([first], entries)
    if is_irregular(first):
        # A regular entry among them raises an error when it is read.
        irregular = filter(is_irregular, entries)
        return common_schema((entry.get("item_id"), schema_in(entry)) for entry in irregular)
    target = first["target"]
    with located(item=first.get("item_id")):
        _check_start(first)
        if target.ndim not in (1, 2):
            raise DataError(f"has shape {target.shape}, expected (T,) or (D, T)", "reshape it",
                            field="target")  # fmt: skip
        features: dict[str, Any] = {field: _numbered(first, field) for field in ROLES[1:]}
    unread = [field for field in _UNREAD if first.get(field) is not None]
    if unread:
        warn_once(
            "the data have fields that are not read; give their contents as numbers in "
            "feat_dynamic_real, or in past_feat_dynamic_real: ",
            unread,
        )
    channels = 1 if target.ndim == 1 else len(target)
    categories = features.pop("feat_static_cat")
    every = range(len(categories))
    codes = []
    for entry in entries:
        with located(item=entry.get("item_id")):
            codes.append(_codes(entry, len(every), every))
    counts = np.max(codes, axis=0) + 1
    return Schema(
        target=("target",) if channels == 1 else tuple(f"target_{i}" for i in range(channels)),
        univariate=target.ndim == 1,
        time="regular",
        time_unit=first["start"].freqstr,
        **features,
        feat_static_cat={
            name: tuple(map(str, range(count)))
            for name, count in zip(categories, counts, strict=True)
        },
    )


def match_entry(entry: DataEntry, schema: Schema) -> Match:
    """Find the names of a schema in an entry.

    Names that the schema does not know are ignored, with one warning.

    Raises
    ------
    DataError
        If a name is missing, or the entry has a different kind of time or frequency.
    """
    with located(item=entry.get("item_id")):
        if is_irregular(entry) != (schema.time != "regular"):
            expected = "a regular series" if schema.time == "regular" else "an info['time_origin']"
            raise DataError(f"expected {expected}", "use data like the training data", field="info")
        if schema.time == "regular":
            _check_start(entry, schema.time_unit)
            return match(schema, schema)
        _check_start(entry)
        found = match(schema_in(entry), schema)
    if found.ignored:
        warn_once(
            "the data have names that the model does not know, which are ignored: ",
            [f"{role} {name!r}" for role, names in found.ignored.items() for name in names],
            said=schema.said,
        )
    return found


def in_order(entry: DataEntry, schema: Schema) -> DataEntry:
    """Return an entry with its channels in the order of a schema that has the same names."""
    found = match_entry(entry, schema)
    if found.target == schema.target:
        return entry
    info = entry["info"]
    plain = {**info["schema"], "target": list(schema.target)}
    target = entry["target"][found.rows["target"]]
    return {**entry, "target": target, "info": {**info, "schema": plain}}


def series_of(
    entry: DataEntry,
    schema: Schema,
    seasonality: Sequence[str] = (),
    num_queries: int | None = None,
) -> Series:
    """Check an entry and turn it into the arrays that a schema describes.

    Channels, covariates and features are matched by name, and the codes of a category by its
    levels, see `match_entry`.

    Parameters
    ----------
    entry
        A GluonTS entry, irregular or regular.
    schema
        The schema that the entry must match.
    seasonality
        Calendar cycles whose phases are added to the covariates, see `calendar_phases`.
    num_queries
        The number of periods of a regular entry to forecast. Irregular entries contain their
        query times, and need at least one. None for training entries, which need none.

    Raises
    ------
    DataError
        If a field or name is missing, has the wrong shape or type, or contains values beyond
        `LARGEST`, if the times are float32, unsorted, duplicate or beyond `LONGEST`, or if a query
        time is unknown or before the last observation.
    """
    return matched_series(entry, schema, seasonality, num_queries)[1]


def matched_series(
    entry: DataEntry,
    schema: Schema,
    seasonality: Sequence[str] = (),
    num_queries: int | None = None,
) -> tuple[Match, Series]:
    """Return the results of `match_entry` and `series_of`, matching the entry only once."""
    found = match_entry(entry, schema)
    with located(item=entry.get("item_id")):
        return found, _read(entry, found, schema, seasonality, num_queries)


def _read(
    entry: DataEntry,
    found: Match,
    schema: Schema,
    seasonality: Sequence[str],
    num_queries: int | None,
) -> Series:
    own, rows = found.own, found.rows
    target = _matrix(entry, "target", len(own.target), rows["target"], own.univariate)
    length = target.shape[1]
    field = "past_feat_dynamic_real"
    past = _of_length(_matrix(entry, field, len(getattr(own, field)), rows[field]), length, field)

    field = "feat_dynamic_real"
    count = len(own.feat_dynamic_real)
    if schema.time == "regular":
        total = length + (num_queries or 0)
        times = np.arange(total, dtype=np.float64)
        known = _of_length(_matrix(entry, field, count, rows[field])[:, :total], total, field)
    else:
        # Row 0 is the time.
        dynamic = _matrix(entry, field, 1 + count, [0, *(1 + row for row in rows[field])])
        if (dtype := np.asarray(entry[field]).dtype) != np.float64:
            raise DataError(
                f"the elapsed times are {dtype}",
                "keep them in float64: float32 merges seconds within half a year "
                "(GluonTS's ListDataset and FileDataset cast to it; use IrregularDataset)",
                field=field,
            )
        _check_origin(entry["info"])
        _check_times(dynamic[0], length, num_queries)
        unit = unit_seconds(entry["info"].get("time_unit"))
        check_range(dynamic[0], unit, _refuse, _TIMES)
        times, known = dynamic[0] * unit, dynamic[1:]

    for name, column in zip(schema.feat_dynamic_real, known, strict=True):
        missing = np.isnan(column) & ~np.isnan(times)
        problem = "a covariate known in advance is missing"
        _refuse(missing, problem, "fill it in for the past and for every query", name)
    phases = calendar_phases(entry, times, seasonality)
    real, cat = "feat_static_real", "feat_static_cat"
    codes = _codes(entry, len(own.feat_static_cat), rows[cat])
    return Series(
        item_id=entry.get("item_id"),
        times=times,
        values=np.ascontiguousarray(np.vstack([target, past]).T),
        covariates=np.ascontiguousarray(np.vstack([known, phases]).T),
        static_real=_vector(entry, real, len(own.feat_static_real), rows[real]),
        static_cat=np.array(
            [
                known[code if 0 <= code < len(known) else -1]
                for code, known in zip(codes.tolist(), found.codes, strict=True)
            ],
            dtype=np.int64,
        ),
    )


def read_series(dataset: Dataset) -> tuple[Schema, list[Series]]:
    """Return the schema of a data set, and all of its series."""
    entries = list(entries_of(dataset))
    schema = schema_of(entries)
    return schema, [series_of(entry, schema) for entry in entries]


def in_chunks(stream: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Group the elements of a stream into chunks of sufficient size."""
    chunk, total = [], 0
    for element in stream:
        chunk.append(element)
        total += size(element)
        if total >= limit:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def _check_start(entry: DataEntry, freq: str | None = None) -> None:
    """Check that an entry has a start period and, if ``freq`` is given, the same frequency."""
    start = entry.get("start")
    if not isinstance(start, pd.Period):
        remedy = (
            "make the entries with IrregularDataset"
            if is_irregular(entry)
            else "give the period of the first observation, such as pd.Period('2024-01-01', "
            "freq='h'), or make the data set with gluonts.dataset.common.ListDataset(entries, "
            "freq='h'); observations at irregular times belong in an IrregularDataset"
        )
        found = (
            "is missing" if start is None else f"is a {type(start).__name__}, not a pandas Period"
        )
        raise DataError(found, remedy, field="start")
    if freq is not None and _step(start.freqstr) != _step(freq):
        raise DataError(
            f"the frequency is {start.freqstr!r}, but that of the training data is {freq!r}",
            "resample the series to one frequency, or train a model for each",
            field="start",
        )


_OLD_UNITS = {"H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "N": "ns"}
"""The names of units before pandas 2.2."""


@lru_cache(maxsize=64)
def _step(freq: str) -> object:
    """Return a value that is equal for equal frequencies, such as 60min and h, or W-SUN and W."""
    number, unit = re.match(r"(\d*)([A-Za-z]*)", freq).groups()  # pyright: ignore[reportOptionalMemberAccess]
    count, unit = int(number or 1), _OLD_UNITS.get(unit, unit)
    if unit in TIME_UNITS and unit != "W":
        return pd.Timedelta(count, unit=unit)
    return count, unit


def _matrix(
    entry: DataEntry, field: str, count: int, rows: Sequence[int], univariate: bool = False
) -> np.ndarray:
    """Read the chosen rows of a field of shape ``(count, T)`` as float64, NaN where missing."""
    if not rows:
        return np.empty((0, 0))
    if field not in entry:
        raise DataError("the field is missing", "use data like the training data", field=field)
    values = _numbers(entry[field], np.float64, field)
    shape = "(T,)" if univariate else f"({count}, T)"
    if values.ndim != (1 if univariate else 2) or (values.ndim == 2 and len(values) != count):
        raise DataError(f"has shape {values.shape}, expected {shape}", "reshape it", field=field)
    values = np.atleast_2d(values)[rows]
    check_numbers(values, field, _refuse)
    return values


def _numbered(entry: DataEntry, field: str) -> tuple[str, ...]:
    """Return numbered names for the rows of a field; no names if the entry lacks it."""
    values = entry.get(field)
    values = _numbers(() if values is None else values, None, field)
    ndim, shape = (2, "(K, T)") if "dynamic" in field else (1, "(K,)")
    if values.ndim != ndim and values.size:
        raise DataError(f"has shape {values.shape}, expected {shape}", "reshape it", field=field)
    return tuple(f"{field}_{i}" for i in range(len(values)))


def _codes(entry: DataEntry, size: int, rows: Sequence[int]) -> np.ndarray:
    """Read the int64 codes of the chosen categories, -1 where missing."""
    field = "feat_static_cat"
    if not rows:  # as nearly always
        return np.empty(0, np.int64)
    codes = _vector(entry, field, size, rows)
    codes = np.where(np.isnan(codes), -1, codes)
    problem = "the code of a category is not a whole number"
    _refuse(codes != np.floor(codes), problem, "number the categories from 0", field)
    return codes.astype(np.int64)


def _vector(entry: DataEntry, field: str, size: int, rows: Sequence[int]) -> np.ndarray:
    """Read the chosen numbers of a field ``(size,)`` as float64; it may be absent if empty."""
    if not rows:
        return np.empty(0)
    values = _numbers(entry.get(field, ()), np.float64, field)
    if values.shape != (size,):
        raise DataError(
            f"has shape {values.shape}, expected ({size},)",
            "use data like the training data",
            field=field,
        )
    values = values[rows]
    check_numbers(values, field, _refuse)
    return values


def _numbers(values: Any, dtype: Any, field: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        problem = f"not an array of numbers ({error})"
        raise DataError(problem, "convert it to numbers", field=field) from None


def _refuse(wrong: np.ndarray, problem: str, remedy: str, field: str) -> None:
    """Raise an error for the first position along T where ``wrong`` ``(…, T)`` is True, if any."""
    if wrong.any():
        position = int(np.argwhere(wrong)[0, -1])
        raise DataError(problem, remedy, field=field, position=position)


def _of_length(rows: np.ndarray, length: int, field: str) -> np.ndarray:
    """Return rows ``(K, length)``; K may be 0."""
    if len(rows) and rows.shape[1] != length:
        raise DataError(
            f"has {rows.shape[1]} columns, expected {length}",
            "give one column per time; covariates known in advance also need one per query",
            field=field,
        )
    return rows if len(rows) else np.empty((0, length))


def _check_origin(info: Mapping[str, Any]) -> None:
    """Check the time origin and the time resolution, from which timestamps are recovered."""
    origin, resolution = info["time_origin"], info.get("time_resolution")
    if origin is None:
        return
    try:
        known = not np.isnat(np.datetime64(origin.removesuffix("Z")))
    except (AttributeError, TypeError, ValueError):
        known = False
    if not known or resolution not in TICKS_PER_SECOND:
        raise DataError(
            f"the time_origin {origin!r} in {resolution!r} is not a timestamp",
            f"give it in ISO 8601, with a time_resolution out of {', '.join(TICKS_PER_SECOND)}",
            field="info",
        )


def _check_times(elapsed: np.ndarray, length: int, num_queries: int | None) -> None:
    """Check row 0 of ``feat_dynamic_real``: T observation times, then the query times."""
    enough = len(elapsed) >= length + (num_queries is not None)
    if enough and (np.diff(elapsed, prepend=-np.inf) > 0).all():
        return  # as nearly always: increasing, and none of them NaN

    if len(elapsed) < length:
        problem = f"has {len(elapsed)} times for {length} observations"
        raise DataError(problem, "give each observation its time", field=_TIMES)
    observed, queries = elapsed[:length], elapsed[length:]
    _refuse(np.isnan(observed), "the time is missing", "drop this observation", _TIMES)
    gaps = np.diff(observed, prepend=-np.inf)
    is_duplicate = (gaps[gaps <= 0][:1] == 0).any()
    problem = f"the time {'is a duplicate' if is_duplicate else 'is not sorted'}"
    _refuse(gaps <= 0, problem, "sort the observations and merge duplicates", _TIMES)
    if num_queries is None:
        return
    if not len(queries):
        problem = "has no query times after the last observation"
        remedy = "append them, or forecast a DataFrame with deltaflow.predict_df"
        raise DataError(problem, remedy, field=_TIMES)
    if (np.diff(np.isfinite(queries).astype(int)) > 0).any():
        problem = "a missing query time precedes a known one"
        raise DataError(problem, "put the NaN padding last", field=_TIMES)
    early = np.arange(len(elapsed)) >= length
    early &= elapsed < (observed[-1] if length else -np.inf)
    remedy = "forecast from a shorter history, or at later times"
    _refuse(early, "the query lies before the last observation", remedy, _TIMES)


CALENDAR_CYCLES = {"hour": 3600.0, "day": 86400.0, "week": 604800.0, "year": 31556952.0}
"""Length in seconds of the calendar cycles; a year is the mean Gregorian one."""


def seconds_per_period(freq: str) -> float:
    """Return the mean length of a period, such as ``"h"`` or ``"ME"``, in seconds."""
    count = 48  # four years of months
    starts = pd.period_range("2001-01-01", periods=count + 1, freq=freq).to_timestamp()
    return (starts[-1] - starts[0]).total_seconds() / count


def starts_of(periods: pd.PeriodIndex) -> pd.DatetimeIndex:
    """Return the starts of periods in whole seconds, which reach further than nanoseconds."""
    return pd.DatetimeIndex(periods.asfreq("s", how="S").asi8.astype("datetime64[s]"))


def calendar_phases(entry: DataEntry, times: np.ndarray, seasonality: Iterable[str]) -> np.ndarray:
    """Return sine and cosine of each calendar cycle's phase (in UTC), and of its overtone's.

    Parameters
    ----------
    entry
        The entry, which has the time origin of ``times``.
    times
        ``(T + Q,)`` elapsed times of the entry, as in `Series`.
    seasonality
        Cycles out of ``"hour"``, ``"day"``, ``"week"``, ``"year"``.

    Returns
    -------
    numpy.ndarray
        ``(4 * cycles, T + Q)``.
    """
    cycles = list(seasonality)
    if not cycles:
        return np.empty((0, len(times)))
    if not is_irregular(entry):
        seconds = starts_of(pd.period_range(entry["start"], periods=len(times))).asi8
    elif entry["info"]["time_origin"] is None:
        raise DataError(
            "elapsed times have no calendar",
            "give timestamps, or no seasonality",
            field="seasonality",
        )
    else:
        origin = pd.Timestamp(entry["info"]["time_origin"].removesuffix("Z"))
        seconds = nanoseconds(origin) / 10**9 + times
    return phases_at(seconds, cycles)


def phases_at(seconds: np.ndarray, cycles: Sequence[str]) -> np.ndarray:
    """Return the phases ``(4 * cycles, N)`` of `calendar_phases` at seconds ``(N,)`` since 1970."""
    periods = np.array([CALENDAR_CYCLES[cycle] for cycle in cycles])
    phase = 2 * np.pi * (seconds / periods[:, None])
    return np.concatenate([np.sin(phase), np.cos(phase), np.sin(2 * phase), np.cos(2 * phase)])
