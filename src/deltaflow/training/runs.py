"""Training several networks, at the same time if there are several processors."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import joblib
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from deltaflow.data import IrregularDataModule
from deltaflow.training import engine
from deltaflow.training.lightning_module import ForecastLightningModule

WORTH_A_PROCESS = 1000
"""With fewer steps of the optimiser altogether, starting processes, each of which imports all
libraries, takes longer than it saves."""

BOUND = (
    "callbacks", "devices", "enable_checkpointing", "logger", "num_nodes", "plugins", "profiler",
    "strategy",
)  # fmt: skip
"""The arguments of Lightning's ``Trainer`` that bind training to the caller's process: objects
whose state the caller may read, files that two networks would write, processes of its own."""


@dataclass
class Run:
    """A network to train.

    Attributes
    ----------
    module, data
        The module and its data.
    trainer_kwargs
        Arguments of Lightning's ``Trainer``.
    monitor
        The logged value that is lowest at the best epoch.
    callbacks
        Further callbacks.
    epochs
        The number of epochs trained so far.
    """

    module: ForecastLightningModule
    data: IrregularDataModule
    trainer_kwargs: Mapping[str, Any]
    monitor: str
    callbacks: Sequence[Callback]
    epochs: int = 0

    def train(self) -> None:
        """Train the module to its best epoch, see `deltaflow.training.engine.train`."""
        trainer = engine.train(
            self.module,
            self.data,
            self.trainer_kwargs,
            monitor=self.monitor,
            callbacks=self.callbacks,
        )
        self.epochs = trainer.current_epoch


def train_all(runs: Sequence[Run], processes: int | None = None) -> None:
    """Train networks, in several processes if that is faster; the weights are the same.

    Parameters
    ----------
    runs
        The networks, which get their weights and number of epochs. The arguments of their trainers
        are the same.
    processes
        The number of processes; by default, see `processes_for`.
    """
    if processes is None:
        processes = processes_for(runs) if runs else 1
    count = min(len(runs), processes)
    if count < 2:
        for run in runs:
            run.train()
        return
    # Without max_nbytes=None, workers would get large arrays that cannot be written to.
    parallel = joblib.Parallel(
        count,
        "loky",
        return_as="generator",
        max_nbytes=None,
        inner_max_num_threads=torch.get_num_threads(),
    )
    results: Any = parallel(joblib.delayed(_trained)(run) for run in runs)
    trained = zip(runs, results, strict=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    shown = runs[0].trainer_kwargs.get("enable_progress_bar", True)
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not shown)
    what = f"Training {len(runs)} networks in {count} processes"
    with bar:
        for run, (weights, epochs) in bar.track(trained, len(runs), description=what):
            run.module.load_state_dict(weights)
            run.epochs = epochs


def processes_for(runs: Sequence[Run]) -> int:
    """Return in how many processes to train: one per processor core, or only the present one.

    Networks stay in the present process if they train on an accelerator, are `BOUND` to it, or take
    fewer steps than `WORTH_A_PROCESS`; or if it is itself one of several.
    """
    kwargs = {**engine.DEFAULTS, **runs[0].trainer_kwargs}
    steps = (kwargs["max_epochs"] or 0) * sum(run.data.num_batches_per_epoch for run in runs)
    accelerator = engine.usable_accelerator(kwargs.get("accelerator", "auto"))
    on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    bound = any(kwargs.get(name) not in (None, False, "auto") for name in BOUND)
    alone = multiprocessing.parent_process() is None
    if on_cpu and not bound and alone and steps >= WORTH_A_PROCESS:
        return joblib.cpu_count(only_physical_cores=True)
    return 1


def _trained(run: Run) -> tuple[dict[str, Tensor], int]:
    """Train in a worker process; return the weights and the number of epochs."""
    _end_with_parent()
    run.trainer_kwargs = {**run.trainer_kwargs, "enable_progress_bar": False}
    run.train()
    return run.module.state_dict(), run.epochs


@cache
def _end_with_parent() -> None:
    """End this process when its parent is killed; joblib's would wait for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:  # always true on Windows
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
