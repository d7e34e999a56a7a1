"""The Lightning module: loss, optimiser, scores and forecasts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from gluonts.dataset.common import DataEntry
from gluonts.torch.distributions import Output
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from deltaflow.data import Batch, Reader
from deltaflow.errors import DeltaflowError, check_whole
from deltaflow.forecast.forecasts import RealTimeForecast, quantiles_of
from deltaflow.forecast.loading import FORMAT_KEY
from deltaflow.forecast.network_predictor import IrregularPredictor, advising, load_weights
from deltaflow.forecast.predictor import find_device
from deltaflow.heads import DECILES, describe_output, is_discrete, make_output
from deltaflow.model.networks import make_network, with_time_scales
from deltaflow.model.options import ModelOptions
from deltaflow.options import documents, options_from
from deltaflow.process import ignore_notes
from deltaflow.randomness import ONE_AT_A_TIME, check_seed, derived_seed, seeded
from deltaflow.saving import FORMAT, check_format
from deltaflow.training.metrics import ForecastScores, score_table
from deltaflow.training.options import OptimizerOptions

_WARM_UP = 0.05
_FINAL = 0.02
_SAMPLES = 200
"""The number of samples to score a distribution without a quantile function."""


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Describe the first option in which a stored network differs from the wanted one, if any."""
    shaping = ("encoder", "encoder_kwargs", "network", "network_kwargs", "hidden_size")
    for name in (*shaping, "distr_output"):
        if stored[name] != wanted[name]:
            return f"has {name} {stored[name]!r}, not {wanted[name]!r}"
    return None


