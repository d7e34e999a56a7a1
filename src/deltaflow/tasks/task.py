"""What a forecasting task consists of: training data, and the forecasts that are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.dataset.split import TestData

from deltaflow.data import IrregularDataset, TimeSplitter, WindowSpec, split_items
from deltaflow.data.series import Reader
from deltaflow.data.windows import Window
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
        The forecasts whose loss decides when a training run stops.
    tests
        The forecasts that are evaluated, by the name under which their results are reported.
    prediction_length
        The largest number of queries of a forecast.
    scale
        ``(D,)`` what errors of each channel are divided by before they are averaged over channels,
        in the units of the channel; if None, its standard deviation in the training set.
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
        Where the forecasts of validation and test begin and end.
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
    return Task(
        name=name,
        training=training,
        training_forecasts=splitter.split(training)[1].generate_instances(length),
        validation=splitter.split(validation)[1].generate_instances(length),
        tests={name: splitter.split(test)[1].generate_instances(length)},
        prediction_length=length,
    )


class LabelledWindows(torch.utils.data.Dataset[Window]):
    """The window of each forecast that is evaluated, with its whole label as the target.

    The label is that of the task; the horizon of training windows does not shorten it.

    Parameters
    ----------
    test
        The forecasts.
    spec
        How the context is read.
    reader
        The reader of the series, if it is shared with other data, so that it warns only once.

    Raises
    ------
    DataError
        If an entry does not match the training data, or has more queries than
        ``prediction_length``.
    """

    def __init__(self, test: TestData, spec: WindowSpec, reader: Reader | None = None) -> None:
        self.spec = spec
        self.windows: list[Window] = []
        reader = spec.reader() if reader is None else reader
        for past, label in test:
            series, origin = reader.read(joined(past, label)), past["target"].shape[-1]
            queries = series.length - origin
            if queries > spec.prediction_length:
                raise DataError(
                    f"{queries} times have to be forecast, but prediction_length is "
                    f"{spec.prediction_length}",
                    "shorten the horizon, or train with a longer one",
                    item=series.item_id,
                )
            context = spec.context_of(series, origin)
            self.windows.append(Window(series, context, slice(origin, series.length)))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.windows[index]


def known_before(task: Task) -> list[DataEntry]:
    """Return all that may be learned before the tests: the training items, and the validated ones.

    An item that is in both, its last values validated, is returned once, with these values.
    """
    validated = {past.get("item_id"): joined(past, label) for past, label in task.validation}
    training = [entry for entry in task.training if entry.get("item_id") not in validated]
    return [*training, *validated.values()]


def joined(past: DataEntry, label: DataEntry) -> DataEntry:
    """Append the label, without its padding, to the past: the entry before it was split."""
    length = past["target"].shape[-1]
    total = length + label["target"].shape[-1]
    if "feat_dynamic_real" in past:
        # Row 0 is NaN where a query only pads; a regular series has no padding.
        total = int(np.isfinite(past["feat_dynamic_real"][0, :total]).sum())
    behind = slice(0, total - length)
    entry = dict(past)
    for name in ("target", "past_feat_dynamic_real"):
        if name in past:
            entry[name] = np.concatenate([past[name], label[name][..., behind]], axis=-1)
    if "feat_dynamic_real" in past:
        entry["feat_dynamic_real"] = past["feat_dynamic_real"][:, :total]
    return entry
