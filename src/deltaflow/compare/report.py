"""The results of a comparison as files: CSV, Markdown, figures, and one page with everything."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; display: block; margin: 1em 0; }
pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 12px; }
.wide { overflow-x: auto; }
"""

NOTES = """
Values are means over the seeds ± their standard deviation. "Balanced" is the mean over the
channels, each divided by its own unit first (its standard deviation in the training set, if the
task names no other), so that no channel rules it; the plain quantile loss pools all values. The
quantile loss is that of the nine deciles, weighted by the size of the values. A forecast is timed
in batches, on the machine below; "f evaluations" are those of the vector field of an ODE.
"MSE / hold" is the ratio of the balanced MSE to that of hold, which repeats the last value; its
95 % interval is that of bootstrap samples of the items. "Averaged" rows average the
forecasts of all seeds: their means, and their quantiles level by level.
"""

COSTS = {"seconds_per_epoch": "seconds per epoch", "ms_per_forecast": "milliseconds per forecast"}
"""The costs against which accuracy is drawn, and how their axes are named."""


def write_report(runs: Sequence[Run], config: CompareConfig) -> None:
    """Write `results.csv`, `table.md`, `figures/*.png` and `index.html` into the output folder.

    The page holds figures and tables itself, so that it can be sent as one file.
    """
    scores = table.results(runs)
    write(config.output / "results.csv", scores.to_csv(index=False))
    tables = _tables(runs, scores)
    text = [f"## {title}\n\n{as_markdown(shown)}" for title, shown in tables.items()]
    write(config.output / "table.md", "\n".join(text))
    pictures = _pictures(runs, scores, config)
    for title, picture in pictures.items():
        write(config.output / "figures" / f"{_file_name(title)}.png", picture)
    write(config.output / "index.html", _page(tables, pictures, config))


def tests_of(runs: Sequence[Run]) -> list[str]:
    """Return the names of all tests, in the order of the runs."""
    return list(dict.fromkeys(test for run in runs for test in run["scores"]))


def _tables(runs: Sequence[Run], scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return every table by its title."""
    tables = {}
    for test in tests_of(runs):
        tables[test] = table.overview(runs, test)
        tables[f"{test}: MSE / hold by channel"] = table.channels(runs, test)
        for measure, title in table.BY_CHANNEL.items():
            tables[f"{test}: {title} by channel"] = table.by_channel(scores, test, measure)
    tables["Failed runs"] = table.failures(runs)
    return {title: shown for title, shown in tables.items() if len(shown)}


def _pictures(runs: Sequence[Run], scores: pd.DataFrame, config: CompareConfig) -> dict[str, bytes]:
    """Return every figure by its title, as PNG."""
    drawn: dict[str, Figure | None] = {}
    for test in tests_of(runs):
        for cost, label in COSTS.items():
            drawn[f"{test}: accuracy against {label}"] = figures.accuracy_by_cost(
                scores, test, cost, label
            )
        drawn[f"{test}: calibration"] = figures.calibration(scores, test)
        drawn[f"{test}: forecasts"] = figures.forecasts(runs, test)
    for dataset in config.data.names:
        drawn[f"{Path(dataset).name}: learning curves"] = figures.learning_curves(runs, dataset)
    return {title: _png(figure) for title, figure in drawn.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _file_name(title: str) -> str:
    return title.replace(": ", "-").replace(" ", "_")


def _page(
    tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, bytes], config: CompareConfig
) -> str:
    """Return the HTML page."""
    parts = [f"<p>{NOTES}</p>"]
    for title, shown in tables.items():
        level = "h3" if ": " in title else "h2"
        parts.append(f"<{level}>{html.escape(title)}</{level}>")
        parts.append(f'<div class="wide">{shown.to_html(border=0)}</div>')
    parts.append("<h2>Figures</h2>")
    for title, picture in pictures.items():
        encoded = base64.b64encode(picture).decode()
        parts.append(f"<h3>{html.escape(title)}</h3>")
        parts.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{encoded}">')
    plain = yaml.safe_dump(config.to_dict(), sort_keys=False)
    parts.append(f"<h2>Configuration</h2><pre>{html.escape(plain)}</pre>")
    machine = json.dumps(environment(), indent=2)
    parts.append(f"<h2>Versions and machine</h2><pre>{html.escape(machine)}</pre>")
    title = f"Comparison: {', '.join(Path(name).name for name in config.data.names)}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{chr(10).join(parts)}\n</body>\n</html>\n"
    )
