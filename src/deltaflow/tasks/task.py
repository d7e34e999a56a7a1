"""Forecasting tasks: training data, and the forecasts to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.dataset.split import TestData
from gluonts.dataset.split import split as split_at

from deltaflow.data import IrregularDataset, TimeSplitter, split_items
from deltaflow.data.schema import Schema
from deltaflow.data.series import entries_of, schema_of, series_of
from deltaflow.data.statistics import Statistics
from deltaflow.data.windows import joined
from deltaflow.errors import DataError


@dataclass(frozen=True)
class Task:
    """A named forecasting task.

    Attributes
    ----------
    name
        The name of the task.
    training
        The items from which training windows are drawn.
    training_forecasts
        The forecasts of the training items from the forecast origin of the tests, for models that
        are fitted to forecasts instead of windows.
    validation
        The forecasts whose loss determines when training stops.
    tests
        The forecasts that are evaluated, by the name under which their results are reported.
    prediction_length
        The largest number of queries of a forecast.
    scale
        ``(D,)`` divisors of each channel's errors before they are averaged over channels, in the
        units of the channel; if None, its standard deviation in the training set.
    """

    name: str
    training: Dataset
    training_forecasts: TestData
    validation: TestData
    tests: Mapping[str, TestData]
    prediction_length: int
    scale: np.ndarray | None = None

    @cached_property
    def schema(self) -> Schema:
        """The schema of the training data."""
        return schema_of(self.training)

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        """The `Statistics` of the channels in the training set, as arrays by name."""
        series = (series_of(entry, self.schema) for entry in entries_of(self.training))
        return Statistics.fit(series, self.schema.target).arrays

    @property
    def units(self) -> np.ndarray:
        """The divisors ``(D,)``: `scale`, or the standard deviations."""
        if self.scale is not None:
            return self.scale
        return self.statistics["spread"][: len(self.schema.target)]


def unseen_items(
    name: str,
    data: IrregularDataset,
    splitter: TimeSplitter,
    *,
    test_share: float = 0.2,
    validation_share: float = 0.2,
    seed: int = 0,
) -> Task:
    """Return the task to forecast items that do not occur in training.

    Parameters
    ----------
    name
        The name of the task.
    data
        All items.
    splitter
        The splitter for validation and test.
    test_share
        Share of the items that are for the test.
    validation_share
        Share of the remaining items that are for validation.
    seed
        Seed of both random choices.
    """
    rest, test = split_items(data, test_share, seed=seed)
    training, validation = split_items(rest, validation_share, seed=seed)
    length = splitter.prediction_length(data)
    return task_after(name, splitter, training, validation, {name: test}, length)


def last_rows(name: str, data: IrregularDataset, count: int) -> Task:
    """Return the task to forecast the last rows of every item from all of its earlier ones.

    The rows just before them are for validation, and the rest for training. An item that is too
    short for this is only used for training.

    Parameters
    ----------
    name
        The name of the task.
    data
        All items.
    count
        The number of rows of each item that are forecast.

    Raises
    ------
    DataError
        If no item has more than three times as many rows.
    """
    if max(entry["target"].shape[-1] for entry in data) <= 3 * count:
        raise DataError(
            f"no item has more than {3 * count} rows; test, validation and training forecasts take "
            f"{count} each",
            "give longer series, or forecast fewer rows",
        )
    known, test = _without_last(data, count)
    training, validation = _without_last(known, count)
    return Task(
        name=name,
        training=training,
        training_forecasts=_without_last(training, count)[1],
        validation=validation,
        tests={name: test},
        prediction_length=count,
    )


def task_after(
    name: str,
    splitter: TimeSplitter,
    training: IrregularDataset,
    validation: IrregularDataset,
    tests: Mapping[str, IrregularDataset],
    prediction_length: int,
    scale: np.ndarray | None = None,
) -> Task:
    """Return the task to forecast the values after a time, with given items for each part.

    Parameters
    ----------
    name, prediction_length, scale
        See `Task`.
    splitter
        The splitter, which determines origin and horizon.
    training, validation, tests
        The items.
    """

    def forecasts(data: IrregularDataset, length: int = prediction_length) -> TestData:
        return splitter.split(data)[1].generate_instances(length)

    return Task(
        name=name,
        training=training,
        training_forecasts=forecasts(training, splitter.prediction_length(training)),
        validation=forecasts(validation),
        tests={test: forecasts(data) for test, data in tests.items()},
        prediction_length=prediction_length,
        scale=scale,
    )


def _without_last(data: IrregularDataset, count: int) -> tuple[IrregularDataset, TestData]:
    """Return the items without their last rows, and the forecasts of these rows.

    Items with at most ``count`` rows are kept whole and not forecast.
    """
    is_long = [entry["target"].shape[-1] > count for entry in data]
    earlier, template = split_at(data.select(np.flatnonzero(is_long)), offset=-count)
    shortened = iter(earlier)
    entries = [
        next(shortened) if long else entry for long, entry in zip(is_long, data, strict=True)
    ]
    return IrregularDataset(entries, data.schema), template.generate_instances(count)


def known_before(task: Task) -> list[DataEntry]:
    """Return all data that may be used before the tests: the training and validation items.

    An item in both is returned once, including its validation values.
    """
    names = {past.get("item_id") for past in task.validation.input}
    training = [entry for entry in task.training if entry.get("item_id") not in names]
    return [*training, *(joined(*pair) for pair in task.validation)]
