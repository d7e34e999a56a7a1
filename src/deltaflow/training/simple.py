"""The simple forecasts that are blended with networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from gluonts.dataset.common import DataEntry

from deltaflow.data.splitter import cut_entry
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.held_out import HeldOut
from deltaflow.forecast.hold import HoldPredictor
from deltaflow.forecast.location_scale import MOST_ITEMS
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.seasonal import SeasonalPredictor
from deltaflow.forecast.support import Support
from deltaflow.training.blend import losses_of_each
from deltaflow.training.plan import scaling_for

MOST_PROCESSES = 16
"""With more channels, Gaussian processes for all of them take too long to fit and to forecast."""

FEWEST_FOR_TREND = 5
"""With fewer values per item and channel, a change of slope cannot be distinguished from noise."""

HORIZONS, CLEARLY = 5, 0.95
"""The largest number of last horizons per item that decide on the powers, and the largest loss,
relative to the usual power, at which another power is chosen."""


class SimpleForecasts(NamedTuple):
    """The kinds of simple forecasts that suit a data set.

    Attributes
    ----------
    processes
        The Gaussian processes, see `PROCESSES`.
    powers
        For each channel, the power of its values that they model, see `POWERS`.
    hold
        Whether a hold is among them.
    cycles
        The lengths of the calendar cycles for a regression on earlier ones, if any.
    """

    processes: tuple[str, ...]
    powers: list[float]
    hold: bool
    cycles: list[float]

    @classmethod
    def for_data(
        cls,
        entries: Sequence[DataEntry],
        supports: Sequence[Support],
        prediction_length: int,
        cycles: list[float] | None = None,
    ) -> SimpleForecasts:
        """Choose the kinds that suit the items.

        Those whose intervals have one scale for all items are left out where items differ in scale:
        the intervals of small items would be many times too wide.
        """
        values = np.array([np.isfinite(entry["target"]).sum(axis=-1) for entry in entries])
        alike = scaling_for([np.atleast_2d(entry["target"]).T for entry in entries]) == "last"
        cycles = cycles or []
        if values[0].size > MOST_PROCESSES:
            return cls((), [], alike, cycles)
        powers = powers_for(entries, supports, prediction_length)
        if any(powers) and not alike:  # only logarithms have no scale
            return cls((), [], alike, cycles)
        processes = ("cycle", "trend") if np.median(values) >= FEWEST_FOR_TREND else ("cycle",)
        return cls(processes, powers, alike, cycles)

    def fit(self, entries: Sequence[DataEntry], prediction_length: int) -> list[DeltaflowPredictor]:
        """Fit the forecasts to items."""
        holds, fit = [], GaussianProcessPredictor.fit
        if self.hold:
            # A blend averages means as it does quantiles, which include drift.
            holds.append(HoldPredictor.fit(list(entries), prediction_length).with_drift())
        if self.cycles:
            holds.append(SeasonalPredictor.fit(list(entries), prediction_length, self.cycles))
        return [
            *holds,
            *(fit(entries, prediction_length, self.powers, process) for process in self.processes),
        ]


def powers_for(
    entries: Sequence[DataEntry],
    supports: Sequence[Support],
    prediction_length: int,
) -> list[float]:
    """Choose the power of each channel, by at most `MOST_ITEMS` items.

    A channel that can be negative keeps its values; others take the square root. If all values are
    positive, another power is chosen if it forecasts the last values clearly better. A higher
    likelihood alone does not suffice: it may favour logarithms for growth that slows down.
    """
    nonnegative = np.array([support.low >= 0 for support in supports])
    usual = np.where(nonnegative, 0.5, 1.0)
    targets = np.concatenate([np.atleast_2d(entry["target"]) for entry in entries], axis=1)
    positive = nonnegative & ~(targets <= 0).any(axis=1)
    some = np.random.default_rng(0).permutation(len(entries))[:MOST_ITEMS]
    cuts = [_last_horizons(entries[item], prediction_length) for item in some]
    cuts = [cut for cut in cuts if cut]
    early = [cut[0][0] for cut in cuts]
    if not positive.any() or not early or not observed(early).all():
        return usual.tolist()

    powers = np.where(positive, np.array([0.5, 1.0, 0.0])[:, None], usual)  # the usual ones first
    fits = [GaussianProcessPredictor.fit(early, prediction_length, own.tolist()) for own in powers]
    held_out = HeldOut.of(fits, [pair for cut in cuts for pair in cut], fits[0].schema)
    loss = losses_of_each(held_out, len(usual))
    best = np.where(loss.min(axis=0) < CLEARLY * loss[0], loss.argmin(axis=0), 0)
    return powers[best, np.arange(len(usual))].tolist()


def _last_horizons(entry: DataEntry, length: int) -> list[tuple[DataEntry, DataEntry]]:
    """Return the context before each of the last horizons of an item, and its targets."""
    end = entry["target"].shape[-1]
    origins = [end - count * length for count in range(HORIZONS, 0, -1)]
    return [cut_entry(entry, at, at + length) for at in origins if at >= max(2, end // 2)]


def observed(entries: Sequence[DataEntry]) -> np.ndarray:
    """Return which channels have any value."""
    seen = [np.isfinite(np.atleast_2d(entry["target"])).any(axis=1) for entry in entries]
    return np.any(seen, axis=0)


def name_of(simple: DeltaflowPredictor) -> str:
    """Return the name of a simple forecast of a blend."""
    if isinstance(simple, GaussianProcessPredictor):
        powers = set(simple.powers)
        log = " of logarithms" if powers == {0.0} else ""
        if simple.process == "trend":
            return f"local trend{log}"
        return f"Gaussian process{log}" + " with a cycle" * any(simple.periods)
    return "seasonal regression" if isinstance(simple, SeasonalPredictor) else "hold"
