"""Cutting few long items into stretches, which then count as items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gluonts.dataset.common import DataEntry

from deltaflow.data.splitter import cut_entry
from deltaflow.forecast.conformal import FEWEST_ITEMS
from deltaflow.forecast.held_out import clock_times

FEWEST, MOST = 10, 50
"""About the smallest and the largest number of stretches, if the items are long enough."""

SHORTEST = 6
"""The smallest number of rows of a stretch."""


class Stretch(NamedTuple):
    """Consecutive rows of an item that count as an item.

    Attributes
    ----------
    entry
        The rows, under their own name.
    whole, start
        The item, and the row at which the stretch begins.
    """

    entry: DataEntry
    whole: DataEntry
    start: int

    @property
    def start_time(self) -> float:
        """The time of the first row, on a clock common to all items."""
        return clock_times(self.whole, 0)[self.start]

    def split(self, origin: int, end: int) -> tuple[DataEntry, DataEntry]:
        """Split the whole item at a row of the stretch, into context and targets.

        Both have the name of the stretch. See `cut_entry`.
        """
        parts = cut_entry(self.whole, self.start + origin, self.start + end)
        known, later = ({**part, "item_id": self.entry["item_id"]} for part in parts)
        return known, later


def cut_into_stretches(
    entries: Sequence[DataEntry], prediction_length: int, context_length: int
) -> list[Stretch]:
    """Cut items into consecutive stretches of about the same number of rows.

    A stretch has the rows of a context and a horizon, or fewer if there would otherwise be too few
    stretches; but at least twice the prediction length, if that leaves `FEWEST_ITEMS` stretches,
    and at least `SHORTEST` rows. Shorter items stay whole.

    Examples
    --------
    >>> from deltaflow.tasks import regular_seasonal
    >>> item = next(iter(regular_seasonal()))
    >>> cut = cut_into_stretches([item], 10, 20)
    >>> len(item["target"]), [len(one.entry["target"]) for one in cut][:4]
    (336, [30, 31, 30, 31])
    """
    lengths = [entry["target"].shape[-1] for entry in entries]
    rows = sum(lengths)
    whole_window = context_length + prediction_length
    least = max(
        rows // MOST,
        min(whole_window, rows // FEWEST),
        min(2 * prediction_length, rows // FEWEST_ITEMS),
        SHORTEST,
    )
    cut = []
    for number, (entry, length) in enumerate(zip(entries, lengths, strict=True)):
        item, count = entry.get("item_id"), max(1, length // least)
        for part in range(count):
            start, stop = part * length // count, (part + 1) * length // count
            _, own = cut_entry(entry, start, stop)
            name = f"{number if item is None else item}, rows {start} to {stop - 1}"
            cut.append(Stretch({**own, "item_id": name}, entry, start))
    return cut
