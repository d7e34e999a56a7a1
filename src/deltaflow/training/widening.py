"""Fitting the widening of intervals beyond the lead times of the training windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.dataset.split import TestData

from deltaflow.data import IrregularDataModule
from deltaflow.data.series import is_irregular
from deltaflow.data.splitter import cut_entry
from deltaflow.data.windows import TrainingWindows, joined, spread
from deltaflow.errors import DataError
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.widening import WideningPredictor

SHARE = 0.95
"""The share of the targets of training windows whose lead times lie within the reach: lead times of
few windows are hardly learned."""

ITEMS, ORIGINS = 200, 50
"""The largest numbers of items, and of origins of each, from which the reach is computed."""

HELD_OUT_ORIGINS = 8
"""The largest number of origins per held-out item."""


def widened(
    predictor: DeltaflowPredictor, data: IrregularDataModule, held_out: Sequence[DataEntry]
) -> WideningPredictor:
    """Widen a predictor's intervals beyond its reach, by its errors on held-out items.

    Parameters
    ----------
    predictor
        The predictor.
    data
        The data it was trained on.
    held_out
        Whole items that it was not trained on.

    Raises
    ------
    DataError
        If the series are regular, or no held-out item is longer than the reach.
    """
    windows = data.training_windows
    assert isinstance(windows, TrainingWindows)
    reach = reach_of(windows)
    read = ((entry, windows.reader.read(entry)) for entry in held_out)
    pairs = [
        pair
        for entry, series in read
        for pair in _pairs(entry, series.times[: series.length], reach, data.prediction_length)
    ]
    return WideningPredictor.fit(predictor, reach, pairs)


def check_irregular(training_data: Dataset) -> None:
    """Raise unless the series are irregular: others have no lead times beyond those of training."""
    first = next(iter(training_data), None)
    if first is not None and not is_irregular(first):
        raise DataError("widening needs lead times of irregular series",
                        "train with widening=False", item=first.get("item_id"))  # fmt: skip


def whole_items(validation_data: Dataset | TestData) -> list[DataEntry]:
    """Return the validation items, including their targets."""
    if isinstance(validation_data, TestData):
        return [joined(past, label) for past, label in validation_data]
    return list(validation_data)


def reach_of(windows: TrainingWindows) -> float:
    """Return the lead time, in seconds, below which nearly all targets of training windows lie."""
    leads = []
    for number in spread(0, len(windows.items) - 1, ITEMS):
        series = windows.data[int(windows.items[number])]
        low, high = windows.ranges[number]
        origins = spread(low, high, ORIGINS)
        for origin, end in zip(origins, windows.horizon.ends(series, origins), strict=True):
            leads.append(series.times[origin:end] - series.times[origin - 1])
    return float(np.quantile(np.concatenate(leads), SHARE))


def _pairs(
    entry: DataEntry, times: np.ndarray, reach: float, most: int
) -> Iterator[tuple[DataEntry, DataEntry]]:
    """Yield contexts, and at most ``most`` later values beyond a reach."""
    rows = np.flatnonzero(times[-1] - times > reach)
    if not len(rows):
        return
    for row in spread(0, rows[-1], HELD_OUT_ORIGINS):
        beyond = np.flatnonzero(times - times[row] > reach)
        beyond = beyond[spread(0, len(beyond) - 1, most)]
        kept = np.concatenate([np.arange(row + 1), beyond])
        yield cut_entry(_of_rows(entry, kept), int(row) + 1, len(kept))


def _of_rows(entry: DataEntry, rows: np.ndarray) -> DataEntry:
    """Return an entry restricted to some of its rows."""
    names = ("target", "past_feat_dynamic_real", "feat_dynamic_real")
    return {**entry, **{name: entry[name][..., rows] for name in names if name in entry}}
