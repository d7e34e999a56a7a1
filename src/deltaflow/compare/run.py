"""The runs of a comparison: each is trained, scored and written to its own file."""

from __future__ import annotations

import json
import os
import platform
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from hashlib import sha256
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gluonts.dataset.split import TestData
from gluonts.model import Forecast
from rich.console import Console

from deltaflow.compare import score
from deltaflow.compare.config import CompareConfig
from deltaflow.compare.models import Trained, average_of, train_row
from deltaflow.compare.progress import Progress
from deltaflow.data.series import is_irregular
from deltaflow.process import quiet, threads
from deltaflow.randomness import seeded_run
from deltaflow.saving import MARKER, write
from deltaflow.tasks import TASKS, Task, load_task

Run = dict[str, Any]
"""One finished or failed run, as its JSON file holds it: `dataset, encoder, seed` (null for an
average over the seeds), `status` ("finished" or "failed"), `settings`, `environment`, `curve` (see
`Trained`), `scores` (by test, then by measure), `squared_errors` and `examples` (by test, see the
functions of these names), `predictor` (the folder beside it that holds an encoder's, null for
others) and `errors` (tracebacks, by stage: `training` or a test)."""

NUM_EXAMPLES = 3
"""The number of items per test whose forecasts are kept for figures."""

VERSIONS = (
    "deltaflow", "gluonts", "lightning", "numpy", "pandas", "torch", "torchcde", "torchdiffeq",
)  # fmt: skip


