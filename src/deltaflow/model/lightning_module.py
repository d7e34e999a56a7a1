"""The Lightning module: loss and optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from gluonts.torch.distributions import Output
from torch import Tensor

from deltaflow.data import Batch, WindowSpec
from deltaflow.errors import DeltaflowError
from deltaflow.heads import describe_output, make_output
from deltaflow.model.module import ForecastNetwork
from deltaflow.model.predictor import IrregularPredictor

_WARM_UP = 0.05
_FINAL = 0.02


class ForecastLightningModule(pl.LightningModule):
    """Trains a `ForecastNetwork`; ``load_from_checkpoint`` rebuilds it without arguments.

    Parameters
    ----------
    spec
        How windows are cut: ``data_module.spec``.
    encoder, encoder_kwargs
        Name of a registered encoder, and its options.
    hidden_size, dropout
        See `ForecastNetwork`.
    distr_output
        A registered head's name, or a GluonTS output.
    lr, weight_decay
        Settings of AdamW. The rate warms up over the first twentieth of the training and then
        falls by a cosine; it stays constant where the training has no known end.

    Examples
    --------
    >>> from deltaflow import ForecastLightningModule, IrregularDataModule
    >>> from deltaflow.tasks import regular_seasonal
    >>> data = IrregularDataModule(regular_seasonal(), prediction_length=4, context_length=24)
    >>> model = ForecastLightningModule(data.spec, encoder="resnet_flow", hidden_size=8)
    >>> pl.Trainer(max_epochs=10).fit(model, data)  # doctest: +SKIP
    """

    def __init__(
        self,
        spec: WindowSpec | Mapping[str, Any],
        encoder: str = "gru_flow",
        encoder_kwargs: Mapping[str, Any] | None = None,
        hidden_size: int = 32,
        dropout: float = 0.0,
        distr_output: str | Mapping[str, Any] | Output = "student_t",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        self.spec = spec if isinstance(spec, WindowSpec) else WindowSpec.from_dict(spec)
        # Hyperparameters are plain values, so that a checkpoint loads without executing code.
        self.save_hyperparameters(
            {
                "spec": self.spec.to_dict(),
                "encoder": encoder,
                "encoder_kwargs": dict(encoder_kwargs or {}),
                "hidden_size": hidden_size,
                "dropout": dropout,
                "distr_output": describe_output(distr_output),
                "lr": lr,
                "weight_decay": weight_decay,
            }
        )
        self.lr = lr
        self.weight_decay = weight_decay
        self.network = ForecastNetwork(
            self.spec,
            make_output(distr_output),
            encoder=encoder,
            encoder_kwargs=dict(encoder_kwargs or {}),
            hidden_size=hidden_size,
            dropout=dropout,
        )

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the distribution's arguments at the queries of a batch."""
        return self.network(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss over the observed targets of a batch."""
        return self._mean_loss(batch, "train_loss")

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log the mean loss over the observed targets of a batch."""
        return self._mean_loss(batch, "val_loss")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start counting the evaluations of vector fields."""
        self.network.encoder.reset_num_evaluations()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the evaluations of vector fields, those of an adjoint backward pass included."""
        if count := self.network.encoder.num_evaluations:
            self.log("num_evaluations", float(count), on_epoch=True, on_step=False, batch_size=1)

    def to_predictor(
        self, sampling: str = "marginal", num_parallel_samples: int = 100, batch_size: int = 64
    ) -> IrregularPredictor:
        """Return a GluonTS predictor with a copy of the weights, see `IrregularPredictor`."""
        names = ("encoder", "encoder_kwargs", "hidden_size", "dropout")
        predictor = IrregularPredictor(
            spec=self.spec.to_dict(),
            network={name: self.hparams[name] for name in names},
            distr_output=self.hparams["distr_output"],
            sampling=sampling,
            num_parallel_samples=num_parallel_samples,
            batch_size=batch_size,
        )
        predictor.network.load_state_dict(self.network.state_dict())
        return predictor

    def _mean_loss(self, batch: Batch, name: str) -> Tensor:
        total, count = self.network.loss(batch)
        sums = torch.stack([total.detach(), count.to(total.dtype)])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        count = sums[1].clamp(min=1)
        mean = sums[0] / count
        if not torch.isfinite(mean):
            raise DeltaflowError(
                f"{name} became {mean.item()} in epoch {self.current_epoch}: lower the learning "
                "rate, or choose a distr_output whose distribution covers the targets"
            )
        # Weighted by the number of observed targets, an epoch's mean is that over all of them.
        # The mean and its weight are those of all processes; averaging them again is harmless.
        self.log(
            name, mean, on_epoch=True, on_step=False, prog_bar=True, sync_dist=True,
            batch_size=int(sums[1]),
        )  # fmt: skip
        # DDP averages the gradients of the processes: their number makes a sum of that.
        return total / count * self.trainer.world_size

    def configure_optimizers(self) -> Any:
        """Return AdamW, with a warm-up and a cosine decay over the known length of training."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            return optimizer
        warm_up = max(1, int(_WARM_UP * steps))

        def rate(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
            return _FINAL + (1 - _FINAL) * (1 + math.cos(math.pi * done)) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
