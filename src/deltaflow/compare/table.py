"""The tables of a comparison: in long form for programs, in wide form for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from deltaflow.compare.models import HOLD, LAST_VALUE
from deltaflow.compare.run import Run
from deltaflow.compare.score import INTERVALS

COLUMNS = ["dataset", "encoder", "seed", "metric", "value"]

SUMMARY = {
    "mean_weighted_quantile_loss": "quantile loss",
    "balanced_mean_weighted_quantile_loss": "balanced quantile loss",
    "balanced_mse": "balanced MSE",
    "balanced_mae": "balanced MAE",
    "balanced_nll": "balanced NLL",
    "coverage_50": "50 % interval covers",
    "coverage_80": "80 % interval covers",
    "coverage_95": "95 % interval covers",
    "parameters": "parameters",
    "seconds_per_epoch": "s / epoch",
    "ms_per_forecast": "ms / forecast",
    "evaluations_per_batch": "f evaluations / batch",
}
"""The columns of the summary: measures and headings."""

RATIO = "MSE / hold (95 % interval)"
"""Heading of the ratio of the balanced squared error to that of hold."""

TERMINAL = {
    "balanced quantile loss": "quantile\nloss",
    "balanced MSE": "MSE",
    RATIO: "MSE / hold",
    "balanced MAE": "MAE",
    "80 % interval covers": "80 %\ncovers",
    "s / epoch": "s per\nepoch",
}
"""The columns of the summary shown on a terminal, and their headings there. Losses are balanced."""

NUM_RESAMPLES = 1000
"""Number of bootstrap samples of the items of a test, for an interval."""

ORDER = ("balanced_mean_weighted_quantile_loss", "balanced_mse", "balanced_mae")
"""Rows are sorted by the first of these measures that is available."""

LOSS = "mean_weighted_quantile_loss"
"""The measure compared between data sets, relative to that of `LAST_VALUE`."""

NOMINAL = 0.8
"""The nominal coverage of the interval compared between data sets."""

MEAN = "mean of the sets"
"""The last row of the tables over data sets."""

COUNTS = ("parameters", "evaluations_per_batch")
"""Measures that are whole numbers."""

BY_CHANNEL = {
    "mean_weighted_quantile_loss": "quantile loss",
    "mse": "MSE",
    "mae": "MAE",
    "nll": "NLL",
    "coverage_80": "80 % interval covers",
}
"""The tables by channel: measures and titles."""


def results(runs: Sequence[Run]) -> pd.DataFrame:
    """Return every score of every run in long form, with `COLUMNS` as its columns.

    `dataset` is the name of the test: a synthetic task has two, such as `sine` and `sine_beyond`.
    """
    rows = [
        (dataset, run["encoder"], run["seed"], metric, value)
        for run in runs
        for dataset, scores in run["scores"].items()
        for metric, value in scores.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seed": "Int64"})  # averages have none


def averaged(
    scores: pd.DataFrame, dataset: str, measures: Iterable[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return means and standard deviations over the seeds: a row per encoder, in order of the runs.

    The columns are the measures that at least one encoder has.
    """
    own = scores[(scores["dataset"] == dataset) & scores["metric"].isin(list(measures))]
    order = [measure for measure in measures if measure in set(own["metric"])]
    grouped = own.groupby(["encoder", "metric"], sort=False)["value"]
    mean, deviation = (
        part.unstack().reindex(own["encoder"].unique(), columns=order)
        for part in (grouped.mean(), grouped.std())
    )
    return mean, deviation


def overview(runs: Sequence[Run], dataset: str) -> pd.DataFrame:
    """Return the `summary` of one data set, with the ratio of the squared error to hold's.

    The best rows come first, see `ORDER`.
    """
    runs = best_first(runs, dataset)
    table = summary(results(runs), dataset)
    ratios = ratios_to_hold(runs, dataset).drop(index=HOLD, errors="ignore")
    if len(ratios) and "balanced MSE" in table:
        text = [f"{own.ratio:.3f} ({own.low:.3f}–{own.high:.3f})" for own in ratios.itertuples()]
        shown = pd.Series(text, index=ratios.index).reindex(table.index, fill_value="")
        table.insert(list(table).index("balanced MSE") + 1, RATIO, shown)
    return table