def run_comparison(config: CompareConfig, console: Console | None = None) -> list[Run]:
    """Run every row of a comparison on every data set with every seed, and average over seeds.

    A failing run is recorded with its error, and the others continue. Runs that are already
    finished in `config.output`, with the same settings, are not repeated.

    Parameters
    ----------
    config
        The comparison.
    console
        The console for progress; None for no output. The lines are also written to
        `config.output/log.txt`.

    Returns
    -------
    list of Run
        All runs, in the order of data sets, rows and seeds; an average follows its members.
    """
    folder = config.output / "runs"
    write(config.output / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    write(config.output / "environment.json", json.dumps(environment(), indent=2))
    console = console or Console(quiet=True)
    runs, data = list[Run](), config.data

    @lru_cache(maxsize=1)
    def load(dataset: str) -> Task:
        return load_task(dataset, data.dataset_kwargs, data.columns, data.split)

    rows = list(product(data.names, config.rows))
    # An average takes almost no time, so the estimate of the time left ignores it.
    plan = [None if seed is None else row for row in rows for seed in config.seeds_of(row[1])]
    with threads(config.threads), Progress(plan, console, config.output / "log.txt") as progress:
        for dataset, row in rows:
            members: list[Path] = []
            for seed in config.seeds_of(row):
                name = f"{row} (averaged)" if seed is None else row
                about: Run = {"dataset": dataset, "encoder": name, "seed": seed}
                seeded = [] if seed is None else [f"seed {seed}"]
                progress.begin(" · ".join([Path(dataset).name, name, *seeded]))
                path = folder / f"{_file_name(dataset, row, seed)}.json"
                if seed is not None:
                    settings, options = config.settings(row), config.row_options(row)
                    train = partial(train_row, row, options, seed, progress.tell)
                elif len(members) < 2:
                    progress.end("needs two finished seeds")
                    continue
                else:
                    calibrate = config.calibrate_averages
                    digests = {one.name: sha256(one.read_bytes()).hexdigest() for one in members}
                    settings = digests | {"calibrate_averages": calibrate}
                    folders = [one.with_suffix("") for one in members]
                    train = partial(average_of, folders, calibrate)
                run = _finished(path, settings)
                if run is None:
                    found = execute(train, seed or 0, load(dataset), path.with_suffix(""))
                    run = {**about, "settings": settings, **found}
                    write(path, json.dumps(run, separators=(",", ":")))
                progress.end("; ".join(error.splitlines()[-1] for error in run["errors"].values()))
                runs.append(run)
                if run["status"] == "finished":
                    members.append(path)
    return runs


def execute(
    train: Callable[[Task], Trained], seed: int, task: Task, folder: Path | None = None
) -> Run:
    """Train, and score on every test of the task; errors become part of the result.

    Parameters
    ----------
    train, seed, task
        The function that trains a row, its seed, and the task.
    folder
        The folder for the predictor of an encoder; not kept if None.
    """
    run: Run = {"environment": environment(), "curve": [], "predictor": None}
    run |= {"scores": {}, "squared_errors": {}, "examples": {}}
    errors: dict[str, str] = {}
    channels, trained = task.schema.target, None
    with quiet(), seeded_run(seed):
        with _recorded(errors, "training"):
            trained = train(task)
            run["curve"] = list(trained.curve)
            if folder is not None and trained.network is not None:
                trained.predictor.serialize(folder)
                run["predictor"] = folder.name
        for name, test in task.tests.items() if trained is not None else ():
            with _recorded(errors, name):
                forecasts, costs = score.timed_forecasts(trained, test)
                score.check_channels(forecasts, channels)
                accuracy = score.accuracy(forecasts, test, channels, task.units)
                run["scores"][name] = accuracy | costs
                run["squared_errors"][name] = score.squared_errors(forecasts, test, task.units)
                run["examples"][name] = example_forecasts(forecasts, test, channels)
    return run | {"status": "failed" if errors else "finished", "errors": errors}


def example_forecasts(
    forecasts: Sequence[Forecast], test: TestData, channels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the data for a plot of the forecasts of the most observed items.

    Returns
    -------
    list of dict
        `item`; `channels`, the D names; `time_unit`; `past_times` (T), `past` (D, T), `times` (Q),
        `future` (D, Q), and `low`, `median` and `high`, the quantiles of level 0.1, 0.5 and 0.9
        (D, Q).
    """
    pairs = list(test)
    seen = [sum(np.isfinite(part["target"]).sum() for part in pair) for pair in pairs]
    examples = []
    for number in np.argsort(seen, kind="stable")[::-1][:NUM_EXAMPLES]:
        (past, label), forecast = pairs[number], forecasts[number]
        length, count = past["target"].shape[-1], label["target"].shape[-1]
        times = np.arange(float(length + count))
        time_unit = "periods"
        if is_irregular(past):
            times = past["feat_dynamic_real"][0]
            time_unit = past["info"]["time_unit"]
        asked = np.isfinite(times[length:])
        levels = {"low": 0.1, "median": 0.5, "high": 0.9}
        matrices = {"past": past["target"], "future": label["target"][..., asked]}
        for name, level in levels.items():
            matrices[name] = forecast.quantile(level).T[..., asked]
        examples.append(
            {
                "item": str(past.get("item_id")),
                "channels": list(channels),
                "time_unit": time_unit,
                "past_times": times[:length].tolist(),
                "times": times[length:][asked].tolist(),
                **{name: np.atleast_2d(values).tolist() for name, values in matrices.items()},
            }
        )
    return examples


def environment() -> dict[str, Any]:
    """Return the versions and the machine, stored with every result."""
    return {
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _file_name(dataset: str, row: str, seed: int | None) -> str:
    """Return a readable name that is unique to data set, row and seed."""
    part = "averaged" if seed is None else f"seed{seed}"
    legible = re.sub(r"[^\w.-]+", "_", f"{Path(dataset).name}-{row}-{part}")
    return legible if dataset in TASKS else f"{legible}-{sha256(dataset.encode()).hexdigest()[:6]}"


def _finished(path: Path, settings: dict[str, Any]) -> Run | None:
    """Return the stored run if it has finished with these settings.

    A kept predictor must still exist, because averages are computed from it.
    """
    if not path.exists():
        return None
    run = json.loads(path.read_text(encoding="utf-8"))
    same = run["settings"] == json.loads(json.dumps(settings))
    if not (same and run["status"] == "finished"):
        return None
    there = run["predictor"] is None or (path.parent / run["predictor"] / MARKER).is_file()
    return run if there else None


@contextmanager
def _recorded(errors: dict[str, str], stage: str) -> Iterator[None]:
    """Record the traceback of an error and continue; interruptions are not caught."""
    try:
        yield
    except Exception:
        errors[stage] = traceback.format_exc()
