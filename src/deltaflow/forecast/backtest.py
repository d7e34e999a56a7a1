"""DataFrames of queries, and backtests of DataFrames."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from deltaflow.data.dataset import IrregularDataset
from deltaflow.data.schema import Span, in_unit_of, read_date, read_duration, read_span
from deltaflow.data.validation import (
    check_columns,
    column_names,
    gather_rows,
    read_numbers,
    read_times,
)
from deltaflow.errors import DataError, located
from deltaflow.forecast.columns import check_answer
from deltaflow.forecast.forecasts import read_levels
from deltaflow.forecast.frame import predict_df
from deltaflow.forecast.predictor import DeltaflowPredictor


class Trainable(Protocol):
    """An estimator of deltaflow."""

    def train(self, training_data: Any) -> Any:
        """Return a predictor."""


class Backtest(NamedTuple):
    """The result of a backtest.

    Attributes
    ----------
    forecasts
        The rows of `predict_df`, with the columns ``cutoff`` and ``actual``, the observed value.
    scores
        A row per cutoff and channel, with ``values``, their number; ``mae`` of the median;
        ``quantile_loss``, the mean of the levels' weighted quantile losses; and ``coverage``, the
        share of values between the lowest and the highest level.
    """

    forecasts: pd.DataFrame
    scores: pd.DataFrame


def future_df(
    df: pd.DataFrame,
    *,
    horizon: Span,
    every: Span,
    covariates: Sequence[str] = (),
    item_id: str | None = "item_id",
    timestamp: str = "timestamp",
) -> pd.DataFrame:
    """Return a grid of queries after the last row of each item.

    Parameters
    ----------
    df
        The observations. It is not changed.
    horizon, every
        The horizon, and the time between two queries: durations such as ``"24h"``, or numbers if
        times are elapsed numbers.
    covariates
        Names of covariates known in advance, whose columns the caller fills in.
    item_id, timestamp
        The names of these columns; ``item_id`` is None for a single series.

    Returns
    -------
    pandas.DataFrame
        Item and timestamp of each query, and the covariates, NaN.

    Examples
    --------
    >>> df = pd.DataFrame({"item_id": ["a", "a", "b"], "timestamp": [0.0, 1.5, 4.0]})
    >>> future_df(df, horizon=2, every=1)
      item_id  timestamp
    0       a        2.5
    1       a        3.5
    2       b        5.0
    3       b        6.0
    """
    names = column_names("covariates", covariates)
    for name in names:
        if name in (item_id, timestamp):
            raise DataError("is the column of items or times", "leave it out of the covariates",
                            field=name)  # fmt: skip
    times, item = _read_frame(df, item_id, timestamp)
    if df.empty:
        raise DataError("df has no rows", "give at least one observation")
    step, reach = read_span(every, "every", times), read_span(horizon, "horizon", times)
    if not step > 0 * step or reach < step:
        raise DataError(
            f"a horizon of {horizon} has no room for a query every {every}",
            "give a positive distance that is no longer than the horizon",
            field="every",
        )
    count = int(np.floor(reach / step * (1 + 1e-12)))
    last = times.groupby(item).max()
    ahead = pd.Series(np.tile(np.arange(1, count + 1), len(last)))
    grid = pd.DataFrame(index=ahead.index)
    if item_id is not None:
        first_rows = np.unique(item, return_index=True)[1]
        grid[item_id] = df[item_id].iloc[first_rows.repeat(count)].array
    try:
        grid[timestamp] = pd.Series(last.repeat(count).array) + ahead * step
    except (OverflowError, ValueError):  # the latter from Arrow
        raise DataError(
            f"a horizon of {horizon} ends beyond the range of {times.dtype}",
            "convert the times to datetime64[us]",
            field=timestamp,
        ) from None
    return grid.assign(**dict.fromkeys(names, np.nan))


def backtest_df(
    model: Trainable | DeltaflowPredictor,
    df: pd.DataFrame,
    *,
    horizon: Span,
    cutoffs: int | str | pd.Timestamp | Sequence[Any] = 3,
    refit: bool = True,
    columns: Mapping[str, Any] | None = None,
    item_id: str | None = "item_id",
    timestamp: str = "timestamp",
    quantile_levels: Sequence[float] = (0.1, 0.5, 0.9),
) -> Backtest:
    """Forecast the observed values after several cutoffs from the values before them.

    Parameters
    ----------
    model
        An estimator, which is trained on the values before the cutoff; or a predictor, which should
        not have been trained on the values that it forecasts.
    df
        The observations, as `IrregularDataset.from_long_dataframe` reads them.
    horizon
        The horizon from each cutoff: a duration, or a number if times are elapsed numbers. Its end
        is excluded.
    cutoffs
        The number of consecutive horizons that end with the last row; each begins after its cutoff,
        and includes its end. Or one or several points in time: dates, or elapsed numbers. Or a
        list of durations such as ``"24h"``, counted from the first row of each item.
    refit
        Whether an estimator is retrained at each cutoff, instead of only at the first one.
    columns
        For an estimator, the roles of the columns: arguments of
        `IrregularDataset.from_long_dataframe` such as ``{"target": ["HR"], "time_unit": "min"}``.
    item_id, timestamp
        The names of these columns; ``item_id`` is None for a single series.
    quantile_levels
        The levels, between 0 and 1.

    Raises
    ------
    DataError
        If there are no observations before or after a cutoff; and the errors of `predict_df`.

    Examples
    --------
    >>> from deltaflow import HoldEstimator
    >>> from deltaflow.tasks import irregular_sine
    >>> forecasts, scores = backtest_df(
    ...     HoldEstimator(8), irregular_sine(num_series=5), horizon="12h", cutoffs=2)
    >>> list(scores)
    ['cutoff', 'target_name', 'values', 'mae', 'quantile_loss', 'coverage']
    """
    levels = read_levels(quantile_levels)
    if not levels:
        raise DataError("there are none to score", "give some such as [0.1, 0.9]",
                        field="quantile_levels")  # fmt: skip
    keys = [timestamp] if item_id is None else [item_id, timestamp]
    check_answer(keys, levels, ["actual", "cutoff"])
    roles = {**(columns or {}), "item_id": item_id, "timestamp": timestamp}
    times, item = _read_frame(df, item_id, timestamp)
    reach = read_span(horizon, "horizon", times)
    predictor = model if isinstance(model, DeltaflowPredictor) else None
    parts = []
    for cutoff, end in _cutoffs(times, cutoffs, reach):
        if end is not None:  # the last row is the end of the last horizon
            is_past, within = times <= cutoff, times <= end
        else:
            moment = cutoff
            if isinstance(cutoff, pd.Timedelta):
                moment = cutoff + times.groupby(item).transform("min")
            is_past, within = times < moment, times < moment + reach
        is_past = is_past.to_numpy(dtype=bool)
        is_future = within.to_numpy(dtype=bool) & ~is_past & np.isin(item, item[is_past])
        past, future = df[is_past], df[is_future]
        if past.empty or future.empty:
            where = "before" if past.empty else "after"
            raise DataError(f"nothing lies {where} the cutoff {cutoff}", "choose another cutoff",
                            field="cutoffs")  # fmt: skip
        if predictor is None or (refit and not isinstance(model, DeltaflowPredictor)):
            predictor = model.train(IrregularDataset.from_long_dataframe(past, **roles))  # pyright: ignore[reportAttributeAccessIssue]
        schema = predictor.schema
        answer = predict_df(
            predictor,
            past,
            future[[*keys, *schema.feat_dynamic_real]],
            item_id=item_id,
            timestamp=timestamp,
            quantile_levels=levels,
        )
        rows = gather_rows(future, None)
        actual = np.stack([read_numbers(future[name], rows) for name in schema.target], axis=-1)
        parts.append(answer.assign(actual=actual.reshape(-1), cutoff=cutoff))
    forecasts = pd.concat(parts, ignore_index=True)
    return Backtest(forecasts, _scores(forecasts, levels))


def _scores(forecasts: pd.DataFrame, levels: list[float]) -> pd.DataFrame:
    """Return the scores of each cutoff and channel; see `Backtest`."""
    rows = []
    known = forecasts[forecasts["actual"].notna()]
    for (cutoff, name), own in known.groupby(["cutoff", "target_name"], sort=False):
        actual = own["actual"].to_numpy()
        errors = [(level, actual - own[str(level)].to_numpy()) for level in levels]
        losses = [2 * np.maximum(level * e, (level - 1) * e).sum() for level, e in errors]
        loss = np.mean(losses) / max(np.abs(actual).sum(), 1e-300)
        mae = np.abs(actual - own["predictions"]).mean()
        low, high = own[str(min(levels))], own[str(max(levels))]
        coverage = ((low <= actual) & (actual <= high)).mean()
        rows.append((cutoff, name, len(own), mae, loss, coverage))
    columns = ["cutoff", "target_name", "values", "mae", "quantile_loss", "coverage"]
    return pd.DataFrame(rows, columns=columns)


def _read_frame(
    df: pd.DataFrame, item_id: str | None, timestamp: str
) -> tuple[pd.Series, np.ndarray]:
    """Return the times of a frame, checked to be timestamps or numbers, and each row's item.

    Items are numbered in their order of appearance.
    """
    check_columns(df, [timestamp] if item_id is None else [item_id, timestamp], "df")
    with located(frame="df"):
        rows = gather_rows(df, item_id)
        read_times(df[timestamp], rows)
    item = np.empty(len(df), dtype=np.int64)
    item[rows.order] = rows.item
    times = df[timestamp].infer_objects()
    if str(times.dtype).startswith(("date32", "date64[")):  # Arrow's dates, which have no hours
        times = times.astype("timestamp[us][pyarrow]")
    return times, item


def _cutoffs(
    times: pd.Series, cutoffs: int | str | pd.Timestamp | Sequence[Any], reach: Any
) -> list[tuple[Any, Any]]:
    """Return the sorted cutoffs: points in time, or durations since the items' start.

    Beside each stands the end of its horizon, if it is to be included, and else None.
    """
    given = [cutoffs] if isinstance(cutoffs, str) or not isinstance(cutoffs, Iterable) else cutoffs
    try:
        if isinstance(cutoffs, (int, np.integer)):
            ends = [times.max() - number * reach for number in range(int(cutoffs), -1, -1)]
            moments = list(itertools.pairwise(ends))
        else:
            moments = [(moment, None) for moment in sorted({_moment(c, times) for c in given})]
        if not moments:
            raise ValueError("not a single cutoff")
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{cutoffs!r} are not cutoffs of the times in {times.name!r} ({error})",
            "give how many, or a list of moments, or of durations such as '24h'",
            field="cutoffs",
        ) from error
    return moments


def _moment(cutoff: Any, times: pd.Series) -> Any:
    """Return a cutoff as a number, a duration since the items' start, or a timestamp."""
    if is_numeric_dtype(times):
        return float(cutoff)
    try:
        return in_unit_of(times, read_duration(cutoff, "cutoffs"))
    except DataError:
        date, zone = read_date(cutoff, "cutoffs"), times.dt.tz
        if date.tz is not None and zone is None:
            raise ValueError("they have a time zone, and the data none") from None
        if zone is None or date.tz is not None:
            return date
        moment = date.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
        if moment is pd.NaT:
            raise ValueError(
                f"the clocks of {zone} change then: add the offset from UTC, as in '{date}+00:00'"
            ) from None
        return moment
