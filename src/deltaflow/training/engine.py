"""Training to the best epoch with Lightning's Trainer, for all models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
from lightning.fabric.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from deltaflow.process import quiet
from deltaflow.training.options import TrainerOptions

DEFAULTS: Mapping[str, Any] = {
    **vars(TrainerOptions()),
    "logger": False,
    "enable_model_summary": False,
}
"""The default arguments of Lightning's Trainer. Nothing is written to disk."""

_STATEFUL = (Checkpoint, EarlyStopping, StochasticWeightAveraging, WeightAveraging)
"""Callbacks of Lightning that keep state, which would carry over to the next training run."""

_UNUSED: WeakKeyDictionary[Callback, dict[str, Any]] = WeakKeyDictionary()
"""The attributes of such callbacks before their first training run."""


def train(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    trainer_kwargs: Mapping[str, Any] | None = None,
    ckpt_path: str | None = None,
    monitor: str = "val_loss",
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """Train a module, and leave it with the weights of its best epoch.

    The best epoch is the one with the lowest ``val_loss``, or another monitored value. Its weights
    are those that were validated: the averaged ones, if a callback such as `moving_average`
    averages them. Without validation, the weights of the last epoch are kept.
    ``StochasticWeightAveraging`` averages the last epochs and validates none of its averages; if
    training reaches its last epoch, that average is kept.

    Parameters
    ----------
    module
        The module, which logs ``val_loss`` in validation.
    data
        Its data.
    trainer_kwargs
        Arguments of Lightning's ``Trainer`` that override `DEFAULTS`; left unchanged. Loggers, and
        a ``ModelCheckpoint`` among the callbacks, write to their usual places.
    ckpt_path
        A Lightning checkpoint from which to resume; it contains the best epoch so far.
    monitor
        The logged value that is lowest at the best epoch.
    callbacks
        Further callbacks, after those of ``trainer_kwargs``.

    Returns
    -------
    lightning.pytorch.Trainer
        The trainer after training.
    """
    settings = {**DEFAULTS, **(trainer_kwargs or {})}
    settings["accelerator"] = usable_accelerator(settings.get("accelerator", "auto"))
    given = settings.pop("callbacks", None) or []
    every = [
        BestWeights(monitor),
        *(given if isinstance(given, (list, tuple)) else [given]),
        *callbacks,
    ]
    _renew(every)
    settings.setdefault("enable_checkpointing", any(isinstance(c, Checkpoint) for c in every))
    with quiet():
        trainer = pl.Trainer(callbacks=every, **settings)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.datamodule = data  # pyright: ignore[reportAttributeAccessIssue]  # in this process, too
    return trainer


def usable_accelerator(given: Any) -> Any:
    """Return the given accelerator, or the CPU where ``"auto"`` would choose Apple's GPU.

    The levels of series are kept in float64, which Apple's GPU lacks.
    """
    return "cpu" if given == "auto" and MPSAccelerator.is_available() else given


def moving_average(decay: float) -> WeightAveraging:
    """Return the callback that keeps an exponential moving average of the weights.

    Lightning's ``EMAWeightAveraging`` averages one parameter at a time, which on small networks
    takes longer than the optimiser's step; this averages all at once.
    """
    return WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(decay))


class BestWeights(Callback):
    """Keeps the weights with the lowest validation loss, as they were when they were validated.

    It leaves the module with them at the end of training. It must come before callbacks that swap
    the weights for their average during validation.

    Parameters
    ----------
    monitor
        The name under which the loss is logged.

    Attributes
    ----------
    loss
        The lowest validation loss.
    weights
        The module's state at that loss; empty before the first validation.
    """

    def __init__(self, monitor: str = "val_loss") -> None:
        self.monitor = monitor
        self.loss = math.inf
        self.weights: dict[str, Tensor] = {}
        self._validated: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the validated weights before another callback restores the trained ones."""
        state = pl_module.state_dict()
        # Cloned, because on the CPU detaching alone would share memory.
        self._validated = {name: value.detach().cpu().clone() for name, value in state.items()}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the copy if the loss, which is known now, is the lowest."""
        # Nothing is logged with barebones=True; the weights of the last epoch are then kept.
        loss = float(trainer.callback_metrics.get(self.monitor, math.inf))
        if not trainer.sanity_checking and loss < self.loss:
            self.loss, self.weights = loss, self._validated
        self._validated = {}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the kept weights, unless Lightning's SWA has just averaged the last epochs.

        A strategy such as ``ddp_spawn`` trains in processes of its own, of which only the module's
        weights come back.
        """
        if self.weights and not _is_averaged(trainer):
            pl_module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights and their loss, for a checkpoint."""
        return {"loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.loss, self.weights = state_dict["loss"], state_dict["weights"]


def _renew(callbacks: Iterable[Callback]) -> None:
    """Reset used callbacks, because an estimator may train more than once.

    A used ``EarlyStopping`` would stop too early, and a used ``EMAWeightAveraging`` would average
    nothing until it reaches the step at which it stopped before.
    """
    for callback in callbacks:
        if isinstance(callback, _STATEFUL):
            unused = _UNUSED.setdefault(callback, deepcopy(vars(callback)))
            vars(callback).clear()
            vars(callback).update(deepcopy(unused))


def _is_averaged(trainer: pl.Trainer) -> bool:
    """Return whether Lightning's SWA has put its average into the module at the end of training."""
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, StochasticWeightAveraging) and callback.n_averaged:
            return trainer.max_epochs == -1 or trainer.current_epoch > callback.swa_end
    return False
