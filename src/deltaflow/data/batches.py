"""Windows → numbered batches, and the share of each process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from deltaflow.data.reader import Batch
from deltaflow.data.windows import Windows


@dataclass(eq=False)
class Batches(Dataset[Batch]):
    """Batches by number, or the share of each batch for one of several processes.

    The windows of an epoch are cut into batches in their order, and the last one may be smaller. A
    process reads every ``world_size``-th window of a batch: together the processes read the same
    batches as a single process, and no window twice. A process without a window in a batch gets a
    blank one, without observations or queries, so that all take the same number of steps.

    Attributes
    ----------
    windows
        The windows.
    num_windows
        Number of windows of an epoch.
    batch_size
        Windows of a batch, of all processes together.
    rank, world_size
        The number of this process, and the number of processes.

    Examples
    --------
    Of 5 windows in batches of 4, the second of two processes reads the 2nd and 4th, then none:

    >>> from deltaflow import IrregularDataModule
    >>> from deltaflow.tasks import regular_seasonal
    >>> data = IrregularDataModule(regular_seasonal(), prediction_length=4, context_length=8)
    >>> batches = Batches(data.training_windows, 5, batch_size=4, rank=1, world_size=2)
    >>> [int(batch.target_observed.any(dim=(1, 2)).sum()) for batch in (batches[0], batches[1])]
    [2, 0]
    """

    windows: Windows
    num_windows: int
    _: KW_ONLY
    batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def num_batches(self) -> int:
        """The number of batches of an epoch.

        The length of the data set is counted in windows, as Lightning expects when it looks for a
        batch size.
        """
        return math.ceil(self.num_windows / self.batch_size)

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, self.num_batches)
        epoch_end = (epoch + 1) * self.num_windows
        start = epoch * self.num_windows + place * self.batch_size
        numbers = range(start, min(start + self.batch_size, epoch_end))
        own = [self.windows[number] for number in numbers[self.rank :: self.world_size]]
        reader = self.windows.reader
        return reader.collate(own or [reader.blank()])


class EpochSampler(DistributedSampler[int]):
    """Batches ``epoch · size … (epoch + 1) · size - 1``: every epoch has new windows.

    Lightning calls :meth:`set_epoch` before each epoch. This is a `DistributedSampler` because
    Lightning leaves those as they are: `Batches` already splits each batch among the processes.

    Parameters
    ----------
    batches
        The batches.
    epoch, place
        The epoch and the batch at which to start. Later epochs are read from their beginning.
    """

    def __init__(self, batches: Batches, epoch: int = 0, place: int = 0) -> None:
        super().__init__(batches, num_replicas=1, rank=0, shuffle=False)
        self.num_batches = batches.num_batches
        self.epoch = epoch
        self._begin = epoch, place

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[int]:
        size = len(self)
        return iter(range(self.epoch * size + self._first(), (self.epoch + 1) * size))

    def _first(self) -> int:
        """Return the batch at which the present epoch begins."""
        epoch, place = self._begin
        return place if self.epoch == epoch else 0


class InOrder(EpochSampler, SequentialSampler):
    """The same batches in every epoch, in order.

    Used to evaluate, and to overfit some training batches. This is a `SequentialSampler` because
    Lightning replaces others to overfit, by one that counts windows.
    """

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first(), self.num_batches))
