"""Reading the columns of a caller's DataFrames, and building results from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from deltaflow.data.dataset import read_known
from deltaflow.data.matching import check_time
from deltaflow.data.schema import Schema, unit_seconds
from deltaflow.data.validation import (
    FrameRows,
    TimeColumn,
    check_columns,
    check_range,
    check_roles,
    gather_rows,
    read_times,
)
from deltaflow.errors import DataError, located


class Queries(NamedTuple):
    """N queries, grouped by item: their rows, times, and covariates ``(N, K)``."""

    rows: FrameRows
    times: TimeColumn
    known: np.ndarray


def check_answer(keys: Iterable[str], levels: Iterable[float], others: Sequence[str] = ()) -> None:
    """Raise an error if the item or time column has the name of a column of the result."""
    for key in keys:
        if key in ("target_name", "predictions", "mean", *map(str, levels), *others):
            raise DataError("is also the name of a column of the forecasts", "rename", field=key)


class FrameColumns:
    """The columns of observations and queries, named as in the training data.

    Parameters
    ----------
    schema
        The schema of the data.
    item_id, timestamp
        The names of these columns; ``item_id`` is None for a single series.

    Attributes
    ----------
    keys
        The columns of item and time.
    known
        The columns of queries: the keys, and the covariates known in advance.
    channels
        The columns of all channels, the targets first.
    static
        The columns of static features.
    """

    def __init__(self, schema: Schema, item_id: str | None, timestamp: str) -> None:
        self.schema, self.item_id, self.timestamp = schema, item_id, timestamp
        self.keys = [timestamp] if item_id is None else [item_id, timestamp]
        self.known = [*self.keys, *schema.feat_dynamic_real]
        self.channels = [*schema.target, *schema.past_feat_dynamic_real]
        self.static = [*schema.feat_static_real, *schema.feat_static_cat]
        check_roles(
            {
                "item_id": self.keys[:-1],
                "timestamp": self.keys[-1:],
                "target": self.channels,
                "covariates": [*schema.feat_dynamic_real, *self.static],
            }
        )

    def rows(self, frame: pd.DataFrame) -> tuple[FrameRows, TimeColumn]:
        """Group rows by item, and read their times, of the same kind as in the training data."""
        rows = gather_rows(frame, self.item_id)
        times = read_times(frame[self.timestamp], rows)
        check_time(times.kind, times.time_zone, self.schema, self.timestamp)
        return rows, times

    def queries(self, future_df: pd.DataFrame) -> Queries:
        """Read queries, in any order."""
        check_columns(future_df, self.known, "future_df")
        if len(future_df) == 0:
            raise DataError("future_df has no rows", "give at least one time to forecast")
        with located(frame="future_df"):
            return self.read(future_df)

    def read(self, frame: pd.DataFrame) -> Queries:
        """Read the columns that queries and observations have in common."""
        rows, times = self.rows(frame)
        if times.kind == "elapsed":
            unit = unit_seconds(self.schema.time_unit)
            check_range(times.ticks, unit, rows.refuse, self.timestamp)
        known = read_known(frame, rows, self.schema.feat_dynamic_real)
        return Queries(rows, times, known.T)

    def answer(
        self, asked: pd.DataFrame, rows: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> pd.DataFrame:
        """Return a result: the caller's own items and times, with a row per query and channel.

        Parameters
        ----------
        asked
            The frame of the queries.
        rows
            ``(N,)`` the rows of ``asked`` to return.
        values
            ``(N, D)`` for each column name.
        """
        targets = np.array(self.schema.target, dtype=object)
        place = rows.repeat(len(targets))
        columns = {key: asked[key].array.take(place) for key in self.keys}
        columns["target_name"] = np.tile(targets, len(rows))
        return pd.DataFrame(columns | {name: own.reshape(-1) for name, own in values.items()})
