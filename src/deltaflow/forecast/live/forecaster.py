"""The live forecaster."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deltaflow.data.schema import Schema
from deltaflow.data.validation import as_text
from deltaflow.forecast.columns import FrameColumns, check_answer
from deltaflow.forecast.forecasts import read_levels
from deltaflow.forecast.frame import check_real_time
from deltaflow.forecast.live.frames import read_observations
from deltaflow.forecast.live.snapshot import read_snapshot, write_snapshot
from deltaflow.forecast.live.states import States
from deltaflow.forecast.network_predictor import IrregularPredictor
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.randomness import check_seed
from deltaflow.saving import reading


class LiveForecaster:
    """Reads observations of any number of items as they arrive, and forecasts them at any time.

    It keeps a state of fixed size for each item instead of its history. An observation costs one
    step of the encoder, regardless of the length of the history.

    **Guarantee.** After any updates, in any batches, :meth:`forecast` returns the same as
    ``predict_df(live.predictor, history, future_df)``, where ``history`` has all rows of these
    updates, up to rounding in float32: 1e-5 of the scale, or 1e-4 for encoders that solve an ODE.
    Rows at the end of an item in which nothing was observed are observation times here, and queries
    for `predict_df`.

    ``live.predictor`` is the given predictor with unlimited context. The given one reads only the
    last ``context_length`` observations, so its forecasts differ once an item has more. A network
    may be less accurate on series much longer than in training: compare the two in a backtest, or
    restart an item now and then, by :meth:`forget` and an update with its recent history.

    Several threads may use it. An update is applied as a whole or not at all.

    Parameters
    ----------
    predictor
        A trained predictor with marginal forecasts: networks, `HoldPredictor`,
        `GaussianProcessPredictor`, and their wrappers, such as ensembles and calibration.
    item_id, timestamp
        The names of these columns in all DataFrames; ``item_id`` is None for a single series.

    Attributes
    ----------
    predictor
        The predictor with unlimited context. It must not be modified.

    Raises
    ------
    DeltaflowError
        If the predictor has no state, draws paths, or has an encoder that cannot read one
        observation at a time.

    Examples
    --------
    >>> import pandas as pd
    >>> from deltaflow import GRUFlowEstimator, IrregularDataset, LiveForecaster
    >>> from deltaflow.tasks import irregular_sine
    >>> data = IrregularDataset.from_long_dataframe(irregular_sine(num_series=4))
    >>> trainer_kwargs = {"fast_dev_run": True, "enable_progress_bar": False, "logger": False}
    >>> estimator = GRUFlowEstimator(prediction_length=8, folds=0, trainer_kwargs=trainer_kwargs)
    >>> live = LiveForecaster(estimator.train(data))
    >>> def rows(items, times, **columns):
    ...     return pd.DataFrame({"item_id": items, "timestamp": pd.to_datetime(times), **columns})
    >>> live.update(rows("a", ["2024-01-01 08:00", "2024-01-01 08:20"], target=[1.0, 0.8]))
    >>> live.update(rows(["b", "a"], ["2024-01-01 08:21", "2024-01-01 08:30"], target=0.5))
    >>> len(live), live.item("a")["num_observations"]
    (2, 3)
    >>> future = rows("a", ["2024-01-01 08:40", "2024-01-02 08:00"])
    >>> live.forecast(future, quantile_levels=[0.9]).columns
    Index(['item_id', 'timestamp', 'target_name', 'predictions', 'mean', '0.9'], dtype='object')
    """

    def __init__(
        self,
        predictor: DeltaflowPredictor,
        *,
        item_id: str | None = "item_id",
        timestamp: str = "timestamp",
    ) -> None:
        check_real_time(predictor)
        self.predictor = predictor.with_unlimited_context()
        self.item_id, self.timestamp = item_id, timestamp
        self.columns = FrameColumns(self.schema, item_id, timestamp)
        self.states = States(self.predictor, timestamp)
        self._saving = threading.Lock()

    @property
    def schema(self) -> Schema:
        """The schema of the data."""
        return self.predictor.schema

    @property
    def bytes_per_item(self) -> int:
        """The memory of an item in bytes, without its name."""
        return self.states.table.bytes_per_item

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.states.table)

    def __contains__(self, item: object) -> bool:
        return as_text(item) in self.states.table

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items, {self.bytes_per_item} bytes each)"

    def update(self, df: pd.DataFrame) -> None:
        """Read further observations of known items, and the first ones of new items.

        Parameters
        ----------
        df
            A row per item and time, sorted by time within each item, with the channels and
            covariates of the training data by name; NaN where not observed. Every row counts as an
            observation time, even if nothing was observed then. A new item also needs its static
            features; for known items they may be omitted.

        Raises
        ------
        DataError
            As `predict_df`; and if a row is not later than all previous ones of its item, including
            those of earlier updates, or a static feature changes. No item is then changed.
        """
        self.states.read(read_observations(self.columns, df))

    def forecast(
        self,
        future_df: pd.DataFrame,
        *,
        quantile_levels: Sequence[float] = (0.1, 0.5, 0.9),
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Forecast every row of ``future_df``.

        Parameters
        ----------
        future_df
            The queries: item and timestamp, in any order and number, and the covariates known in
            advance.
        quantile_levels
            The levels, between 0 and 1.
        seed
            Seed of the samples, for distributions without a quantile function. Those of an item do
            not depend on the other items.

        Returns
        -------
        pandas.DataFrame
            The same as from `predict_df`.

        Raises
        ------
        DataError
            If an item is unknown, or a query lies before its last observation.
        """
        levels = read_levels(quantile_levels)
        check_seed(seed)
        check_answer(self.columns.keys, levels)
        answers = self.states.answer(self.columns.queries(future_df), levels, seed)
        return self.columns.answer(future_df, np.arange(len(future_df)), answers)

    def forget(self, items: Iterable[object]) -> None:
        """Delete items, which later updates may restart.

        Raises
        ------
        DataError
            If one of them is unknown; then none is deleted.
        """
        self.states.forget(list(dict.fromkeys(map(as_text, items))))

    def item(self, item: object) -> dict[str, Any]:
        """Return a summary of an item's state.

        Returns
        -------
        dict
            ``item_id``; ``num_observations``, the number of its rows; ``first`` and ``last``, the
            times of the first and the last one; and ``observed``, the time of the last value of
            each channel, None if there is none.

        Raises
        ------
        DataError
            If the item is unknown.
        """
        return {"item_id": as_text(item), **self.states.about(as_text(item))}

    def is_of(self, predictor: DeltaflowPredictor) -> bool:
        """Return whether the states belong to a predictor with the same weights and arguments."""
        return _are_same(self.predictor, predictor.with_unlimited_context())

    def save(self, path: str | Path) -> None:
        """Write the states of all items, and the predictor, to a file.

        The file is replaced atomically: a process killed at any moment leaves the previous
        snapshot. Updates and forecasts continue while it is written.

        Parameters
        ----------
        path
            The file.
        """
        with self._saving, self.states.frozen() as (clock, records):
            about = {
                "item_id": self.item_id,
                "timestamp": self.timestamp,
                "resolution": clock.resolution,
            }
            write_snapshot(path, self.predictor, about, records)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> LiveForecaster:
        """Read a snapshot written by :meth:`save`, without executing any stored code.

        Parameters
        ----------
        path
            The file.
        device
            The device, ``"auto"`` for a GPU if there is one.

        Raises
        ------
        DeltaflowError
            If there is no snapshot, or it is damaged.
        """
        with reading(path):
            predictor, about, names, packed = read_snapshot(path, device)
            live = cls(predictor, item_id=about["item_id"], timestamp=about["timestamp"])
            live.states.fill(about["resolution"], names, packed)
        return live


def _are_same(one: DeltaflowPredictor, other: DeltaflowPredictor) -> bool:
    """Return whether two predictors have the same arguments and weights."""
    if one.description() != other.description():
        return False
    if not all(map(_are_same, one.members, other.members)):
        return False
    if not isinstance(one, IrregularPredictor) or not isinstance(other, IrregularPredictor):
        return True
    weights, others = one.network.state_dict(), other.network.state_dict()
    return all(torch.equal(value.cpu(), others[name].cpu()) for name, value in weights.items())
