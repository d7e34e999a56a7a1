"""Irregular data sets: sequences of GluonTS entries with real time, made from DataFrames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry

from deltaflow.data.schema import ROLES, TICKS_PER_SECOND, Schema, elapsed_time, unit_seconds
from deltaflow.data.validation import (
    FrameRows,
    TimeColumn,
    check_columns,
    check_increasing,
    check_range,
    column_names,
    gather_rows,
    read_constants,
    read_levels,
    read_numbers,
    read_roles,
    read_times,
)
from deltaflow.errors import DataError, check_registered, warn_once

UNKNOWN_LEVEL, MISSING_LEVEL = -1, -2
"""The codes of a level that the schema does not know, and of a missing category, which entries
store as an unknown level."""

_UNIX_YEARS = 946_684_800, 4_102_444_800
"""The years 2000 and 2100 in Unix time, in seconds."""


class IrregularDataset(Sequence[DataEntry]):
    """A GluonTS data set of irregularly sampled series.

    Every entry is an ordinary GluonTS ``DataEntry``. Row 0 of its ``feat_dynamic_real`` is the time
    elapsed since the time origin, ``info["time_origin"]``, in ``info["time_unit"]`` and float64.
    GluonTS's own tools thus slice times together with values. ``start`` is not the real time: it is
    there because GluonTS needs it.

    Parameters
    ----------
    entries
        The entries, usually created by :meth:`from_long_dataframe`.
    schema
        The names and kinds of their contents.

    Examples
    --------
    >>> import pandas as pd
    >>> df = pd.DataFrame({"t": [0.0, 0.7, 3.1], "HR": [80, 82, None]})
    >>> ds = IrregularDataset.from_long_dataframe(df, item_id=None, timestamp="t", target="HR")
    >>> ds[0]["target"], ds[0]["feat_dynamic_real"]
    (array([80., 82., nan]), array([[0. , 0.7, 3.1]]))
    """

    def __init__(self, entries: Iterable[DataEntry], schema: Schema) -> None:
        self._entries = list(entries)
        self.schema = schema

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> DataEntry: ...
    @overload
    def __getitem__(self, index: slice) -> IrregularDataset: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return IrregularDataset(self._entries[index], self.schema)
        return dict(self._entries[index])

    def __iter__(self) -> Iterator[DataEntry]:
        # Copies, because GluonTS's ListDataset replaces fields of the entries it is given.
        return map(dict, self._entries)

    def __repr__(self) -> str:
        rows = sum(entry["target"].shape[-1] for entry in self)
        channels = ", ".join(self.schema.target)
        return f"IrregularDataset({len(self)} items, {rows} observation times, target: {channels})"

    def select(self, indices: Iterable[int]) -> IrregularDataset:
        """Return the data set of the items at ``indices``, in that order, or in a boolean mask."""
        chosen = np.arange(len(self))[list(indices)]
        return IrregularDataset([self._entries[number] for number in chosen], self.schema)

    @classmethod
    def from_long_dataframe(
        cls,
        dataframe: pd.DataFrame,
        *,
        item_id: str | None = "item_id",
        timestamp: str = "timestamp",
        target: str | Sequence[str] = "target",
        time_unit: str = "h",
        feat_dynamic_real: Sequence[str] = (),
        past_feat_dynamic_real: Sequence[str] = (),
        feat_static_real: Sequence[str] = (),
        feat_static_cat: Sequence[str] = (),
    ) -> IrregularDataset:
        """Read a DataFrame with one row per observation time.

        Parameters
        ----------
        dataframe
            The rows of every item, sorted by time within the item. It is not changed.
        item_id
            Column of item identifiers; None if all rows are one series.
        timestamp
            Column of timestamps (with or without a time zone) or of elapsed numbers, such as
            hours since admission, in ``time_unit``.
        target
            Column of the channel to forecast, or a list of such columns; NaN where not measured.
        time_unit
            Unit of the elapsed time in the entries: one of W, D, h, min, s, ms, us, ns.
        feat_dynamic_real
            Columns of covariates known in advance, which must have no missing values.
        past_feat_dynamic_real
            Columns of covariates known for the past only; NaN where not measured.
        feat_static_real, feat_static_cat
            Columns of features that are constant per item: numbers and categories.

        Raises
        ------
        DataError
            If a column is missing or of the wrong type, timestamps are unsorted, duplicate,
            missing or of mixed time zones, a value is infinite or beyond 1e100, a target is
            missing everywhere, or a static feature changes within an item.

        Examples
        --------
        >>> import pandas as pd
        >>> times = ["2024-01-01 08:00", "2024-01-01 08:45", "2024-02-01 00:00"]
        >>> df = pd.DataFrame({
        ...     "patient": ["a", "a", "b"], "time": pd.to_datetime(times), "HR": [80.0, 82, 75]})
        >>> IrregularDataset.from_long_dataframe(
        ...     df, item_id="patient", timestamp="time", target=["HR"])
        IrregularDataset(2 items, 3 observation times, target: HR)
        """
        roles = read_roles(locals())
        check_columns(dataframe, [column for columns in roles.values() for column in columns])
        if dataframe.empty:
            raise DataError("the DataFrame has no rows", "give at least one observation")

        rows = gather_rows(dataframe, item_id)
        times = read_times(dataframe[timestamp], rows)
        levels = {
            name: tuple(sorted(read_levels(dataframe[name]).dropna().unique()))
            for name in roles["feat_static_cat"]
        }
        schema = schema_from(roles, levels, times, time_unit, isinstance(target, str))
        entries = read_entries(dataframe, rows, times, timestamp, schema)
        for channel, name in enumerate(roles["target"]):
            if all(np.isnan(np.atleast_2d(e["target"])[channel]).all() for e in entries):
                raise DataError(
                    "the target is missing everywhere", "remove this channel", field=name
                )
        return cls(entries, schema)

    @classmethod
    def from_tidy_dataframe(
        cls,
        dataframe: pd.DataFrame,
        *,
        item_id: str = "item_id",
        timestamp: str = "timestamp",
        variable: str = "variable",
        value: str = "value",
        target: Sequence[str] | None = None,
        past_feat_dynamic_real: Sequence[str] = (),
        time_unit: str = "h",
        duplicates: Literal["error", "mean"] = "error",
    ) -> IrregularDataset:
        """Read a DataFrame with one row per measurement: item, time, variable, value.

        Parameters
        ----------
        dataframe
            The measurements, in any order. It is not changed.
        item_id, timestamp, variable, value
            The names of its four columns.
        target
            The variables to forecast; all of them, in alphabetical order, if None.
        past_feat_dynamic_real
            The variables that are read but not forecast.
        time_unit
            See :meth:`from_long_dataframe`.
        duplicates
            What to do with several values of a variable at the same time: raise an error
            (``"error"``) or average them (``"mean"``).

        Raises
        ------
        DataError
            As for :meth:`from_long_dataframe`. Also if a named variable has no row, or if a
            variable has two values at the same time and ``duplicates="error"``.

        Examples
        --------
        >>> import pandas as pd
        >>> df = pd.DataFrame({"item_id": 1, "timestamp": [0, 0, 2], "value": [80, 36.6, 90],
        ...                    "variable": ["HR", "Temp", "HR"]})
        >>> IrregularDataset.from_tidy_dataframe(df)[0]["target"]
        array([[80. , 90. ],
               [36.6,  nan]])
        """
        check_columns(dataframe, [item_id, timestamp, variable, value])
        check_registered("duplicates", duplicates, ["error", "mean"])
        if dataframe.empty:
            raise DataError("the DataFrame has no rows", "give at least one measurement")
        rows = gather_rows(dataframe, item_id)
        variables = dataframe[variable].iloc[rows.order]
        values = read_numbers(dataframe[value], rows)
        unnamed = variables.isna().to_numpy() & ~np.isnan(values)
        rows.refuse(
            unnamed, "the variable of a value is missing", "name it, or drop the row", variable
        )
        measured = pd.DataFrame(  # grouped by item, with fixed dtypes
            {
                "item": rows.item,
                "time": read_times(dataframe[timestamp], rows).ticks,
                "variable": variables.astype(str).where(variables.notna()).array,
                "value": values,
            }
        )
        names = sorted(measured["variable"].dropna().unique())
        past = column_names("past_feat_dynamic_real", past_feat_dynamic_real)
        if target is None:
            targets = tuple(name for name in names if name not in past)
        else:
            targets = column_names("target", target)
        for name in [*targets, *past]:
            if name not in names:
                raise DataError("no row has this variable", f"there are {names}", field=name)

        wanted = measured[measured["variable"].isin([*targets, *past])]
        keys = ["item", "time", "variable"]
        if duplicates == "error" and (twice := wanted.duplicated(keys)).any():
            number = int(wanted.index[twice][0])
            raise DataError(
                f"two values at {dataframe[timestamp].iloc[rows.order[number]]}",
                "merge them, or pass duplicates='mean'",
                item=rows.items[wanted["item"][number]],
                field=str(wanted["variable"][number]),
            )
        # Items and times that have only other variables keep their (empty) rows.
        index = measured[["item", "time"]].drop_duplicates().sort_values(["item", "time"])
        values = wanted.groupby(keys)["value"].mean().unstack("variable")
        values = values.reindex(pd.MultiIndex.from_frame(index))
        wide = dataframe[[item_id, timestamp]].iloc[rows.order[index.index]]
        wide = pd.concat([wide, values.set_index(wide.index)], axis="columns")
        return cls.from_long_dataframe(
            wide,
            item_id=item_id,
            timestamp=timestamp,
            target=list(targets),
            past_feat_dynamic_real=list(past),
            time_unit=time_unit,
        )


def schema_from(
    roles: Mapping[str, tuple[str, ...]],
    levels: Mapping[str, tuple[str, ...]],
    times: TimeColumn,
    time_unit: str,
    univariate: bool,
) -> Schema:
    """Return the schema of columns by their roles, with the levels of the categories."""
    if times.kind == "elapsed":
        _question_unit(times.ticks, time_unit)
    return Schema(
        **{role: roles[role] for role in ROLES[:-1]},
        univariate=univariate,
        time=times.kind,
        time_unit=time_unit,
        time_zone=times.time_zone,
        feat_static_cat=levels,
    )


def _question_unit(elapsed: np.ndarray, time_unit: str) -> None:
    """Warn if elapsed numbers look like Unix time of a finer unit than the given one."""
    for unit, ticks in TICKS_PER_SECOND.items():
        first, last = (year * ticks for year in _UNIX_YEARS)
        finer = unit_seconds(time_unit) > 1 / ticks
        if finer and len(elapsed) and first <= elapsed.min() and elapsed.max() < last:
            warn_once(
                f"times such as {elapsed[0]:.0f} look like Unix time in {unit}, but count as "
                f"{time_unit}: convert them with pd.to_datetime(..., unit={unit!r}), or give "
                f"time_unit={unit!r}"
            )


def read_entries(
    dataframe: pd.DataFrame,
    rows: FrameRows,
    times: TimeColumn,
    timestamp: str,
    schema: Schema,
) -> list[DataEntry]:
    """Turn the checked rows of a DataFrame into GluonTS entries.

    Parameters
    ----------
    dataframe
        The frame, whose columns the schema names.
    rows, times
        Its rows by item and its time column.
    timestamp
        Name of the time column, for errors.
    schema
        The roles of the columns.
    """
    elapsed, origins, starts = _clock(times, rows, schema.time_unit)
    check_range(elapsed, unit_seconds(schema.time_unit), rows.refuse, timestamp)
    check_increasing(times, elapsed, rows, timestamp)
    values = _read_columns(dataframe, rows, schema.target)
    past = _read_columns(dataframe, rows, schema.past_feat_dynamic_real)
    known = read_known(dataframe, rows, schema.feat_dynamic_real)
    static_real, static_cat = read_static(dataframe, rows, schema)
    info = {
        "time_unit": schema.time_unit,
        "time_resolution": times.resolution,
        "schema": schema.to_dict(),
    }

    entries = []
    for number, item in enumerate(rows.items):
        own = rows.of(number)
        target = values[:, own]
        entry: dict[str, Any] = {
            "item_id": item,
            "start": starts[number],
            "target": target[0] if schema.univariate else target,
            "feat_dynamic_real": np.vstack([elapsed[None, own], known[:, own]]),
            "info": {"time_origin": origins[number], **info},
        }
        if len(past):
            entry["past_feat_dynamic_real"] = past[:, own]
        if schema.feat_static_real:
            entry["feat_static_real"] = static_real[number]
        if schema.feat_static_cat:
            entry["feat_static_cat"] = np.maximum(static_cat[number], UNKNOWN_LEVEL)
        entries.append(entry)
    return entries


def read_static(
    dataframe: pd.DataFrame, rows: FrameRows, schema: Schema
) -> tuple[np.ndarray, np.ndarray]:
    """Read the static features of I items that the frame has.

    Returns
    -------
    numbers, codes
        ``(I, S)``, NaN where missing, and ``(I, N)``: the codes of the levels in the schema,
        `UNKNOWN_LEVEL` or `MISSING_LEVEL`.
    """
    numbers = np.full((len(rows.items), len(schema.feat_static_real)), np.nan)
    codes = np.full((len(rows.items), len(schema.feat_static_cat)), MISSING_LEVEL)
    for column, name in enumerate(schema.feat_static_real):
        if name in dataframe:
            values = np.empty(len(dataframe))
            values[rows.order] = read_numbers(dataframe[name], rows)  # in the order of the frame
            numbers[:, column] = read_constants(pd.Series(values, name=name), rows)
    for column, (name, levels) in enumerate(schema.feat_static_cat.items()):
        if name in dataframe:
            own = read_constants(read_levels(dataframe[name]), rows)
            known = own.notna().to_numpy()
            codes[known, column] = pd.Index(levels).get_indexer(pd.Index(own[known]))
            if (codes[known, column] == UNKNOWN_LEVEL).any():
                warn_once(
                    "categories that were not seen in training count as unknown: ",
                    [f"feat_static_cat {name!r}"],
                    said=schema.said,
                )
    return numbers, codes


def read_known(dataframe: pd.DataFrame, rows: FrameRows, names: Sequence[str]) -> np.ndarray:
    """Read covariates known in advance ``(K, N)``, grouped by item; no value may be missing."""
    known = _read_columns(dataframe, rows, names)
    check_known(known, rows, names)
    return known


def check_known(known: np.ndarray, rows: FrameRows, names: Sequence[str]) -> None:
    """Raise an error if a covariate known in advance, ``(K, N)``, is missing in a row."""
    for name, column in zip(names, known, strict=True):
        problem = "a covariate known in advance is missing"
        remedy = "fill it in, or declare it as past_feat_dynamic_real"
        rows.refuse(np.isnan(column), problem, remedy, name)


def _read_columns(dataframe: pd.DataFrame, rows: FrameRows, names: Sequence[str]) -> np.ndarray:
    read = [read_numbers(dataframe[name], rows) for name in names]
    return np.stack(read) if read else np.empty((0, len(rows.order)))


def _clock(
    times: TimeColumn, rows: FrameRows, time_unit: str
) -> tuple[np.ndarray, Sequence[str | None], Sequence[pd.Period]]:
    """Return the elapsed time ``(N,)`` of each row, and time origin and start of each item.

    The origin is the item's first timestamp in ISO 8601, or None if times are elapsed numbers. The
    start is the nominal period of the origin.
    """
    seconds, count = unit_seconds(time_unit), len(rows.items)
    if times.kind == "elapsed":
        return times.ticks, [None] * count, [pd.Period("1970-01-01", time_unit)] * count
    first = times.ticks[rows.starts]
    since_first = times.ticks - first[rows.item]
    dates = first.astype(f"datetime64[{times.resolution}]")
    zone = "Z" if times.time_zone else ""
    return (
        elapsed_time(since_first, times.resolution, seconds),
        [f"{date}{zone}" for date in np.datetime_as_string(dates)],
        list(pd.DatetimeIndex(dates).to_period(time_unit)),
    )
