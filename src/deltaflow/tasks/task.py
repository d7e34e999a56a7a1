"""What a forecasting task is: data to learn from, and the forecasts that are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from gluonts.dataset.common import Dataset
from gluonts.dataset.split import TestData

from deltaflow.data import IrregularDataset, TimeSplitter, split_items


@dataclass(frozen=True)
class Task:
    """A named forecasting task.

    Attributes
    ----------
    name
        Its name.
    training
        The items from which training windows are drawn.
    training_forecasts
        The forecasts of the training items from the origin of the tests: what is fitted to
        forecasts, instead of to windows, is fitted to these.
    validation
        The forecasts whose loss decides when a training stops.
    tests
        The forecasts that are judged, by the name under which their results stand.
    prediction_length
        The largest number of queries of a forecast.
    scale
        ``(D,)`` the unit of each channel in averages over the channels; if None, its standard
        deviation in the training set.
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
    """Return the task to forecast items of which nothing was seen in training.

    Parameters
    ----------
    name
        Its name.
    data
        All items.
    splitter
        Where the forecasts of validation and test begin and end.
    test_share
        Share of the items that are tested.
    validation_share
        Share of the remaining items that are validated.
    seed
        Seed of both choices.
    """
    rest, test = split_items(data, test_share, seed=seed)
    training, validation = split_items(rest, validation_share, seed=seed)
    length = splitter.prediction_length(data)
    return Task(
        name=name,
        training=training,
        training_forecasts=splitter.split(training)[1].generate_instances(length),
        validation=splitter.split(validation)[1].generate_instances(length),
        tests={name: splitter.split(test)[1].generate_instances(length)},
        prediction_length=length,
    )
