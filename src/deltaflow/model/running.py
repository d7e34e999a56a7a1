"""A trained network that reads observations as they arrive, and forecasts at any later time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaflow.data import Batch, Reader
from deltaflow.data.series import Series
from deltaflow.encoders.encoder import replaced
from deltaflow.model.module import ForecastNetwork, mapped


class Running(NamedTuple):
    """The state of B series whose observations arrive one by one. Its size is fixed.

    Attributes
    ----------
    encoded
        The network's encoding of the series, such as hidden states and last values. Its ages are
        empty: the caller computes them as exact differences of times.
    memory
        ``(B, M, C)`` float64, the state of the scaling.
    """

    encoded: Any
    memory: Tensor


class RunningNetwork:
    """Reads series one observation at a time.

    Up to rounding, the forecasts are the same as after reading the whole series at once, because a
    scaling is causal and an encoder's update is a step of its recurrence. Gaps and ages are float64
    seconds (periods of a regular series).

    Parameters
    ----------
    reader, network
        The reader and the network of a predictor. Its weights must not change afterwards.
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
        blank = self.reader.collate([self.reader.blank()])
        batch = mapped(lambda part: part.expand(len(static_real), *part.shape[1:]), blank)
        return self._encoded(
            batch._replace(
                static_real=self.reader.scaled_static(static_real),
                static_cat=torch.from_numpy(static_cat + 1),
            )
        )

    @torch.no_grad()
    def read_whole(self, series: Sequence[Series]) -> Running:
        """Return the state of series after all their observations, which are read together.

        It equals the state after one call of :meth:`read` per observation, in much less time.
        """
        windows = [self.reader.window(one, one.length) for one in series]
        return self._encoded(self.reader.collate(windows))

    @torch.no_grad()
    def read(
        self,
        running: Running,
        gaps: np.ndarray,
        ages: np.ndarray,
        values: np.ndarray,
        covariates: np.ndarray,
    ) -> Running:
        """Read one more observation of each series.

        Parameters
        ----------
        running
            The state of the series.
        gaps
            ``(B,)`` times since the last observations; 0 at the first.
        ages
            ``(B, C)`` times from the last value of each channel, or else from the first
            observation, to the last observation; 0 at the first.
        values
            ``(B, C)`` values in the units of the channels; NaN where not observed.
        covariates
            ``(B, K)`` covariates and calendar phases.
        """
        known = self._on_device(torch.from_numpy(values))
        rows, memory = self.network.scaling.read_next(running.memory, known)
        encoded = self.network.update(
            _aged(running.encoded, self._in_gaps(ages)),
            self._in_gaps(gaps),
            rows,
            self._on_device(self.reader.scaled_covariates(covariates)),
        )
        return Running(_aged(encoded, None), memory)

    @torch.no_grad()
    def forecast(
        self, running: Running, gaps: np.ndarray, ages: np.ndarray, covariates: np.ndarray
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Return the arguments, locations and scales of the target distributions at queries.

        Parameters
        ----------
        running
            The state of the series.
        gaps, ages
            ``(B, Q)`` times from the last observation to each query, and ``(B, C)``, see
            :meth:`read`.
        covariates
            ``(B, Q, K)`` covariates at the queries.

        Returns
        -------
        arguments, loc, scale
            The arguments ``(B, Q, D)`` of the head's distributions of scaled values, and the
            location and scale ``(B, D)`` in the units of the channels; see `Head.distribution`.
        """
        arguments = self.network.decode(
            _aged(running.encoded, self._in_gaps(ages)),
            self._in_gaps(gaps),
            self._on_device(self.reader.scaled_covariates(covariates)),
        )
        loc, scale = self.network.scaling.outputs(running.memory)
        targets = slice(self.network.num_targets)
        return arguments, loc[:, targets], scale[:, targets]

    def _encoded(self, batch: Batch) -> Running:
        """Return the state of the series of a batch."""
        batch = mapped(self._on_device, batch)
        return Running(_aged(self.network.encode(batch), None), batch.memory)

    def _in_gaps(self, seconds: np.ndarray) -> Tensor:
        """Return times in typical gaps of the training set."""
        gap = self.reader.statistics.typical_gap
        return self._on_device(torch.from_numpy((seconds / gap).astype(np.float32)))

    def _on_device(self, part: Tensor) -> Tensor:
        return part.to(self.network.channel_weights.device)


def _aged(encoded: Any, ages: Tensor | None) -> Any:
    """Set the ages ``(B, C)`` of an encoding; with None, leave them empty."""
    last = encoded.state.last
    age = last[:, :0] if ages is None else ages.view_as(last)
    return encoded._replace(state=encoded.state._replace(age=age))
