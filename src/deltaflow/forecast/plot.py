"""Plots of forecasts: the past, the median, intervals, and the actual values."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import pandas as pd

from deltaflow.data.schema import read_span
from deltaflow.data.validation import as_text, check_columns
from deltaflow.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_SIZE = 3.6, 2.3
"""The width and height of one panel in inches."""


def plot_forecasts(
    forecasts: pd.DataFrame,
    history: pd.DataFrame | None = None,
    *,
    item_id: str | None = "item_id",
    timestamp: str = "timestamp",
    items: Sequence[Hashable] | int = 3,
    channels: Sequence[str] | None = None,
    past: Any = None,
) -> Figure:
    """Plot the forecasts of several items and channels: a column per item, a row per channel.

    Parameters
    ----------
    forecasts
        The result of `predict_df`, or of a forecast's ``to_dataframe``. An interval is drawn for
        each pair of levels that are symmetric around one half, such as 0.1 and 0.9.
    history
        Observations in the form of `predict_df`'s ``past_df``. Values before the first query of an
        item are drawn as its past, and those between its first and last query as the actual values.
    item_id, timestamp
        The names of these columns in both frames; ``item_id`` is None for a single series.
    items
        The items to draw, or the number of items, the first ones in ``forecasts``.
    channels
        The channels to draw, all of them by default.
    past
        How much of the past is drawn, as a duration such as ``"24h"``, or a number if times are
        elapsed numbers; all of it by default.

    Returns
    -------
    matplotlib.figure.Figure
        Save it by ``figure.savefig("forecasts.png")``; a notebook shows it.

    Raises
    ------
    DataError
        If a frame lacks a column, or an item or channel has no forecast.

    Examples
    --------
    >>> import pandas as pd
    >>> from deltaflow import plot_forecasts
    >>> forecasts = pd.DataFrame({"item_id": "a", "timestamp": [3.0, 4.5], "target_name": "HR",
    ...                           "predictions": [81, 80], "0.1": [78, 75], "0.9": [84, 86]})
    >>> len(plot_forecasts(forecasts).axes)
    1
    """
    from matplotlib.figure import Figure

    if item_id is None:
        item_id = "item_id"
        forecasts = forecasts.assign(item_id="")
        history = None if history is None else history.assign(item_id="")
    check_columns(forecasts, [item_id, timestamp, "target_name", "predictions"], "forecasts")
    drawn_items = _chosen(forecasts[item_id], items, item_id)
    drawn_channels = _chosen(forecasts["target_name"], channels, "target_name")
    if history is not None:
        check_columns(history, [item_id, timestamp, *map(str, drawn_channels)], "history")

    figure = Figure(
        figsize=(PANEL_SIZE[0] * len(drawn_items), PANEL_SIZE[1] * len(drawn_channels) + 0.4),
        layout="constrained",
    )
    grid = figure.subplots(len(drawn_channels), len(drawn_items), squeeze=False, sharex="col")
    for column, item in enumerate(drawn_items):
        own = forecasts[forecasts[item_id] == item]
        observed = None if history is None else history[_is_item(history[item_id], item)]
        for row, channel in enumerate(drawn_channels):
            axes = grid[row, column]
            answers = own[own["target_name"] == channel]
            if len(answers):
                values = None if observed is None else observed.set_index(timestamp)[channel]
                draw_forecast(axes, answers, timestamp, observed=values, past=past)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="0.92")
            axes.set_axisbelow(True)
        grid[0, column].set_title(str(item), fontsize=10)
    for row, channel in enumerate(drawn_channels):
        grid[row, 0].set_ylabel(str(channel))
    handles = {}
    for axes in figure.axes:
        drawn, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, drawn, strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center",
        ncols=len(handles), frameon=False, fontsize=9,
    )  # fmt: skip
    return figure


def draw_forecast(
    axes: Axes,
    answers: pd.DataFrame,
    timestamp: str = "timestamp",
    *,
    observed: pd.Series | None = None,
    past: Any = None,
    color: Any = None,
    name: str | None = None,
    show_label: bool = True,
) -> None:
    """Draw one forecast of one channel.

    Parameters
    ----------
    axes
        The axes to draw on.
    answers
        The rows of `predict_df` of one item and channel. An interval is drawn for each pair of
        levels that are symmetric around one half.
    timestamp
        The name of the time column.
    observed
        Values of the channel, indexed by time: dots before the first query, circles from then on.
    past
        How much of the past, before the first query, is drawn.
    color, name
        Colour and label of the median; the next colour of the axes, and "median".
    show_label
        Whether the intervals have labels in the legend.
    """
    answers = answers.sort_values(timestamp)
    times, median = pd.Index(answers[timestamp]), answers["predictions"].to_numpy()
    if isinstance(times, pd.DatetimeIndex):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    mark = "." if len(times) < 30 else None
    (line,) = axes.plot(times, median, color=color, lw=1.5, marker=mark, label=name or "median")
    for probability, low, high in sorted(_intervals(answers), reverse=True):
        label = f"{probability:.0%} interval"
        axes.fill_between(
            times, answers[low], answers[high], color=line.get_color(), lw=0,
            alpha=0.5 - 0.4 * probability,
            label=(f"{name}, {label}" if name else label) if show_label else None,
        )  # fmt: skip
    if observed is None or times.empty:
        return
    observed = observed.dropna()
    later = observed.index >= times[0]
    before, actual = observed[~later], observed[later & (observed.index <= times[-1])]
    if past is not None:
        length = read_span(past, "past", pd.Series(times, name=timestamp))
        before = before[before.index >= times[0] - length]
    point = {"ls": "", "marker": "o", "ms": 3.2, "color": "0.25"}
    axes.plot(before.index, before.to_numpy(), label="past", **point)
    if len(actual):
        axes.plot(actual.index, actual.to_numpy(), mfc="white", label="actual", **point)


def _intervals(answers: pd.DataFrame) -> list[tuple[float, Any, Any]]:
    """Return the probability of each interval around 1/2, and the columns of its two quantiles."""
    numbers = pd.to_numeric(answers.columns.to_series(), errors="coerce")
    levels = {level: name for name, level in numbers.items() if 0 < level < 1}
    return [
        (high - low, levels[low], levels[high])
        for low, high in itertools.combinations(sorted(levels), 2)
        if abs(low + high - 1) < 1e-9
    ]


def _is_item(column: pd.Series, item: Hashable) -> pd.Series:
    """Return which rows belong to an item, whose identifiers may have another type: 1 or "1"."""
    return column.isin([one for one in column.unique() if as_text(one) == as_text(item)])


def _chosen(column: pd.Series, wanted: Any, field: str) -> list[Any]:
    """Return the items or channels to draw: the chosen ones, the first few, or all."""
    there = list(column.unique())
    if wanted is None or isinstance(wanted, Integral):
        wanted = there[:wanted]
    if isinstance(wanted, str):
        wanted = [wanted]
    if not len(wanted):
        raise DataError("there is nothing to draw", "give at least one forecast", field=field)
    for value in wanted:
        if value not in there:
            raise DataError(f"there is no forecast of {value!r}", f"there are {there[:10]}",
                            field=field)  # fmt: skip
    return list(wanted)
