"""A task, by name or path, as the data module of Lightning's command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch.utils.data import DataLoader

from deltaflow.data import Batch, IrregularDataModule, Reader
from deltaflow.data.options import DataOptions
from deltaflow.data.schema import Duration
from deltaflow.errors import check_registered
from deltaflow.options import documents, options_from
from deltaflow.tasks.datasets import Columns, Split, load_task


@documents(DataOptions)
class TaskDataModule(IrregularDataModule):
    """The training windows, validation forecasts and test forecasts of a task.

    Parameters
    ----------
    dataset
        A task by name (`clinical_sample`, `physionet2012`, `sine`, …), the path of a CSV or Parquet
        file, or the path of a GluonTS data set.
    dataset_kwargs
        Options of a named task, such as `path` and `sets` of `physionet2012`.
    columns
        The columns of a file.
    split
        How a file is split into training, validation and test.
    test
        Which of the task's tests is used by `test` and `predict`; the first one if null.
    origins, stride, centred, pin_memory, seed
        See `IrregularDataModule`.
    reader
        The reader of an earlier model, if any, as from `Reader.to_dict`.

    Examples
    --------
    >>> data = TaskDataModule("clinical_sample", batch_size=16)
    >>> data.reader.schema.target[:2]
    ('HR', 'SysABP')
    >>> len(list(data.test_dataloader()))  # batches of 16 of the 60 stays
    4
    """

    def __init__(
        self,
        dataset: str = "clinical_sample",
        dataset_kwargs: Mapping[str, Any] | None = None,
        columns: Columns | None = None,
        split: Split | None = None,
        test: str | None = None,
        *,
        context_length: int | None = None,
        horizon: Duration | None = None,
        context: Duration | None = None,
        origins: Literal["random", "sliding"] = "random",
        origins_within: Sequence[Duration] | None = None,
        thinning: float = 0.0,
        stride: int = 1,
        seasonality: Sequence[str] | None = None,
        centred: bool = True,
        scaling: str = "running",
        batch_size: int = 32,
        num_batches_per_epoch: int = 50,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        reader: Mapping[str, Any] | None = None,
    ) -> None:
        options = options_from(DataOptions, locals())
        self.task = load_task(dataset, dataset_kwargs, columns, split)
        self.test = next(iter(self.task.tests)) if test is None else test
        check_registered("test", self.test, self.task.tests)
        super().__init__(
            self.task.training,
            self.task.validation,
            prediction_length=self.task.prediction_length,
            **vars(options),
            origins=origins,
            stride=stride,
            centred=centred,
            pin_memory=pin_memory,
            seed=seed,
            reader=None if reader is None else Reader.from_dict(reader),
        )

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test forecasts."""
        return self._in_order(self.labelled(self.task.tests[self.test]))

    def predict_dataloader(self) -> DataLoader:
        """Return the loader of the test's entries, which end with their query times."""
        entries = list(self.task.tests[self.test].input)
        return DataLoader(entries, batch_size=self.batch_size, collate_fn=list)  # pyright: ignore[reportArgumentType]
