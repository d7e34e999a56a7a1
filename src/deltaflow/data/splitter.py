"""Splits of data sets: by real time, and by item."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.dataset.split import AbstractBaseSplitter

from deltaflow.data.arrow import ArrowDataset
from deltaflow.data.dataset import IrregularDataset
from deltaflow.data.matching import schema_in
from deltaflow.data.schema import (
    TICKS_PER_SECOND,
    Duration,
    elapsed_time,
    nanoseconds,
    read_date,
    read_duration,
    unit_seconds,
)
from deltaflow.data.series import entries_of, is_irregular
from deltaflow.errors import DataError, check_whole
from deltaflow.randomness import check_seed


@dataclass
class TimeSplitter(AbstractBaseSplitter):
    """Split irregular series at a point in real time instead of at a number of observations.

    It is used like GluonTS's splitters: ``train, template = splitter.split(dataset)``, then
    ``template.generate_instances(prediction_length)``. The number of queries varies from item to
    item, so queries are padded to ``prediction_length`` with NaN times and NaN labels, which
    ``evaluate_model`` masks. Items without observations before or after the split are kept.

    Parameters
    ----------
    after
        Time of the split since the time origin of each item: its first timestamp, or zero if times
        are elapsed numbers.
    date
        Date of the split, in all items. Give either ``after`` or ``date``.
    horizon
        Duration of the horizon after the split; to the end of each item if None. An observation
        exactly at the split belongs to the horizon.

    Examples
    --------
    >>> import pandas as pd
    >>> df = pd.DataFrame({"t": [1.0, 20.0, 24.0, 40.0, 70.0], "HR": [80, 82, 85, 81, 79]})
    >>> ds = IrregularDataset.from_long_dataframe(df, item_id=None, timestamp="t", target="HR")
    >>> splitter = TimeSplitter(after="24h", horizon="24h")
    >>> splitter.prediction_length(ds)
    2
    >>> train, template = splitter.split(ds)
    >>> [(i["target"], l["target"]) for i, l in template.generate_instances(3)]
    [(array([80., 82.]), array([85., 81., nan]))]
    """

    after: Duration | None = None
    date: str | pd.Timestamp | None = None
    horizon: Duration | None = None

    def __post_init__(self) -> None:
        if (self.after is None) == (self.date is None):
            raise DataError("a TimeSplitter needs either after or date", "give one of them")
        self._after, self._horizon = (
            None if value is None else nanoseconds(read_duration(value, field))
            for field, value in (("after", self.after), ("horizon", self.horizon))
        )
        if self._horizon == 0:
            raise DataError(f"{self.horizon!r} contains no observation", "give a longer duration",
                            field="horizon")  # fmt: skip
        self._date = None if self.date is None else read_date(self.date, "date")

    def prediction_length(
        self, dataset: Dataset, windows: int = 1, distance: Duration | None = None
    ) -> int:
        """Return the largest number of observations of any item within the horizon.

        Parameters
        ----------
        dataset
            The items.
        windows, distance
            The number of splits, and the time between them, as for ``generate_instances``.
        """
        apart = self._apart(windows, distance)
        entries, offsets = entries_of(dataset), [window * apart for window in range(windows)]
        bounds = (self._bounds(entry, offset) for entry in entries for offset in offsets)
        return max([1, *(high - low for low, high in bounds)])

    def generate_training_entries(self, dataset: Dataset) -> Iterator[DataEntry]:
        """Yield the part of each item before the split."""
        return map(self.training_entry, entries_of(dataset))

    def training_entry(self, entry: DataEntry) -> DataEntry:
        """Return the part of an item before the split."""
        stop = _rows_before(entry, self._cut(entry))
        return _sliced(entry, slice(0, stop), slice(0, stop))

    def test_pair(
        self, entry: DataEntry, prediction_length: int, offset: Duration = "0s"
    ) -> tuple[DataEntry, DataEntry]:
        """Return the part of an item before the split with its query times, and the label.

        Parameters
        ----------
        entry
            The item.
        prediction_length
            The number of queries to pad to.
        offset
            Duration by which the split is moved forward in time.

        Raises
        ------
        DataError
            If the item has more than ``prediction_length`` observations within the horizon.
        """
        return self._pair(entry, prediction_length, nanoseconds(read_duration(offset, "offset")))

    def _pair(
        self, entry: DataEntry, prediction_length: int, offset: int
    ) -> tuple[DataEntry, DataEntry]:
        low, high = self._bounds(entry, offset)
        if high - low > prediction_length:
            raise DataError(
                f"has {high - low} observations within the horizon, but prediction_length is "
                f"{prediction_length}",
                "use the length that all items need: "
                "TimeSplitter.prediction_length(dataset), with the same windows and distance",
                item=entry.get("item_id"),
                field="target",
            )
        padding = prediction_length - (high - low)
        past = _sliced(entry, slice(0, low), slice(0, high), padding_known=padding)
        label = _sliced(entry, slice(low, high), slice(low, high), padding, padding)
        return past, label

    def generate_test_pairs(
        self,
        dataset: Dataset,
        prediction_length: int,
        windows: int = 1,
        distance: Duration | None = None,
        max_history: int | None = None,
    ) -> Iterator[tuple[DataEntry, DataEntry]]:
        """Yield the pairs of input and label of each item, for one or more splits.

        Parameters
        ----------
        dataset, prediction_length
            The items, and the number of queries to pad to.
        windows
            The number of consecutive splits.
        distance
            Time between two splits; the horizon if None.
        max_history
            The largest number of observations before a split.
        """
        apart = self._apart(windows, distance)
        for entry in entries_of(dataset):
            for window in range(windows):
                past, label = self._pair(entry, prediction_length, window * apart)
                length = past["target"].shape[-1]
                if max_history is not None and length > max_history:
                    keep = slice(length - max_history, length)
                    past = _sliced(past, keep, slice(keep.start, None))
                yield past, label

    def _apart(self, windows: int, distance: Duration | None) -> int:
        """Return the time from one split to the next, in nanoseconds."""
        check_whole(1, windows=windows)
        if windows == 1:
            return 0
        step = self.horizon if distance is None else distance
        if step is None or isinstance(step, (int, np.integer)):
            raise DataError(
                "several windows need a horizon, or a distance that is a duration",
                "give one such as '6h'",
                field="distance",
            )
        return nanoseconds(read_duration(step, "distance"))

    def _cut(self, entry: DataEntry) -> int:
        """Return the time of the split, in nanoseconds since the item's time origin."""
        if not is_irregular(entry):
            raise DataError(
                "a TimeSplitter needs irregular series",
                "split a regular data set with gluonts.dataset.split.split",
                item=entry.get("item_id"),
                field="info",
            )
        origin = entry["info"]["time_origin"]
        if self._after is not None:
            return self._after
        if origin is None:
            raise DataError(
                "elapsed times have no dates",
                "split with after= instead of date=",
                item=entry.get("item_id"),
                field="date",
            )
        date = cast(pd.Timestamp, self._date)
        if (date.tz is None) == str(origin).endswith("Z"):
            raise DataError(
                f"the date has {'a time zone, unlike the data' if date.tz else 'no time zone'}",
                "give the date with a time zone if the data have one, and without if not",
                field="date",
            )
        since = date.tz_convert("UTC").tz_localize(None) if date.tz else date
        return nanoseconds(since) - nanoseconds(pd.Timestamp(str(origin).removesuffix("Z")))

    def _bounds(self, entry: DataEntry, offset: int) -> tuple[int, int]:
        """Return the rows ``[low, high)`` within the horizon of a split, moved by an offset."""
        cut = self._cut(entry) + offset
        low = _rows_before(entry, cut)
        if self._horizon is None:
            return low, entry["target"].shape[-1]
        return low, _rows_before(entry, cut + self._horizon)


