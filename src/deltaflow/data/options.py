"""The options for reading series and drawing windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltaflow.data.scaling import SCALINGS
from deltaflow.data.schema import Duration, read_range, read_seconds
from deltaflow.data.series import CALENDAR_CYCLES
from deltaflow.errors import DeltaflowError, check_between, check_registered, check_whole


@dataclass(frozen=True)
class DataOptions:
    """The options for reading series and drawing training windows.

    Attributes
    ----------
    context_length
        The largest number of observation times that are read before the forecast origin; if None,
        the larger of 64 and twice the prediction length.
    horizon
        Duration such as ``"24h"``: the queries of a training window are all observations within it,
        counted from the first of them. If None, they are the next ``prediction_length``
        observations.
    context
        Duration of the context, back from the last observation before the forecast origin; if None,
        only ``context_length`` limits it.
    origins_within
        Earliest and latest forecast origin in training, as times since the start of an item, such
        as ``("4h", "40h")``; anywhere if None.
    thinning
        The largest share of the observed values before the forecast origin that a training window
        leaves out. Each window draws its own share between 0 and this one, and each value is left
        out with that probability, so that no two windows are alike. This keeps a network from
        memorising the items, especially if there are few.
    seasonality
        Calendar cycles as covariates, out of ``"hour"``, ``"day"``, ``"week"`` and ``"year"``, in
        UTC if times have a zone. If None, a regular data set gets those that fit its frequency, and
        an irregular one none.
    scaling
        ``"running"``: values are scaled by the mean and standard deviation of the values so far;
        ``"last"``: the change from the last value is forecast, in units of the typical variation in
        the training set, for series of similar scale.
    batch_size
        Number of windows per batch, over all processes.
    num_batches_per_epoch
        Number of batches per epoch, except for sliding windows.
    num_workers
        Worker processes that prepare windows for each training process; with 0, it prepares its
        own.

    Raises
    ------
    DeltaflowError
        If a value is out of range.
    DataError
        If a duration cannot be read.
    """

    context_length: int | None = None
    horizon: Duration | None = None
    context: Duration | None = None
    origins_within: Sequence[Duration] | None = None
    thinning: float = 0.0
    seasonality: Sequence[str] | None = None
    scaling: str = "running"
    batch_size: int = 32
    num_batches_per_epoch: int = 50
    num_workers: int = 0

    def __post_init__(self) -> None:
        check_whole(
            1,
            context_length=self.context_length,
            batch_size=self.batch_size,
            num_batches_per_epoch=self.num_batches_per_epoch,
        )
        check_whole(0, num_workers=self.num_workers)
        check_between(0, 1, thinning=self.thinning)
        read_seconds(self.horizon, "horizon")
        read_seconds(self.context, "context")
        read_range(self.origins_within, "origins_within")
        check_registered("scaling", self.scaling, SCALINGS)
        if isinstance(self.seasonality, str):
            raise DeltaflowError(f"seasonality is a list of cycles: give [{self.seasonality!r}]")
        for cycle in self.seasonality or ():
            check_registered("cycle", cycle, CALENDAR_CYCLES)

    def context_length_for(self, prediction_length: int) -> int:
        """Return the context length for windows of at most this many queries."""
        return self.context_length or max(64, 2 * prediction_length)
