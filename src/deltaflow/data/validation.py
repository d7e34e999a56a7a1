"""Checks of a caller's DataFrame, made before any tensor exists."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timezone, tzinfo
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from deltaflow.data.schema import LARGEST, LONGEST, ROLES, TICKS_PER_SECOND
from deltaflow.errors import DataError

YEAR_1, YEAR_10000 = -62135596800, 253402300800
"""Seconds since 1970. Between them, a year has four digits, as ISO 8601 requires."""


OFFSET = re.compile(r":\d{2}(?:\.\d+)?\s*(?P<offset>Z|[+-]\d{2}(?::?\d{2})?)$", re.IGNORECASE)
"""The end of a text that gives a time of day with its offset from UTC."""

Refuse = Callable[[np.ndarray, str, str, str], None]
"""Raises an error that names the first place where something is wrong: of a mask ``(N,)``, what the
problem is, how to mend it, and in which field it is."""


class FrameRows(NamedTuple):
    """The rows of a long DataFrame, grouped by item.

    Attributes
    ----------
    order
        ``(N,)`` positions of the rows in the frame, item after item, each in the frame's order.
    bounds
        ``(I + 1,)``: item ``i`` owns ``order[bounds[i]:bounds[i + 1]]``.
    items
        The item identifiers, in their order of appearance.
    labels
        ``(N,)`` index labels of the frame, in the frame's order, which name rows in errors.
    """

    order: np.ndarray
    bounds: np.ndarray
    items: list[str]
    labels: pd.Index

    @property
    def starts(self) -> np.ndarray:
        """The first grouped row ``(I,)`` of each item."""
        return self.bounds[:-1]

    @property
    def ends(self) -> np.ndarray:
        """The last grouped row ``(I,)`` of each item."""
        return self.bounds[1:] - 1

    @property
    def counts(self) -> np.ndarray:
        """The number of rows ``(I,)`` of each item, at least one."""
        return np.diff(self.bounds)

    @property
    def item(self) -> np.ndarray:
        """The number of the item ``(N,)`` of each grouped row."""
        return np.arange(len(self.items)).repeat(self.counts)

    def of(self, item: int) -> slice:
        """Return the grouped rows of an item."""
        return slice(*self.bounds[item : item + 2].tolist())

    def where(self, position: int) -> dict[str, Any]:
        """Return item and row label of a grouped row, as keyword arguments of `DataError`."""
        item = int(np.searchsorted(self.bounds, position, side="right")) - 1
        return {"item": self.items[item], "position": self.labels[self.order[position]]}

    def refuse(self, wrong: np.ndarray, problem: str, remedy: str, field: str) -> None:
        """Raise a `DataError` that names the first grouped row where ``wrong`` ``(N,)`` is True."""
        if wrong.any():
            raise DataError(problem, remedy, field=field, **self.where(int(wrong.argmax())))


class TimeColumn(NamedTuple):
    """A time column in exact form.

    Attributes
    ----------
    ticks
        ``(N,)`` int64 counts of ``resolution`` since 1970 (UTC), or float64 elapsed numbers.
    resolution
        Unit of the integer ticks; ``""`` for elapsed numbers.
    time_zone
        Name of the time zone, if the timestamps have one.
    """

    ticks: np.ndarray
    resolution: str = ""
    time_zone: str | None = None

    @property
    def kind(self) -> Literal["timestamp", "elapsed"]:
        """The kind of times: dates or numbers."""
        return "timestamp" if self.resolution else "elapsed"

    def seconds(self, differences: np.ndarray, unit: float) -> np.ndarray:
        """Return differences of ticks in seconds; ``unit`` is that of elapsed numbers."""
        if self.kind == "elapsed":
            return differences * unit
        return differences / float(TICKS_PER_SECOND[self.resolution])

    def moment(self, tick: Any) -> Any:
        """Return a time in the caller's form: a timestamp, or an elapsed number."""
        if self.kind == "elapsed":
            return tick
        moment = pd.Timestamp(np.datetime64(tick, self.resolution))
        zone = self.time_zone
        return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)