_Items = TypeVar("_Items", IrregularDataset, ArrowDataset, list[DataEntry])


def split_items(dataset: _Items, test_share: float = 0.2, seed: int = 0) -> tuple[_Items, _Items]:
    """Split a data set by item, at random: no item is in both parts.

    Parameters
    ----------
    dataset
        The items. The parts of a data set that is not one of deltaflow's are lists of entries;
        those with the same ``item_id`` are one item.
    test_share
        Share of the items in the second part. Both parts get at least one item.
    seed
        Seed of the random choice.
    """
    check_seed(seed)
    dataset = _numbered(dataset)
    items = [[number] for number in range(len(dataset))]
    if isinstance(dataset, list):
        items = by_item([entry.get("item_id") for entry in dataset])
    if not 0 < test_share < 1 or len(items) < 2:
        raise DataError(
            f"cannot set aside a share of {test_share} of {len(items)} items",
            "give at least two items and a share between 0 and 1",
            field="test_share",
        )
    count = min(max(1, round(test_share * len(items))), len(items) - 1)
    order = [items[number] for number in np.random.default_rng(seed).permutation(len(items))]
    rest, test = (np.sort(np.hstack(part)) for part in (order[count:], order[:count]))
    return select(dataset, rest), select(dataset, test)


def by_item(names: Iterable[str | None]) -> list[list[int]]:
    """Return the numbers of the entries of each item, given their names.

    An entry without a name is an item of its own.

    >>> by_item(["a", "b", "a", None, None])
    [[0, 2], [1], [3], [4]]
    """
    items: dict[Any, list[int]] = {}
    for number, name in enumerate(names):
        items.setdefault((name, number if name is None else None), []).append(number)
    return list(items.values())


