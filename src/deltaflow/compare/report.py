"""The report of a comparison: CSV, Markdown, figures, and an HTML page with all of them."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import yaml

from deltaflow.compare import figures, table
from deltaflow.compare.config import CompareConfig
from deltaflow.compare.run import Run, environment
from deltaflow.saving import write
from deltaflow.tables import as_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1160px; margin: 2em auto; padding: 0 1em; }
nav { columns: 3; font-size: 13px; margin: 1em 0; }
nav a { display: block; }
table { border-collapse: collapse; margin: 1em 0; font-size: 12px; }
th, td { padding: 3px 6px; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd; }
th:first-child { text-align: left; }
tbody th { font-weight: 400; }
thead th { vertical-align: bottom; font-weight: 600; }
td b { color: #06c; }
small { display: block; color: #777; white-space: nowrap; }
.figures { display: flex; flex-wrap: wrap; align-items: flex-start; }
img { max-width: 100%; margin: 1em 0; }
pre { background: #f6f6f6; padding: 1em; white-space: pre-wrap; font-size: 12px; }
summary { cursor: pointer; margin: 1em 0; }
"""

NOTES = """
Values are means over the seeds ± their standard deviation. Rows are sorted by the balanced quantile
loss, and the best value of each column is marked (for coverage, the one closest to nominal).
"Balanced" is the mean over the channels, each divided by its own unit first (its standard deviation
in the training set, unless the task defines another), so that no channel dominates it; the plain
quantile loss pools all values. The quantile loss is that of the nine deciles, weighted by the size
of the values. Forecasts are timed in batches, on the machine below; "f evaluations" are those of
the vector field of an ODE. "MSE / hold" is the ratio of the balanced MSE to that of hold, which
repeats the last value; its 95 % interval is from bootstrap samples of the items. "Averaged" rows
average the forecasts of all seeds: their means, and their quantiles level by level.
"""

SECOND_LINE = re.compile(r" (± .*|\(.*\))$")
"""The second line of a cell: a deviation, or an interval."""

COSTS = {"seconds_per_epoch": "seconds per epoch", "ms_per_forecast": "milliseconds per forecast"}
"""The costs against which accuracy is plotted, and the labels of their axes."""


class Part(NamedTuple):
    """A part of a report.

    Attributes
    ----------
    title
        Its title.
    shown
        Its table, of text.
    best
        The mask of the best cells of their column or row; none is marked if None.
    details
        Further tables, by title.
    pictures
        Figures as PNG, by title.
    prefix
        The prefix of the figures' file names.
    """

    title: str
    shown: pd.DataFrame
    best: pd.DataFrame | None = None
    details: Mapping[str, pd.DataFrame] = {}
    pictures: Mapping[str, bytes] = {}
    prefix: str = ""


def write_report(runs: Sequence[Run], config: CompareConfig) -> None:
    """Write `results.csv`, `table.md`, `figures/*.png` and `index.html` into the output folder.

    The page contains figures and tables, so that it can be sent as one file.
    """
    write(config.output / "results.csv", table.results(runs).to_csv(index=False))
    parts = [*over_sets(runs), *(_about_test(runs, test) for test in tests_of(runs))]
    if len(failed := table.failures(runs)):
        parts.append(Part("Failed runs", failed))
    text = []
    for part in parts:
        shown = part.shown
        if part.best is not None:
            shown = shown.mask(part.best, "**" + shown + "**")
        text.append(f"## {part.title}\n\n{as_markdown(shown)}")
        for title, shown in part.details.items():
            text.append(f"## {part.title}: {title}\n\n{as_markdown(shown)}")
        for title, picture in part.pictures.items():
            name = f"{part.prefix}{title.replace(' ', '_')}.png"
            write(config.output / "figures" / name, picture)
    write(config.output / "table.md", "\n".join(text))
    title = f"Comparison: {', '.join(tests_of(runs) or config.data.names)}"
    write(config.output / "index.html", _page(title, parts, config))


