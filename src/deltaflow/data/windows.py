"""The windows for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from gluonts.dataset.common import DataEntry
from gluonts.dataset.split import TestData
from torch.utils.data import Dataset

from deltaflow.data.reader import Reader, Window, first_at
from deltaflow.data.series import Series
from deltaflow.errors import DataError, check_whole, warn_once

MOST_PER_SERIES, MOST_WINDOWS = 8, 2000
"""The largest number of spread windows per series, and in total: with many series, each has fewer,
but at least two."""

BLIND_SHARE = 0.02
"""Share of training windows without context, so that a model learns to forecast items without
observations."""


class Windows(Protocol):
    """Windows by number; numbers beyond their count are further passes, each in a new order."""

    reader: Reader

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Window: ...


@dataclass(frozen=True)
class Horizon:
    """The horizon of a training window.

    Attributes
    ----------
    prediction_length
        The largest number of queries.
    duration
        The queries are all observations within this many seconds after the first of them; if None,
        they are the next ``prediction_length`` observations.
    """

    prediction_length: int
    duration: float | None = None

    def window(self, reader: Reader, series: Series, origin: int, *, blind: bool = False) -> Window:
        """Return the window whose first query is row ``origin`` of the series.

        Parameters
        ----------
        reader
            The reader, which determines the context.
        series
            The series.
        origin
            Number of rows before the forecast origin.
        blind
            Whether to leave the context out, as if nothing had been observed yet.
        """
        context = slice(origin, origin) if blind else reader.context_of(series, origin)
        return Window(series, context, slice(origin, int(self.ends(series, np.array([origin]))[0])))

    def ends(self, series: Series, origins: np.ndarray) -> np.ndarray:
        """Return the row after the last query of a window at each origin, at most the last row.

        Raises
        ------
        DataError
            If more than ``prediction_length`` observations lie within the duration.
        """
        times = series.times[: series.length]
        if self.duration is None:
            return np.minimum(origins + self.prediction_length, len(times))
        ends = first_at(times, times[origins] + self.duration)
        queries = ends - origins
        if len(origins) and queries.max() > self.prediction_length:
            raise DataError(
                f"{queries.max()} observations follow within the horizon, but prediction_length "
                f"is {self.prediction_length}",
                "choose a larger prediction_length or a shorter horizon",
                item=series.item_id,
                position=int(origins[queries.argmax()]),
            )
        return ends


class _OriginWindows(Dataset[Window]):
    """Windows at origins of series with values to forecast.

    Something was observed before each origin, and a target is observed at it or later.

    Attributes
    ----------
    data, reader, horizon
        The series, their reader, and the horizon of a window.
    items
        The numbers of the series that have windows.
    ranges
        ``(len(items), 2)`` their first and last possible origin.

    Raises
    ------
    DataError
        If no series has a window, or a horizon has more than ``prediction_length`` observations.
    """

    def __init__(
        self,
        data: Sequence[Series],
        reader: Reader,
        horizon: Horizon,
        what: str = "item",
        within: tuple[float, float] | None = None,
    ) -> None:
        self.data, self.reader, self.horizon = data, reader, horizon
        ranges = np.empty((len(data), 2), dtype=np.int64)
        for number, series in enumerate(data):
            observed = np.isfinite(series.values)
            seen = np.flatnonzero(observed.any(axis=1))
            wanted = np.flatnonzero(observed[:, : len(reader.schema.target)].any(axis=1))
            low, high = (int(seen[0]) + 1, int(wanted[-1])) if len(wanted) else (1, 0)
            times = series.times[: series.length]
            if within is not None and len(times):
                first, last = first_at(times, times[0] + np.array(within))
                low, high = max(low, int(first)), min(high, int(last))
            ranges[number] = low, high
            horizon.ends(series, np.arange(low, high + 1))
        self.items = np.flatnonzero(ranges[:, 0] <= ranges[:, 1])
        self.ranges = ranges[self.items]
        if not len(self.items):
            where = "" if within is None else " at an origin within the times given"
            raise DataError(
                f"no {what} has an observed target after another observation{where}",
                "give longer series",
            )

    def window(self, number: int, origin: int, *, blind: bool = False) -> Window:
        """Return the window at an origin of the series with this number among `items`."""
        series = self.data[int(self.items[number])]
        return self.horizon.window(self.reader, series, origin, blind=blind)


class TrainingWindows(_OriginWindows):
    """Windows with random forecast origins, drawn evenly from all items.

    The ``i``-th window depends only on the seed and ``i``, no matter which worker or process draws
    it. Every pass over the items is a new permutation, and every window has a new origin.

    Parameters
    ----------
    data
        The series. One warning counts those without training windows, that is, without a target
        after a first observation.
    reader
        How the series are read.
    horizon
        The horizon of a window.
    seed
        Seed of the permutations and origins.
    within
        Earliest and latest origin, in seconds since the start of an item; None for whole items.
    thinning
        The largest share of the observed values of a context that is left out, see `thinned`.

    Raises
    ------
    DataError
        If no item has a training window.
    """

    def __init__(
        self,
        data: Sequence[Series],
        reader: Reader,
        horizon: Horizon,
        *,
        seed: int,
        within: tuple[float, float] | None = None,
        thinning: float = 0.0,
    ) -> None:
        super().__init__(data, reader, horizon, within=within)
        self.thinning, self.seed = thinning, seed
        if len(self.items) < len(data):
            left_out = np.setdiff1d(np.arange(len(data)), self.items)
            first = data[int(left_out[0])].item_id
            warn_once(
                f"{len(left_out)} of {len(data)} items have no observed target after another "
                f"observation, such as {first!r}; training passes over them"
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Window:
        number = _shuffled(index, len(self), self.seed, 0)
        # Seeding with an array takes half the time of seeding with a list.
        random = np.random.default_rng(np.array([self.seed, 1, index], dtype=np.uint32))
        low, high = self.ranges[number]
        origin = int(random.integers(low, high + 1))
        window = self.window(number, origin, blind=random.random() < BLIND_SHARE)
        if not self.thinning:
            return window
        keeps_rows = self.reader.schema.time == "regular"
        return thinned(window, self.thinning * random.random(), random, keeps_rows=keeps_rows)


def thinned(
    window: Window, share: float, random: np.random.Generator, *, keeps_rows: bool
) -> Window:
    """Return a window whose context lacks some of its values, each with the same probability.

    If no value would be left, the window is returned unchanged.

    Parameters
    ----------
    window
        The window.
    share
        The probability with which a value is left out.
    random
        The random generator.
    keeps_rows
        Whether times without any remaining value stay in the context, as in regular data.
    """
    series, context, queries = window
    rows = slice(context.start, queries.stop)
    values = series.values[rows].copy()
    read = values[: context.stop - context.start]
    read[random.random(read.shape) < share] = np.nan
    left = np.isfinite(read).any(axis=1)
    if not left.any():
        return window
    kept = np.ones(queries.stop - context.start, dtype=bool)
    if not keeps_rows:
        kept[: len(read)] = left
    count = int(kept[: len(read)].sum())
    own = series._replace(
        times=series.times[rows][kept],
        values=values[kept[: len(values)]],
        covariates=series.covariates[rows][kept],
    )
    return Window(own, slice(0, count), slice(count, int(kept.sum())))


class SlidingWindows(_OriginWindows):
    """The windows at every ``stride``-th origin of each series, from its first one on.

    Parameters
    ----------
    data, reader, horizon
        The series, their reader, and the horizon of a window.
    stride
        Rows from one origin to the next.
    seed
        Every pass over the windows is a new permutation that depends only on the seed and the
        number of the pass; if None, there is one pass, in the order of the data.
    """

    def __init__(
        self,
        data: Sequence[Series],
        reader: Reader,
        horizon: Horizon,
        *,
        stride: int = 1,
        seed: int | None = None,
    ) -> None:
        check_whole(1, stride=stride)
        super().__init__(data, reader, horizon)
        self.stride, self.seed = stride, seed
        low, high = self.ranges.T
        self._ends = ((high - low) // stride + 1).cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Window:
        if self.seed is not None:
            index = _shuffled(index, len(self), self.seed)
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        return self.window(number, int(self.ranges[number, 0]) + self.stride * (index - first))


def _shuffled(index: int, size: int, *seed: int) -> int:
    """Return a number below ``size``; every pass over the numbers has its own order."""
    turn, place = divmod(index, size)
    return int(_permutation(size, *seed, turn)[place])


@lru_cache(maxsize=4)
def _permutation(size: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)


class SpreadWindows(_OriginWindows):
    """A few windows per series, at origins spread evenly up to the last one.

    The last window is as long as the horizon, but leaves the earlier half of the possible origins
    to the context: a horizon as long as the series would leave no context.

    Parameters
    ----------
    data, reader, horizon
        The series, their reader, and the horizon of a window.
    most
        The largest number of windows per series; 1 for the last one only. If None, it depends on
        the number of series.
    """

    def __init__(
        self, data: Sequence[Series], reader: Reader, horizon: Horizon, most: int | None = None
    ) -> None:
        super().__init__(data, reader, horizon, "validation item")
        if most is None:
            most = int(np.clip(MOST_WINDOWS // len(self.items), 2, MOST_PER_SERIES))
        origins = []
        for item, (low, high) in zip(self.items.tolist(), self.ranges.tolist(), strict=True):
            late = np.arange((low + high) // 2, high + 1)
            last = late[np.argmax(horizon.ends(data[item], late) > high)]
            origins.append(spread(last if most == 1 else low, last, most))
        self.items = self.items.repeat([len(own) for own in origins])
        self.origins: list[int] = np.concatenate(origins).tolist()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Window:
        return self.window(index, self.origins[index])


def spread(first: int, last: int, most: int) -> np.ndarray:
    """Return at most ``most`` evenly spread whole numbers between two bounds.

    >>> spread(0, 10, 3), spread(0, 1, 3)
    (array([ 0,  5, 10]), array([0, 1]))
    """
    return np.unique(np.linspace(first, last, min(most, last - first + 1)).round().astype(int))


class LabelledWindows(Dataset[Window]):
    """The window of each forecast that is evaluated, with its whole label as the target.

    The label is the given one; the horizon of training windows does not shorten it.

    Parameters
    ----------
    test
        The forecasts.
    reader
        How the series are read.

    Raises
    ------
    DataError
        If an entry does not fit the training data.
    """

    def __init__(self, test: TestData, reader: Reader) -> None:
        self.reader = reader
        self.windows = [
            reader.window(reader.read(joined(past, label)), past["target"].shape[-1])
            for past, label in test
        ]

    def check_labels(self) -> None:
        """Raise an error if there is no label to evaluate.

        Raises
        ------
        DataError
            If no label has an observed target.
        """
        channels = len(self.reader.schema.target)
        labels = (series.values[queries, :channels] for series, _, queries in self.windows)
        if not any(np.isfinite(label).any() for label in labels):
            raise DataError(
                "none of the forecasts to evaluate has an observed target",
                "choose an earlier forecast origin, or a longer horizon",
            )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.windows[index]


def joined(past: DataEntry, label: DataEntry) -> DataEntry:
    """Append the label, without its padding, to the past: the entry before it was split."""
    length = past["target"].shape[-1]
    total = length + label["target"].shape[-1]
    if "feat_dynamic_real" in past:
        # Row 0 is NaN at padding; a regular series has no padding.
        total = int(np.isfinite(past["feat_dynamic_real"][0, :total]).sum())
    behind = slice(0, total - length)
    entry = dict(past)
    for name in ("target", "past_feat_dynamic_real"):
        if name in past:
            entry[name] = np.concatenate([past[name], label[name][..., behind]], axis=-1)
    if "feat_dynamic_real" in past:
        entry["feat_dynamic_real"] = past["feat_dynamic_real"][:, :total]
    return entry
