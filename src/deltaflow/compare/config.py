"""What a comparison is told: data, encoders, budget. Its fields are the options of the command."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deltaflow.encoders import ENCODERS
from deltaflow.errors import DeltaflowError, UnknownNameError, check_at_least_one
from deltaflow.tasks import Columns, Split
from deltaflow.tasks.datasets import check_data_set

HOLD = "hold"
RESAMPLED = "resampled_deepar"
BASELINES = (
    HOLD,
    "training_mean",
    "item_mean",
    "least_squares",
    "boosted_trees",
    "gaussian_process",
    "defaults",
    RESAMPLED,
)
"""Rows of the table that are no encoders: see `compare.models`."""


@dataclass
class Variant:
    """A row of the table made from an encoder with options of its own.

    Attributes
    ----------
    encoder
        Name of a registered encoder.
    encoder_kwargs
        Its options.
    settings
        What is otherwise for this row than for the whole comparison, such as ``hidden_size``,
        ``network_kwargs`` or ``scaling``: any field of `CompareConfig` that a training depends on.
    """

    encoder: str
    encoder_kwargs: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class CompareConfig:
    """A comparison of encoders.

    Attributes
    ----------
    dataset
        One data set or several: a task of deltaflow.tasks.TASKS by name, the path of a CSV or
        Parquet file, or the path of a GluonTS data set.
    dataset_kwargs
        Options of a task by name, such as `path` and `sets` of `physionet2012`.
    columns
        The columns of a file.
    split
        How a file is split.
    encoders
        Rows of the table: registered encoders, variants, or baselines. hold, the last value, is
        always the first; the others are training_mean, item_mean (the mean of what was observed),
        least_squares (of the last value and the item's mean), boosted_trees (LightGBM on summaries
        of what was observed), gaussian_process (one per item, with shared hyperparameters),
        defaults (`GRUFlowEstimator` as it is, without the settings below) and resampled_deepar,
        DeepAR on a regular grid.
    variants
        Further rows by name: encoders with options of their own.
    seeds
        Each encoder is trained once for each.
    average_seeds
        Whether each encoder with several seeds gets a further row, the average of its forecasts
        over the seeds.
    output
        Folder of the results, and of the trained encoders. Runs that are finished there are not
        repeated, so that several commands with different seeds may fill it side by side, and a
        last one with all of them write the report.
    hidden_size
        Width of every network.
    num_parameters
        If given, each encoder gets the width with which its network has about so many weights,
        in the place of hidden_size; resampled_deepar keeps it.
    network, network_kwargs, scaling, balance
        The surroundings of every encoder, see `IrregularEstimator`.
    emphasis
        Exponent by which the loss leans towards the balanced squared error: a channel counts by
        the power of its typical variation in units of `Task.scale`. With 0, channels count the
        same in units of their variation; with 2, in units of the task.
    context_length, horizon, origins_within
        How training windows are cut, see `IrregularEstimator`.
    distr_output
        Head of every network, such as student_t, normal or quantile.
    dropout
        Share of the head's inner features that is dropped in training; resampled_deepar has its
        own regularisation.
    lr
        Learning rate.
    weight_decay
        Weight decay of the encoders' AdamW.
    gradient_clip_val
        Norm to which the gradient of a batch is clipped.
    epochs
        The largest number of epochs.
    num_batches_per_epoch
        The number of batches of an epoch.
    batch_size
        The number of windows of a batch.
    weight_averaging
        Decay per batch of the moving average of the weights that is validated and kept; null keeps
        the weights as they are. resampled_deepar is not averaged.
    patience
        A training stops after so many epochs without a better validation loss. The weights of the
        best epoch are kept.
    resampled_step
        Step of the grid of resampled_deepar.
    threads
        Threads of torch; on small tensors, several only wait for each other.
    """

    dataset: str | list[str] = "clinical_sample"
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    split: Split = field(default_factory=Split)
    encoders: list[str] = field(default_factory=lambda: [*ENCODERS, RESAMPLED])
    variants: dict[str, Variant] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    average_seeds: bool = True
    output: Path = Path("comparison")
    hidden_size: int = 32
    num_parameters: int | None = None
    network: str = "joint"
    network_kwargs: dict[str, Any] = field(default_factory=dict)
    scaling: str = "running"
    balance: float = 0.0
    emphasis: float = 0.0
    context_length: int | None = None
    horizon: str | None = None
    origins_within: list[str] | None = None
    distr_output: str = "student_t"
    dropout: float = 0.1
    lr: float = 3e-3
    weight_decay: float = 1e-2
    gradient_clip_val: float = 10.0
    epochs: int = 50
    num_batches_per_epoch: int = 50
    batch_size: int = 32
    weight_averaging: float | None = None
    patience: int = 10
    resampled_step: str = "1h"
    threads: int = 1

    def __post_init__(self) -> None:
        for name in self.encoders:
            if name not in {*ENCODERS, *BASELINES, *self.variants}:
                raise UnknownNameError("row", name, [*ENCODERS, *BASELINES, *self.variants])
        for dataset in self.datasets:
            check_data_set(dataset)
        for variant in self.variants.values():
            if variant.encoder not in ENCODERS:
                raise UnknownNameError("encoder", variant.encoder, ENCODERS)
            for name in variant.settings:
                if name not in self._of_row():
                    raise UnknownNameError("setting of a row", name, self._of_row())
        counts = ("epochs", "num_batches_per_epoch", "batch_size", "patience", "threads")
        check_at_least_one(**{name: getattr(self, name) for name in counts})
        if not self.seeds:
            raise DeltaflowError("a comparison needs at least one seed")
        if len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**32 for s in self.seeds):
            raise DeltaflowError(f"seeds are different numbers from 0 to 2³² - 1, not {self.seeds}")

    @property
    def datasets(self) -> list[str]:
        """The data sets, without repetition."""
        given = [self.dataset] if isinstance(self.dataset, str) else self.dataset
        return list(dict.fromkeys(given))

    @property
    def rows(self) -> list[str]:
        """The rows of the table: `hold`, then the encoders, without repetition."""
        return list(dict.fromkeys([HOLD, *self.encoders]))

    def is_averaged(self, row: str) -> bool:
        """Tell whether a row gets a further one, the average of its forecasts over the seeds."""
        return self.average_seeds and len(self.seeds) > 1 and row not in BASELINES

    def variant(self, row: str) -> Variant:
        """Return the encoder and options of a row."""
        return self.variants.get(row) or Variant(row)

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-compatible values."""
        return {**asdict(self), "output": str(self.output)}

    def of(self, row: str) -> CompareConfig:
        """Return the comparison with the settings of a row."""
        return replace(self, **self.variant(row).settings)

    def settings(self, row: str) -> dict[str, Any]:
        """Return what a run of this row depends on, beside its data set and seed."""
        variant = None if row in BASELINES else asdict(self.variant(row))
        return {**self._of_training(), "variant": variant}

    def _of_row(self) -> list[str]:
        """Return the fields in which a row may differ: all have the same data and threads."""
        common = {"dataset_kwargs", "columns", "split", "threads"}
        return [name for name in self._of_training() if name not in common]

    def _of_training(self) -> dict[str, Any]:
        """Return the fields on which trainings depend."""
        ignored = {"dataset", "encoders", "variants", "seeds", "average_seeds", "output"}
        return {name: value for name, value in self.to_dict().items() if name not in ignored}