def _numbered(dataset: _Items) -> _Items:
    """Return a data set whose items can be selected: itself, or a list of its entries."""
    is_own = isinstance(dataset, (IrregularDataset, ArrowDataset))
    return dataset if is_own else list(entries_of(dataset))  # pyright: ignore[reportReturnType]


def select(dataset: _Items | Sequence[DataEntry], chosen: Iterable[int]) -> Any:
    """Return the chosen items, without reading those in a file."""
    if isinstance(dataset, (IrregularDataset, ArrowDataset)):
        return dataset.select(chosen)
    return [dataset[int(number)] for number in chosen]


def split_items_by(dataset: _Items, column: str | Mapping[Any, str]) -> dict[str, _Items]:
    """Split the items of a data set by the levels of a column.

    Parameters
    ----------
    dataset
        The items. The parts of a data set that is not one of deltaflow's are lists of entries.
    column
        The name of a static categorical feature, or a mapping (a dict or a pandas Series) from
        item to level.

    Returns
    -------
    dict
        The items of each level, in the order of the data set.
    """
    dataset = _numbered(dataset)
    if isinstance(column, str):
        if isinstance(dataset, list):
            raise DataError("the features of a list of entries have no names",
                            "give a mapping from item to level", field=column)  # fmt: skip
        levels = dataset.schema.feat_static_cat
        if column not in levels:
            raise DataError("is not a static categorical feature", f"there are {list(levels)}",
                            field=column)  # fmt: skip
        parts = [_level(entry, column) for entry in dataset]
    else:
        names = [entry.get("item_id") for entry in dataset]
        absent = [name for name in names if name not in column]
        if absent:
            raise DataError("the item has no level", "give every item a level", item=absent[0])
        parts = [str(column[name]) for name in names]
    return {
        part: select(dataset, (i for i, own in enumerate(parts) if own == part))
        for part in dict.fromkeys(parts)
    }


def _level(entry: DataEntry, column: str) -> str:
    """Return an entry's level of a static categorical feature, according to its own schema."""
    categories = schema_in(entry).feat_static_cat
    if column not in categories:
        raise DataError("is not a static categorical feature of the item", f"there are "
                        f"{list(categories)}", item=entry.get("item_id"), field=column)  # fmt: skip
    code = int(entry["feat_static_cat"][list(categories).index(column)])
    return categories[column][code] if code >= 0 else "unknown"


def cut_entry(entry: DataEntry, origin: int, end: int) -> tuple[DataEntry, DataEntry]:
    """Return an entry before a forecast origin, with its queries, and the label after it.

    Parameters
    ----------
    entry
        An irregular or regular entry.
    origin, end
        The row of the first query, and the row after the last one.
    """
    past = _sliced(entry, slice(0, origin), slice(0, end))
    return past, _sliced(entry, slice(origin, end), slice(origin, end))


def _rows_before(entry: DataEntry, moment: int) -> int:
    """Return the number of observations before a time in nanoseconds since the time origin.

    An observation exactly at that time is not counted. To keep this exact despite rounding, the
    time is converted like the timestamps, from a whole number of ticks. Elapsed numbers are not
    converted, so the nearest float64 number is used.
    """
    times = entry["feat_dynamic_real"][0, : entry["target"].shape[-1]]
    info = entry["info"]
    unit = unit_seconds(info["time_unit"])
    if info["time_origin"] is None:
        elapsed = moment / round(unit * 10**9)
    else:
        resolution = info["time_resolution"]
        # The first tick at or after the time.
        tick = -(-moment * TICKS_PER_SECOND[resolution] // 10**9)
        elapsed = elapsed_time(tick, resolution, unit)
    return int(np.searchsorted(times, elapsed, side="left"))


def _sliced(
    entry: DataEntry, past: slice, known: slice, padding: int = 0, padding_known: int = 0
) -> dict[str, Any]:
    """Slice an entry: observed fields by ``past``, fields known in advance by ``known``."""
    cut = {**entry, "start": entry["start"] + (past.start or 0)}
    for field, rows, count in (
        ("target", past, padding),
        ("past_feat_dynamic_real", past, padding),
        ("feat_dynamic_real", known, padding_known),
    ):
        if field in entry:
            cut[field] = _padded(entry[field][..., rows], count)
    return cut


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    if not count:  # counts are integers, which cannot be padded with NaN
        return values.copy()
    widths = [(0, 0)] * (values.ndim - 1) + [(0, count)]
    return np.pad(values, widths, constant_values=np.nan)
