"""Training several networks at the same time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import joblib
import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import track
from torch import Tensor

from deltaflow.randomness import seeded_run
from deltaflow.training import engine

MOST_STEPS_IN_TURN = 2000
"""If networks are trained for at most so many steps altogether, starting processes, each of which
imports all libraries, takes longer than it saves."""

PLAIN = ("max_epochs", "gradient_clip_val", "precision", "enable_progress_bar",
         "enable_model_summary", "accelerator")  # fmt: skip
"""The arguments of Lightning's Trainer with which networks may be trained in other processes.
Callbacks keep state that the caller may want to see, and loggers write to the same files."""


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
    seed
        Seed of all that is random in training, such as dropout.
    epochs
        The number of epochs of training; 0 before it.
    """

    module: pl.LightningModule
    data: pl.LightningDataModule
    trainer_kwargs: Mapping[str, Any]
    monitor: str
    callbacks: Sequence[Callback]
    seed: int
    epochs: int = 0

    def train(self) -> None:
        """Train the module to its best epoch, see `deltaflow.training.engine.train`."""
        with seeded_run(self.seed):
            trainer = engine.train(
                self.module,
                self.data,
                self.trainer_kwargs,
                monitor=self.monitor,
                callbacks=self.callbacks,
            )
        self.epochs = trainer.current_epoch
