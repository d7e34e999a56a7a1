"""DataFrame in, DataFrame out: forecasts at any future timestamps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from deltaflow.data.dataset import read_entries
from deltaflow.data.validation import (
    check_columns,
    check_roles,
    gather_rows,
    item_codes,
    read_times,
)
from deltaflow.errors import DataError, DeltaflowError
from deltaflow.forecast.forecasts import read_levels
from deltaflow.forecast.predictor import DeltaflowPredictor


def predict_df(
    predictor: DeltaflowPredictor,
    past_df: pd.DataFrame,
    future_df: pd.DataFrame,
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
        features of the training data by name. Rows are sorted by time within an item.
    future_df
        The questions: item and timestamp, in any order, and the covariates known in advance.
    item_id, timestamp
        The names of these columns in both frames; ``item_id`` is None for a single series.
    quantile_levels
        The levels, between 0 and 1.
    seed
        Seed of the samples of a path predictor.

    Returns
    -------
    pandas.DataFrame
        A row per row of ``future_df``, in its order, and per channel: the caller's own item and
        timestamp, ``target_name``, ``predictions`` (the median) and a column per level, named by
        it.

    Raises
    ------
    DataError
        As `IrregularDataset.from_long_dataframe`; and if an item has no past rows, or a future
        time before its last observation.

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
    """
    if not isinstance(predictor, DeltaflowPredictor):
        raise DeltaflowError(
            f"a {type(predictor).__name__} does not say what its data hold: give a predictor that "
            "deltaflow has trained or loaded"
        )
    schema = predictor.schema
    if schema.time == "regular":
        raise DataError(
            "the predictor was trained on a regular data set, which has no real time",
            "train it on an IrregularDataset",
        )
    levels = read_levels(quantile_levels)
    keys = [timestamp] if item_id is None else [item_id, timestamp]
    answers_in = ["target_name", "predictions", *map(str, levels)]
    for key in keys:
        if key in answers_in:
            raise DataError("is also the name of a column of the answer", "rename", field=key)
    static = [*schema.feat_static_real, *schema.feat_static_cat]
    known = [*keys, *schema.feat_dynamic_real]
    observed = [*schema.target, *schema.past_feat_dynamic_real]
    wanted = [*known, *observed, *static]
    check_roles(
        {"item_id": keys[:-1], "timestamp": keys[-1:], "target": observed,
         "covariates": [*schema.feat_dynamic_real, *static]}
    )  # fmt: skip
    check_columns(past_df, wanted, "past_df")
    check_columns(future_df, known, "future_df")
    if len(future_df) == 0:
        raise DataError("future_df has no rows", "give at least one time to forecast")

    if item_id is not None:
        codes, items = item_codes(past_df, item_id)
        asked_items = set(item_codes(future_df, item_id)[1])
        past_df = past_df[np.array([item in asked_items for item in items], dtype=bool)[codes]]
    # Objects keep categories as they are: beside missing ones, integers would turn into floats.
    past = _plain(past_df[wanted]).astype(dict.fromkeys(schema.feat_static_cat, object))
    future = _plain(future_df[known])
    try:
        both = pd.concat([past, future]) if len(past) else future.reindex(columns=wanted)
    except pd.errors.OutOfBoundsDatetime as error:
        raise DataError(
            f"past_df and future_df count time in different units ({error})",
            "give both the same dtype, such as datetime64[us]",
            field=timestamp,
        ) from None
    rows = gather_rows(both, item_id)
    asked = rows.order >= len(past_df)
    times = read_times(both[timestamp], rows)
    if times.kind != schema.time:
        raise DataError(
            f"the predictor was trained on {schema.time} times, these are {times.kind}",
            "give the same kind of time",
            field=timestamp,
        )
    if (times.time_zone is None) != (schema.time_zone is None):
        trained = "without" if schema.time_zone is None else "with"
        raise DataError(
            f"the predictor was trained on timestamps {trained} a time zone, unlike these",
            "localize the timestamps, or remove their time zone",
            field=timestamp,
        )
    entries = read_entries(both, rows, times, timestamp, schema, asked)

    channels = len(schema.target)
    answers = np.empty((len(future_df), channels, 1 + len(levels)))
    for number, forecast in enumerate(predictor.predict(entries, seed=seed)):
        own = rows.order[rows.bounds[number] : rows.bounds[number + 1]]
        places = own[own >= len(past_df)] - len(past_df)
        quantiles = forecast.quantiles([0.5, *levels])  # (L, Q), or (L, Q, D)
        answers[places] = quantiles.reshape(1 + len(levels), len(places), channels).transpose(
            1, 2, 0
        )

    result = future[keys].iloc[np.repeat(np.arange(len(future_df)), channels)]
    result = result.reset_index(drop=True)
    result["target_name"] = np.tile(np.array(schema.target, dtype=object), len(future_df))
    for column, name in enumerate(answers_in[1:]):
        result[name] = answers[:, :, column].reshape(-1)
    return result


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out the attributes of a frame, which pandas compares, and let index labels repeat."""
    plain = frame.set_flags(allows_duplicate_labels=True)
    plain.attrs = {}
    return plain
