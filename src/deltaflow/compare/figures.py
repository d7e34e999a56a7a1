"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deltaflow.compare.run import Run
from deltaflow.compare.score import INTERVALS
from deltaflow.compare.table import averaged
from deltaflow.forecast.plot import draw_forecast

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

NUM_PANELS = 4
"""The number of columns in the figure of forecasts: items, or channels of an item."""

MARKERS = "os^D"
"""The markers of the first ten rows, the next ten, and so on."""


def learning_curves(runs: Sequence[Run], test: str) -> Figure | None:
    """Plot the validation loss by epoch: a thin line per seed, and a dot at each best epoch.

    The curves are those of the data set of a test. None if no run has a curve.
    """
    own = [run for run in runs if test in run["scores"] and run["curve"]]
    if not own:
        return None
    figure, axes = _figure(8, 4.5)
    colours: dict[str, str] = {}
    for run in own:
        losses = [epoch["val_loss"] for epoch in run["curve"]]
        epochs = np.arange(1, len(losses) + 1)
        label = None if run["encoder"] in colours else run["encoder"]
        colour = colours.setdefault(run["encoder"], f"C{len(colours) % 10}")
        axes.plot(epochs, losses, color=colour, lw=1, label=label)
        if np.isfinite(losses).any():
            best = int(np.nanargmin(losses))
            axes.plot(epochs[best], losses[best], "o", color=colour, ms=4)
    axes.set(xlabel="epoch", ylabel="validation loss")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def forecasts(runs: Sequence[Run], test: str) -> Figure | None:
    """Plot a few forecasts of one test: a row per encoder, with its first seed."""
    own: dict[str, Run] = {}
    for run in runs:
        if run["examples"].get(test):
            own.setdefault(run["encoder"], run)
    if not own:
        return None
    examples = next(iter(own.values()))["examples"][test]
    panels = _panels(examples)
    figure, grid = _figure(
        3 * len(panels), 1.7 * len(own) + 0.5, rows=len(own), columns=len(panels),
        sharex="col", sharey="col",
    )  # fmt: skip
    for row, (encoder, run) in zip(grid, own.items(), strict=True):
        row[0].set_ylabel(encoder, fontsize=8)
        for axes, (item, channel) in zip(row, panels, strict=True):
            example = run["examples"][test][item]
            columns = {"predictions": "median", "0.1": "low", "0.9": "high"}
            answers = {name: example[part][channel] for name, part in columns.items()}
            values = [*example["past"][channel], *example["future"][channel]]
            times = [*example["past_times"], *example["times"]]
            observed = pd.Series(values, times, dtype=float)
            answers = pd.DataFrame({"timestamp": example["times"], **answers})
            draw_forecast(axes, answers, observed=observed)
            axes.tick_params(labelsize=7)
    for axes, (item, channel) in zip(grid[0], panels, strict=True):
        name = f"{examples[item]['item']} · {examples[item]['channels'][channel]}"
        axes.set_title(name, fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel(f"time ({examples[0]['time_unit']})", fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def accuracy_by_cost(scores: pd.DataFrame, dataset: str, cost: str, label: str) -> Figure | None:
    """Plot the balanced quantile loss of each encoder against a cost, with this axis label."""
    measure = "balanced_mean_weighted_quantile_loss"
    mean, deviation = averaged(scores, dataset, [measure, cost])
    if mean.shape[1] < 2:
        return None
    mean = mean.dropna().sort_values(measure)
    figure, axes = _figure(5.2, 4.8)
    for position, encoder in enumerate(mean.index):
        axes.errorbar(
            mean.loc[encoder, cost],
            mean.loc[encoder, measure],
            yerr=deviation.loc[encoder, measure],
            label=encoder,
            **_point(position),
        )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    axes.set(xscale="log", xlabel=label, ylabel="balanced quantile loss")
    _space_ticks(axes.xaxis, mean[cost])
    return figure


def calibration(scores: pd.DataFrame, dataset: str) -> Figure | None:
    """Plot how far the coverage of each encoder's central intervals is from its nominal value."""
    wide = averaged(scores, dataset, INTERVALS)[0].iloc[::-1]
    if wide.empty:
        return None
    figure, axes = _figure(6, 1 + 0.3 * len(wide))
    for name, (low, high) in INTERVALS.items():
        points = 100 * (wide[name] - (high - low))
        axes.plot(points, wide.index, "o", label=f"{high - low:.0%}")
    axes.axvline(0, color="0.4", lw=1)
    axes.set(xlabel="coverage minus nominal coverage (percentage points)")
    axes.legend(title="interval", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def coverage_by_size(coverage: pd.DataFrame, sizes: pd.DataFrame, nominal: float) -> Figure:
    """Plot the share of values covered on each data set against the number of its values.

    The grey band contains 95 % of such shares if values are independent and covered with the
    nominal probability.

    Parameters
    ----------
    coverage
        A row per data set and a column per encoder.
    sizes
        The number of `items` and `values` of each data set.
    nominal
        The nominal coverage of the intervals.
    """
    figure, axes = _figure(7, 4.5)
    values = sizes["values"].reindex(coverage.index)
    shown = np.geomspace(values.min() / 1.3, values.max() * 1.3)
    apart = 1.96 * np.sqrt(nominal * (1 - nominal) / shown)
    axes.fill_between(shown, nominal - apart, np.minimum(nominal + apart, 1), color="0.92")
    axes.axhline(nominal, color="0.4", lw=1)
    for position, (encoder, own) in enumerate(coverage.items()):
        axes.plot(values, own, label=encoder, alpha=0.8, **_point(position))
    items = sizes["items"].reindex(coverage.index)
    for name, size, count, least in zip(
        coverage.index, values, items, coverage.min(axis=1), strict=True
    ):
        axes.annotate(f"{name}\n{count} items", (size, least), (0, -6), ha="center", va="top",
                      textcoords="offset points", fontsize=7, color="0.4")  # fmt: skip
    axes.set(xscale="log", xlabel="values forecast", ylabel=f"{nominal:.0%} interval covers",
             ylim=(float(np.nanmin(coverage)) - 0.12, 1.03))  # fmt: skip
    _space_ticks(axes.xaxis, values)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _panels(examples: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return (item, channel) of each panel: several items, or several channels of the first."""
    first = examples[0]
    if len(first["channels"]) == 1:
        return [(item, 0) for item in range(min(NUM_PANELS, len(examples)))]
    known = [np.isfinite(np.array(first[part], float)) for part in ("past", "future")]
    counts = np.minimum(known[0].sum(axis=1), known[1].sum(axis=1))
    return [(0, int(channel)) for channel in np.argsort(-counts, kind="stable")[:NUM_PANELS]]


def _figure(width: float, height: float, rows: int = 0, columns: int = 0, **options: Any) -> Any:
    """Return a figure without a window, and its axes: one, or a grid of rows and columns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(max(1, rows), max(1, columns), squeeze=False, **options)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    return figure, grid if rows else grid[0, 0]


def _point(position: int) -> dict[str, str]:
    """Return the style of a row's marker, by its place in the legend."""
    marker = MARKERS[position // 10 % len(MARKERS)]
    return {"marker": marker, "color": f"C{position % 10}", "linestyle": ""}


def _space_ticks(axis: Axis, values: pd.Series) -> None:
    """Limit the ticks of a logarithmic axis to a readable number."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    ratio = values.max() / values.min()
    steps = (1.0, 2.0, 5.0) if ratio < 100 else (1.0,)
    axis.set_major_locator(MaxNLocator(5) if ratio < 10 else LogLocator(subs=steps))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