def check_columns(frame: pd.DataFrame, columns: Iterable[str], what: str = "the DataFrame") -> None:
    """Raise an error unless ``frame`` is a DataFrame with each of ``columns`` exactly once."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{what} is a {type(frame).__name__}, not a pandas DataFrame",
                        "convert it, one of polars by its to_pandas()")  # fmt: skip
    names = list(frame.columns)  # a comparison of the index depends on its type
    for column in columns:
        count = names.count(column)
        if count == 0:
            in_index = column in frame.index.names
            raise DataError(
                f"{what} has no such column",
                "it is in the index: call reset_index()"
                if in_index
                else f"its columns are {names}",
                field=str(column),
            )
        if count > 1:
            raise DataError(f"{what} has {count} columns of this name", "rename", field=str(column))


def column_names(role: str, given: Iterable[str]) -> tuple[str, ...]:
    """Return the column names of a role, which must be given as a list even if there is one."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise DataError(
            f"{given!r} is not a list of columns", "name them as ['a', 'b']", field=role
        )
    return tuple(given)


def read_roles(arguments: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the columns of every role in a long table, checked by :func:`check_roles`.

    ``arguments`` are those of `IrregularDataset.from_long_dataframe`, by name.
    """
    target = arguments["target"]
    given = {**arguments, "target": [target] if isinstance(target, str) else target}
    roles = {
        "item_id": () if arguments["item_id"] is None else (arguments["item_id"],),
        "timestamp": (arguments["timestamp"],),
        **{role: column_names(role, given[role]) for role in ROLES},
    }
    check_roles(roles)
    return roles


def check_roles(roles: Mapping[str, Sequence[str]]) -> None:
    """Raise an error if no target is named, a name is not text, or a column has two roles."""
    if not roles["target"]:
        raise DataError("no target is named", "name at least one column", field="target")
    seen: dict[str, str] = {}
    for role, columns in roles.items():
        for column in columns:
            if not isinstance(column, Hashable if role in ("item_id", "timestamp") else str):
                raise DataError(
                    f"the name of a column is a {type(column).__name__}, not text",
                    "rename it, for all columns with df.columns = df.columns.map(str)",
                    field=str(column),
                )
            if column in seen:
                raise DataError(
                    f"is named as {seen[column]} and again as {role}",
                    "give each column one role",
                    field=str(column),
                )
            seen[column] = role


def item_codes(frame: pd.DataFrame, item_id: str) -> tuple[np.ndarray, pd.Index]:
    """Return each row's item as a number ``(N,)``, and the items in order of appearance."""
    try:
        codes, items = pd.factorize(frame[item_id])
    except (TypeError, NotImplementedError) as error:  # the latter from Arrow
        raise DataError(
            f"cannot tell items apart ({error})", "give text or numbers", field=item_id
        ) from None
    if (codes < 0).any():
        raise DataError(
            "the item identifier is missing",
            "fill it in or drop the row",
            field=item_id,
            position=frame.index[int(np.argmax(codes < 0))],
        )
    if isinstance(frame[item_id].dtype, pd.ArrowDtype):
        # Of a dictionary, pandas returns all entries, in their order, even those of no row.
        codes, used = pd.factorize(codes)
        items = items.take(used)
    return codes, items if isinstance(items, pd.Index) else pd.Index(items)


def gather_rows(frame: pd.DataFrame, item_id: str | None) -> FrameRows:
    """Group the rows of ``frame`` by item, in their order within each item.

    Names of items do not depend on the type of their column; see `as_text`.
    """
    if item_id is None:
        count = len(frame)
        bounds = np.array([0, count] if count else [0])
        return FrameRows(np.arange(count), bounds, ["0"] if count else [], frame.index)
    codes, items = item_codes(frame, item_id)
    names = list(map(as_text, items))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            "two different identifiers read the same as text",
            "give the column one type",
            item=twice,
            field=item_id,
        )
    return gathered(codes, names, frame.index)


def gathered(codes: np.ndarray, items: list[str], labels: pd.Index) -> FrameRows:
    """Group rows by item, given the number ``(N,)`` of each row's item."""
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(items) + 1))
    return FrameRows(order, bounds, items, labels)


