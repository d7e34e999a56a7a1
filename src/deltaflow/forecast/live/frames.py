"""DataFrames of observations and of questions, checked as far as no state is needed for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from deltaflow.data import validation
from deltaflow.data.dataset import read_known
from deltaflow.data.schema import Schema, unit_seconds
from deltaflow.data.validation import (
    FrameRows,
    TimeColumn,
    check_columns,
    check_increasing,
    check_range,
    check_roles,
    gather_rows,
    read_constants,
    read_numbers,
)
from deltaflow.errors import DataError, located
from deltaflow.forecast.frame import item_names, read_known_times

UNKNOWN_LEVEL = -1
"""The code of a level of a category that the training data do not have."""

MISSING_LEVEL = -2
"""The code of a category without a value."""


class Static(NamedTuple):
    """Static features of I items: numbers ``(I, S)``, NaN where unknown, and codes ``(I, N)``."""

    real: np.ndarray
    cat: np.ndarray


class Observations(NamedTuple):
    """N rows of I items. The items stand in order of their numbers of rows.

    Attributes
    ----------
    rows
        Where the rows stand in the frame, for errors.
    times, known, values
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
    values: np.ndarray
    names: list[str]
    starts: np.ndarray
    counts: np.ndarray
    static: Static
    absent: list[str]


class Questions(NamedTuple):
    """N questions, gathered by item: rows, names of the items, times, and covariates."""

    rows: FrameRows
    names: list[str]
    times: TimeColumn
    known: np.ndarray


class FrameReader:
    """Reads the DataFrames of a live forecaster.

    Parameters
    ----------
    schema
        What the data hold.
    item_id, timestamp
        The names of these columns; ``item_id`` is None for a single series.

    Attributes
    ----------
    keys
        The names of the columns of item and time.
    channels
        The names of all channels, the targets first.
    static
        The names of the static features.
    """

    def __init__(self, schema: Schema, item_id: str | None, timestamp: str) -> None:
        self.schema, self.item_id, self.timestamp = schema, item_id, timestamp
        self.keys = [timestamp] if item_id is None else [item_id, timestamp]
        self.channels = [*schema.target, *schema.past_feat_dynamic_real]
        self.static = [*schema.feat_static_real, *schema.feat_static_cat]
        self._known = [*self.keys, *schema.feat_dynamic_real]
        check_roles(
            {
                "item_id": self.keys[:-1],
                "timestamp": self.keys[-1:],
                "target": self.channels,
                "covariates": [*schema.feat_dynamic_real, *self.static],
            }
        )

    def observations(self, df: pd.DataFrame) -> Observations:
        """Read observations, in the order of time within each item."""
        check_columns(df, [*self._known, *self.channels])
        rows = gather_rows(df, self.item_id)
        asked = Questions(
            rows=rows,
            names=item_names(df, rows, self.item_id),
            times=self._times(df, rows),
            known=read_known(df, rows, self.schema.feat_dynamic_real).T,
        )
        values = [read_numbers(df[name], rows) for name in self.channels]
        return self.observed(asked, np.stack(values, axis=-1), df)

    def observed(self, rows: Questions, values: np.ndarray, df: pd.DataFrame) -> Observations:
        """Return observations whose values ``(N, C)`` are gathered by item already.

        ``df`` has the static features, in the order of the frame.
        """
        given, names, times, known = rows
        check_increasing(times, times.ticks, given, self.timestamp)
        counts = np.diff(given.bounds)
        turn = np.argsort(-counts, kind="stable")
        return Observations(
            rows=given,
            times=times,
            known=known,
            values=values,
            names=[names[number] for number in turn.tolist()],
            starts=given.bounds[turn],
            counts=counts[turn],
            static=Static(*(part[turn] for part in self._read_static(df, given))),
            absent=[name for name in self.static if name not in df.columns],
        )

    def questions(self, future_df: pd.DataFrame) -> Questions:
        """Read questions, in any order."""
        check_columns(future_df, self._known, "future_df")
        if len(future_df) == 0:
            raise DataError("future_df has no rows", "give at least one time to forecast")
        with located(frame="future_df"):
            rows = gather_rows(future_df, self.item_id)
            return Questions(
                rows=rows,
                names=item_names(future_df, rows, self.item_id),
                times=self._times(future_df, rows),
                known=read_known(future_df, rows, self.schema.feat_dynamic_real).T,
            )

    def answered(self, levels: Sequence[float]) -> list[str]:
        """Return the names of the columns of an answer, after those of item and time."""
        names = ["target_name", "predictions", *map(str, levels)]
        for key in self.keys:
            if key in names:
                raise DataError("is also the name of a column of the answer", "rename", field=key)
        return names

    def _times(self, df: pd.DataFrame, rows: FrameRows) -> TimeColumn:
        times = read_known_times(df, rows, self.timestamp, self.schema)
        if times.kind == "elapsed":
            check_range(times.ticks, unit_seconds(self.schema.time_unit), rows, self.timestamp)
        return times

    def _read_static(self, df: pd.DataFrame, rows: FrameRows) -> Static:
        """Read the static features as far as the frame has them."""
        schema, count = self.schema, len(rows.items)
        given = [name for name in self.static if name in df.columns]
        check_columns(df, given)
        real = np.full((count, len(schema.feat_static_real)), np.nan)
        cat = np.full((count, len(schema.feat_static_cat)), MISSING_LEVEL)
        for column, name in enumerate(schema.feat_static_real):
            if name in given:
                numbers = np.empty(len(df))
                numbers[rows.order] = read_numbers(df[name], rows)
                real[:, column] = read_constants(pd.Series(numbers, name=name), rows)
        for column, (name, levels) in enumerate(schema.feat_static_cat.items()):
            if name in given:
                code_of = {level: code for code, level in enumerate(levels)}
                own = read_constants(validation.read_levels(df[name]), rows)
                missing = own.isna().to_numpy()
                cat[~missing, column] = [
                    code_of.get(level, UNKNOWN_LEVEL) for level in own[~missing]
                ]
        return Static(real, cat)
