"""Windows → batches: the one data path of Lightning and of the GluonTS estimators."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
from gluonts.dataset.common import Dataset
from torch.utils.data import DataLoader

from deltaflow.data.series import Series, read_series, schema_of
from deltaflow.data.statistics import Statistics
from deltaflow.data.windows import (
    EpochSampler,
    LastWindows,
    TrainingWindows,
    Window,
    WindowSpec,
    collate,
)
from deltaflow.errors import DataError


class IrregularDataModule(pl.LightningDataModule):
    """Batches of random training windows, and of the last window of each validation item.

    Parameters
    ----------
    training_data
        The items to train on: an `IrregularDataset`, or any GluonTS data set.
    validation_data
        The items to validate on, if any.
    prediction_length
        The largest number of queries of a window.
    context_length
        The largest number of observation times that are read before them.
    seasonality
        Calendar cycles given to the model: of ``"hour"``, ``"day"``, ``"week"``, ``"year"``. None
        gives a regular data set those that fit its frequency, and an irregular one none.
    centred
        Whether targets are centred, or only scaled as positive numbers need it.
    scaling
        What values are measured against, see `WindowSpec`.
    batch_size, num_batches_per_epoch
        Size of a batch, and number of training batches of an epoch.
    num_workers
        Processes that cut windows; 0 cuts them in the training process.
    seed
        Seed of the windows.
    spec
        How windows are cut, if it is known already (to go on with an earlier model). The
        arguments that would determine it are ignored then.

    Attributes
    ----------
    spec
        How windows are cut, with the statistics of the training set.
    """

    def __init__(
        self,
        training_data: Dataset,
        validation_data: Dataset | None = None,
        *,
        prediction_length: int,
        context_length: int,
        seasonality: tuple[str, ...] | None = None,
        centred: bool = True,
        scaling: str = "window",
        batch_size: int = 32,
        num_batches_per_epoch: int = 50,
        num_workers: int = 0,
        seed: int = 0,
        spec: WindowSpec | None = None,
    ) -> None:
        super().__init__()
        entries = list(training_data)
        if spec is None:
            schema = schema_of(entries)
            if seasonality is None:
                seasonality = _seasonality_of(schema.time_unit) if schema.time == "regular" else ()
            training = [read_series(entry, schema, seasonality) for entry in entries]
            spec = WindowSpec(
                schema=schema,
                statistics=Statistics.fit(training, schema.target),
                context_length=context_length,
                prediction_length=prediction_length,
                seasonality=seasonality,
                centred=centred,
                scaling=scaling,
            )
        else:
            training = [spec.read(entry) for entry in entries]
        self.spec = spec
        self.batch_size = batch_size
        self.num_batches_per_epoch = num_batches_per_epoch
        self.num_workers = num_workers
        self._done = 0, 0  # epochs, and batches of the epoch after them
        self._training = TrainingWindows(training, spec, seed=seed)
        self._validation: list[Series] | None = (
            None if validation_data is None else [spec.read(entry) for entry in validation_data]
        )

    def check_counts(self) -> None:
        """Raise unless every target is a count, as a discrete distribution needs it.

        Raises
        ------
        DataError
            If a target is negative or has a fraction.
        """
        channels = len(self.spec.schema.target)
        for series in self._training.data:
            targets = series.values[:, :channels]
            wrong = (targets < 0) | (targets != np.round(targets)) & np.isfinite(targets)
            if wrong.any():
                position, channel = np.argwhere(wrong)[0]
                raise DataError(
                    f"{targets[position, channel]} is not a count",
                    "choose a continuous distribution, such as 'student_t'",
                    item=series.item_id,
                    field=self.spec.schema.target[channel],
                    position=int(position),
                )

    def train_dataloader(self) -> DataLoader[Window]:
        """Return the loader of random windows."""
        (epochs, batches), self._done = self._done, (0, 0)
        return DataLoader(
            self._training,
            batch_size=self.batch_size,
            sampler=EpochSampler(
                self.batch_size * self.num_batches_per_epoch,
                epoch=epochs,
                done=batches * self.batch_size,
            ),
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def state_dict(self) -> dict[str, int]:
        """Return how much was trained on, so that a resumed run goes on within an epoch."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        begun = loop.epoch_progress.current.ready
        if not begun:
            return {}
        size = int(self.trainer.num_training_batches)
        drawn = loop.epoch_loop.batch_progress.current.processed  # pyright: ignore
        epochs, batches = divmod((begun - 1) * size + drawn, size)
        return {"epochs": epochs, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on behind what was trained on."""
        self._done = state_dict["epochs"], state_dict["batches"]

    def val_dataloader(self) -> DataLoader[Window] | list[DataLoader[Window]]:
        """Return the loader of the last windows, or none."""
        if self._validation is None:
            return []
        windows = LastWindows(self._validation, self.spec)
        return DataLoader(windows, batch_size=self.batch_size, collate_fn=collate)


def _seasonality_of(freq: str) -> tuple[str, ...]:
    """Return the calendar cycles that a regular series of this frequency can show."""
    unit = freq.lstrip("0123456789").split("-")[0]
    if unit in ("h", "min", "s", "H", "T", "S"):
        return ("day", "week")
    if unit in ("D", "B"):
        return ("week", "year")
    return ("year",) if unit in ("W", "M", "ME", "Q", "QE") else ()