def read_times(column: pd.Series, rows: FrameRows) -> TimeColumn:
    """Read a column of timestamps or elapsed numbers without rounding, grouped by item.

    Raises
    ------
    DataError
        If a time is missing, infinite or outside of the years 1 to 9999, time zones are mixed or
        have no name, or the column holds neither timestamps nor numbers.
    """
    field = str(column.name)
    missing = column.isna().to_numpy()[rows.order]
    rows.refuse(missing, "the time is missing (NaT)", "drop the row", field)
    if column.dtype == object:
        column = _infer_times(column, field, rows)
    if pd.api.types.is_bool_dtype(column.dtype):
        raise DataError("holds booleans", "give timestamps or numbers", field=field)
    if pd.api.types.is_any_real_numeric_dtype(column.dtype):
        elapsed = column.to_numpy(dtype="float64")[rows.order]
        rows.refuse(~np.isfinite(elapsed), "the time is infinite", "drop the row", field)
        return TimeColumn(elapsed)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        index = pd.DatetimeIndex(column)
        ticks = index.asi8[rows.order]
        seconds = ticks / TICKS_PER_SECOND[index.unit]
        problem = "the time lies outside of the years 1 to 9999"
        remedy = "give elapsed numbers instead of timestamps"
        rows.refuse((seconds < YEAR_1) | (seconds >= YEAR_10000), problem, remedy, field)
        zone = None if index.tz is None else _zone_name(index.tz, field)
        ticks, resolution = coarsest(ticks, index.unit)
        return TimeColumn(ticks, resolution, zone)
    raise DataError(
        f"holds {column.dtype}, which is neither a timestamp nor a number",
        "convert it with pd.to_datetime, Series.dt.to_timestamp or a division by pd.Timedelta",
        field=field,
    )


def read_numbers(column: pd.Series, rows: FrameRows) -> np.ndarray:
    """Read a column as ``(N,)`` float64 numbers, grouped by item; missing values become NaN.

    Raises
    ------
    DataError
        If a value is infinite, larger than `LARGEST` or not a number.
    """
    field = str(column.name)
    if column.dtype == object:
        wrong = [
            not (v is None or v is pd.NA or isinstance(v, (numbers.Real, Decimal, np.bool_)))
            for v in column
        ]
        wrong = np.array(wrong, dtype=bool)[rows.order]
        if wrong.any():
            kind = type(column.iloc[rows.order[wrong.argmax()]]).__name__
            remedy = "convert the column with pd.to_numeric"
            rows.refuse(wrong, f"holds a {kind}, not a number", remedy, field)
        column = pd.Series([_to_float(value) for value in column], dtype="float64")
    elif not (
        pd.api.types.is_any_real_numeric_dtype(column.dtype)
        or pd.api.types.is_bool_dtype(column.dtype)
    ):
        raise DataError(
            f"holds {column.dtype}, not numbers",
            "convert the column with pd.to_numeric",
            field=field,
        )
    values = column.to_numpy(dtype="float64", na_value=np.nan)[rows.order]
    check_numbers(values, field, rows.refuse)
    return values


def check_numbers(values: np.ndarray, field: str, refuse: Refuse) -> None:
    """Raise an error if a value is infinite or larger than `LARGEST`; it may be NaN."""
    if not (np.abs(values) > LARGEST).any():  # as nearly always
        return
    remedy = "replace it with a number, or with NaN if it was not observed"
    refuse(np.isinf(values), "the value is infinite", remedy, field)
    refuse(np.abs(values) > LARGEST, f"the value is larger than {LARGEST:g}", remedy, field)


def read_constants(column: pd.Series, rows: FrameRows) -> pd.Series:
    """Read a column that is constant per item: ``(I,)`` values, missing if an item has none."""
    column = column.iloc[rows.order].reset_index(drop=True)
    by_item = column.groupby(rows.item)
    changes = by_item.nunique(dropna=True)
    if (changes > 1).any():
        raise DataError(
            "a static feature changes within the item",
            "keep one value per item, or declare it as feat_dynamic_real",
            item=rows.items[int(changes.to_numpy().argmax())],
            field=str(column.name),
        )
    return by_item.first()


def read_levels(column: pd.Series) -> pd.Series:
    """Read a column of categories as text; missing stays missing."""
    return column.astype("object").map(as_text, na_action="ignore")


def as_text(value: Any) -> str:
    """Return an item or a level as text: the same for 1, 1.0 and "1"."""
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def level_of_cell(cell: str) -> str:
    """Return a level as text, given its cell in a CSV file.

    Whole numbers are written as 1.0 if another one is missing.

    >>> level_of_cell("1.0"), level_of_cell("01"), level_of_cell("1.50")
    ('1', '01', '1.50')
    """
    return re.sub(r"^(0|-?[1-9]\d*)\.0$", r"\1", cell)


