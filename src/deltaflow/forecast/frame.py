"""Forecasts from DataFrame to DataFrame, at any future timestamps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry

from deltaflow.data.dataset import read_entries
from deltaflow.data.schema import elapsed_time, unit_seconds
from deltaflow.data.splitter import cut_entry
from deltaflow.data.validation import as_text, check_columns, in_ticks_of, item_codes
from deltaflow.errors import DataError, DeltaflowError, located
from deltaflow.forecast.columns import FrameColumns, check_answer
from deltaflow.forecast.forecasts import joined_columns, read_levels
from deltaflow.forecast.predictor import DeltaflowPredictor


def predict_df(
    predictor: DeltaflowPredictor,
    past_df: pd.DataFrame,
    future_df: pd.DataFrame | None = None,
    *,
    item_id: str | None = "item_id",
    timestamp: str = "timestamp",
    quantile_levels: Sequence[float] = (0.1, 0.5, 0.9),
    seed: int | None = None,
) -> pd.DataFrame:
    """Forecast every row of ``future_df`` from the observations in ``past_df``.

    Parameters
    ----------
    predictor
        A predictor trained on an `IrregularDataset`.
    past_df
        The observations: one row per item and time, with the channels, covariates and static
        features of the training data by name. Rows are sorted by time within an item. Rows at the
        end of an item in which nothing was observed, neither a target nor a past-only covariate,
        are query times, not observations.
    future_df
        The queries: item and timestamp, in any order and number, and the covariates known in
        advance. If None, the rows without observations at the end of the items in ``past_df``.
    item_id, timestamp
        The names of these columns in both frames; ``item_id`` is None for a single series.
    quantile_levels
        The levels, between 0 and 1.
    seed
        Seed of the samples of a path predictor.

    Returns
    -------
    pandas.DataFrame
        A row per query, in their order, and per channel: the caller's own item and timestamp,
        ``target_name``, ``predictions`` (the median), ``mean`` if the model forecasts it, and a
        column per level, named by it.

    Raises
    ------
    DataError
        As `IrregularDataset.from_long_dataframe`; and if an item has no past rows, or a query lies
        before its last observation. The error names the frame.

    Notes
    -----
    Timestamps of the two frames may have different time zones and units. Items are the same if they
    read the same: 1, 1.0 and "1".

    Examples
    --------
    >>> import pandas as pd
    >>> from deltaflow import HoldPredictor, IrregularDataset, predict_df
    >>> df = pd.DataFrame({"item_id": "a", "timestamp": [0.0, 1.5, 2.0], "HR": [82.0, 84, 82]})
    >>> predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(df, target="HR"), 8)
    >>> future = pd.DataFrame({"item_id": ["a", "a"], "timestamp": [9.7, 2.3]})
    >>> predict_df(predictor, df, future, quantile_levels=[0.5])[["timestamp", "predictions"]]
       timestamp  predictions
    0        9.7         82.0
    1        2.3         82.0

    The same queries as rows of one frame:

    >>> both = pd.concat([df, future.iloc[1:]])
    >>> predict_df(predictor, both, quantile_levels=[0.5])[["timestamp", "predictions"]]
       timestamp  predictions
    0        2.3         82.0
    """
    check_real_time(predictor)
    schema = predictor.schema
    levels = read_levels(quantile_levels)
    columns = FrameColumns(schema, item_id, timestamp)
    check_answer(columns.keys, levels)
    check_columns(past_df, [*columns.known, *columns.channels, *columns.static], "past_df")
    if future_df is None:
        asked_df = past_df
        items = _queries_within(past_df, columns)
    else:
        asked_df = future_df
        items = _queries_after(past_df, future_df, columns)

    forecasts = predictor.predict([item.entry for item in items], seed=seed)
    rows = np.concatenate([item.rows for item in items])
    order = np.argsort(rows)
    values = {
        name: own.reshape(len(rows), -1)[order]
        for name, own in joined_columns(forecasts, levels).items()
    }
    return columns.answer(asked_df, rows[order], values)


def check_real_time(predictor: DeltaflowPredictor) -> None:
    """Raise an error unless this is a deltaflow predictor, trained on data with real time."""
    if not isinstance(predictor, DeltaflowPredictor):
        raise DeltaflowError(
            f"a {type(predictor).__name__} does not know the schema of its data: give a predictor "
            "that deltaflow has trained or loaded"
        )
    if predictor.schema.time == "regular":
        raise DataError(
            "the predictor was trained on a regular data set, which has no real time",
            "train it on an IrregularDataset",
        )


class _Queried(NamedTuple):
    """An entry that ends with its queries, and their rows in the frame."""

    entry: DataEntry
    rows: np.ndarray


def _queries_within(past_df: pd.DataFrame, columns: FrameColumns) -> list[_Queried]:
    """Return the queries in the last rows of each item, in which nothing was observed."""
    with located(frame="past_df"):
        rows, times = columns.rows(past_df)
        entries = read_entries(past_df, rows, times, columns.timestamp, columns.schema)
        queried = []
        for number, entry in enumerate(entries):
            count = _count_observed(entry)
            own = rows.order[rows.of(number)]
            if count == 0:
                raise DataError(
                    "nothing was observed, so it is unclear which rows are queries",
                    "drop the item, or give its queries in future_df",
                    item=entry["item_id"],
                )
            if count < len(own):
                queried.append(_Queried(cut_entry(entry, count, len(own))[0], own[count:]))
        if not queried:
            raise DataError(
                "has no rows to forecast",
                "give future_df, or rows without any observation at the end of the items",
            )
    return queried


def _queries_after(
    past_df: pd.DataFrame, future_df: pd.DataFrame, columns: FrameColumns
) -> list[_Queried]:
    """Return the queries of ``future_df`` by item, in their order."""
    schema, item_id, timestamp = columns.schema, columns.item_id, columns.timestamp
    future, future_times, known = columns.queries(future_df)
    with located(frame="past_df"):
        past_df = _of_items(past_df, item_id, set(future.items))
        past, past_times = columns.rows(past_df)
    owners = pd.Index(past.items).get_indexer(pd.Index(future.items))
    if (unknown := owners < 0).any():
        raise DataError(
            "has a query, but no past rows",
            "give at least one row of its past, with missing values if necessary",
            frame="future_df",
            **future.where(int(future.starts[unknown.argmax()])),
        )
    past_times, future_times = (
        in_ticks_of(past_times, future_times, timestamp),
        in_ticks_of(future_times, past_times, timestamp),
    )
    with located(frame="past_df"):
        entries = read_entries(past_df, past, past_times, timestamp, schema)

    elapsed = future_times.ticks
    if future_times.kind == "timestamp":  # as time since the first past row of each item
        firsts = past_times.ticks[past.starts][owners]
        unit = unit_seconds(schema.time_unit)
        elapsed = elapsed_time(elapsed - firsts[future.item], future_times.resolution, unit)
    queried = []
    for number, owner in enumerate(owners.tolist()):
        entry = entries[owner]
        own, ticks = future.of(number), past_times.ticks[past.of(owner)]
        count = max(1, _count_observed(entry))  # later rows are queries
        if (early := future_times.ticks[own] < ticks[count - 1]).any():
            raise DataError(
                "the query lies before the last observation, in row "
                f"{past.where(int(past.starts[owner]) + count - 1)['position']!r} of past_df",
                "forecast from a shorter past, or at later times",
                field=timestamp,
                frame="future_df",
                **future.where(own.start + int(early.argmax())),
            )
        entry, _ = cut_entry(entry, count, count)
        queries = np.vstack([elapsed[None, own], known[own].T])
        entry["feat_dynamic_real"] = np.hstack([entry["feat_dynamic_real"], queries])
        queried.append(_Queried(entry, future.order[own]))
    return queried


def _of_items(frame: pd.DataFrame, item_id: str | None, names: set[str]) -> pd.DataFrame:
    """Return the rows of the queried items."""
    if item_id is None:
        return frame
    codes, items = item_codes(frame, item_id)
    return frame[np.array([as_text(item) in names for item in items], dtype=bool)[codes]]


def _count_observed(entry: DataEntry) -> int:
    """Return the number of rows up to the last one in which anything was observed."""
    for values in (entry["target"], entry.get("past_feat_dynamic_real", ())):
        if len(values) and np.isfinite(values[..., -1:]).any():
            return np.shape(values)[-1]
    seen = np.isfinite(np.vstack([entry["target"], *entry.get("past_feat_dynamic_real", ())]))
    return int(np.flatnonzero(seen.any(axis=0))[-1]) + 1 if seen.any() else 0