def over_sets(runs: Sequence[Run]) -> list[Part]:
    """Return the part that compares data sets; empty if there is only one."""
    parts = []
    if len(loss := table.loss_by_set(runs)):
        title = "Quantile loss as a share of the last value's"
        parts.append(Part(title, _texts(loss, "{:.3f}"), loss.eq(loss.min(axis=1), axis=0)))
    if len(coverage := table.coverage_by_set(runs)):
        away = (coverage - table.NOMINAL).abs().round(9)
        best = away.eq(away.min(axis=1), axis=0)
        by_set, sizes = coverage.drop(index=table.MEAN), table.size_of_sets(runs)
        drawn = _png(figures.coverage_by_size(by_set, sizes, table.NOMINAL))
        pictures = {"coverage against size": drawn}
        shown = _texts(coverage, "{:.0%}")
        parts.append(Part("80 % interval covers", shown, best, pictures=pictures))
    return parts


def _texts(numbers: pd.DataFrame, form: str) -> pd.DataFrame:
    """Return numbers as text, empty where missing."""
    return numbers.map(form.format).where(numbers.notna(), "")


def tests_of(runs: Sequence[Run]) -> list[str]:
    """Return the names of all tests, in the order of the runs."""
    return list(dict.fromkeys(test for run in runs for test in run["scores"]))


def _about_test(runs: Sequence[Run], test: str) -> Part:
    """Return all tables and figures of a test."""
    runs = table.best_first(runs, test)
    scores = table.results(runs)
    details = {"MSE / hold by channel": table.channels(runs, test)}
    for measure, title in table.BY_CHANNEL.items():
        details[f"{title} by channel"] = table.by_channel(scores, test, measure)
    drawn: dict[str, Figure | None] = {
        f"accuracy against {label}": figures.accuracy_by_cost(scores, test, cost, label)
        for cost, label in COSTS.items()
    }
    drawn["calibration"] = figures.calibration(scores, test)
    drawn["forecasts"] = figures.forecasts(runs, test)
    drawn["learning curves"] = figures.learning_curves(runs, test)
    overview = table.overview(runs, test)
    return Part(
        test,
        overview,
        table.best(runs, test).loc[overview.index, overview.columns] & (overview != ""),
        {title: shown for title, shown in details.items() if len(shown)},
        {title: _png(figure) for title, figure in drawn.items() if figure is not None},
        prefix=f"{test}-",
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _page(title: str, parts: Sequence[Part], config: CompareConfig) -> str:
    """Return the HTML page."""
    about = {
        "Configuration": yaml.safe_dump(config.to_dict(), sort_keys=False),
        "Versions and machine": json.dumps(environment(), indent=2),
    }
    sections = [(part.title, _section(part)) for part in parts]
    sections += [(name, f"<pre>{html.escape(text)}</pre>") for name, text in about.items()]
    body, contents = [f"<p>{NOTES}</p>"], []
    for number, (name, content) in enumerate(sections):
        contents.append(f'<a href="#part{number}">{html.escape(name)}</a>')
        body += [f'<h2 id="part{number}">{html.escape(name)}</h2>', content]
    title = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n<nav>{chr(10).join(contents)}</nav>\n"
        f"{chr(10).join(body)}\n</body>\n</html>\n"
    )


def _section(part: Part) -> str:
    """Return a part in HTML: its table, its figures, and its further tables, collapsed."""
    content = [_as_html(part.shown, part.best), '<div class="figures">']
    for name, picture in part.pictures.items():
        encoded = base64.b64encode(picture).decode()
        alt = html.escape(f"{part.title}: {name}")
        content.append(f'<img alt="{alt}" src="data:image/png;base64,{encoded}">')
    content.append("</div>")
    for name, shown in part.details.items():
        summary = f"<summary>{html.escape(name)}</summary>"
        content.append(f"<details>{summary}{_as_html(shown)}</details>")
    return "\n".join(content)


def _as_html(shown: pd.DataFrame, best: pd.DataFrame | None = None) -> str:
    """Return a table in HTML: deviations below their means, and the best cells in bold."""

    def escaped(cell: object) -> str:
        return SECOND_LINE.sub(r"<small>\1</small>", html.escape(str(cell)))

    cells = shown.map(escaped)
    if best is not None:
        cells = cells.mask(best, "<b>" + cells + "</b>")
    with pd.option_context("display.max_colwidth", None):
        return cells.rename(index=escaped, columns=escaped).to_html(escape=False, border=0)
