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


class Observations(NamedTuple):
    """N rows of I items, grouped by item.

    Attributes
    ----------
    rows
        The items, and the positions of their rows in the frame.
    times, known, values
        ``(N,)``, ``(N, K)`` covariates and ``(N, C)`` values.
    static_real, static_cat
        ``(I, S)`` and ``(I, N)`` static features of the items, see `read_static`.
    absent
        The static features that the frame lacks.
    """

    rows: FrameRows
    times: TimeColumn
    known: np.ndarray
    values: np.ndarray
    static_real: np.ndarray
    static_cat: np.ndarray
    absent: list[str]


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
    check_increasing(read.times, read.times.ticks, read.rows, columns.timestamp)
    check_columns(df, [name for name in columns.static if name in df])
    static = read_static(df, read.rows, columns.schema)
    absent = [name for name in columns.static if name not in df]
    return Observations(*read, values, *static, absent)
