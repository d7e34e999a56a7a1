"""A trained network that reads observations as they arrive, and forecasts any later time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaflow.data import Reader
from deltaflow.data.reader import Window
from deltaflow.data.series import Series
from deltaflow.model.module import ForecastNetwork


class Running(NamedTuple):
    """The state of B series whose observations arrive one by one. Its size is fixed.

    Attributes
    ----------
    encoded
        What the network keeps of them: hidden states, last values and their ages.
    memory
        ``(B, M, C)`` float64, what the scaling keeps of their values.
    times
        ``(B,)`` float64 elapsed time of the last observation; NaN before the first.
    """

    encoded: Any
    memory: Tensor
    times: np.ndarray


class RunningNetwork:
    """Reads series one observation at a time.

    Up to rounding, the forecasts are the same as after reading the whole series at once, because a
    scaling is causal and an encoder's update is a step of its recurrence. Times are elapsed times,
    as in `Series`.

    Parameters
    ----------
    reader, network
        The reader and the network of a predictor.
    """

    def __init__(self, reader: Reader, network: ForecastNetwork) -> None:
        self.reader = reader
        self.network = network

    @torch.no_grad()
    def start(self, series: Sequence[Series]) -> Running:
        """Return the state of series before any observation, from their static features alone."""
        nothing = slice(0, 0)
        batch = self.reader.collate([Window(one, nothing, nothing) for one in series])
        device = self.network.channel_weights.device
        batch = type(batch)(*(part.to(device) for part in batch))
        return Running(self.network.encode(batch), batch.memory, np.full(len(series), np.nan))

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
            ``(B,)`` elapsed times of the observations, not before the last ones.
        values
            ``(B, C)`` values in the units of the channels; NaN where not observed.
        covariates
            ``(B, K)`` covariates and calendar phases.
        """
        known = self._on_device(torch.from_numpy(values))
        rows, memory = self.network.scaling.read_next(running.memory, known)
        encoded = self.network.update(
            running.encoded,
            self._on_device(self.reader.gaps_between(running.times, times)),
            rows,
            self._on_device(self.reader.scaled_covariates(covariates)),
        )
        return Running(encoded, memory, times)

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
            ``(B, Q)`` elapsed times of the queries, not before the last observations, and
            ``(B, Q, K)`` covariates at the queries.

        Returns
        -------
        arguments, loc, scale
            The arguments ``(B, Q, D)`` of the head's distributions of scaled values, and the
            location and scale ``(B, D)`` in the units of the channels; see `Head.distribution`.
        """
        gaps = self.reader.gaps_between(running.times[:, None], times)
        arguments = self.network.decode(
            running.encoded,
            self._on_device(gaps),
            self._on_device(self.reader.scaled_covariates(covariates)),
        )
        loc, scale = self.network.scaling.outputs(running.memory)
        targets = slice(self.network.num_targets)
        return arguments, loc[:, targets], scale[:, targets]

    def _on_device(self, part: Tensor) -> Tensor:
        return part.to(self.network.channel_weights.device)
