"""Train in one or several processes, and write what each of them saw. The tests run it.

python train_distributed.py DIRECTORY {module,estimator}
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from deltaflow import (
    ForecastLightningModule,
    IrregularDataModule,
    IrregularDataset,
    LinearFlowEstimator,
)
from deltaflow.tasks import TaskDataModule

BATCH_SIZE = 5  # two processes have 3 and 2 windows of it


def numbered(num_items: int, first: int = 0) -> IrregularDataset:
    """Series in which no value occurs twice, so that a window's target tells where it is from."""
    random = np.random.default_rng(first)
    items = np.repeat(np.arange(num_items), 6 + np.arange(num_items) % 5)
    missing = random.random(len(items)) < 0.2
    frame = pd.DataFrame(
        {
            "item_id": items,
            "timestamp": pd.Series(random.exponential(1.0, len(items))).groupby(items).cumsum(),
            "HR": first + np.arange(len(items), dtype=float),
            "MAP": np.where(missing, np.nan, random.normal(size=len(items))),
        }
    )
    return IrregularDataset.from_long_dataframe(frame, target=["HR", "MAP"])


class Record(pl.Callback):
    """Keeps the windows of every batch, by their first query, and the losses and weights."""

    def __init__(self) -> None:
        self.training, self.validation = [], []
        self.losses, self.logged, self.validation_losses, self.weights = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.training.append(first_targets(batch))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())
        self.logged.append(trainer.callback_metrics["train_loss_step"].item())
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])

    def on_validation_batch_start(self, trainer, pl_module, batch, *numbers) -> None:
        self.validation.append(first_targets(batch))

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validation_losses.append(trainer.callback_metrics["val_loss"].item())


def first_targets(batch) -> list[int]:
    asked = batch.target_observed[:, 0, 0]
    values = batch.loc[:, 0] + batch.scale[:, 0] * batch.target[:, 0, 0]
    return [round(value) for value in values[asked].tolist()]


def judged(trainer: pl.Trainer) -> list[dict[str, float]]:
    """The scores of validation and test of a task, by a network of fixed weights."""
    data = TaskDataModule("clinical_sample", context_length=16, batch_size=59)  # of 60, in the test
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ForecastLightningModule(
            data.reader, data.prediction_length, network="channelwise", hidden_size=8
        )
    scored = (trainer.validate, trainer.test)
    return [score(module, datamodule=data, verbose=False)[0] for score in scored]


def train(kind: str, devices: int) -> dict:
    """Train two epochs in float64, where sums in another order differ by little."""
    record = Record()
    # 46 training windows, if each is taken once, and 11 for validation: the last batch has one.
    training, validation = numbered(7), numbered(11, first=1000)
    lengths = {"prediction_length": 3, "context_length": 5}
    trainer_kwargs = {
        "accelerator": "cpu",
        "devices": devices,
        "strategy": "ddp" if devices > 1 else "auto",
        "precision": "64-true",
        "max_epochs": 2,
        "gradient_clip_val": 1.0,
        "num_sanity_val_steps": 0,
        "callbacks": [record],
        "logger": DummyLogger(),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    # DDP trains the weights, and draws the windows, of the first process.
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
    if kind == "estimator":
        estimator = LinearFlowEstimator(
            **lengths,
            hidden_size=8,
            batch_size=BATCH_SIZE,
            num_batches_per_epoch=4,
            trainer_kwargs=trainer_kwargs,
        )
        module, trainer, predictor = estimator.train_model(training, validation)
        statistics = predictor.reader.statistics
    else:
        data = IrregularDataModule(
            training, validation, **lengths, origins="sliding", batch_size=BATCH_SIZE
        )
        module = ForecastLightningModule(data.reader, data.prediction_length, hidden_size=8)
        trainer = pl.Trainer(enable_checkpointing=False, **trainer_kwargs)
        trainer.fit(module, datamodule=data)
        statistics = data.reader.statistics
    trainer.callbacks.remove(record)  # what follows is no part of the training
    return {
        "rank": trainer.global_rank,
        "training": record.training,
        "validation": record.validation,
        "losses": record.losses,
        "logged": record.logged,
        "validation_losses": record.validation_losses,
        "weights": record.weights,
        "final_weights": list(module.state_dict().values()),
        "statistics": statistics.to_dict(),
        "judged": judged(trainer) if kind == "module" else None,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    seen = train(sys.argv[2], devices=2)
    torch.save(seen, Path(sys.argv[1]) / f"{seen['rank']}.pt")