@documents(ModelOptions, OptimizerOptions)
class ForecastLightningModule(pl.LightningModule):
    """The network, its loss and its optimiser, as Lightning trains them.

    ``load_from_checkpoint`` rebuilds it without arguments.

    Parameters
    ----------
    reader
        How series are read: ``data_module.reader``.
    prediction_length
        The number of queries of the predictor's windows: ``data_module.prediction_length``.
    seed
        Seed of the initial weights and of the dropout, whose noise depends only on the seed, the
        epoch and the batch, so that a resumed run repeats it. If None, both are drawn from torch's
        global random state.

    Examples
    --------
    >>> from deltaflow import ForecastLightningModule, IrregularDataModule
    >>> from deltaflow.tasks import regular_seasonal
    >>> data = IrregularDataModule(regular_seasonal(), prediction_length=4, context_length=24)
    >>> model = ForecastLightningModule(
    ...     data.reader, data.prediction_length, encoder="resnet_flow", hidden_size=8)
    >>> pl.Trainer(max_epochs=10).fit(model, data)  # doctest: +SKIP
    """

    def __init__(
        self,
        reader: Reader | Mapping[str, Any],
        prediction_length: int,
        encoder: str = "gru_flow",
        encoder_kwargs: Mapping[str, Any] | None = None,
        network: str = "joint",
        network_kwargs: Mapping[str, Any] | None = None,
        hidden_size: int = 32,
        dropout: float = 0.0,
        balance: float = 0.0,
        channel_weights: list[float] | None = None,
        distr_output: str | Mapping[str, Any] | Output = "student_t",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        seed: int | None = None,
    ) -> None:
        model = options_from(ModelOptions, locals())
        optimizer = options_from(OptimizerOptions, locals())
        super().__init__()
        ignore_notes()
        check_whole(1, prediction_length=prediction_length)
        check_seed(seed)
        self.reader = reader if isinstance(reader, Reader) else Reader.from_dict(reader)
        self.prediction_length = prediction_length
        self.network_arguments = with_time_scales(model.network_arguments, self.reader)
        with ONE_AT_A_TIME, seeded(seed):
            self.network = make_network(
                self.reader, make_output(distr_output), **self.network_arguments
            )
        self.seed = int(torch.randint(2**31, ())) if seed is None else seed
        # Hyperparameters are plain values, so that a checkpoint loads without executing code.
        self.save_hyperparameters(
            {
                "reader": self.reader.to_dict(),
                "prediction_length": prediction_length,
                **self.network_arguments,
                "distr_output": describe_output(distr_output),
                **vars(optimizer),
                "seed": self.seed,
            }
        )
        channels = self.reader.schema.target
        self.val_scores, self.test_scores = ForecastScores(channels), ForecastScores(channels)
        self._predictor: IrregularPredictor | None = None
        self._planned_lr: float | None = None  # of the optimiser and its schedule

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the distribution's arguments at the queries of a batch."""
        return self.network(batch)

    def setup(self, stage: str) -> None:
        """Check the device and the data module before the first batch.

        Raises
        ------
        DeltaflowError
            If the trainer runs on Apple's GPU, which has no float64; or if the data module scales
            series, or arranges their channels, in another way than this module.
        """
        find_device(self.trainer.strategy.root_device)
        data: Any = getattr(self.trainer, "datamodule", None)
        if getattr(data, "reader", self.reader) != self.reader:
            raise DeltaflowError(
                "the data module reads series in another way than the module was built for, such "
                "as with other channels or scales: give the data module reader=module.reader"
            )

    def on_fit_start(self) -> None:
        """Make the optimiser anew if ``LearningRateFinder`` has found another learning rate.

        Lightning changes that of the optimiser, which the next step of the schedule would undo.
        """
        if self._planned_lr not in (None, self.hparams["lr"]):
            self.trainer.strategy.setup_optimizers(self.trainer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss over the observed targets of a batch."""
        noise = derived_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)
        with seeded(noise, self.device):
            loss = self._mean_loss(batch, "train_loss")
        if self.trainer.loggers:  # to log takes longer than the optimiser's step
            self.log("train_loss_step", loss.detach(), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log the mean loss over the observed targets of a batch, and score its forecasts."""
        return self._mean_loss(batch, "val_loss", self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Do the same as `validation_step`, for the test."""
        return self._mean_loss(batch, "test_loss", self.test_scores)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation, see `ForecastScores`."""
        self._log_scores("val", self.val_scores)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test."""
        self._log_scores("test", self.test_scores)

    def on_validation_end(self) -> None:
        """Print the scores of ``Trainer.validate``."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._print_scores(self.trainer.validate_loop)

    def on_test_end(self) -> None:
        """Print the scores of ``Trainer.test``."""
        self._print_scores(self.trainer.test_loop)

    def on_predict_start(self) -> None:
        """Create the predictor that makes the forecasts."""
        self._predictor = self.to_predictor().to(self.device)

    def on_predict_end(self) -> None:
        """Delete the predictor, since the weights may change."""
        self._predictor = None

    def predict_step(
        self, batch: Sequence[DataEntry], batch_idx: int = 0
    ) -> list[RealTimeForecast]:
        """Return the forecasts of entries that end with their queries.

        For your own entries, give ``Trainer.predict`` a
        ``DataLoader(list(entries), batch_size=64, collate_fn=list)``.
        """
        predictor = self._predictor or self.to_predictor().to(self.device)
        return list(predictor.predict(batch))  # pyright: ignore[reportArgumentType]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reset the count of vector-field evaluations."""
        self.network.encoder.reset_num_evaluations()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the number of vector-field evaluations, including those of an adjoint solver."""
        if count := self.network.encoder.num_evaluations:
            self.log("num_evaluations", float(count), on_epoch=True, on_step=False, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the format, and averaged weights even in a weights-only checkpoint."""
        checkpoint[FORMAT_KEY] = FORMAT
        # A subclass that calls save_hyperparameters() without names has stored the object.
        checkpoint["hyper_parameters"]["reader"] = self.reader.to_dict()
        averaging = "current_model_state" in checkpoint
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, WeightAveraging) and not averaging:
                callback.on_save_checkpoint(self.trainer, self, checkpoint)
                checkpoint.pop("current_model_state", None)
                checkpoint.pop("averaging_state", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise an error for weights of another network, or of differently scaled data."""
        check_format(checkpoint.get(FORMAT_KEY), "the checkpoint")
        stored = checkpoint["hyper_parameters"]
        problem = difference(stored, self.hparams)
        # Compared as readers: equality of plain dictionaries ignores the order of the categories.
        if problem is None and Reader.from_dict(stored["reader"]) != self.reader:
            problem = "was trained on other data, or with other windows"
        if problem is not None:
            raise DeltaflowError(
                f"the checkpoint {problem}; ForecastLightningModule.load_from_checkpoint(path) "
                "restores the model as it was trained"
            )
        self.seed = self.hparams["seed"] = stored["seed"]

    @classmethod
    def from_predictor(
        cls, predictor: IrregularPredictor, lr: float = 3e-3, weight_decay: float = 1e-4
    ) -> ForecastLightningModule:
        """Return a module with a predictor's scaling and a copy of its weights."""
        module = cls(
            predictor.reader,
            predictor.prediction_length,
            **predictor.network_arguments,
            distr_output=predictor.distr_output,
            lr=lr,
            weight_decay=weight_decay,
        )
        module.network.load_state_dict(predictor.network.state_dict())
        return module

    def to_predictor(
        self, sampling: str = "marginal", num_parallel_samples: int = 100, batch_size: int = 64
    ) -> IrregularPredictor:
        """Return a GluonTS predictor with a copy of the weights, see `IrregularPredictor`.

        Raises
        ------
        DeltaflowError
            If a weight is not finite, for example after training with too high a learning rate.
        """
        predictor = IrregularPredictor(
            reader=self.reader.to_dict(),
            prediction_length=self.prediction_length,
            network=self.network_arguments,
            distr_output=self.hparams["distr_output"],
            sampling=sampling,
            num_parallel_samples=num_parallel_samples,
            batch_size=batch_size,
        )
        try:
            load_weights(predictor.network, self.network.state_dict())
        except ValueError as error:
            raise DeltaflowError(f"{error}: train again, at a lower learning rate") from error
        return predictor

    def _mean_loss(self, batch: Batch, name: str, scores: ForecastScores | None = None) -> Tensor:
        if not isinstance(batch, Batch):
            raise DeltaflowError(
                f"the trainer was given entries of a data set ({type(batch).__name__}) instead of "
                "batches of windows: give it datamodule=IrregularDataModule(dataset, …)"
            )
        advice = (
            f"in epoch {self.current_epoch}: lower the learning rate, or choose a distr_output "
            "whose distribution covers the targets"
        )
        with advising(
            f"{name} is not a number {advice}"
        ):  # raised by distributions or spectral norms
            args = self.network.at_targets(batch)
            total, count = self.network.loss(batch, args)
        sums = torch.stack([total.detach(), count.to(total.dtype)])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        count = sums[1].clamp(min=1)
        mean = sums[0] / count
        if not torch.isfinite(mean):
            raise DeltaflowError(f"{name} became {mean.item()} {advice}")
        # Weighted by the number of observed targets, so that an epoch's mean is over all of them.
        # Mean and weight are already those of all processes; averaging them again is harmless.
        self.log(
            name, mean, on_epoch=True, on_step=False, prog_bar=True, sync_dist=True,
            batch_size=int(sums[1]),
        )  # fmt: skip
        if scores is not None:
            self._score(batch, args, scores)
        # DDP averages the gradients over processes: the factor turns the average into a sum.
        return total / count * self.trainer.world_size

    def _score(self, batch: Batch, args: tuple[Tensor, ...], scores: ForecastScores) -> None:
        """Add the forecasts of a batch to the scores, at the observed targets."""
        observed, head = batch.target_observed, self.network.head
        args = tuple(arg.double().cpu() for arg in args)  # (N,), or (N, K)
        loc, scale = (
            unit.unsqueeze(1).expand(observed.shape)[observed].double().cpu()
            for unit in (batch.loc, batch.scale)  # which precision="bf16-true" rounds
        )
        values = loc + scale * batch.target[observed].double().cpu()
        if is_discrete(head.output):
            values = values.round()  # exact again, as at the end of an interval
        if head.quantile_levels is not None:
            units = np.eye(len(head.quantile_levels))
            weights = [np.interp(DECILES, head.quantile_levels, unit) for unit in units]  # (K, 9)
            *mean, given = args
            quantiles = loc + scale * (given @ torch.tensor(np.array(weights))).T
            mean = loc + scale * mean[0] if mean else quantiles[len(DECILES) // 2]
        else:
            joint = head.distribution(args, loc, scale)
            if head.has_quantiles:
                mean = joint.mean
                quantiles = torch.from_numpy(quantiles_of(joint, DECILES))
            else:
                with seeded(self.seed):
                    drawn = joint.sample(torch.Size((_SAMPLES,))).double()
                try:
                    mean = joint.mean
                except NotImplementedError:  # such as GluonTS's splines
                    mean = drawn.mean(dim=0)
                # Without observed values, torch's quantile raises an error; NumPy's is empty.
                quantiles = torch.from_numpy(np.quantile(drawn.numpy(), DECILES, axis=0))
        channels = observed.nonzero()[:, -1].cpu()
        scores.update(values, channels, mean, quantiles)

    def _print_scores(self, loop: Any) -> None:
        """Print the logged scores instead of Lightning's table, unless its output is off."""
        if loop.verbose and self.trainer.is_global_zero:
            print(score_table(self.trainer.callback_metrics))
        loop.verbose = False  # Lightning sets it anew for each run

    def _log_scores(self, stage: str, scores: ForecastScores) -> None:
        results = {f"{stage}_{name}": score for name, score in scores.compute().items()}
        self.log_dict(results, sync_dist=True)
        scores.reset()

    def configure_optimizers(self) -> Any:
        """Return AdamW, with a warm-up and a cosine decay over the known length of training."""
        # Lightning's search for a learning rate sets hparams["lr"].
        options = {name: self.hparams[name] for name in ("lr", "weight_decay")}
        self._planned_lr = options["lr"]
        # One call for all parameters. Mixed precision could not clip the gradients before it.
        fused = self.device.type == "cpu" and "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(self.parameters(), **options, fused=fused)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            return optimizer
        # Not a closure: Lightning pickles an earlier trainer to spawn processes.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate_at, steps=steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _rate_at(step: int, steps: float) -> float:
    """Return the learning rate of a step out of ``steps``, as a share of the highest one."""
    warm_up = max(1, int(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return _FINAL + (1 - _FINAL) * (1 + math.cos(math.pi * done)) / 2