def best(runs: Sequence[Run], dataset: str) -> pd.DataFrame:
    """Return a boolean per row and heading: whether the cell is the best of its column.

    The best coverage is the one closest to the nominal share; `COUNTS` have no best.
    """
    means, _ = averaged(results(runs), dataset, [one for one in SUMMARY if one not in COUNTS])
    for name, (low, high) in INTERVALS.items():
        if name in means:
            means[name] = (means[name] - (high - low)).abs()
    marked = (means == means.min()).rename(columns=SUMMARY)
    if "balanced MSE" in marked:
        marked[RATIO] = marked["balanced MSE"]
    return marked.reindex(columns=[*SUMMARY.values(), RATIO], fill_value=False)


def loss_by_set(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the quantile loss relative to that of the last value, the best rows first.

    Returns
    -------
    pandas.DataFrame
        A row per data set, a column per encoder, and the means over the sets as the last row; means
        over the seeds, NaN where a run has failed. Empty without the row `LAST_VALUE`, or if there
        is only one data set.
    """
    wide = _by_set(runs, LOSS)
    if LAST_VALUE not in wide or len(wide) < 2:
        return pd.DataFrame()
    ratio = _with_mean(wide.div(wide[LAST_VALUE], axis=0))
    return ratio[ratio.loc[MEAN].sort_values(kind="stable").index]


def coverage_by_set(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the share of values within the 80 % interval, in the shape of `loss_by_set`."""
    wide = _by_set(runs, "coverage_80").drop(columns=LAST_VALUE, errors="ignore")
    return _with_mean(wide) if len(wide) > 1 else pd.DataFrame()


def size_of_sets(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the number of forecast `items` and of their `values`, by data set."""
    sizes = {}
    for run in runs:
        for dataset, errors in run["squared_errors"].items():
            count = np.array(errors["count"])
            sizes[dataset] = {"items": len(count), "values": int(count.sum())}
    return pd.DataFrame.from_dict(sizes, orient="index", columns=["items", "values"])


def _by_set(runs: Sequence[Run], measure: str) -> pd.DataFrame:
    """Return data sets by encoders: means over the seeds of a measure."""
    scores = results(runs)
    own = scores[scores["metric"] == measure]
    wide = own.pivot_table(
        index="dataset", columns="encoder", values="value", sort=False, dropna=False
    )
    return wide.rename_axis(index=None, columns=None)


def _with_mean(wide: pd.DataFrame) -> pd.DataFrame:
    """Add the means over the data sets, for encoders that have finished on all of them."""
    return pd.concat([wide, wide.mean(skipna=False).to_frame(MEAN).T])


def best_first(runs: Sequence[Run], dataset: str) -> list[Run]:
    """Return the runs that have results of a data set, in the order of the rows of `overview`."""
    means, _ = averaged(results(runs), dataset, SUMMARY)
    by = [measure for measure in ORDER if measure in means][:1]
    order = list(means.sort_values(by, kind="stable").index)
    own = [run for run in runs if run["encoder"] in order]
    return sorted(own, key=lambda run: order.index(run["encoder"]))


def ratios_to_hold(runs: Sequence[Run], dataset: str) -> pd.DataFrame:
    """Return the ratio of each row's balanced squared error to that of hold, with an interval.

    The interval contains the middle 95 % of the ratios on as many items drawn from the test with
    replacement (the percentile bootstrap, Efron & Tibshirani, 1993). It describes the uncertainty
    from the choice of items only, since errors are averaged over the seeds first.

    Returns
    -------
    pandas.DataFrame
        A row per encoder, with the columns `ratio`, `low` and `high`; empty if hold has failed.
    """
    count, errors = _errors_by_item(runs, dataset)
    if HOLD not in errors:
        return pd.DataFrame()
    items = len(count)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(items, np.full(items, 1 / items), size=NUM_RESAMPLES)
    weights = np.vstack([np.ones(items), drawn]).astype(float)  # the first: the test itself
    labels = weights @ count

    def balanced(own: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.mean((weights @ own) / labels, axis=1, where=labels > 0)

    hold = balanced(errors[HOLD])
    rows = {}
    for encoder, own in errors.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = balanced(own) / hold
        rows[encoder] = (ratio[0], *np.quantile(ratio[1:], [0.025, 0.975]))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["ratio", "low", "high"])


def channels(runs: Sequence[Run], dataset: str) -> pd.DataFrame:
    """Return a row per channel: its share of the balanced squared error, and every encoder's error.

    Returns
    -------
    pandas.DataFrame
        By channel, the largest share first: `labels`, the number of observed labels; `share`, of
        the channel in hold's balanced squared error; `hold`, its squared error in squared units;
        and for each other row the ratio to it, averaged over the seeds. Text; empty if hold has
        failed or there is one channel only.
    """
    count, errors = _errors_by_item(runs, dataset)
    known = count.sum(axis=0) > 0
    if HOLD not in errors or known.sum() < 2:
        return pd.DataFrame()
    scores = next(run["scores"][dataset] for run in runs if dataset in run["scores"])
    names = [name[4:-1] for name in scores if name.startswith("mse[")]
    labels = pd.Series(count.sum(axis=0)[known], names)
    sums = {encoder: own.sum(axis=0)[known] for encoder, own in errors.items()}
    mean = pd.DataFrame(sums, names).div(labels, axis=0)
    hold = mean.pop(HOLD)
    table = mean.div(hold, axis=0).map("{:.3f}".format).replace("nan", "")  # without any error
    table.insert(0, HOLD, hold.map(_rounded))
    table.insert(0, "share", (hold / hold.sum()).map("{:.1%}".format))
    table.insert(0, "labels", labels.map("{:,.0f}".format))
    return table.loc[hold.sort_values(ascending=False, kind="stable").index]


def _errors_by_item(runs: Sequence[Run], dataset: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return counts ``(N, D)``, and squared errors ``(N, D)`` of each row, averaged over seeds."""
    count = np.zeros((0, 0))
    by_encoder: dict[str, list[np.ndarray]] = {}
    for run in runs:
        if dataset in run["squared_errors"]:
            stored = run["squared_errors"][dataset]
            count = np.array(stored["count"], float)
            by_encoder.setdefault(run["encoder"], []).append(np.array(stored["sum"]))
    return count, {encoder: np.mean(own, axis=0) for encoder, own in by_encoder.items()}


def summary(scores: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return a row per encoder of one data set: mean ± standard deviation over the seeds, as text.

    Encoders are in the order of the runs.
    """
    mean, deviation = averaged(scores, dataset, SUMMARY)
    text = mean.astype(object)
    for measure in mean:
        digits = 0 if measure in COUNTS else 4
        text[measure] = [
            _rounded(*pair, digits) for pair in zip(mean[measure], deviation[measure], strict=True)
        ]
    return text.rename(columns=SUMMARY).rename_axis(index=None, columns=None)


def by_channel(scores: pd.DataFrame, dataset: str, measure: str) -> pd.DataFrame:
    """Return a row per channel and a column per encoder, in order of the runs, of one measure.

    Values are means over the seeds, as text. Averages of several seeds are left out. Empty if
    there is one channel only, which `summary` covers.
    """
    own = scores[(scores["dataset"] == dataset) & scores["seed"].notna()]
    names = own["metric"].drop_duplicates()
    channels = names[names.str.startswith(f"{measure}[")].tolist()
    if len(channels) < 2:
        return pd.DataFrame()
    mean, _ = averaged(own, dataset, channels)
    wide = mean.T.rename(index=lambda name: name[len(measure) + 1 : -1])
    return wide.map(_rounded).rename_axis(index=None, columns=None)


def failures(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row per error of a failed run, with the last line of its traceback."""
    rows = [
        (run["dataset"], run["encoder"], run["seed"], stage, error.strip().splitlines()[-1])
        for run in runs
        for stage, error in run["errors"].items()
    ]
    return pd.DataFrame(rows, columns=["dataset", "encoder", "seed", "stage", "error"])


def narrow(table: pd.DataFrame) -> pd.DataFrame:
    """Return the `TERMINAL` columns of an overview, narrow enough for 80 characters."""
    shown = {heading: short for heading, short in TERMINAL.items() if heading in table}
    broken = table[list(shown)].replace({" ± ": "\n± ", r" \(": "\n("}, regex=True)
    return broken.rename(columns=shown).rename_axis("encoder")


def _rounded(mean: float, deviation: float = np.nan, digits: int = 4) -> str:
    """Format a number with this many significant digits, and its deviation to the same place.

    >>> _rounded(0.123456, 0.01), _rounded(12345.6), _rounded(1.0, 0.0), _rounded(float("nan"))
    ('0.1235 ± 0.0100', '12,346', '1.000', '')
    """
    if np.isnan(mean):
        return ""
    if np.isinf(mean):
        return f"{mean}"
    leading = int(np.floor(np.log10(abs(mean)))) + 1 if mean else 1
    places = min(6, max(0, digits - leading))
    if not deviation > 0:
        return f"{mean:,.{places}f}"
    return f"{mean:,.{places}f} ± {deviation:,.{places}f}"
