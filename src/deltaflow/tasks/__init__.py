"""Named data sets and forecasting tasks: clinical data, synthetic series, small sets."""

from .clinical import VITALS, clinical_dataset, clinical_sample, clinical_task
from .data_module import TaskDataModule
from .datasets import FOLDED_TASKS, TASKS, Columns, Split, load_task
from .physiome_ode import physiome_ode_task
from .physionet2012 import PARAMETERS, physionet2012, physionet2012_task, read_physionet2012
from .small import SMALL_SETS, small_set, small_task
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
    "FOLDED_TASKS",
    "PARAMETERS",
    "SMALL_SETS",
    "SYSTEMS",
    "TASKS",
    "VITALS",
    "WAVES",
    "Columns",
    "Split",
    "Task",
    "TaskDataModule",
    "clinical_dataset",
    "clinical_sample",
    "clinical_task",
    "irregular_sine",
    "irregular_wave",
    "load_task",
    "physiome_ode_task",
    "physionet2012",
    "physionet2012_task",
    "read_physionet2012",
    "regular_seasonal",
    "small_set",
    "small_task",
    "sparse_multivariate",
    "synthetic_task",
    "unseen_items",
]
