"""Windows → batches: the data path of both Lightning and the GluonTS estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from gluonts.dataset.common import DataEntry, Dataset
from gluonts.dataset.split import TestData, TrainingDataset
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from deltaflow.data.arrow import ArrowDataset
from deltaflow.data.batches import Batches, EpochSampler, InOrder
from deltaflow.data.options import DataOptions
from deltaflow.data.reader import Batch, Reader
from deltaflow.data.schema import Duration, Schema, read_range, read_seconds
from deltaflow.data.series import Series, entries_of, schema_of, series_of
from deltaflow.data.statistics import Statistics
from deltaflow.data.windows import (
    Horizon,
    LabelledWindows,
    SlidingWindows,
    SpreadWindows,
    TrainingWindows,
    Windows,
)
from deltaflow.errors import DataError, DeltaflowError, check_registered, check_whole
from deltaflow.options import documents, options_from
from deltaflow.randomness import check_seed


@documents(DataOptions)
class IrregularDataModule(pl.LightningDataModule):
    """Batches of training windows, and of the validation windows.

    Several processes (Lightning's DDP) share the batches that a single process would read.

    Parameters
    ----------
    training_data
        The items to train on: an `IrregularDataset`, or any GluonTS data set. The windows of an
        `ArrowDataset` are cut from its file; any other data set is read into memory.
    validation_data
        The validation data, if any: items, forecast at the ``validation_origins``, or a GluonTS
        ``TestData``, whose instances are used as they are.
    prediction_length
        The largest number of queries of a window.
    origins
        Forecast origins in training: ``"random"``, with ``num_batches_per_epoch`` batches per epoch
        drawn evenly from all items, or ``"sliding"``, with each window once per epoch.
    validation_origins
        ``"last"``: the last window of each item; ``"spread"``: up to eight windows (fewer if there
        are many items), spread evenly over each item; ``"sliding"``: each window once.
    stride
        Rows from one sliding window to the next.
    centred
        Whether targets are centred, or only scaled, as for positive numbers.
    pin_memory
        Whether batches are stored in page-locked memory, from which a GPU copies faster.
    seed
        Seed of the windows.
    reader
        The reader of an earlier model, if any. It replaces ``context_length``, ``context``,
        ``seasonality``, ``centred``, ``scaling`` and the statistics of the training data.

    Attributes
    ----------
    reader
        How series are read, with the statistics of the training set.
    horizon
        The horizon of training windows.
    training_windows, validation_windows
        The windows, by number.

    Raises
    ------
    DataError
        If the data cannot be trained on, or a horizon contains more than ``prediction_length``
        observations.
    """

    def __init__(
        self,
        training_data: Dataset,
        validation_data: Dataset | TestData | None = None,
        *,
        prediction_length: int,
        context_length: int | None = None,
        horizon: Duration | None = None,
        context: Duration | None = None,
        origins: Literal["random", "sliding"] = "random",
        origins_within: Sequence[Duration] | None = None,
        thinning: float = 0.0,
        validation_origins: Literal["last", "spread", "sliding"] = "last",
        stride: int = 1,
        seasonality: Sequence[str] | None = None,
        centred: bool = True,
        scaling: str = "running",
        batch_size: int = 32,
        num_batches_per_epoch: int = 50,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        reader: Reader | None = None,
    ) -> None:
        options = options_from(DataOptions, locals())
        super().__init__()
        check_whole(1, prediction_length=prediction_length)
        check_seed(seed)
        check_registered("origins", origins, ["random", "sliding"])
        kinds: dict[str, Callable[..., Windows]] = {
            "last": partial(SpreadWindows, most=1),
            "spread": SpreadWindows,
            "sliding": partial(SlidingWindows, stride=stride),
        }
        check_registered("validation_origins", validation_origins, kinds)
        random_only = (
            ("origins_within", origins_within, "sliding windows begin at every origin"),
            ("thinning", thinning or None, "sliding windows are read as they are"),
        )
        for field, given, problem in random_only:
            if origins == "sliding" and given is not None:
                remedy = f"draw random origins, or leave out {field}"
                raise DataError(problem, remedy, field=field)
        entries = by_number(training_data)
        if reader is None:
            # The entries of a file share their schema.
            schema = schema_of(entries[:1] if isinstance(entries, ArrowDataset) else entries)
            usual = _seasonality_of(schema.time_unit) if schema.time == "regular" else ()
            cycles = usual if seasonality is None else tuple(seasonality)
        else:
            schema, cycles = reader.schema, reader.seasonality
        durations = {"horizon": horizon, "context": context, "origins_within": origins_within}
        given = [name for name, value in durations.items() if value is not None]
        if schema.time == "regular" and given:
            raise DataError(
                "a regular data set counts periods, not durations",
                "give context_length and prediction_length alone",
                field=given[0],
            )
        training = _series(entries, schema, cycles)
        reader = reader or Reader(
            schema=schema,
            statistics=Statistics.fit(training, schema.target),
            context_length=options.context_length_for(prediction_length),
            context=read_seconds(context, "context"),
            seasonality=cycles,
            centred=centred,
            scaling=scaling,
        )
        self.reader = reader
        self.horizon = Horizon(prediction_length, read_seconds(horizon, "horizon"))
        self.batch_size = batch_size
        self.num_batches_per_epoch = num_batches_per_epoch
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.seed = seed
        self._begin = 0, 0
        if origins == "random":
            within = read_range(origins_within, "origins_within")
            self.training_windows = TrainingWindows(
                training, reader, self.horizon, seed=seed, within=within, thinning=thinning
            )
        else:
            self.training_windows = SlidingWindows(
                training, reader, self.horizon, stride=stride, seed=seed
            )
        self.validation_windows: Windows | None = None
        if isinstance(validation_data, TestData):
            self.validation_windows = self.labelled(validation_data)
        elif validation_data is not None:
            validation = _series(by_number(validation_data), schema, cycles)
            windows = kinds[validation_origins]
            self.validation_windows = windows(validation, reader, self.horizon)

    @property
    def prediction_length(self) -> int:
        """The largest number of queries of a training window."""
        return self.horizon.prediction_length

    def labelled(self, test: TestData) -> LabelledWindows:
        """Return the windows of forecasts to evaluate."""
        return LabelledWindows(test, self.reader)

    def check_counts(self) -> None:
        """Raise an error unless every target is a count, as discrete distributions require.

        Raises
        ------
        DataError
            If a target is negative or has a fraction.
        """
        channels = len(self.reader.schema.target)
        for series in self.training_windows.data:
            targets = series.values[:, :channels]
            wrong = (targets < 0) | (targets != np.round(targets)) & np.isfinite(targets)
            if wrong.any():
                position, channel = np.argwhere(wrong)[0]
                raise DataError(
                    f"{targets[position, channel]} is not a count",
                    "choose a continuous distribution, such as 'student_t'",
                    item=series.item_id,
                    field=self.reader.schema.target[channel],
                    position=int(position),
                )

    def setup(self, stage: str) -> None:
        """Give all processes the seed of the first one, because theirs may be random.

        Raises
        ------
        DataError
            If the validation instances have no label.
        """
        if stage in ("fit", "validate") and isinstance(self.validation_windows, LabelledWindows):
            self.validation_windows.check_labels()
        self._begin = 0, 0
        if self.trainer is not None:
            self._set_seed(self.trainer.strategy.broadcast(self.seed))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of training for a checkpoint: the next batch, and the seed.

        A batch that an error interrupts before the optimiser's step is repeated.
        """
        assert self.trainer is not None
        loop, epoch = self.trainer.fit_loop, self.trainer.current_epoch
        batches = loop.epoch_loop.batch_progress
        in_progress = loop.epoch_progress.current.ready > epoch
        batch = batches.current.processed if in_progress else 0  # pyright: ignore[reportAttributeAccessIssue]
        if in_progress and batches.is_last_batch and batch == batches.current.ready:
            epoch, batch = epoch + 1, 0
        horizon = asdict(self.horizon)
        return {"epoch": epoch, "batch": batch, "seed": self.seed, "horizon": horizon}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of :meth:`state_dict`.

        Lightning calls it before creating a loader, whose workers read ahead immediately.

        Raises
        ------
        DeltaflowError
            If training resumes with another ``prediction_length`` or ``horizon``.
        """
        fits = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fits and (stored := Horizon(**state_dict["horizon"])) != self.horizon:
            raise DeltaflowError(
                f"the checkpoint is of training with a {stored}, not a {self.horizon}; resume with "
                "the same prediction_length and horizon"
            )
        self._begin = state_dict["epoch"], state_dict["batch"]
        self._set_seed(state_dict["seed"])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the training windows."""
        windows = self.training_windows
        if isinstance(windows, TrainingWindows):
            num_windows = self.batch_size * self.num_batches_per_epoch
        else:
            num_windows = len(windows)
        order = InOrder if getattr(self.trainer, "overfit_batches", 0) > 0 else EpochSampler
        return self._loader(windows, num_windows, order, *self._begin)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the loader of the validation windows, or an empty list."""
        if self.validation_windows is None:
            return []
        return self._in_order(self.validation_windows)

    def _set_seed(self, seed: int) -> None:
        self.seed = self.training_windows.seed = seed

    def _in_order(self, windows: Windows) -> DataLoader[Batch]:
        """Return the loader of windows that are read once, in order."""
        return self._loader(windows, len(windows), InOrder)

    def _loader(
        self, windows: Windows, num_windows: int, order: type[EpochSampler], *begin: int
    ) -> DataLoader[Batch]:
        """Return the loader of the share of the batches for the trainer's process."""
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batches = Batches(
            windows, num_windows, batch_size=self.batch_size, rank=rank, world_size=world_size
        )
        return _Loader(
            batches,
            batch_size=None,  # the elements are already batches
            sampler=order(batches, *begin),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )


class _Loader(DataLoader[Batch]):
    """A data loader that reports a worker's death even while it delivers a batch.

    PyTorch itself reports it at any other time.
    """

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except (ConnectionError, EOFError) as error:
            raise RuntimeError(
                "DataLoader worker exited unexpectedly, while it handed over a batch"
            ) from error


def by_number(dataset: Dataset) -> Sequence[DataEntry]:
    """Return the entries of a data set, all in memory unless they are in a file."""
    if isinstance(dataset, TrainingDataset) and isinstance(dataset.dataset, ArrowDataset):
        return dataset.dataset.map(dataset.splitter.training_entry)
    return dataset if isinstance(dataset, ArrowDataset) else list(entries_of(dataset))


def _series(
    entries: Sequence[DataEntry], schema: Schema, seasonality: tuple[str, ...]
) -> Sequence[Series]:
    """Return the series of entries, read on access if the entries are in a file."""
    read = partial(series_of, schema=schema, seasonality=seasonality)
    return entries.map(read) if isinstance(entries, ArrowDataset) else list(map(read, entries))


def _seasonality_of(freq: str) -> tuple[str, ...]:
    """Return the calendar cycles that a regular series of this frequency can resolve."""
    unit = freq.lstrip("0123456789").split("-")[0]
    if unit in ("h", "min", "s", "H", "T", "S"):
        return ("day", "week")
    if unit in ("D", "B"):
        return ("week", "year")
    return ("year",) if unit in ("W", "M", "ME", "Q", "QE") else ()
