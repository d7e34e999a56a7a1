"""DataFrame → irregular data set → windows: everything that knows about absolute time."""

from typing import TYPE_CHECKING

from deltaflow._lazy import lazy

if TYPE_CHECKING:
    from deltaflow.data.arrow import ArrowDataset, parquet_to_arrow, write_arrow
    from deltaflow.data.data_module import IrregularDataModule
    from deltaflow.data.dataset import IrregularDataset
    from deltaflow.data.reader import Batch, Reader
    from deltaflow.data.schema import Schema
    from deltaflow.data.splitter import TimeSplitter, split_items, split_items_by
    from deltaflow.data.statistics import Statistics

__all__ = [
    "ArrowDataset",
    "Batch",
    "IrregularDataModule",
    "IrregularDataset",
    "Reader",
    "Schema",
    "Statistics",
    "TimeSplitter",
    "parquet_to_arrow",
    "split_items",
    "split_items_by",
    "write_arrow",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "arrow": ("ArrowDataset", "parquet_to_arrow", "write_arrow"),
        "data_module": ("IrregularDataModule",),
        "dataset": ("IrregularDataset",),
        "reader": ("Batch", "Reader"),
        "schema": ("Schema",),
        "splitter": ("TimeSplitter", "split_items", "split_items_by"),
        "statistics": ("Statistics",),
    },
)
