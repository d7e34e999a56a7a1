"""Few long items, cut into stretches that are trained on as if they were items."""

from __future__ import annotations

from collections.abc import Sequence

from gluonts.dataset.common import DataEntry

from deltaflow.data.splitter import cut_entry

FEWEST, MOST = 10, 50
"""About the smallest and the largest number of stretches, where the length of the items allows."""

SHORTEST = 12
"""The smallest number of rows of a stretch."""


def stretches(
    entries: Sequence[DataEntry], prediction_length: int, context_length: int
) -> list[DataEntry]:
    """Cut items into stretches that follow each other, of about the same number of rows.

    A stretch holds a context and a horizon, or fewer rows where there would be too few stretches;
    but at least twice the prediction length, and `SHORTEST`. Shorter items stay whole. Each stretch
    has a name of its own.

    Examples
    --------
    >>> from deltaflow.tasks import regular_seasonal
    >>> item = next(iter(regular_seasonal()))
    >>> len(item["target"]), [len(one["target"]) for one in stretches([item], 10, 20)][:4]
    (336, [30, 31, 30, 31])
    """
    lengths = [entry["target"].shape[-1] for entry in entries]
    rows = sum(lengths)
    whole_window = context_length + prediction_length
    least = max(rows // MOST, min(whole_window, rows // FEWEST), 2 * prediction_length, SHORTEST)
    cut = []
    for number, (entry, length) in enumerate(zip(entries, lengths, strict=True)):
        count = max(1, length // least)
        for part in range(count):
            start, stop = part * length // count, (part + 1) * length // count
            _, own = cut_entry(entry, start, stop)
            name = entry.get("item_id", number)
            cut.append({**own, "item_id": f"{name}, rows {start} to {stop - 1}"})
    return cut
