"""Forecasting tasks of data sets that are given by name or path."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from gluonts.dataset.common import load_datasets
from gluonts.dataset.split import split as split_at
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

from deltaflow.data import IrregularDataset, TimeSplitter
from deltaflow.data.validation import OFFSET, level_of_cell
from deltaflow.errors import DataError, DeltaflowError, UnknownNameError, check_whole
from deltaflow.tasks.clinical import clinical_task
from deltaflow.tasks.physiome_ode import physiome_ode_task
from deltaflow.tasks.physionet import physionet2012_task
from deltaflow.tasks.small import SMALL_SETS, small_task
from deltaflow.tasks.synthetic import SYSTEMS, WAVES, synthetic_task
from deltaflow.tasks.task import Task, last_rows, unseen_items

TASKS: dict[str, Callable[..., Task]] = {
    **{name: partial(synthetic_task, name) for name in (*WAVES, *SYSTEMS)},
    "clinical_sample": clinical_task,
    "physionet2012": physionet2012_task,
    **{f"small:{name}": partial(small_task, name) for name in SMALL_SETS},
}
"""Every task by name: a function that takes the task's own options and returns the task."""

FOLDED_TASKS: dict[str, Callable[..., Task]] = {"physiome_ode": physiome_ode_task}
"""Collections of sets that are redrawn for each fold. Their tasks are named
``COLLECTION:SET:FOLD``, or ``COLLECTION:SET`` for fold 0. The function takes `name`, `fold` and the
task's own options."""

SUFFIXES = (".csv", ".gz", ".parquet")
"""The suffixes of the files that are read."""


@dataclass
class Columns:
    """The columns of a CSV or Parquet file, see `IrregularDataset.from_long_dataframe`.

    Attributes
    ----------
    item_id
        Column of item identifiers; null if all rows are one series.
    timestamp
        Column of timestamps, or of elapsed numbers.
    target
        Column of the channel to forecast, or a list of such columns.
    time_unit
        Unit of the elapsed time.
    feat_dynamic_real
        Covariates known in advance.
    past_feat_dynamic_real
        Covariates known for the past only.
    feat_static_real
        Numbers that are constant per item.
    feat_static_cat
        Categories that are constant per item.
    """

    item_id: str | None = "item_id"
    timestamp: str = "timestamp"
    target: list[str] | str = field(default_factory=lambda: ["target"])
    time_unit: str = "h"
    feat_dynamic_real: list[str] = field(default_factory=list)
    past_feat_dynamic_real: list[str] = field(default_factory=list)
    feat_static_real: list[str] = field(default_factory=list)
    feat_static_cat: list[str] = field(default_factory=list)


@dataclass
class Split:
    """The origin, horizon and test items of a file. Give one of ``after``, ``date`` and ``last``.

    Attributes
    ----------
    after
        The forecast origin of the test, as a duration since the start of each item, such as 24h.
    date
        The forecast origin of the test, as a date.
    last
        The number of last rows of every item that are forecast from its earlier ones, see
        `last_rows`; the other options do not apply.
    horizon
        The horizon, as a duration; to the end of each item if null.
    test_share
        Share of the items that are only for the test. If 0, all items are both trained on and
        tested: the last horizon before the forecast origin is for validation, and training ends
        where it begins.
    validation_share
        Share of the other items that are for validation.
    seed
        Seed of the random choice of items.
    """

    after: str | None = None
    date: str | None = None
    last: int | None = None
    horizon: str | None = None
    test_share: float = 0.2
    validation_share: float = 0.2
    seed: int = 0


