"""The public names of the package, each imported from its module when it is first used."""

from deltaflow.data.arrow import ArrowDataset as ArrowDataset
from deltaflow.data.arrow import parquet_to_arrow as parquet_to_arrow
from deltaflow.data.arrow import write_arrow as write_arrow
from deltaflow.data.data_module import IrregularDataModule as IrregularDataModule
from deltaflow.data.dataset import IrregularDataset as IrregularDataset
from deltaflow.data.reader import Batch as Batch
from deltaflow.data.reader import Reader as Reader
from deltaflow.data.schema import Schema as Schema
from deltaflow.data.splitter import TimeSplitter as TimeSplitter
from deltaflow.data.splitter import split_items as split_items
from deltaflow.data.splitter import split_items_by as split_items_by
from deltaflow.data.statistics import Statistics as Statistics
