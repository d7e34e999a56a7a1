"""A trained network that reads observations as they arrive, and forecasts any later time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaflow.data import Reader
from deltaflow.data.series import Series
from deltaflow.data.statistics import last_known
from deltaflow.encoders.encoder import replaced
from deltaflow.model.module import ForecastNetwork


class Running(NamedTuple):
    """The state of B series whose observations arrive one by one. Its size is fixed.

    Times are float64 seconds (periods of a regular series) since any moment, which may be another
    one for each series. Ages are differences of them, so they stay exact however long a series
    lives.

    Attributes
    ----------
    encoded
        What the network keeps of the series, such as hidden states and last values. Its ages are
        left empty.
    memory
        ``(B, M, C)`` float64, what the scaling keeps of their values.
    times
        ``(B,)`` time of the last observation; NaN before the first.
    since
        ``(B, C)`` time of the last value of each channel; before it, that of the first
        observation of the series.
    """

    encoded: Any
    memory: Tensor
    times: np.ndarray
    since: np.ndarray


class RunningNetwork:
    """Reads series one observation at a time.

    Up to rounding, the forecasts are the same as after reading the whole series at once, because a
    scaling is causal and an encoder's update is a step of its recurrence.

    Parameters
    ----------
    reader, network
        The reader and the network of a predictor. Its weights must not change any more.
    """

    def __init__(self, reader: Reader, network: ForecastNetwork) -> None:
        self.reader = reader
        self.network = replaced(network, "encoder", network.encoder.frozen())

    @torch.no_grad()
    def start(self, static_real: np.ndarray, static_cat: np.ndarray) -> Running:
        """Return the state of series before any observation.

        Parameters
        ----------
        static_real, static_cat
            ``(B, S)`` and ``(B, N)`` static features, as in `Series`.
        """
        size = len(static_real)
        blank = self.reader.collate([self.reader.blank()])
        batch = type(blank)(*(part.expand(size, *part.shape[1:]) for part in blank))
        batch = batch._replace(
            static_real=self.reader.scaled_static(static_real),
            static_cat=torch.from_numpy(static_cat + 1),
        )
        batch = type(batch)(*map(self._on_device, batch))
        unknown = np.full((size, self.network.num_channels), np.nan)
        encoded = _aged(self.network.encode(batch), None)
        return Running(encoded, batch.memory, unknown[:, 0], unknown)

    @torch.no_grad()
    def read_whole(self, series: Sequence[Series]) -> Running:
        """Return the state of series after all their observations, which are read together.

        It is the same as that after as many calls of :meth:`read`, in much less time.
        """
        batch = self.reader.collate([self.reader.window(one, one.length) for one in series])
        batch = type(batch)(*map(self._on_device, batch))
        since = [
            last_known(np.where(np.isfinite(one.values), one.times[:, None], np.nan), one.times[0])
            for one in series
        ]
        times = np.array([one.times[-1] for one in series])
        return Running(
            _aged(self.network.encode(batch), None), batch.memory, times, np.stack(since)
        )

    @torch.no_grad()
    def read(
        self, running: Running, times: np.ndarray, values: np.ndarray, covariates: np.ndarray
    ) -> Running:
        """Read one more observation of each series.

        Parameters
        ----------
        running
            The state of the series.
        times
            ``(B,)`` times of the observations, not before the last ones.
        values
            ``(B, C)`` values in the units of the channels; NaN where not observed.
        covariates
            ``(B, K)`` covariates and calendar phases.
        """
        known = self._on_device(torch.from_numpy(values))
        rows, memory = self.network.scaling.read_next(running.memory, known)
        encoded = self.network.update(
            self._encoded(running),
            self._on_device(self.reader.gaps_between(running.times, times)),
            rows,
            self._on_device(self.reader.scaled_covariates(covariates)),
        )
        new = np.isfinite(values) | np.isnan(running.since)
        since = np.where(new, times[:, None], running.since)
        return Running(_aged(encoded, None), memory, times, since)

    @torch.no_grad()
    def forecast(
        self, running: Running, times: np.ndarray, covariates: np.ndarray
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Return the arguments, locations and scales of the target distributions at queries.

        Parameters
        ----------
        running
            The state of the series.
        times, covariates
            ``(B, Q)`` times of the queries, not before the last observations, and ``(B, Q, K)``
            covariates at the queries.

        Returns
        -------
        arguments, loc, scale
            The arguments ``(B, Q, D)`` of the head's distributions of scaled values, and the
            location and scale ``(B, D)`` in the units of the channels; see `Head.distribution`.
        """
        gaps = self.reader.gaps_between(running.times[:, None], times)
        arguments = self.network.decode(
            self._encoded(running),
            self._on_device(gaps),
            self._on_device(self.reader.scaled_covariates(covariates)),
        )
        loc, scale = self.network.scaling.outputs(running.memory)
        targets = slice(self.network.num_targets)
        return arguments, loc[:, targets], scale[:, targets]

    def _encoded(self, running: Running) -> Any:
        """Return what the network keeps, with the ages at the last observation."""
        ages = self.reader.gaps_between(running.since, running.times[:, None])
        return _aged(running.encoded, self._on_device(ages))

    def _on_device(self, part: Tensor) -> Tensor:
        return part.to(self.network.channel_weights.device)


def _aged(encoded: Any, ages: Tensor | None) -> Any:
    """Put other ages ``(B, C)`` into what a network keeps; with None, leave them empty."""
    last = encoded.state.last
    age = last[:, :0] if ages is None else ages.view_as(last)
    return encoded._replace(state=encoded.state._replace(age=age))
