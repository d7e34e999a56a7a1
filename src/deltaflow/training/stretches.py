"""Few long items, cut into stretches that are trained on as if they were items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gluonts.dataset.common import DataEntry

from deltaflow.data.splitter import cut_entry
from deltaflow.forecast.conformal import FEWEST_ITEMS

FEWEST, MOST = 10, 50
"""About the smallest and the largest number of stretches, where the length of the items allows."""

SHORTEST = 6
"""The smallest number of rows of a stretch."""


class Stretch(NamedTuple):
    """Rows of an item that count as an item.

    Attributes
    ----------
    entry
        The rows, under a name of their own.
    whole, start
        The item, and its row at which they begin.
    """

    entry: DataEntry
    whole: DataEntry
    start: int

    def split(self, origin: int, end: int) -> tuple[DataEntry, DataEntry]:
        """Return what was known of the whole item before a row of the stretch, and what followed.

        Both have the name of the stretch. See `cut_entry`.
        """
        parts = cut_entry(self.whole, self.start + origin, self.start + end)
        known, later = ({**part, "item_id": self.entry["item_id"]} for part in parts)
        return known, later


def stretches(
    entries: Sequence[DataEntry], prediction_length: int, context_length: int
) -> list[Stretch]:
    """Cut items into stretches that follow each other, of about the same number of rows.

    A stretch holds a context and a horizon, or fewer rows where there would be too few stretches;
    but at least twice the prediction length, if that leaves `FEWEST_ITEMS` of them, and at least
    `SHORTEST`. Shorter items stay whole.

    Examples
    --------
    >>> from deltaflow.tasks import regular_seasonal
    >>> item = next(iter(regular_seasonal()))
    >>> cut = stretches([item], 10, 20)
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
        count = max(1, length // least)
        for part in range(count):
            start, stop = part * length // count, (part + 1) * length // count
            _, own = cut_entry(entry, start, stop)
            name = f"{entry.get('item_id', number)}, rows {start} to {stop - 1}"
            cut.append(Stretch({**own, "item_id": name}, entry, start))
    return cut
