"""Irregular data sets in Arrow files: written as a stream, read item by item from a memory map."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry

from deltaflow.data.dataset import read_entries, schema_from
from deltaflow.data.matching import schema_in
from deltaflow.data.schema import Schema
from deltaflow.data.series import in_chunks, is_irregular, schema_of, series_of
from deltaflow.data.validation import (
    check_columns,
    gather_rows,
    read_levels,
    read_roles,
    read_times,
)
from deltaflow.errors import DataError, needing
from deltaflow.saving import replacing_file

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA = b"deltaflow"
_BATCH_NUMBERS = 2**20
"""The size of a record batch, in numbers: 8 MiB."""

_ENTRY_NUMBERS = 2**7
"""The memory of an entry's Python objects, besides its arrays, in units of 8 bytes."""


class ArrowDataset(Sequence[DataEntry]):
    """The irregular series of an Arrow file, each read on access.

    It can be used wherever an `IrregularDataset` can. The file is mapped into memory: the arrays of
    an entry are read-only views of it, and it may be larger than memory. Every process reopens the
    file.

    Parameters
    ----------
    path
        A file written by `write_arrow` or `parquet_to_arrow`.

    Raises
    ------
    DataError
        If it is not such a file.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from deltaflow import IrregularDataset
    >>> from deltaflow.tasks import irregular_sine
    >>> dataset = IrregularDataset.from_long_dataframe(irregular_sine())
    >>> with TemporaryDirectory() as directory:
    ...     write_arrow(f"{directory}/sine.arrow", dataset)
    ...     stored = ArrowDataset(f"{directory}/sine.arrow")
    ...     stored[7]["item_id"], bool((stored[7]["target"] == dataset[7]["target"]).all())
    ('series_7', True)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.schema, self._columns = _open(self.path)
        self._plain_schema = self.schema.to_dict()  # which all entries share
        self._items: Sequence[int] | np.ndarray = range(len(self._columns["start"]))
        self._functions: tuple[Callable[[Any], Any], ...] = ()

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> DataEntry: ...
    @overload
    def __getitem__(self, index: slice) -> ArrowDataset: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._with(_items=self._items[index])
        entry = self._read(int(self._items[index]))
        for function in self._functions:
            entry = function(entry)
        return entry

    def __repr__(self) -> str:
        channels = ", ".join(self.schema.target)
        return f"ArrowDataset({len(self)} items, target: {channels}, {str(self.path)!r})"

    def select(self, indices: Iterable[int]) -> ArrowDataset:
        """Return the data set of the items at ``indices``, in that order, or in a boolean mask."""
        return self._with(_items=np.asarray(self._items)[list(indices)])

    def map(self, function: Callable[[DataEntry], Any]) -> Any:
        """Return the sequence of ``function(entry)``, computed when an entry is read."""
        return self._with(_functions=(*self._functions, function))

    def _with(self, **changes: Any) -> ArrowDataset:
        other = object.__new__(ArrowDataset)
        other.__dict__.update({**self.__dict__, **changes})
        return other

    def _read(self, number: int) -> dict[str, Any]:
        """Return an entry, whose arrays are views of the file."""
        columns = self._columns
        item, start, origin, resolution = (
            columns[name][number].as_py()
            for name in ("item_id", "start", "time_origin", "time_resolution")
        )
        entry: dict[str, Any] = {
            "item_id": item,
            "start": pd.Period(ordinal=start, freq=self.schema.time_unit),
            "info": {
                "time_origin": origin,
                "time_unit": self.schema.time_unit,
                "time_resolution": resolution,
                "schema": self._plain_schema,
            },
        }
        for name, count in _row_counts(self.schema).items():
            values = columns[name][number].values.to_numpy()  # noqa: PD011
            if count is not None and len(values) % count:
                raise DataError(
                    f"{len(values)} numbers cannot be divided among {count} channels",
                    "write the file again",
                    item=item,
                    field=name,
                )
            entry[name] = values if count is None else values.reshape(count, -1)
        return entry

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_columns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _, self._columns = _open(self.path)


def write_arrow(path: str | Path, entries: Iterable[DataEntry]) -> None:
    """Write irregular series into an Arrow file, one by one.

    Parameters
    ----------
    path
        The file. It appears once it is complete, and replaces an existing one.
    entries
        An `IrregularDataset`, or any stream of such entries.

    Raises
    ------
    DataError
        If an entry is not irregular, is invalid, or has a different schema than the first one.
    """
    pa = _pyarrow()
    entries = iter(entries)
    first = next(entries, None)
    if first is None:
        raise DataError("there are no entries to write", "give at least one")
    schema = schema_of([first])
    if schema.time == "regular":
        raise DataError(
            "the series is regular, without an info['time_origin']",
            "write an IrregularDataset",
            item=first.get("item_id"),
            field="info",
        )
    layout = _layout(pa, schema)

    def size(entry: DataEntry) -> int:
        return _ENTRY_NUMBERS + sum(np.size(entry[name]) for name in _row_counts(schema))

    with (
        replacing_file(path) as file,
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_file(sink, layout) as writer,
    ):
        for batch in in_chunks(_checked(chain([first], entries), schema), size, _BATCH_NUMBERS):
            columns: dict[str, list[Any]] = {
                "item_id": [None if one.get("item_id") is None else str(one["item_id"])
                            for one in batch],
                "start": [one["start"].ordinal for one in batch],
                "time_origin": [one["info"]["time_origin"] for one in batch],
                "time_resolution": [one["info"].get("time_resolution") for one in batch],
                **{name: [np.ravel(one[name]) for one in batch] for name in _row_counts(schema)},
            }  # fmt: skip
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=layout))


def parquet_to_arrow(
    source: str | Path,
    path: str | Path,
    *,
    item_id: str = "item_id",
    timestamp: str = "timestamp",
    target: str | Sequence[str] = "target",
    time_unit: str = "h",
    feat_dynamic_real: Sequence[str] = (),
    past_feat_dynamic_real: Sequence[str] = (),
    feat_static_real: Sequence[str] = (),
    feat_static_cat: Sequence[str] = (),
) -> None:
    """Convert a long Parquet file to an Arrow file of series, without reading it as a whole.

    The rows of each item must be contiguous and sorted by time. Only a batch of rows, one whole
    item and the names of the items are held in memory.

    Parameters
    ----------
    source, path
        The Parquet file, and the Arrow file to write.
    item_id, timestamp, target, time_unit
        See `IrregularDataset.from_long_dataframe`, as for the following ones.
    feat_dynamic_real, past_feat_dynamic_real, feat_static_real, feat_static_cat
        Columns of features, as above.

    Raises
    ------
    DataError
        As for `IrregularDataset.from_long_dataframe`, except that a target may be missing
        everywhere. Also if it is not a Parquet file, the rows of an item are not contiguous, or the
        times are float32.
    """
    roles = read_roles(locals())
    columns = [*chain(*roles.values())]
    with _parquet_file(source) as file:
        check_columns(file.schema_arrow.empty_table().to_pandas(), columns, "the Parquet file")
        if str(file.schema_arrow.field(timestamp).type) in ("float", "halffloat"):
            raise DataError("the times are float32", "write them as float64", field=timestamp)
        levels = {name: _levels(file, name) for name in roles["feat_static_cat"]}

        def entries() -> Iterator[DataEntry]:
            schema = None
            for frame in _whole_items(file, columns, item_id):
                rows = gather_rows(frame, item_id)
                times = read_times(frame[timestamp], rows)
                if schema is None:
                    univariate = isinstance(target, str)
                    schema = schema_from(roles, levels, times, time_unit, univariate)
                yield from read_entries(frame, rows, times, timestamp, schema)

        write_arrow(path, entries())


def _row_counts(schema: Schema) -> dict[str, int | None]:
    """Return the fields that are stored as lists, with their numbers of rows; None for vectors.

    Matrices are flattened row by row. Row 0 of ``feat_dynamic_real`` is the time.
    """
    counts = {
        "target": None if schema.univariate else len(schema.target),
        "feat_dynamic_real": 1 + len(schema.feat_dynamic_real),
        "past_feat_dynamic_real": len(schema.past_feat_dynamic_real),
        "feat_static_real": None,
        "feat_static_cat": None,
    }
    always = "feat_dynamic_real"
    return {name: n for name, n in counts.items() if name == always or getattr(schema, name)}


def _layout(pa: Any, schema: Schema) -> pa.Schema:
    """Return the columns of a file."""
    text, codes, numbers = pa.string(), pa.large_list(pa.int64()), pa.large_list(pa.float64())
    columns = {"item_id": text, "start": pa.int64(), "time_origin": text, "time_resolution": text}
    for name in _row_counts(schema):
        columns[name] = codes if name == "feat_static_cat" else numbers
    metadata = {_METADATA: json.dumps({"schema": schema.to_dict()})}
    return pa.schema(list(columns.items()), metadata=metadata)


def _open(path: Path) -> tuple[Schema, dict[str, pa.ChunkedArray]]:
    """Return the schema and the columns of a file, which are mapped into memory."""
    pa = _pyarrow()
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        metadata = json.loads((table.schema.metadata or {})[_METADATA])
        schema = Schema.from_dict(metadata["schema"])
        layout = _layout(pa, schema)
        table.validate(full=True)  # a damaged file could otherwise be read beyond its end
    except (pa.ArrowException, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{str(path)!r} is not an Arrow file of series ({type(error).__name__})",
            "write it with deltaflow.data.arrow.write_arrow",
        ) from error
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for name, kind in zip(layout.names, layout.types, strict=True):
        found = columns[name].type if name in columns else None
        if found != kind:
            raise DataError(
                f"is stored as {found}, not as {kind}",
                "write the file with deltaflow.data.arrow.write_arrow, which keeps float64",
                field=name,
            )
        parts = [columns[name]]
        if pa.types.is_large_list(kind):
            parts += [chunk.values for chunk in columns[name].chunks]  # noqa: PD011
        if kind != pa.string() and any(part.null_count for part in parts):
            raise DataError("holds nulls", "write the file again, with NaN", field=name)
    return schema, columns


def _checked(entries: Iterable[DataEntry], schema: Schema) -> Iterator[DataEntry]:
    """Check entries, one by one."""
    for entry in entries:
        if is_irregular(entry) and schema_in(entry) != schema:
            raise DataError("the schema differs from that of the first entry",
                            "write the entry to another file",
                            item=entry.get("item_id"), field="info")  # fmt: skip
        series_of(entry, schema)
        yield entry


def _parquet_file(source: str | Path) -> Any:
    """Open a Parquet file, or raise a `DataError` if it is another kind of file."""
    pa = _pyarrow()
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(source)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{str(source)!r} is not a Parquet file",
            "convert it, for example a CSV file with pandas.read_csv(...).to_parquet(...)",
        ) from error


def _whole_items(file: Any, columns: list[str], item_id: str) -> Iterator[pd.DataFrame]:
    """Yield the rows of a Parquet file in frames of whole items."""
    done: set[Any] = set()
    rest = pd.DataFrame()
    row = 0
    for batch in file.iter_batches(columns=columns):
        frame = batch.to_pandas()
        frame.index = pd.RangeIndex(row, row + len(frame))
        row += len(frame)
        frame = pd.concat([rest, frame]) if len(rest) else frame
        if frame.empty:
            continue
        # The last item may continue in the next batch.
        others = (frame[item_id] != frame[item_id].iloc[-1]).to_numpy()
        cut = int(np.flatnonzero(others)[-1]) + 1 if others.any() else 0
        rest = frame.iloc[cut:]
        if cut:
            yield _check_contiguous(frame.iloc[:cut], item_id, done)
    if len(rest):
        yield _check_contiguous(rest, item_id, done)


def _check_contiguous(frame: pd.DataFrame, item_id: str, done: set[Any]) -> pd.DataFrame:
    items = frame[item_id].unique()
    again = [item for item in items if item in done]
    if again:
        raise DataError(
            "the rows of the item are not contiguous",
            "sort the Parquet file by item and time",
            item=again[0],
            field=item_id,
        )
    done.update(items)
    return frame


def _levels(file: Any, name: str) -> tuple[str, ...]:
    levels: set[str] = set()
    for batch in file.iter_batches(columns=[name]):
        levels.update(read_levels(batch.to_pandas()[name]).dropna().unique())
    return tuple(sorted(levels))


def _pyarrow() -> Any:
    with needing("arrow"):
        import pyarrow as pa
    return pa
