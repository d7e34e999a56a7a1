"""The clock that counts the times of live items."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deltaflow.data.schema import TICKS_PER_SECOND, Schema, unit_seconds
from deltaflow.data.validation import TimeColumn


class Clock(NamedTuple):
    """The unit of times, which are timestamps in whole ticks or elapsed numbers.

    Attributes
    ----------
    resolution
        The unit of the ticks, such as ``"s"``; ``""`` for elapsed numbers.
    time_zone
        The time zone of timestamps, if they have one.
    elapsed_unit
        The unit of elapsed numbers, in seconds.
    """

    resolution: str
    time_zone: str | None
    elapsed_unit: float

    @classmethod
    def of(cls, schema: Schema) -> Clock:
        """Return the initial clock of a data set, with the coarsest unit."""
        resolution = "" if schema.time == "elapsed" else "s"
        return cls(resolution, schema.time_zone, unit_seconds(schema.time_unit))

    def in_unit(self, resolution: str) -> Clock:
        """Return the same clock with another unit.

        Raises
        ------
        ValueError
            If there is no such unit.
        """
        if resolution not in (TICKS_PER_SECOND if self.resolution else {""}):
            raise ValueError(f"{resolution!r} is not a unit of ticks")
        return self._replace(resolution=resolution)

    @property
    def dtype(self) -> type:
        """The dtype of times."""
        return np.int64 if self.resolution else np.float64

    def column(self, ticks: np.ndarray) -> TimeColumn:
        """Return times as a column."""
        return TimeColumn(ticks, self.resolution, self.time_zone)

    def seconds(self, ticks: np.ndarray) -> np.ndarray:
        """Return differences of times in seconds."""
        if not self.resolution:
            return ticks * self.elapsed_unit
        return ticks / float(TICKS_PER_SECOND[self.resolution])

    def moment(self, ticks: Any) -> Any:
        """Return a time in the caller's form: a timestamp, or an elapsed number."""
        if not self.resolution:
            return ticks
        moment = pd.Timestamp(np.datetime64(ticks, self.resolution))
        zone = self.time_zone
        return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)
