"""The training options of a row of the comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltaflow.errors import check_at_least, check_whole
from deltaflow.model.options import ModelOptions
from deltaflow.options import documents
from deltaflow.training.options import OptimizerOptions, TrainingOptions


@documents(TrainingOptions)
@dataclass(frozen=True)
class RowOptions(TrainingOptions):
    """Everything that the training of a row depends on, except its data set and seed.

    Attributes
    ----------
    num_parameters
        If given, the network's width is chosen for about this many weights, instead of
        ``model.hidden_size``. resampled_deepar always has ``model.hidden_size``.
    emphasis
        Exponent that moves the loss towards the balanced squared error: a channel's weight is its
        typical variation, in units of `Task.scale`, to this power. With 0, channels count the same
        in units of their variation; with 2, in units of the task.
    widening
        Whether the intervals of networks widen beyond the lead times of the training data, by the
        errors on the validation items; see `WideningPredictor`.
    resampled_step
        Step of the grid of resampled_deepar.
    """

    model: ModelOptions = field(default_factory=lambda: ModelOptions(dropout=0.1))
    optimizer: OptimizerOptions = field(default_factory=lambda: OptimizerOptions(weight_decay=1e-2))
    num_parameters: int | None = None
    emphasis: float = 0.0
    widening: bool = False
    resampled_step: str = "1h"

    def __post_init__(self) -> None:
        check_whole(1, num_parameters=self.num_parameters)
        check_at_least(0, emphasis=self.emphasis)
