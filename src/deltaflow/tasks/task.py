"""Forecasting tasks: training data, and the forecasts to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.dataset.split import TestData

from deltaflow.data import IrregularDataset, TimeSplitter, split_items
from deltaflow.data.windows import joined


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


def known_before(task: Task) -> list[DataEntry]:
    """Return all data that may be used before the tests: the training and validation items.

    An item in both is returned once, including its validation values.
    """
    validated = {past.get("item_id"): joined(past, label) for past, label in task.validation}
    training = [entry for entry in task.training if entry.get("item_id") not in validated]
    return [*training, *validated.values()]
