"""Physiome-ODE: sparse, noisy series of biological systems, from the second half of their time.

The data are not shipped. A set is either a folder of trajectories, as the authors' code makes them
(https://github.com/kloetergensc/Physiome-ODE), or one NumPy file of all of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from deltaflow.data import IrregularDataset, TimeSplitter
from deltaflow.errors import DataError, DeltaflowError
from deltaflow.tasks.task import Task, task_after

NUM_TARGETS = 10
"""The number of channels, those of the highest scores, that are forecast."""

NOISE = 0.05
"""Standard deviation of the noise, relative to that of the channel."""

KEPT = 0.2
"""Probability with which a value is observed."""

LARGEST = 10.0
"""Series that are further from the mean than this many standard deviations are left out."""

ORIGIN = pd.Timedelta("12h") + pd.Timedelta(1, "ns")
"""The forecast origin. A series is taken to last a day; what lies at its middle is still read."""


class Trajectories(NamedTuple):
    """The trajectories of a system of C variables, from N initial states and constants.

    Attributes
    ----------
    states
        ``(N, T, C)``.
    times
        ``(T,)``, the same for all trajectories.
    scores
        ``(C,)`` the difficulty of each variable, see `joint_gradient_deviation`.
    """

    states: np.ndarray
    times: np.ndarray
    scores: np.ndarray


def physiome_ode_task(name: str, path: str | Path, fold: int = 0) -> Task:
    """Return the task to forecast the second half of unseen trajectories from the first half.

    Trajectories are put in a random order and standardised, and series of more than `LARGEST`
    standard deviations are left out. Noise is added, and a value is observed with the probability
    `KEPT`. The first 70 % of the series are for training, the next 20 % for validation and the
    last 10 % for the test. Variables beyond the `NUM_TARGETS` of the highest scores are observed
    in the first half only. Errors are in units of the standard deviation of a variable.

    Parameters
    ----------
    name
        Name of the set.
    path
        Folder that holds the set, see `read_trajectories`.
    fold
        Seed of the order, the noise, and the choice of what is observed.

    References
    ----------
    Klötergens et al., *Physiome-ODE: A Benchmark for Irregularly Sampled Multivariate Time-Series
    Forecasting Based on Biological ODEs*, ICLR 2025, arXiv:2502.07489.
    """
    if fold < 0:
        raise DeltaflowError(f"fold is a number from 0 on, not {fold}")
    trajectories = read_trajectories(name, path)
    values = observed_values(trajectories, np.random.default_rng(fold))
    count, num_times, num_channels = values.shape
    channels = [f"x{number}" for number in range(num_channels)]
    frame = pd.DataFrame(values.reshape(-1, num_channels), columns=channels)
    frame.insert(0, "timestamp", np.tile(trajectories.times / trajectories.times[-1], count))
    frame.insert(0, "item_id", np.repeat(np.arange(count), num_times))
    data = IrregularDataset.from_long_dataframe(
        frame.dropna(subset=channels, how="all"), target=channels, time_unit="D"
    )
    splitter, length = TimeSplitter(after=ORIGIN), (num_times + 1) // 2
    # A series of which nothing was observed is in no part, but keeps its place in the order.
    items = np.array([int(entry["item_id"]) for entry in data])
    ends = np.searchsorted(items, [int(0.7 * count), int(0.9 * count)])
    training, validation, test = map(data.select, np.split(np.arange(len(items)), ends))
    title, tests = f"physiome_ode:{name}", {f"{name} (fold {fold})": test}
    scale = np.ones(num_channels)
    return task_after(title, splitter, training, validation, tests, length, scale)


def observed_values(trajectories: Trajectories, random: np.random.Generator) -> np.ndarray:
    """Return standardised and noisy values ``(N, T, C)`` in a random order, NaN if not observed."""
    order = random.permutation(len(trajectories.states))
    values = trajectories.states[order].astype(float)
    spread = values.std(axis=(0, 1))
    values = (values - values.mean(axis=(0, 1))) / np.where(spread > 0, spread, 1.0)
    values = values[(np.abs(values) <= LARGEST).all(axis=(1, 2))]
    values += NOISE * random.standard_normal(values.shape)
    values[random.random(values.shape) >= KEPT] = np.nan
    others = np.argsort(trajectories.scores, kind="stable")[:-NUM_TARGETS]
    late = trajectories.times > trajectories.times[-1] / 2
    values[np.ix_(np.arange(len(values)), late, others)] = np.nan
    return values


def read_trajectories(name: str, path: str | Path) -> Trajectories:
    """Read the trajectories of a set.

    Parameters
    ----------
    name
        Name of the set, such as ``dupont_1991b``.
    path
        Folder that holds the set: either ``NAME.npz`` with the arrays of `Trajectories` as ``x``,
        ``t`` and ``scores``, or a folder ``NAME`` of files ``ts-data-*.parquet``, one a trajectory,
        whose column ``t`` is the time and whose other columns are the variables. The scores are
        computed from the trajectories then.

    Raises
    ------
    DataError
        If the folder does not contain the set, or the trajectories have different times or
        variables, or values that are missing or infinite.
    """
    archive, folder = Path(path, f"{name}.npz"), Path(path, name)
    if archive.is_file():
        with np.load(archive) as arrays:
            values, times, scores = (arrays[part] for part in ("x", "t", "scores"))
    elif files := sorted(folder.glob("ts-data-*.parquet"), key=_number):
        frames = [pd.read_parquet(file).set_index("t") for file in files]
        for file, frame in zip(files, frames, strict=True):
            if not (frame.index.equals(frames[0].index) and list(frame) == list(frames[0])):
                raise DataError(
                    f"{file.name} has other times or variables than {files[0].name}",
                    "make all trajectories of a set with the same settings",
                    field="path",
                )
        values, times = np.stack([frame.to_numpy() for frame in frames]), frames[0].index.to_numpy()
        scores = joint_gradient_deviation(values)
    else:
        raise DataError(
            f"there is neither {str(archive)!r}, nor a file ts-data-*.parquet in {str(folder)!r}",
            "give the folder of the sets as the option path, and the name of one of them",
            field="path",
        )
    if not np.isfinite(values).all():
        raise DataError("has values that are missing or infinite", "make the set again",
                        field=name)  # fmt: skip
    return Trajectories(values, times, scores)


def joint_gradient_deviation(values: np.ndarray) -> np.ndarray:
    """Return the score ``(C,)`` of each variable of trajectories ``(N, T, C)``.

    It is the product of two standard deviations of the change from one time to the next, for
    standardised values: over the times, averaged over the trajectories, and over the trajectories,
    averaged over the times. A variable that changes evenly, or in the same way in all trajectories,
    is easy to forecast (Klötergens et al., 2025, section 4).
    """
    spread = values.std(axis=(0, 1))
    changes = np.diff(values / np.where(spread > 0, spread, 1.0), axis=1)
    return changes.std(axis=1).mean(axis=0) * changes.std(axis=0).mean(axis=0)


def _number(file: Path) -> int:
    """Return the number of a trajectory in the name of its file."""
    found = re.search(r"(\d+)\.parquet$", file.name)
    return int(found[1]) if found else 0
