"""Show where one row of a comparison forecasts better than another, after `deltaflow compare`.

    python scripts/where_it_helps.py comparison/physionet2012 gru_flow gru

The squared errors of both are split by the time from the last value of the channel to the query, by
the time from the forecast origin to the query, and by the number of known values of the channel.
Each split has four rows with a quarter of the targets. Errors are means over seeds and channels, in
the units of the task.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from torch.utils.data import DataLoader

from deltaflow import IrregularPredictor
from deltaflow.data import Batch
from deltaflow.data.windows import LabelledWindows
from deltaflow.tasks import load_task
from deltaflow.tasks.task import Task


def main() -> None:
    """Forecast the tests of a comparison with the predictors that it kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output of `deltaflow compare`")
    parser.add_argument("rows", nargs="+", help="the rows, each in ratio to the last one")
    options = parser.parse_args()
    config = yaml.safe_load((options.folder / "config.yaml").read_text())
    task = load_task(config["data"]["dataset"], config["data"]["dataset_kwargs"])
    folders = {
        row: sorted((options.folder / "runs").glob(f"{task.name}-{row}-seed?"))
        for row in options.rows
    }
    targets = None
    for row, seeds in folders.items():
        frames = [forecast_errors(IrregularPredictor.deserialize(seed), task) for seed in seeds]
        if targets is None:
            targets = frames[0].drop(columns="error")
        targets[row] = np.mean([frame["error"] for frame in frames], axis=0)
    for about in ("hours since the last value", "hours from the origin", "values known"):
        print(split(targets, about, options.rows).round(3).to_string(index=False), end="\n\n")


def forecast_errors(predictor: IrregularPredictor, task: Task) -> pd.DataFrame:
    """Return a row per target of the test: its channel, squared error, times and known values."""
    reader, network = predictor.reader, predictor.network
    hours = reader.statistics.typical_gap / pd.Timedelta("1h").total_seconds()
    scale = torch.as_tensor(task.scale)
    parts = []
    (test,) = task.tests.values()
    for batch in DataLoader(
        LabelledWindows(test, reader), batch_size=64, collate_fn=reader.collate
    ):
        mask = batch.target_observed
        series, query, channel = mask.nonzero(as_tuple=True)
        with torch.no_grad():
            mean, *_ = network.at_targets(batch)
        error = (mean - batch.target[mask]) * batch.scale[series, channel] / scale[channel]
        gap = batch.query_delta_t[series, query]
        parts.append({
            "channel": channel,
            "error": error**2,
            "hours since the last value": hours * (gap + age(batch)[series, channel]),
            "hours from the origin": hours * gap,
            "values known": batch.observed.sum(1)[series, channel],
        })  # fmt: skip
    joined = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return pd.DataFrame(joined)


def age(batch: Batch) -> torch.Tensor:
    """Return the time ``(B, C)`` from the last value of each channel to the forecast origin."""
    elapsed = batch.delta_t.cumsum(1)
    newest = (elapsed.unsqueeze(-1) * batch.observed).amax(1)
    return elapsed[:, -1:] - newest


def split(targets: pd.DataFrame, about: str, rows: list[str]) -> pd.DataFrame:
    """Return the ratios of the rows' squared errors to the last one's, by quarters of targets."""
    counts = targets["channel"].map(targets["channel"].value_counts())
    weighted = targets[rows].div(counts, axis=0)  # so that they sum up to the sum over channels
    quarters = pd.qcut(targets[about], 4, duplicates="drop")
    sums = weighted.groupby(quarters, observed=True).sum()
    share = sums[rows[-1]] / sums[rows[-1]].sum()
    table = sums[rows[:-1]].div(sums[rows[-1]], axis=0)
    table.insert(0, f"share of {rows[-1]}'s MSE", share)
    table.insert(0, about, [f"{low.left:.3g} to {low.right:.3g}" for low in table.index])
    return table


if __name__ == "__main__":
    main()