def load_task(
    dataset: str,
    dataset_kwargs: Mapping[str, Any] | None = None,
    columns: Columns | None = None,
    split: Split | None = None,
) -> Task:
    """Return the task of a data set.

    Parameters
    ----------
    dataset
        A task of `TASKS` or `FOLDED_TASKS` by name, the path of a CSV or Parquet file, or the path
        of a GluonTS data set.
    dataset_kwargs
        Options of a named task, such as ``path`` and ``sets`` of ``physionet2012``.
    columns, split
        The columns and the split of a file; the defaults if None.

    Raises
    ------
    DataError
        If there is no such file or folder, or its content does not match the arguments.
    DeltaflowError
        If there is no such task, or it has no such option.
    """
    check_data_set(dataset)
    if make := _named_task(dataset):
        try:
            return make(**(dataset_kwargs or {}))
        except TypeError as error:
            raise DeltaflowError(f"dataset_kwargs of {dataset!r}: {error}") from error
    path = Path(dataset)
    if path.is_dir():
        return _gluonts_task(path)
    return _file_task(path, columns or Columns(), split or Split())


def check_data_set(dataset: str) -> None:
    """Raise an error unless there is a task of this name, or a file or folder of this path."""
    path = Path(dataset)
    if _named_task(dataset) or path.is_dir() or path.is_file():
        return
    if os.sep in dataset or path.suffix:
        raise DataError(f"there is no file or folder {dataset!r}", "check the path",
                        field="dataset")  # fmt: skip
    raise UnknownNameError("data set", dataset, [*TASKS, *(f"{name}:…" for name in FOLDED_TASKS)])


def _named_task(dataset: str) -> Callable[..., Task] | None:
    """Return the function of a task by name, and None if there is no such task."""
    collection, _, member = dataset.partition(":")
    if collection not in FOLDED_TASKS or not member:
        return TASKS.get(dataset)
    name, _, fold = member.partition(":")
    if not (fold or "0").isdecimal():
        raise DeltaflowError(f"the fold of {dataset!r} is a number from 0 on, not {fold!r}")
    return partial(FOLDED_TASKS[collection], name, fold=int(fold or 0))


def read_file(path: Path, columns: Columns) -> pd.DataFrame:
    """Read a CSV or Parquet file, with its times as timestamps if they are not numbers.

    The items and categories of a CSV file are text, so that 007 and 7 differ.

    Raises
    ------
    DataError
        If it is another kind of file, cannot be read, or has a time that is not a timestamp.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path.name} is not a {', '.join(SUFFIXES)} file", "convert it",
                        field="dataset")  # fmt: skip
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            texts = [columns.item_id, *columns.feat_static_cat]
            frame = pd.read_csv(path, dtype=dict.fromkeys(texts, str))
            for name in frame.columns.intersection(columns.feat_static_cat):
                frame[name] = frame[name].map(level_of_cell, na_action="ignore")
    except (ValueError, OSError, EOFError) as error:  # the latter two of a damaged archive
        raise DataError(f"{path.name} cannot be read ({error})", "create the file again",
                        field="dataset") from error  # fmt: skip
    timestamp = columns.timestamp
    if timestamp in frame:
        kind = frame[timestamp].dtype
        if not is_numeric_dtype(kind) and not is_datetime64_any_dtype(kind):
            frame[timestamp] = _read_texts(frame[timestamp])  # CSV has no dates
    return frame


def _read_texts(column: pd.Series) -> pd.Series:
    """Read times that are written as text; those with different offsets from UTC are in UTC."""
    texts = column.astype(str)
    offsets = texts.str.extract(OFFSET)["offset"]
    try:
        if offsets.notna().any() and (offsets.isna() & column.notna()).any():
            raise ValueError("only some have an offset from UTC")
        in_utc = len(offsets.dropna().unique()) > 1  # around a change of the clocks, for example
        try:
            times = pd.to_datetime(column, utc=in_utc)
        except ValueError:  # pandas writes fractions of a second only where there are some
            times = pd.to_datetime(column, format="ISO8601", utc=in_utc)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"holds a value that is not a timestamp ({error})",
            "write all times in one format, either all with a time zone or all without",
            field=str(column.name),
        ) from error
    if not texts.str.match(r"\d{4}").all():
        _check_order(column, times)
    return times


def _check_order(texts: pd.Series, times: pd.Series) -> None:
    """Raise an error if dates such as 03/04/2024 can be read month first and day first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns where only the other order is possible
        swapped = pd.to_datetime(texts, dayfirst=True, errors="coerce")
    if swapped.notna().equals(times.notna()) and not swapped.equals(times):
        first = texts[(swapped != times) & texts.notna()].iloc[0]
        raise DataError(
            f"{first!r} may be read month first or day first",
            "write dates as 2024-04-03",
            field=str(texts.name),
        )


