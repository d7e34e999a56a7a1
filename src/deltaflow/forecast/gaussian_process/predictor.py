"""A Gaussian process per item and channel, all with the same kernel."""

import math
from collections.abc import Sequence
from inspect import signature

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset

from deltaflow.data.series import Series, read_series
from deltaflow.data.statistics import Statistics
from deltaflow.errors import check_registered
from deltaflow.forecast.forecasts import DistributionForecast
from deltaflow.forecast.gaussian_process.power_normal import POWERS, PowerNormal, to_power
from deltaflow.forecast.gaussian_process.processes import NO_WAVE, PROCESSES, predictive
from deltaflow.forecast.location_scale import Curve, CurvePredictor, curves_of
from deltaflow.forecast.predictor import numbers_of
from deltaflow.process import one_thread

MOST_ROWS, MOST_VALUES = 100, 3000
"""A kernel is fitted to at most this many last values of each item, and to no more items once it
has this many values: the cost is cubic in the length of each."""

CONTEXT = 300
"""The largest number of values that a forecast uses: its cost is cubic in their number."""

LOWEST = -6.0
"""The lower bound of logarithms, in standard deviations from their mean: channels with logarithms
have no zeros."""

REACH = math.log(100)
"""The largest distance of forecast logarithms from their mean, in addition to five standard
deviations: growth over many lengths of a series is not credible."""


class GaussianProcessPredictor(CurvePredictor):
    """Forecasts each channel by a Gaussian process in time, conditioned on its observations.

    It is the sum of a straight line, noise, and a process of one of three kinds: a Matérn process,
    which returns to the line; the same with a wave, for channels in which many items share a
    period; or the integral of a random walk, which continues in its latest direction.

    Parameters
    ----------
    prediction_length
        The number of queries.
    data_schema
        The schema of the data, as `Schema.to_dict` gives it.
    theta
        For each of the D channels, the logarithms of the kernel's parameters.
    center, spread
        ``(D,)`` mean and standard deviation of each channel.
    unit
        The unit of time: seconds, or periods of a regular series.
    powers
        For each channel, the power of its values that the process models, see `POWERS`; by default
        the values themselves. The noise of roots or logarithms may depend less on the size of the
        values.
    process
        One of `PROCESSES`: ``"matern"``, ``"cycle"``, or ``"trend"`` for the integral of a random
        walk.

    References
    ----------
    Rasmussen & Williams, *Gaussian Processes for Machine Learning*, 2006; section 5.4.3 has the
    covariance of a wave whose shape changes.

    Harvey, *Forecasting, Structural Time Series Models and the Kalman Filter*, 1989.
    """

    family = PowerNormal
    context = CONTEXT

    @validated()
    def __init__(
        self,
        prediction_length: int,
        data_schema: dict,
        theta: list,
        center: list,
        spread: list,
        unit: float,
        powers: list | None = None,
        process: str = "matern",
    ) -> None:
        super().__init__(prediction_length, data_schema)
        check_registered("process", process, PROCESSES)
        channels = len(self.schema.target)
        self.powers = [1.0] * channels if powers is None else powers
        for power in self.powers:
            check_registered("power", power, POWERS)
        self.process, self.unit = process, unit
        count = 2 + len(signature(PROCESSES[process]).parameters)  # see `covariance`
        self.theta = numbers_of(theta, (channels, count), "theta")
        self.center = numbers_of(center, (channels,), "center")
        self.spread = numbers_of(spread, (channels,), "spread")
        if len(self.powers) != channels or not (self.spread > 0).all() or not 0 < unit < math.inf:
            raise ValueError(f"powers, spread or unit are not those of {channels} channels")

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
    @one_thread()
    def fit(
        cls,
        training_data: Dataset,
        prediction_length: int,
        powers: Sequence[float] | None = None,
        process: str = "matern",
    ) -> "GaussianProcessPredictor":
        """Fit the kernel of each channel to all items, by the sum of their log-likelihoods."""
        from deltaflow.forecast.gaussian_process.likelihood import most_likely  # loads for a second

        check_registered("process", process, PROCESSES)
        schema, data = read_series(training_data)
        channels = len(schema.target)
        powers = [1.0] * channels if powers is None else list(powers)
        statistics = Statistics.fit([_to_powers(one, powers) for one in data], schema.target)
        spans = [np.ptp(one.times[: one.length]) for one in data if one.length > 1]
        unit = float(np.median(spans or [0.0])) or 1.0
        order = np.random.default_rng(0).permutation(len(data))
        theta = []
        for channel, power in enumerate(powers):
            center, spread = statistics.center[channel], statistics.spread[channel]
            curves = curves_of(data, order, channel, MOST_ROWS)
            before = np.cumsum([0, *(len(one.values) for one in curves)])
            known = [
                Curve(
                    (one.times - _start_of(one.times, process)) / unit,
                    _scaled(one.values, power, center, spread),
                )
                for one, count in zip(curves, before[:-1], strict=True)
                if count < MOST_VALUES
            ]
            theta.append(most_likely(known, process))
        return cls(
            prediction_length=prediction_length,
            data_schema=schema.to_dict(),
            theta=np.array(theta).tolist(),
            center=statistics.center[:channels],
            spread=statistics.spread[:channels],
            unit=unit,
            powers=powers,
            process=process,
        )

    def locate_from(
        self, curves: Sequence[Curve], queries: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return location and scale; see `CurvePredictor.locate_from`."""
        loc, scale = (np.empty((len(queries), len(self.center))) for _ in range(2))
        for channel, (theta, (times, values)) in enumerate(zip(self.theta, curves, strict=True)):
            center, spread = self.center[channel], self.spread[channel]
            values = _scaled(values, self.powers[channel], center, spread)
            start = _start_of(times, self.process)
            own, asked = (times - start) / self.unit, (queries - start) / self.unit
            mean, deviation = predictive(theta, own, values, asked, self.process)
            if self.powers[channel] == 0:
                reach = 5 + REACH / spread
                mean, deviation = np.clip(mean, -reach, reach), np.minimum(deviation, reach / 3)
            loc[:, channel], scale[:, channel] = center + spread * mean, spread * deviation
        return loc, np.maximum(scale, 1e-9 * self.spread)

    def forecasts_from(
        self,
        located: Sequence[tuple[np.ndarray, ...]],
        channels: Sequence[int | list[int]],
    ) -> list[DistributionForecast]:
        """Return forecasts; see `LocationScalePredictor.forecasts_from`."""
        with_powers = [(*own, np.broadcast_to(self.powers, own[0].shape)) for own in located]
        return super().forecasts_from(with_powers, channels)


def _to_powers(series: Series, powers: Sequence[float]) -> Series:
    """Return a series with channels replaced by their powers."""
    values = series.values.copy()
    for channel, power in enumerate(powers):
        values[:, channel] = to_power(values[:, channel], power)
    return series._replace(values=values)


def _scaled(values: np.ndarray, power: float, center: float, spread: float) -> np.ndarray:
    """Return a standardised power of values."""
    scaled = (to_power(values, power) - center) / spread
    return scaled if power else np.maximum(scaled, LOWEST)


def _start_of(times: np.ndarray, process: str) -> float:
    """Return the start of a process: the item's, or for a local trend the first value used."""
    return float(times[0]) if process == "trend" and len(times) else 0.0
