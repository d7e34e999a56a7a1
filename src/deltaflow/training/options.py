"""The options of a training run, in groups that the command line and the estimators share."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltaflow.data.options import DataOptions
from deltaflow.errors import check_at_least, check_between, check_whole
from deltaflow.model.options import ModelOptions


@dataclass(frozen=True)
class OptimizerOptions:
    """The settings of AdamW.

    Attributes
    ----------
    lr
        Learning rate. It warms up over the first twentieth of the training run and then decays by a
        cosine; it stays constant if the length of the run is unknown.
    weight_decay
        Weight decay.
    """

    lr: float = 3e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        check_at_least(0, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class TrainerOptions:
    """The arguments of Lightning's ``Trainer`` whose defaults differ from Lightning's.

    Attributes
    ----------
    max_epochs
        The largest number of epochs.
    gradient_clip_val
        Norm to which the gradient of a batch is clipped; 0 turns clipping off.
    """

    max_epochs: int = 50
    gradient_clip_val: float = 10.0

    def __post_init__(self) -> None:
        check_whole(1, max_epochs=self.max_epochs)
        check_at_least(0, gradient_clip_val=self.gradient_clip_val)


@dataclass(frozen=True)
class EarlyStoppingOptions:
    """When a training run stops before its last epoch.

    Attributes
    ----------
    patience
        The number of epochs without a lower validation loss after which training stops. The weights
        of the best epoch are kept.
    """

    patience: int = 10

    def __post_init__(self) -> None:
        check_whole(1, patience=self.patience)


@dataclass(frozen=True)
class WeightAveragingOptions:
    """The moving average of the weights, which is validated and kept instead of them.

    Attributes
    ----------
    decay
        Decay of the average per batch, such as 0.99; null turns averaging off.
    """

    decay: float | None = None

    def __post_init__(self) -> None:
        check_between(0, 1, **{"weight_averaging.decay": self.decay})


@dataclass(frozen=True)
class TrainingOptions:
    """All settings of a training run, except its data and its seed.

    Attributes
    ----------
    data, model, optimizer
        The options of an estimator.
    trainer, early_stopping, weight_averaging
        The length of training, and which weights are kept.
    """

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    early_stopping: EarlyStoppingOptions = field(default_factory=EarlyStoppingOptions)
    weight_averaging: WeightAveragingOptions = field(default_factory=WeightAveragingOptions)
