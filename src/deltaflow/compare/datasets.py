"""The data set of a comparison, by name or path, as a forecasting task."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
from gluonts.dataset.common import load_datasets
from gluonts.dataset.split import split
from pandas.api.types import is_numeric_dtype

from deltaflow.compare.config import CompareConfig
from deltaflow.data import IrregularDataset, TimeSplitter
from deltaflow.errors import DataError, DeltaflowError, UnknownNameError
from deltaflow.tasks import TASKS, Task, unseen_items

READERS = {".csv": pd.read_csv, ".gz": pd.read_csv, ".parquet": pd.read_parquet}
"""How files are read, by their suffix."""


def load_task(dataset: str, config: CompareConfig) -> Task:
    """Return the task of one data set of a comparison.

    Raises
    ------
    DataError
        If there is no such file or folder, or its content is not what was announced.
    DeltaflowError
        If there is no such task, or it does not know one of its options.
    """
    if dataset in TASKS:
        try:
            return TASKS[dataset](**config.dataset_kwargs)
        except TypeError as error:
            raise DeltaflowError(f"dataset_kwargs of {dataset!r}: {error}") from error
    path = Path(dataset)
    if path.is_dir():
        return _gluonts_task(path)
    if path.is_file():
        return _file_task(path, config)
    if os.sep in dataset or path.suffix:
        raise DataError(f"there is no file or folder {dataset!r}", "check the path",
                        field="dataset")  # fmt: skip
    raise UnknownNameError("data set", dataset, TASKS)


def _file_task(path: Path, config: CompareConfig) -> Task:
    """Return the task to forecast unseen items of a file, or the future of all of them."""
    if path.suffix not in READERS:
        raise DataError(f"{path.name} is no file of {', '.join(READERS)}", "convert it",
                        field="dataset")  # fmt: skip
    columns, given = config.columns, config.split
    target = columns.target if len(columns.target) > 1 else columns.target[0]
    frame = READERS[path.suffix](path)
    if columns.timestamp in frame and not is_numeric_dtype(frame[columns.timestamp]):
        frame[columns.timestamp] = pd.to_datetime(frame[columns.timestamp])  # CSV has no dates
    data = IrregularDataset.from_long_dataframe(frame, **{**vars(columns), "target": target})
    name = path.name.removesuffix("".join(path.suffixes))
    if given.after is None and given.date is None:
        raise DataError("a file needs a forecast origin", "give split.after or split.date",
                        field="split")  # fmt: skip
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
        raise DataError("items that are learned from and tested need a horizon",
                        "give split.horizon", field="split")  # fmt: skip
    horizon = pd.Timedelta(given.horizon)
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
    """Return the splitter whose origin is earlier, but not before the items begin."""
    if splitter.after is None:
        return replace(splitter, date=pd.Timestamp(splitter.date) - horizon)  # pyright: ignore[reportOperatorIssue, reportArgumentType]
    return replace(splitter, after=max(pd.Timedelta(0), pd.Timedelta(splitter.after) - horizon))


def _gluonts_task(path: Path) -> Task:
    """Return the task of a GluonTS data set: the last window of each item in its test part."""
    metadata = path / "metadata" if (path / "metadata").is_dir() else path
    stored = load_datasets(metadata, path / "train", path / "test")
    length = stored.metadata.prediction_length
    if length is None or stored.test is None:
        raise DataError(f"{path} names no prediction_length, or has no test part",
                        "store both, see gluonts.dataset.common.TrainDatasets.save",
                        field="dataset")  # fmt: skip
    training, template = split(stored.train, offset=-length)
    _, fitted = split(stored.train, offset=-2 * length)
    return Task(
        name=path.name,
        training=training,
        training_forecasts=fitted.generate_instances(length),
        validation=template.generate_instances(length),
        tests={path.name: split(stored.test, offset=-length)[1].generate_instances(length)},
        prediction_length=length,
    )