def read_dataset(path: Path, columns: Columns) -> IrregularDataset:
    """Read a CSV or Parquet file as a data set, which is univariate if it has one target."""
    names = [columns.target] if isinstance(columns.target, str) else columns.target
    target = names[0] if len(names) == 1 else names
    frame = read_file(path, columns)
    return IrregularDataset.from_long_dataframe(frame, **{**vars(columns), "target": target})


def _file_task(path: Path, columns: Columns, given: Split) -> Task:
    """Return the task to forecast unseen items of a file, or the last part of all items."""
    data = read_dataset(path, columns)
    name = path.name.removesuffix("".join(path.suffixes))
    if [given.after, given.date, given.last].count(None) != 2:
        raise DataError("a file needs one forecast origin",
                        "give one of split.after, split.date and split.last",
                        field="split")  # fmt: skip
    if given.last is not None:
        check_whole(1, **{"split.last": given.last})
        return last_rows(name, data, given.last)
    origin = TimeSplitter(after=given.after, date=given.date, horizon=given.horizon)
    if given.test_share:
        return unseen_items(
            name,
            data,
            origin,
            test_share=given.test_share,
            validation_share=given.validation_share,
            seed=given.seed,
        )
    if given.horizon is None:
        raise DataError("a split without test items needs a horizon",
                        "give split.horizon, or a split.test_share", field="split")  # fmt: skip
    horizon = pd.Timedelta(given.horizon)
    if given.after is not None and pd.Timedelta(given.after) <= horizon:
        raise DataError(
            f"nothing is left to train on before the {given.horizon} that are for validation",
            f"give a split.after of more than {given.horizon}, or a split.test_share",
            field="split",
        )
    earlier = _moved_back(origin, horizon)
    fitted = _moved_back(earlier, horizon)
    length = max(earlier.prediction_length(data), origin.prediction_length(data))
    training, template = earlier.split(data)
    return Task(
        name=name,
        training=training,
        training_forecasts=fitted.split(data)[1].generate_instances(fitted.prediction_length(data)),
        validation=template.generate_instances(length),
        tests={name: origin.split(data)[1].generate_instances(length)},
        prediction_length=length,
    )


def _moved_back(splitter: TimeSplitter, horizon: pd.Timedelta) -> TimeSplitter:
    """Return the splitter whose horizon ends where this one's begins, cut at the items' start."""
    if splitter.after is None:
        return replace(splitter, date=pd.Timestamp(splitter.date) - horizon)  # pyright: ignore[reportOperatorIssue, reportArgumentType]
    after = pd.Timedelta(splitter.after)
    horizon = min(horizon, after)
    return replace(splitter, after=after - horizon, horizon=horizon)


def _gluonts_task(path: Path) -> Task:
    """Return the task of a GluonTS data set: the last window of each item in its test part."""
    metadata = path / "metadata" if (path / "metadata").is_dir() else path
    stored = load_datasets(metadata, path / "train", path / "test")
    length = stored.metadata.prediction_length
    if length is None or stored.test is None:
        raise DataError(f"{path} has no prediction_length or no test part",
                        "store both, see gluonts.dataset.common.TrainDatasets.save",
                        field="dataset")  # fmt: skip
    training, template = split_at(stored.train, offset=-length)
    _, fitted = split_at(stored.train, offset=-2 * length)
    return Task(
        name=path.name,
        training=training,
        training_forecasts=fitted.generate_instances(length),
        validation=template.generate_instances(length),
        tests={path.name: split_at(stored.test, offset=-length)[1].generate_instances(length)},
        prediction_length=length,
    )
