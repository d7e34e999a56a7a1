"""Named data sets and forecasting tasks: clinical data, synthetic series, PhysioNet 2012."""

from collections.abc import Callable
from functools import partial

from .clinical import VITALS, clinical_dataset, clinical_sample, clinical_task
from .physionet2012 import PARAMETERS, physionet2012, physionet2012_task, read_physionet2012
from .synthetic import (
    SYSTEMS,
    WAVES,
    irregular_sine,
    irregular_wave,
    regular_seasonal,
    sparse_multivariate,
    synthetic_task,
)
from .task import Task, unseen_items

__all__ = [
    "PARAMETERS",
    "SYSTEMS",
    "TASKS",
    "VITALS",
    "WAVES",
    "Task",
    "clinical_dataset",
    "clinical_sample",
    "clinical_task",
    "irregular_sine",
    "irregular_wave",
    "physionet2012",
    "physionet2012_task",
    "read_physionet2012",
    "regular_seasonal",
    "sparse_multivariate",
    "synthetic_task",
    "unseen_items",
]

TASKS: dict[str, Callable[..., Task]] = {
    **{name: partial(synthetic_task, name) for name in (*WAVES, *SYSTEMS)},
    "clinical_sample": clinical_task,
    "physionet2012": physionet2012_task,
}
"""Every task by its name: a function that returns it, with options of its own."""
