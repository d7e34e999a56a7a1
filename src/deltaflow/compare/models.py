"""The rows of the table: encoders and baselines, trained on a task."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from gluonts.model.predictor import Predictor
from lightning.pytorch.callbacks import Callback, EarlyStopping

from deltaflow.compare import baselines
from deltaflow.compare.options import RowOptions
from deltaflow.compare.progress import Tell
from deltaflow.compare.resampled import ResampledEstimator, deepar
from deltaflow.data.windows import joined
from deltaflow.errors import DataError
from deltaflow.forecast.conformal import ConformalPredictor
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.hold import HoldPredictor
from deltaflow.forecast.network_predictor import IrregularPredictor
from deltaflow.forecast.predictor import DeltaflowPredictor, leads_of, load_directory
from deltaflow.forecast.seasonal import SeasonalPredictor
from deltaflow.tasks.task import Task, known_before
from deltaflow.training import engine
from deltaflow.training.estimator import GRUFlowEstimator, IrregularEstimator
from deltaflow.training.widening import whole_items, widened


class Trained(NamedTuple):
    """A trained row.

    Attributes
    ----------
    predictor
        Its predictor.
    num_parameters
        The number of its weights.
    curve
        A record per epoch: `train_loss`, `val_loss`, and `seconds` of training without validation.
    network
        The predictor of the encoder, without widening; None for a baseline.
    """

    predictor: Predictor
    num_parameters: int = 0
    curve: Sequence[dict[str, float]] = ()
    network: IrregularPredictor | None = None


def train_row(row: str, options: RowOptions, seed: int, tell: Tell, task: Task) -> Trained:
    """Train a row of the table, with the global random state seeded by the caller.

    Rows other than the baselines train the encoder that the options describe.
    """
    return BASELINES.get(row, _train_encoder)(task, options, seed, tell)


def _train_encoder(task: Task, options: RowOptions, seed: int, tell: Tell) -> Trained:
    """Train an encoder on random windows until its validation loss stops improving."""

    def estimator_of(**model: Any) -> IrregularEstimator:
        averaging = options.weight_averaging.decay
        callbacks = [] if averaging is None else [engine.moving_average(averaging)]
        return IrregularEstimator(
            task.prediction_length,
            **vars(options.data),
            **{**vars(options.model), **model},
            **vars(options.optimizer),
            seed=seed,
            trainer_kwargs=_trainer_kwargs(options, curve, *callbacks),
        )

    curve = LearningCurve(tell)
    model: dict[str, Any] = {}
    if options.emphasis:
        variation = task.statistics["variation"][: len(task.units)] / task.units
        model["channel_weights"] = (variation**options.emphasis).tolist()
    if options.num_parameters is not None:
        data = estimator_of().create_data_module(task.training)
        model["hidden_size"] = matching_size(
            lambda size: _count(estimator_of(hidden_size=size).create_lightning_module(data)),
            options.num_parameters,
        )
    output = estimator_of(**model).train_model(task.training, task.validation)
    predictor = network = output.predictor
    if options.widening:
        predictor = widened(network, output.data, whole_items(task.validation))
    return Trained(predictor, _count(output.trained_net), curve.epochs, network)


def _hold(task: Task) -> HoldPredictor:
    return HoldPredictor.fit(known_before(task), task.prediction_length)


def _fit_least_squares(task: Task, *_: object) -> Trained:
    predictor = baselines.fit_least_squares(task)
    return Trained(predictor, predictor.weights.size)


def _fit_process(task: Task, *_: object) -> Trained:
    predictor = GaussianProcessPredictor.fit(known_before(task), task.prediction_length)
    return Trained(predictor, predictor.theta.size)


def _fit_seasonal(task: Task, *_: object) -> Trained:
    predictor = SeasonalPredictor.fit(known_before(task), task.prediction_length)
    return Trained(predictor, sum(own.size for own in predictor.coefficients))


def _train_defaults(task: Task, *_: object) -> Trained:
    """Train the estimator with its defaults, on all data before the tests."""
    trainer_kwargs = {"enable_progress_bar": False, "enable_model_summary": False}
    estimator = GRUFlowEstimator(task.prediction_length, trainer_kwargs=trainer_kwargs)
    predictor = estimator.train(known_before(task))
    return Trained(predictor, _num_weights(predictor))


def _num_weights(predictor: DeltaflowPredictor) -> int:
    """Return the number of weights of a predictor and of its members."""
    if isinstance(predictor, IrregularPredictor):
        return _count(predictor.network)
    return sum(map(_num_weights, predictor.members))


def _train_trees(task: Task, options: RowOptions, seed: int, tell: Tell) -> Trained:
    """Fit boosted trees; each leaf counts as a weight."""
    return Trained(*baselines.fit_boosted_trees(task, seed, torch.get_num_threads(), tell))


def _train_resampled(task: Task, options: RowOptions, seed: int, tell: Tell) -> Trained:
    """Train DeepAR on the grid, with the batch size of the encoders, for all channels.

    It keeps its own dropout and weight decay: the comparison's decay, meant for AdamW, would be a
    harmful L2 penalty in DeepAR's Adam, and without dropout its sampled paths drift.
    """
    if task.schema.time == "regular":
        raise DataError("the series are regular already", f"compare without {RESAMPLED}")
    channels = len(task.schema.target)
    curve = LearningCurve(tell)
    with TemporaryDirectory(prefix="deltaflow-") as scratch:  # GluonTS writes checkpoints there
        estimator = deepar(
            options.resampled_step,
            horizon=f"{_horizon_seconds(task)}s",
            num_channels=channels,
            hidden_size=options.model.hidden_size,
            lr=options.optimizer.lr,
            batch_size=options.data.batch_size * channels,
            num_batches_per_epoch=options.data.num_batches_per_epoch,
            trainer_kwargs={**_trainer_kwargs(options, curve), "default_root_dir": scratch},
        )
        resampled = ResampledEstimator(task.prediction_length, options.resampled_step, estimator)
        predictor = resampled.train(task.training, [joined(*pair) for pair in task.validation])
    return Trained(predictor, curve.num_parameters, curve.epochs)


HOLD = "hold"
LAST_VALUE = "last_value"
RESAMPLED = "resampled_deepar"

BASELINES: dict[str, Callable[[Task, RowOptions, int, Tell], Trained]] = {
    HOLD: lambda task, *_: Trained(_hold(task)),
    LAST_VALUE: lambda task, *_: Trained(_hold(task).without_width()),
    "training_mean": lambda task, *_: Trained(baselines.fit_training_mean(task)),
    "item_mean": lambda task, *_: Trained(baselines.fit_item_mean(task)),
    "item_trend": lambda task, *_: Trained(baselines.fit_item_trend(task)),
    "least_squares": _fit_least_squares,
    "gaussian_process": _fit_process,
    "seasonal": _fit_seasonal,
    "defaults": _train_defaults,
    "boosted_trees": _train_trees,
    RESAMPLED: _train_resampled,
}
"""The functions that train the baselines, by name."""


def average_of(folders: Sequence[Path], calibrate: bool, task: Task) -> Trained:
    """Return the average of encoders trained with several seeds, from their folders.

    Calibration, if requested, uses the validation data of the task.
    """
    predictor: DeltaflowPredictor = EnsemblePredictor([load_directory(one) for one in folders])
    if calibrate:
        predictor = ConformalPredictor.fit(predictor, task.validation)
    return Trained(predictor, _num_weights(predictor))


def matching_size(count: Callable[[int], int], wanted: int) -> int:
    """Return the hidden size, up to 1024, with the number of parameters closest to a target.

    Parameters
    ----------
    count
        The number of parameters for a hidden size, with which it increases.
    wanted
        The number of parameters.

    Examples
    --------
    >>> matching_size(lambda size: 3 * size**2, wanted=310)
    10
    """
    low = 1 + bisect_left(range(1, 1024), wanted, key=count)  # the smallest size that has enough
    return min((max(1, low - 1), low), key=lambda size: abs(count(size) - wanted))


class LearningCurve(Callback):
    """Records the losses and the training time of each epoch.

    Parameters
    ----------
    tell
        Called after each epoch.
    """

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.epochs: list[dict[str, float]] = []
        self.num_parameters = 0
        self._began = self._seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.num_parameters = _count(pl_module)
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stop the clock before the validation."""
        self._seconds = time.perf_counter() - self._began

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch."""
        losses = {
            name: float(trainer.callback_metrics[name]) for name in ("train_loss", "val_loss")
        }
        self.epochs.append({**losses, "seconds": self._seconds})
        done, most = len(self.epochs), trainer.max_epochs or 1
        loss = f"validation loss {losses['val_loss']:.4g}"
        self.tell(f"epoch {done} of {most}, {loss}", done / most)


def _trainer_kwargs(options: RowOptions, *callbacks: Callback) -> dict[str, Any]:
    """Return the arguments of Lightning's trainer for every row that it trains."""
    return {
        **vars(options.trainer),
        "callbacks": [EarlyStopping("val_loss", **vars(options.early_stopping)), *callbacks],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }


def _horizon_seconds(task: Task) -> float:
    """Return the longest time from a last observation to a query of the validation."""
    known = (entry for entry in task.validation.input if entry["target"].shape[-1])
    leads = [leads_of(entry, task.prediction_length) for entry in known]
    return float(np.nanmax(np.concatenate([[0.0], *leads])))  # NaN is padding


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
