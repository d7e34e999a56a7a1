"""Writing the forecasts of Lightning's ``predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import BasePredictionWriter

from deltaflow.errors import DeltaflowError
from deltaflow.forecast.forecasts import read_levels, tabulated
from deltaflow.heads import DECILES
from deltaflow.saving import replacing_file

WRITERS = {".csv": pd.DataFrame.to_csv, ".parquet": pd.DataFrame.to_parquet}
"""The functions that write a table, by the suffix of the file."""


class ForecastWriter(BasePredictionWriter):
    """Writes forecasts as a table with real timestamps; see `RealTimeForecast.to_dataframe`.

    With several processes each series is still written once, in the order of the data.

    Parameters
    ----------
    path
        The CSV or Parquet file.
    quantile_levels
        The levels of the quantiles.
    """

    def __init__(
        self,
        path: str = "forecasts.csv",
        quantile_levels: Sequence[float] = tuple(DECILES),
    ) -> None:
        super().__init__(write_interval="batch_and_epoch")
        self.path = Path(path)
        self.quantile_levels = read_levels(quantile_levels)
        self._tables: list[pd.DataFrame] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise an error for a path that cannot be written, before anything is computed."""
        super().setup(trainer, pl_module, stage)
        if self.path.suffix not in WRITERS:
            raise DeltaflowError(f"{self.path} is not a {' or '.join(WRITERS)} file: rename it")
        self._tables = []

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the table of a batch; its index is the position of each series in the data.

        Raises
        ------
        DeltaflowError
            If the loader does not number the series.
        """
        if len(batch_indices or ()) != len(prediction):
            raise DeltaflowError(
                "forecasts are written in the order of the data, which this loader does not tell: "
                "give a DataLoader of a list, such as list(entries), instead of an iterable"
            )
        table = tabulated(prediction, self.quantile_levels)
        self._tables.append(table.set_axis(np.array(batch_indices)[table.index]))

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write the tables of all processes as one, in the first process."""
        from torch import distributed

        parts: list[Any] = [self._tables]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            distributed.all_gather_object(parts, self._tables)
        if not trainer.is_global_zero:
            return
        written: set[int] = set()
        tables = []
        for table in (table for part in parts for table in part):
            # Lightning may repeat a series, so that all processes have the same number.
            tables.append(table[~table.index.isin(list(written))])
            written.update(table.index)
        table = pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)
        with replacing_file(self.path) as file:
            WRITERS[self.path.suffix](table, file, index=False)
        print(f"Forecasts: {self.path}")
