"""Reading DataFrames of observations and queries, with all checks that need no state."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from deltaflow.data.dataset import read_static
from deltaflow.data.validation import (
    FrameRows,
    TimeColumn,
    check_columns,
    check_increasing,
    read_numbers,
)
from deltaflow.forecast.columns import FrameColumns, Queries


class Static(NamedTuple):
    """Static features of I items: numbers ``(I, S)``, NaN where unknown, and codes ``(I, N)``."""

    real: np.ndarray
    cat: np.ndarray


class Observations(NamedTuple):
    """N rows of I items, sorted by their numbers of rows.

    Attributes
    ----------
    rows
        The positions of the rows in the frame, for errors.
    times, known, values
        ``(N,)``, ``(N, K)`` covariates and ``(N, C)`` values, grouped by item.
    names
        The items, those with the most rows first.
    starts, counts
        ``(I,)`` the first row of each of these items, and the number of its rows.
    static
        The static features of these items.
    absent
        The static features that the frame lacks.
    """

    rows: FrameRows
    times: TimeColumn
    known: np.ndarray
    values: np.ndarray
    names: list[str]
    starts: np.ndarray
    counts: np.ndarray
    static: Static
    absent: list[str]

    @property
    def ends(self) -> np.ndarray:
        """The last row ``(I,)`` of each item."""
        return self.starts + self.counts - 1

    def rows_of(self, item: int) -> slice:
        """Return the rows of an item."""
        return slice(self.starts[item], self.starts[item] + self.counts[item])


def read_observations(columns: FrameColumns, df: pd.DataFrame) -> Observations:
    """Read observations, sorted by time within each item."""
    check_columns(df, [*columns.known, *columns.channels])
    read = columns.read(df)
    values = [read_numbers(df[name], read.rows) for name in columns.channels]
    return gather_observations(columns, read, np.stack(values, axis=-1), df)


def gather_observations(
    columns: FrameColumns, read: Queries, values: np.ndarray, df: pd.DataFrame
) -> Observations:
    """Return observations whose values ``(N, C)`` are already grouped by item.

    ``df`` has the static features, in the order of the frame.
    """
    given, times, known = read
    check_increasing(times, times.ticks, given, columns.timestamp)
    check_columns(df, [name for name in columns.static if name in df])
    counts = np.diff(given.bounds)
    turn = np.argsort(-counts, kind="stable")
    return Observations(
        rows=given,
        times=times,
        known=known,
        values=values,
        names=[given.items[number] for number in turn.tolist()],
        starts=given.bounds[turn],
        counts=counts[turn],
        static=Static(*(part[turn] for part in read_static(df, given, columns.schema))),
        absent=[name for name in columns.static if name not in df],
    )