def check_increasing(times: TimeColumn, elapsed: np.ndarray, rows: FrameRows, field: str) -> None:
    """Raise an error unless the times of each item increase strictly, even in float64."""
    later = np.ones(len(rows.order), dtype=bool)
    later[rows.starts] = False
    gaps = np.diff(times.ticks, prepend=times.ticks[:1])
    too_close = np.diff(elapsed, prepend=elapsed[:1]) <= 0
    for wrong, problem, remedy in (
        (gaps < 0, "the timestamps are not sorted", "sort the rows of each item by time"),
        (gaps == 0, "the timestamp is a duplicate within its item", "merge the two rows into one"),
        (
            too_close,
            "the timestamp is too close to the previous one to be distinguished in float64 in a "
            "series of this length",
            "split the series, or round and merge such timestamps",
        ),
    ):
        rows.refuse(wrong & later, problem, remedy, field)


def check_range(elapsed: np.ndarray, unit: float, refuse: Refuse, field: str) -> None:
    """Raise an error if an elapsed time ``(N,)``, in ``unit`` seconds, exceeds `LONGEST`."""
    far = np.abs(elapsed) > LONGEST / unit
    problem = f"the elapsed time is longer than {LONGEST:g} seconds"
    refuse(far, problem, "check its unit, or count from a later origin", field)


def _to_float(value: object) -> float:
    """Convert a Python number to a float; missing becomes NaN, and an overflow infinity."""
    if value is None or value is pd.NA:
        return np.nan
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except OverflowError:
        return np.inf


def _infer_times(column: pd.Series, field: str, rows: FrameRows) -> pd.Series:
    """Convert a time column of Python objects to the common dtype of its elements."""
    strings = np.array([isinstance(value, str) for value in column], dtype=bool)[rows.order]
    remedy = "convert the column with pd.to_datetime"
    rows.refuse(strings, "the time is a string, not a timestamp", remedy, field)
    zones = [str(getattr(value, "tzinfo", None)) for value in column]
    mixed = np.array([zone != zones[0] for zone in zones], dtype=bool)[rows.order]
    remedy = "convert the column with pd.to_datetime(..., utc=True)"
    rows.refuse(mixed, "the time zones are mixed", remedy, field)
    inferred = column.infer_objects()
    naive = zones[:1] == ["None"] and all(isinstance(value, datetime) for value in column)
    if naive and inferred.dtype == object:
        inferred = column.astype("datetime64[us]")  # dates beyond the range of nanoseconds
    return inferred


def _zone_name(zone: tzinfo, field: str) -> str:
    """Return a name by which pandas finds a time zone, such as Europe/Berlin or UTC+05:30."""
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)  # of zoneinfo and of pytz
    if name is None:
        offset = zone.utcoffset(None)
        name = str(zone if offset is None else timezone(offset))
    try:
        found = pd.Timestamp(0, tz=name).utcoffset() == pd.Timestamp(0, tz=zone).utcoffset()
    except (KeyError, ValueError):
        found = False
    if not found:
        raise DataError(
            f"the time zone {zone} has no name known to pandas",
            "convert the column with Series.dt.tz_convert to one such as 'Europe/Berlin'",
            field=field,
        )
    return name


def coarsest(ticks: np.ndarray, unit: str) -> tuple[np.ndarray, str]:
    """Convert ticks to the coarsest unit out of ns, us, ms and s that represents all exactly."""
    units = ["ns", "us", "ms", "s"]
    for coarser in units[units.index(unit) + 1 :]:
        if (ticks % 1000).any():
            break
        ticks, unit = ticks // 1000, coarser
    return ticks, unit


def in_ticks_of(times: TimeColumn, other: TimeColumn, field: str) -> TimeColumn:
    """Convert timestamps to the finer of their own unit and that of another column.

    Raises
    ------
    DataError
        If they are outside the range of that unit.
    """
    if "elapsed" in (times.kind, other.kind):
        return times
    factor = TICKS_PER_SECOND[other.resolution] // TICKS_PER_SECOND[times.resolution]
    if factor <= 1:
        return times
    if len(times.ticks) and np.abs(times.ticks).max() > np.iinfo(np.int64).max // factor:
        raise DataError(
            f"timestamps are given in {times.resolution} and in {other.resolution}, whose range is "
            "too small for some of them",
            "give all of them in one unit, such as datetime64[us]",
            field=field,
        )
    return times._replace(ticks=times.ticks * factor, resolution=other.resolution)
