"""Series → windows: a context, the queries after it, and everything scaled and cast once.

This is the place where Δt is formed: a difference of float64 times, divided by the training set's
typical gap, and only then cast to float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gluonts.dataset.common import DataEntry
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from deltaflow.data.schema import Schema
from deltaflow.data.series import Series, read_series
from deltaflow.data.statistics import LIMIT, SCALINGS, Statistics
from deltaflow.errors import DataError, DeltaflowWarning, UnknownNameError

_FAR = 1e6
"""Scaled training targets are clipped here, far outside of any use, to stay finite in float32."""


class Batch(NamedTuple):
    """A padded batch of windows. B series, T observation times, Q queries, C channels of which
    the first D are targets, K covariates, S static features.

    Attributes
    ----------
    values
        ``(B, T, C)`` scaled values, 0 where not observed.
    observed
        ``(B, T, C)`` bool observed mask.
    delta_t
        ``(B, T)`` time since the observation before, in typical gaps; 0 at the first.
    lengths
        ``(B,)`` number of observation times of each series; the rest is padding at the end.
    covariates
        ``(B, T, K)`` scaled covariates at the observations.
    static_real
        ``(B, S + 2C)`` static real features, then location and log-scale of each channel
        relative to the training set.
    static_cat
        ``(B, N)`` codes of the levels, 0 where unknown.
    query_delta_t
        ``(B, Q)`` time from the last observation to each query, in typical gaps.
    query_covariates
        ``(B, Q, K)`` scaled covariates at the queries.
    target
        ``(B, Q, D)`` scaled future values, 0 where not observed.
    target_observed
        ``(B, Q, D)`` bool mask of the future values.
    loc, scale
        ``(B, D)`` float64: ``value = loc + scale · scaled value``.
    """

    values: Tensor
    observed: Tensor
    delta_t: Tensor
    lengths: Tensor
    covariates: Tensor
    static_real: Tensor
    static_cat: Tensor
    query_delta_t: Tensor
    query_covariates: Tensor
    target: Tensor
    target_observed: Tensor
    loc: Tensor
    scale: Tensor


@dataclass(frozen=True)
class WindowSpec:
    """How a series becomes a window; training and forecasting share it.

    Attributes
    ----------
    schema, statistics
        What the data hold, and the statistics of the training set.
    context_length
        The largest number of observation times that are read before the forecast origin.
    prediction_length
        The largest number of queries Q.
    seasonality
        Calendar cycles given as covariates, see `calendar_phases`.
    centred
        Whether the targets are centred, or only scaled (for distributions on positive numbers).
    scaling
        What values are measured against: ``"window"``, mean and deviation of the context, or
        ``"last"``, the last value and the training set's typical variation, so that the model
        forecasts the change from the last value. See `SCALINGS`.
    """

    schema: Schema
    statistics: Statistics
    context_length: int
    prediction_length: int
    seasonality: tuple[str, ...] = ()
    centred: bool = True
    scaling: str = "window"

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise UnknownNameError("scaling", self.scaling, SCALINGS)

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-compatible values."""
        return {
            "schema": self.schema.to_dict(),
            "statistics": self.statistics.to_dict(),
            "context_length": self.context_length,
            "prediction_length": self.prediction_length,
            "seasonality": list(self.seasonality),
            "centred": self.centred,
            "scaling": self.scaling,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> WindowSpec:
        """Rebuild from :meth:`to_dict`."""
        return cls(
            schema=Schema.from_dict(plain["schema"]),
            statistics=Statistics.from_dict(plain["statistics"]),
            context_length=plain["context_length"],
            prediction_length=plain["prediction_length"],
            seasonality=tuple(plain["seasonality"]),
            centred=plain["centred"],
            scaling=plain["scaling"],
        )

    def read(self, entry: DataEntry, num_queries: int | None = None) -> Series:
        """Check an entry and turn it into arrays, see `read_series`."""
        return read_series(entry, self.schema, self.seasonality, num_queries)

    def cut(self, series: Series, origin: int, *, blind: bool = False) -> Window:
        """Cut the window whose first query is row ``origin`` of the series.

        Parameters
        ----------
        series
            The series.
        origin
            Number of rows before the forecast origin.
        blind
            Leave the context out, as if nothing had been observed yet.
        """
        context = slice(max(0, origin - self.context_length), origin)
        if blind:
            context = slice(origin, origin)
        queries = slice(origin, origin + self.prediction_length)
        raw = series.values[context]
        channels = len(self.schema.target)
        centred = np.ones(raw.shape[1], dtype=bool)
        centred[:channels] = self.centred
        loc, scale = SCALINGS[self.scaling](raw, self.statistics, centred)

        times = series.times[context]
        asked = series.times[queries]
        last = times[-1] if len(times) else asked
        gap = self.statistics.typical_gap
        future = series.values[queries, :channels]
        return Window(
            values=_scaled(raw, loc, scale),
            observed=np.isfinite(raw),
            delta_t=np.diff(times, prepend=times[:1]) / gap,
            covariates=self._scaled_covariates(series.covariates[context]),
            static_real=np.concatenate([self._scaled_static(series), self._level(loc, scale)]),
            static_cat=series.static_cat + 1,
            query_delta_t=_repeat_last((asked - last) / gap),
            query_covariates=self._scaled_covariates(series.covariates[queries]),
            target=np.clip((future - loc[:channels]) / scale[:channels], -_FAR, _FAR),
            loc=loc[:channels],
            scale=scale[:channels],
        )

    def _scaled_covariates(self, covariates: np.ndarray) -> np.ndarray:
        center = np.array(self.statistics.covariate_center)
        spread = np.array(self.statistics.covariate_spread)
        return _scaled(covariates, center, spread)

    def _scaled_static(self, series: Series) -> np.ndarray:
        center = np.array(self.statistics.static_center)
        spread = np.array(self.statistics.static_spread)
        return _scaled(series.static_real, center, spread)

    def _level(self, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Where a window stands among the training set, which its own scaling hides."""
        center, spread = np.array(self.statistics.center), np.array(self.statistics.spread)
        return np.concatenate([_scaled(loc, center, spread), _clip(np.log(scale / spread))])


class Window(NamedTuple):
    """One window as float64 arrays; the fields are those of `Batch` without its batch axis."""

    values: np.ndarray
    observed: np.ndarray
    delta_t: np.ndarray
    covariates: np.ndarray
    static_real: np.ndarray
    static_cat: np.ndarray
    query_delta_t: np.ndarray
    query_covariates: np.ndarray
    target: np.ndarray
    loc: np.ndarray
    scale: np.ndarray


def collate(windows: Sequence[Window]) -> Batch:
    """Pad windows at the end of their time axes and stack them into a batch."""
    targets = _pad([window.target for window in windows], fill=np.nan)
    lengths = [len(window.values) for window in windows]
    return Batch(
        values=_tensor(_pad([window.values for window in windows])),
        observed=torch.from_numpy(_pad([window.observed for window in windows])),
        delta_t=_tensor(_pad([window.delta_t for window in windows])),
        lengths=torch.tensor(lengths),
        covariates=_tensor(_pad([window.covariates for window in windows])),
        static_real=_tensor(np.stack([window.static_real for window in windows])),
        static_cat=torch.from_numpy(np.stack([window.static_cat for window in windows])),
        query_delta_t=_tensor(_pad([window.query_delta_t for window in windows])),
        query_covariates=_tensor(_pad([window.query_covariates for window in windows])),
        target=_tensor(np.nan_to_num(targets, nan=0.0)),
        target_observed=torch.from_numpy(np.isfinite(targets)),
        loc=torch.from_numpy(np.stack([window.loc for window in windows])),
        scale=torch.from_numpy(np.stack([window.scale for window in windows])),
    )


class TrainingWindows(Dataset[Window]):
    """Windows with random forecast origins, drawn evenly from all items.

    The ``i``-th window depends on the seed and on ``i`` alone: every pass over the items is a new
    permutation, and every window has a new origin. So it does not matter which worker or which
    process draws it.

    Parameters
    ----------
    data
        The series. One warning counts those that have nothing to learn from: no target observed
        after some first observation.
    spec
        How windows are cut.
    seed
        Seed of the permutations and origins.
    blind_share
        Share of windows whose context is left out, so that the model learns what to say of an
        item of which nothing is known.

    Raises
    ------
    DataError
        If no item has anything to learn from.
    """

    def __init__(
        self, data: Sequence[Series], spec: WindowSpec, *, seed: int, blind_share: float = 0.02
    ) -> None:
        channels = len(spec.schema.target)
        ranges = [_origins(series, channels) for series in data]
        usable = [i for i, (low, high) in enumerate(ranges) if low <= high]
        if not usable:
            raise DataError(
                "no item has an observed target after another observation",
                "give longer series",
            )
        if len(usable) < len(data):
            warnings.warn(
                f"{len(data) - len(usable)} of {len(data)} items have no observed target after "
                "another observation; training passes over them",
                DeltaflowWarning,
                stacklevel=2,
            )
        self.data = [data[i] for i in usable]
        self.origins = [ranges[i] for i in usable]
        self.spec = spec
        self.seed = seed
        self.blind_share = blind_share
        self._order = (-1, np.empty(0, dtype=int))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Window:
        turn, place = divmod(index, len(self.data))
        if self._order[0] != turn:
            permutation = np.random.default_rng([self.seed, 0, turn]).permutation(len(self.data))
            self._order = turn, permutation
        item = self._order[1][place]
        random = np.random.default_rng([self.seed, 1, index])
        low, high = self.origins[item]
        origin = int(random.integers(low, high + 1))
        return self.spec.cut(self.data[item], origin, blind=random.random() < self.blind_share)


class LastWindows(Dataset[Window]):
    """The last window of every series that has one: what validation measures.

    It has ``prediction_length`` queries, but no more than leave the earlier half of the possible
    origins to the context: a horizon as long as the series would leave nothing to forecast from.

    Parameters
    ----------
    data, spec
        The series, and how windows are cut.
    """

    def __init__(self, data: Sequence[Series], spec: WindowSpec) -> None:
        channels = len(spec.schema.target)
        self.spec = spec
        self.windows = [
            (series, max((low + high) // 2, high + 1 - spec.prediction_length))
            for series in data
            for low, high in [_origins(series, channels)]
            if low <= high
        ]
        if not self.windows:
            raise DataError(
                "no validation item has an observed target after another observation",
                "give longer series",
            )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.spec.cut(*self.windows[index])


class EpochSampler(Sampler[int]):
    """Numbers ``epoch · size … (epoch + 1) · size - 1``: no window is drawn in two epochs.

    Lightning calls :meth:`set_epoch` before each epoch, so a resumed run goes on where the
    interrupted one would have: in its first epoch, behind the ``done`` windows drawn already.
    """

    def __init__(self, size: int, epoch: int = 0, done: int = 0) -> None:
        self.size = size
        self.epoch = epoch
        self.done = done

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.size + self.done, (self.epoch + 1) * self.size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the numbers of this epoch."""
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0


def _origins(series: Series, channels: int) -> tuple[int, int]:
    """First and last row that can be a first query: something observed before, a target after."""
    observed = np.isfinite(series.values)
    seen = np.flatnonzero(observed.any(axis=1))
    wanted = np.flatnonzero(observed[:, :channels].any(axis=1))
    if not len(wanted):
        return 1, 0
    return int(seen[0]) + 1, int(wanted[-1])


def _scaled(values: np.ndarray, center: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Centre and scale, with 0 in place of NaN, clipped so that no outlier blinds the network."""
    if not values.size:  # without covariates, say
        return values
    with np.errstate(over="ignore"):
        scaled = (values - center) / spread
    scaled[np.isnan(scaled)] = 0.0
    return _clip(scaled)


def _clip(values: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(values, -LIMIT), LIMIT)  # half the time of np.clip


def _repeat_last(delta_t: np.ndarray) -> np.ndarray:
    """Put the last known query in place of the padding behind it; 0 if none is known."""
    known = np.isfinite(delta_t)
    last = delta_t[known][-1] if known.any() else 0.0
    return np.where(known, delta_t, last)


def _pad(arrays: Sequence[np.ndarray], fill: float = 0) -> np.ndarray:
    """Stack arrays whose first axes differ in length, which is at least 1 afterwards."""
    first = arrays[0]
    length = max(1, *map(len, arrays))
    padded = np.full((len(arrays), length, *first.shape[1:]), fill, dtype=first.dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
