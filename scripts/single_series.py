"""Measure the default estimator on single regular series, as they stand in textbooks.

    python scripts/single_series.py FOLDER [NAME ...]

The folder holds series of R's package `datasets`, each as NAME.csv with the values in its last
column. The last three horizons are asked for, one after the other, by a predictor that was trained
on everything before them. Quantile losses are those of the deciles, as shares of the mean step from
one value to the next; `ratio` is that of the defaults to the better one of hold and the seasonal
naive forecast. The table is also written to single_series.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry
from gluonts.dataset.split import split
from gluonts.model.predictor import Predictor
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from rich.console import Console

from deltaflow import GRUFlowEstimator, HoldPredictor
from deltaflow.tables import as_rich

SERIES = {
    "AirPassengers": ("M", 12), "nottem": ("M", 12), "UKDriverDeaths": ("M", 12),
    "USAccDeaths": ("M", 12), "UKgas": ("Q", 4), "JohnsonJohnson": ("Q", 4), "austres": ("Q", 8),
    "LakeHuron": ("Y", 4), "lynx": ("Y", 6), "sunspot.year": ("Y", 6), "nhtemp": ("Y", 6),
    "discoveries": ("Y", 6), "Nile": ("Y", 6), "airmiles": ("Y", 3), "BJsales": ("D", 10),
    "WWWusage": ("min", 10),
}  # fmt: skip
"""The frequency of each series, and how many values are asked for at a time."""

SEASONS = {"M": 12, "Q": 4}
"""The number of values in a year."""

LEVELS = np.arange(1, 10) / 10

Pairs = Sequence[tuple[DataEntry, DataEntry]]


def main() -> None:
    """Train on each series, and print a table."""
    print_table(__doc__, SERIES, measured, "single series")


def print_table(
    doc: str | None,
    names: Iterable[str],
    measured: Callable[[Path, str], dict[str, float]],
    title: str,
) -> None:
    """Measure what the command line names, by default all names; print and write a table."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(names))
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.names:
        rows[name] = measured(arguments.folder, name)
        print(name, rows[name], flush=True)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.to_csv(f"{title.replace(' ', '_')}.csv", index_label="series")
    Console().print(as_rich(table.round(2).astype(str), title))


def measured(folder: Path, name: str) -> dict[str, float]:
    """Return the losses on a series, and the share that the 80 % interval covers."""
    freq, length = SERIES[name]
    values = pd.read_csv(folder / f"{name}.csv").iloc[:, -1].to_numpy(np.float32)
    series = {"start": pd.Period("1900-01-01", freq), "target": values, "item_id": name}
    known, template = split([series], offset=-3 * length)
    pairs = list(template.generate_instances(length, windows=3))
    hold = HoldPredictor.fit(known, length)
    naive = SeasonalNaivePredictor(length, season_length=SEASONS.get(freq, 1))
    trainer_kwargs = {"enable_progress_bar": False}
    estimator = GRUFlowEstimator(length, seed=0, trainer_kwargs=trainer_kwargs)
    scores = [scored(model, pairs) for model in (hold, naive, estimator.train(known))]
    losses = [loss for loss, _ in scores]
    return {
        "rows": len(next(iter(known))["target"]),
        "horizon": length,
        "hold": losses[0],
        "naive": losses[1],
        "defaults": losses[2],
        "ratio": losses[2] / min(losses[:2]),
        "80 % covers": scores[2][1],
    }


def scored(predictor: Predictor, pairs: Pairs) -> tuple[float, float]:
    """Return the quantile loss, and the share of the values between the outer deciles."""
    losses, covered = [], []
    forecasts = predictor.predict([known for known, _ in pairs])
    for forecast, (known, later) in zip(forecasts, pairs, strict=True):
        deciles = np.array([forecast.quantile(float(level)) for level in LEVELS])
        over, levels = later["target"] - deciles, LEVELS[:, None]
        over = over[:, np.isfinite(later["target"])]
        loss = np.maximum(levels * over, (levels - 1) * over).mean()
        losses.append(loss / np.nanmean(np.abs(np.diff(known["target"]))))
        covered.append((over[0] >= 0) & (over[-1] <= 0))
    return float(np.mean(losses)), float(np.hstack(covered).mean())


if __name__ == "__main__":
    main()
