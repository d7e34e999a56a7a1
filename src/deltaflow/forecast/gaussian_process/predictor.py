"""A Gaussian process per item and channel, all with the same kernel."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from torch.distributions import Distribution, Normal

from deltaflow.data.series import Series, read_series
from deltaflow.data.statistics import Statistics
from deltaflow.errors import check_registered
from deltaflow.forecast.gaussian_process.processes import NO_WAVE, PROCESSES, Curve, predictive
from deltaflow.forecast.location_scale import LocationScalePredictor

MOST_ITEMS, MOST_ROWS, MOST_VALUES = 64, 100, 3000
"""The kernel is fitted to at most this many items, to at most this many last values of each, and to
no more items once it has this many values: the cost is cubic in the length of each."""

CONTEXT = 300
"""The largest number of values that a forecast uses: its cost is cubic in their number."""


class GaussianProcessPredictor(LocationScalePredictor):
    """Forecasts each channel by a Gaussian process in time, given what was observed of it.

    It adds up a straight line, noise, and a process of one of three kinds: a Matérn process, which
    returns to the line; the same with a wave, for channels in which many items repeat themselves
    with one period; or the integral of a random walk, which goes on in its latest direction.

    Parameters
    ----------
    prediction_length
        The number of queries.
    data_schema
        The schema of the data, as `Schema.to_dict` gives it.
    theta
        For each of the D channels, the logarithms of the kernel's parameters.
    center, spread
        ``(D,)`` mean and deviation of each channel.
    unit
        The unit of time: seconds, or periods of a regular series.
    root
        Whether the processes are of the square roots of the values, whose noise differs less
        between small and large ones.
    process
        One of `PROCESSES`: ``"matern"``, ``"cycle"``, or ``"trend"`` for the integral of a random
        walk.

    References
    ----------
    Rasmussen & Williams, *Gaussian Processes for Machine Learning*, 2006; section 5.4.3 has the
    covariance of a wave whose shape changes.

    Harvey, *Forecasting, Structural Time Series Models and the Kalman Filter*, 1989.
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        data_schema: dict,
        theta: list,
        center: list,
        spread: list,
        unit: float,
        root: bool = False,
        process: str = "matern",
    ) -> None:
        super().__init__(prediction_length, data_schema)
        check_registered("process", process, PROCESSES)
        self.root, self.process = root, process
        self.theta = np.asarray(theta)
        self.center, self.spread, self.unit = np.asarray(center), np.asarray(spread), unit

    @property
    def family(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The distributions, made of a location and a scale."""
        return SquaredNormal if self.root else Normal

    @property
    def periods(self) -> list[float | None]:
        """The period of each channel in seconds, or rows of a regular series; None without one."""
        if self.process != "cycle":
            return [None] * len(self.theta)
        ratios, periods = np.exp(self.theta[:, 4]), self.unit * np.exp(self.theta[:, 6])
        return [
            period if ratio > 2 * NO_WAVE else None
            for ratio, period in zip(ratios.tolist(), periods.tolist(), strict=True)
        ]

    @classmethod
    def fit(
        cls,
        training_data: Dataset,
        prediction_length: int,
        root: bool = False,
        process: str = "matern",
    ) -> "GaussianProcessPredictor":
        """Fit the kernel of each channel to all items, by the sum of their marginal likelihoods."""
        from deltaflow.forecast.gaussian_process.likelihood import most_likely  # loads for a second

        check_registered("process", process, PROCESSES)
        schema, read = read_series(training_data)
        data = [series._replace(values=_rooted(series.values, root)) for series in read]
        statistics = Statistics.fit(data, schema.target)
        channels = len(schema.target)
        spans = [np.ptp(one.times[: one.length]) for one in data if one.length > 1]
        unit = float(np.median(spans or [0.0])) or 1.0
        chosen = np.random.default_rng(0).permutation(len(data))[:MOST_ITEMS]
        theta = []
        for channel in range(channels):
            center, spread = statistics.center[channel], statistics.spread[channel]
            curves = [_curve(data[item], channel, MOST_ROWS) for item in chosen]
            before = np.cumsum([0, *(len(one.values) for one in curves)])
            known = [
                Curve(
                    (one.times - _start_of(one.times, process)) / unit,
                    (one.values - center) / spread,
                )
                for one, count in zip(curves, before[:-1], strict=True)
                if len(one.values) and count < MOST_VALUES
            ]
            theta.append(most_likely(known, process))
        return cls(
            prediction_length=prediction_length,
            data_schema=schema.to_dict(),
            theta=np.array(theta).tolist(),
            center=statistics.center[:channels],
            spread=statistics.spread[:channels],
            unit=unit,
            root=root,
            process=process,
        )

    def locate(self, series: Series, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return location and scale ``(Q, D)`` of the predictive distribution of a value."""
        curves = [_curve(series, channel, CONTEXT) for channel in range(len(self.center))]
        return self.locate_from(curves, queries - (series.times[0] if series.length else 0.0))

    def locate_from(
        self, curves: Sequence[Curve], queries: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the same, given the last `CONTEXT` values of each channel.

        The queries ``(Q,)`` are times since the first row of the item, too.
        """
        loc, scale = (np.empty((len(queries), len(self.center))) for _ in range(2))
        for channel, (theta, (times, values)) in enumerate(zip(self.theta, curves, strict=True)):
            center, spread = self.center[channel], self.spread[channel]
            values = (_rooted(values, self.root) - center) / spread
            start = _start_of(times, self.process)
            own, asked = (times - start) / self.unit, (queries - start) / self.unit
            mean, deviation = predictive(theta, own, values, asked, self.process)
            loc[:, channel], scale[:, channel] = center + spread * mean, spread * deviation
        return loc, np.maximum(scale, 1e-9 * self.spread)


class SquaredNormal(Distribution):
    """The square of a normal variable that is 0 where it would be negative.

    Parameters
    ----------
    loc, scale
        Of the normal variable.
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor) -> None:
        self.normal = Normal(loc, scale)
        super().__init__(self.normal.batch_shape, validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        """The mean, that of the part at 0 included."""
        loc, scale = self.normal.loc, self.normal.scale
        ratio = loc / scale
        density = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
        return (loc**2 + scale**2) * torch.special.ndtr(ratio) + loc * scale * density

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        """Return quantiles."""
        return self.normal.icdf(value).clamp(min=0) ** 2

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draw samples."""
        return self.normal.sample(sample_shape).clamp(min=0) ** 2

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Return the log-density, at 0 the logarithm of the probability."""
        root = value.clamp(min=0).sqrt()
        inside = self.normal.log_prob(root) - torch.log(2 * root)
        return torch.where(
            value > 0, inside, torch.special.log_ndtr(-self.normal.loc / self.normal.scale)
        )


def _rooted(values: np.ndarray, root: bool) -> np.ndarray:
    """Return the square roots of values, if they are wanted; 0 in the place of negative ones."""
    return np.sqrt(np.maximum(values, 0)) if root else values


def _curve(series: Series, channel: int, most: int) -> Curve:
    known = np.flatnonzero(np.isfinite(series.values[:, channel]))[-most:]
    return Curve(series.times[known] - series.times[:1], series.values[known, channel])


def _start_of(times: np.ndarray, process: str) -> float:
    """Return when a process begins: with the item, or a local trend with the first value used."""
    return float(times[0]) if process == "trend" and len(times) else 0.0
