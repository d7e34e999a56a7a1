"""A table of fixed-size records, one per item: compact, quick to read and write, saved at once."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GROWTH = 1.5
"""The factor by which a full table grows. Pages that no item has reached take no memory."""


class _Place(NamedTuple):
    """Where a part of a record is packed: in which block, in which columns, and its shape."""

    block: int
    columns: slice
    shape: tuple[int, ...]


class ItemTable:
    """Records of items by their names. All parts of a record that have one dtype lie together.

    So a record is read in one access per dtype, however many parts it has.

    Parameters
    ----------
    parts
        An example of each part of a record, ``(1, …)``.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        dtypes = list(dict.fromkeys(part.dtype for part in parts))
        widths = [0] * len(dtypes)
        self._places = []
        for part in parts:
            block = dtypes.index(part.dtype)
            columns = slice(widths[block], widths[block] + math.prod(part.shape[1:]))
            self._places.append(_Place(block, columns, part.shape[1:]))
            widths[block] = columns.stop
        # One record is always there, so that absent items have something to be read.
        self._blocks = [
            torch.zeros(1, width, dtype=dtype)
            for width, dtype in zip(widths, dtypes, strict=True)
        ]  # fmt: skip
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    @property
    def names(self) -> list[str]:
        """The names of all items, in the order in which they came."""
        return list(self._rows)

    @property
    def bytes_per_item(self) -> int:
        """The size of a record in bytes, without the item's name."""
        return sum(block.shape[1] * block.element_size() for block in self._blocks)

    def find(self, names: Iterable[str]) -> Tensor:
        """Return the row of each item, ``(I,)`` int64; -1 where there is no such item."""
        return torch.tensor([self._rows.get(name, -1) for name in names], dtype=torch.int64)

    def take(self, rows: Tensor) -> list[Tensor]:
        """Return copies of the records of rows ``(I,)``, packed; of row -1, anything."""
        rows = rows.clamp(min=0)
        return [block.index_select(0, rows) for block in self._blocks]

    def parts(self, packed: Sequence[Tensor]) -> list[Tensor]:
        """Return the parts ``(I, …)`` of packed records, as views that may be written to."""
        return [
            part if len(place.shape) == 1 else part.unflatten(1, place.shape)
            for place in self._places
            for part in [packed[place.block][:, place.columns]]
        ]

    def put(self, names: Sequence[str], rows: Tensor, packed: Sequence[Tensor]) -> None:
        """Write packed records to the rows of items; an item of row -1 gets a new row."""
        new = [name for name, row in zip(names, rows.tolist(), strict=True) if row < 0]
        if new:
            fresh = [self._new_row() for _ in new]
            self._rows.update(zip(new, fresh, strict=True))
            self._reserve(self._used)
            rows = rows.clone()
            rows[rows < 0] = torch.tensor(fresh)
        for block, records in zip(self._blocks, packed, strict=True):
            block.index_copy_(0, rows, records)

    def forget(self, names: Iterable[str]) -> None:
        """Delete items; their rows go to the next new ones."""
        self._free += [self._rows.pop(name) for name in names]

    def replace(self, number: int, values: Tensor) -> None:
        """Replace a part of all records, ``(rows, …)`` as :meth:`all_of` gives it."""
        place = self._places[number]
        self._blocks[place.block][:, place.columns] = values.flatten(1)

    def all_of(self, number: int) -> Tensor:
        """Return a part of all records, those of unused rows among them."""
        return self.parts(self._blocks)[number]

    def copy(self) -> tuple[list[str], list[Tensor]]:
        """Return the names of all items, and their packed records in the same order."""
        rows = torch.tensor(list(self._rows.values()), dtype=torch.int64)
        return list(self._rows), self.take(rows)

    def fill(self, names: Sequence[str], packed: Sequence[Tensor]) -> None:
        """Make the table hold these items alone.

        Raises
        ------
        ValueError
            If they are not records of this table, or a name stands twice.
        """
        for block, records in zip(self._blocks, packed, strict=True):
            if records.dtype != block.dtype or records.shape != (len(names), block.shape[1]):
                raise ValueError(f"records of {tuple(records.shape)} {records.dtype} do not fit")
        self._rows = {name: row for row, name in enumerate(names)}
        if len(self._rows) < len(names):
            raise ValueError("an item stands twice")
        if names:
            self._blocks = list(packed)
        self._free, self._used = [], len(names)

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        self._used += 1
        return self._used - 1

    def _reserve(self, count: int) -> None:
        if count > len(self._blocks[0]):
            size = max(count, math.ceil(GROWTH * len(self._blocks[0])))
            for number, block in enumerate(self._blocks):
                # NumPy's zeros take no memory before they are written to; torch's do.
                larger = torch.from_numpy(np.zeros((size, block.shape[1]), block.numpy().dtype))
                larger[: len(block)] = block
                self._blocks[number] = larger


def write_records(archive: zipfile.ZipFile, names: Sequence[str], packed: Sequence[Tensor]) -> None:
    """Write items and their packed records into an archive, as arrays of NumPy."""
    joined = "".join(names).encode(errors="surrogatepass")
    arrays = {
        "names": np.frombuffer(joined, dtype=np.uint8),
        "lengths": np.fromiter(map(len, names), dtype=np.int64, count=len(names)),  # of characters
        **{f"block_{number}": records.numpy() for number, records in enumerate(packed)},
    }
    for name, array in arrays.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)


def read_records(archive: zipfile.ZipFile) -> tuple[list[str], list[Tensor]]:
    """Undo `write_records`; nothing is unpickled."""

    def read(name: str) -> np.ndarray:
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    ends = read("lengths").cumsum().tolist()
    joined = read("names").tobytes().decode(errors="surrogatepass")
    names = [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    count = sum(name.startswith("block_") for name in archive.namelist())
    return names, [torch.from_numpy(read(f"block_{number}")) for number in range(count)]
