"""A table of fixed-size records, one per item: compact, fast, and saved as a whole."""

from __future__ import annotations

import math
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

GROWTH = 1.5
"""The factor by which a full table grows. Pages that are not yet used take no memory."""

AT_ONCE = 2**16
"""The number of records that are read from a frozen table together."""


class ItemTable:
    """Records of items by their names. A record is read in one access, whatever its parts.

    Records are packed as rows of 64-bit words.

    Parameters
    ----------
    parts
        An example of each part of a record, ``(1, …)``; at least one of them has 64 bits.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._names = [str(number) for number in range(len(parts))]
        named = zip(self._names, (part.numpy() for part in parts), strict=True)
        fields = [(name, part.dtype, part.shape[1:]) for name, part in named]
        # From wide to narrow parts, which leaves the least room between them.
        fields.sort(key=lambda field: -field[1].itemsize)
        self._record = np.dtype(fields, align=True)
        # There is always one record, so that absent items can be read.
        self._records = torch.zeros(1, self._record.itemsize // 8, dtype=torch.int64)
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._frozen: FrozenTable | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    @property
    def bytes_per_item(self) -> int:
        """The size of a record in bytes, without the item's name."""
        return 8 * self._records.shape[1]

    def find(self, names: Iterable[str]) -> Tensor:
        """Return the row of each item, ``(I,)`` int64; -1 where there is no such item."""
        return torch.tensor([self._rows.get(name, -1) for name in names], dtype=torch.int64)

    def take(self, rows: Tensor) -> Tensor:
        """Return packed copies of the records of rows ``(I,)``; those of row -1 are arbitrary."""
        return self._records.index_select(0, rows.clamp(min=0))

    def parts(self, packed: Tensor) -> list[Tensor]:
        """Return the parts ``(I, …)`` of packed records, as views that may be written to."""
        return [self._part(packed, name) for name in self._names]

    def _part(self, packed: Tensor, name: str) -> Tensor:
        return torch.from_numpy(packed.numpy().view(self._record)[name][:, 0])

    def put(self, names: Sequence[str], rows: Tensor, packed: Tensor) -> None:
        """Write packed records to the rows of items; an item of row -1 gets a new row."""
        new = [name for name, row in zip(names, rows.tolist(), strict=True) if row < 0]
        if new:
            reused = [self._free.pop() for _ in new[: len(self._free)]]
            used, self._used = self._used, self._used + len(new) - len(reused)
            fresh = [*reused, *range(used, self._used)]
            self._rows.update(zip(new, fresh, strict=True))
            self._reserve(self._used)
            rows = rows.clone()
            rows[rows < 0] = torch.tensor(fresh)
        self._keep(rows)
        self._records.index_copy_(0, rows, packed)

    def forget(self, names: Iterable[str]) -> None:
        """Delete items; new ones reuse their rows."""
        self._free += [self._rows.pop(name) for name in names]

    def replace(self, number: int, values: Tensor) -> None:
        """Replace a part of all records, ``(rows, …)`` as :meth:`all_of` gives it."""
        self._keep(torch.arange(self._used))
        self.all_of(number).copy_(values)

    def all_of(self, number: int) -> Tensor:
        """Return a part of all records, including those of unused rows."""
        return self._part(self._records, self._names[number])

    def freeze(self, lock: threading.Lock) -> FrozenTable:
        """Return the current table; until :meth:`thaw`, other threads may continue to change it.

        They hold ``lock`` whenever they use the table. A table cannot be frozen twice at a time.
        """
        self._frozen = FrozenTable(self._rows, self._records, self._used, lock)
        return self._frozen

    def thaw(self) -> None:
        """Release the frozen table."""
        self._frozen = None

    def fill(self, names: Sequence[str], packed: Tensor) -> None:
        """Replace the contents of the table by these items.

        Raises
        ------
        ValueError
            If they are not records of this table, or a name occurs twice.
        """
        if packed.dtype != torch.int64 or packed.shape != (len(names), self._records.shape[1]):
            raise ValueError(f"records of {tuple(packed.shape)} {packed.dtype} do not fit")
        self._rows = {name: row for row, name in enumerate(names)}
        if len(self._rows) < len(names):
            raise ValueError("an item occurs twice")
        if names:
            self._records = packed
        self._free, self._used = [], len(names)

    def _keep(self, rows: Tensor) -> None:
        """Let a frozen table copy the records of rows that are about to change."""
        if self._frozen is not None:
            self._frozen.keep(rows)

    def _reserve(self, count: int) -> None:
        if count > len(self._records):
            size = max(count, math.ceil(GROWTH * len(self._records)))
            # NumPy's zeros take no memory before they are written to; torch's do.
            larger = torch.from_numpy(np.zeros((size, self._records.shape[1]), np.int64))
            larger[: len(self._records)] = self._records
            self._records = larger
            if self._frozen is not None:
                self._frozen.records = larger


class FrozenTable:
    """The records of a table at one moment, each copied only before the table overwrites it.

    Parameters
    ----------
    rows
        The row of each item.
    records
        The packed records of the table.
    used
        The number of rows that are in use.
    lock
        The lock that is held while the records are read or written.
    """

    def __init__(
        self, rows: dict[str, int], records: Tensor, used: int, lock: threading.Lock
    ) -> None:
        self.names = list(rows)
        self._rows = torch.from_numpy(np.fromiter(rows.values(), np.int64, len(rows)))
        self.records, self._lock = records, lock
        self._copies = [records[:0]]
        self._place = torch.full((used,), -1)  # of each row among the copies
        self._count = 0

    def keep(self, rows: Tensor) -> None:
        """Copy records before they are overwritten, unless they are already copied or new."""
        rows = rows[rows < len(self._place)]
        rows = rows[self._place[rows] < 0]
        self._place[rows] = torch.arange(self._count, self._count + len(rows))
        self._count += len(rows)
        self._copies.append(self.records[rows])

    def pieces(self) -> Iterator[Tensor]:
        """Yield packed records in groups, in the order of the names."""
        for rows in self._rows.split(AT_ONCE):
            with self._lock:
                self._copies = [torch.cat(self._copies)]
                records, place = self.records[rows], self._place[rows]
                changed = place >= 0
                records[changed] = self._copies[0][place[changed]]
            yield records


def write_records(archive: zipfile.ZipFile, records: FrozenTable) -> None:
    """Write items and their packed records into an archive, as NumPy arrays."""
    names = records.names
    joined = "".join(names).encode(errors="surrogatepass")
    lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))  # of characters
    for name, array in (("names", np.frombuffer(joined, dtype=np.uint8)), ("lengths", lengths)):
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)
    header = np.lib.format.header_data_from_array_1_0(records.records.numpy())
    header["shape"] = (len(names), records.records.shape[1])
    with archive.open("records.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in records.pieces():
            file.write(piece.numpy().tobytes())


def read_records(archive: zipfile.ZipFile) -> tuple[list[str], Tensor]:
    """Read what `write_records` wrote; nothing is unpickled."""

    def read(name: str) -> np.ndarray:
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    ends = read("lengths").cumsum().tolist()
    joined = read("names").tobytes().decode(errors="surrogatepass")
    names = [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return names, torch.from_numpy(read("records"))
