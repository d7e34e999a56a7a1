"""DataFrame → irregular data set → windows: everything that knows about absolute time."""

from typing import TYPE_CHECKING

from deltaflow._lazy import lazy

if TYPE_CHECKING:
    from deltaflow.data.arrow import ArrowDataset, parquet_to_arrow, write_arrow
    from deltaflow.data.data_module import IrregularDataModule
    from deltaflow.data.dataset import IrregularDataset
    from deltaflow.data.schema import Schema
    from deltaflow.data.splitter import TimeSplitter, split_items, split_items_by
    from deltaflow.data.statistics import Statistics
    from deltaflow.data.windows import Batch, WindowSpec

__all__ = [
    "ArrowDataset",
    "Batch",
    "IrregularDataModule",
    "IrregularDataset",
    "Schema",
    "Statistics",
    "TimeSplitter",
    "WindowSpec",
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
        "schema": ("Schema",),
        "splitter": ("TimeSplitter", "split_items", "split_items_by"),
        "statistics": ("Statistics",),
        "windows": ("Batch", "WindowSpec"),
    },
)
