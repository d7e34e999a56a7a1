"""A Gaussian process per item and channel, all with the same kernel."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gluonts.core.component import validated
from torch.distributions import Normal

from deltaflow.data.series import Series, SeriesReader, schema_of
from deltaflow.data.statistics import Statistics
from deltaflow.errors import needing
from deltaflow.forecast.baseline import BaselinePredictor
from deltaflow.tasks.task import Task, known_before

MOST_ITEMS, MOST_ROWS = 64, 100
"""The kernel is fitted to at most this many items, and at most this many last values of each."""

CONTEXT = 300
"""The largest number of values that a forecast uses: its cost is cubic in their number."""


class GaussianProcessPredictor(BaselinePredictor):
    """Forecasts each channel by a Gaussian process in time, given what was observed of it.

    Its kernel has a straight line, a process with a Matérn covariance, and noise.

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
    """

    family = Normal

    @validated()
    def __init__(
        self,
        prediction_length: int,
        data_schema: dict,
        theta: list,
        center: list,
        spread: list,
        unit: float,
    ) -> None:
        super().__init__(prediction_length, data_schema)
        self.theta = np.asarray(theta)
        self.center, self.spread, self.unit = np.asarray(center), np.asarray(spread), unit

    def locate(self, series: Series, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return location and scale ``(Q, D)`` of the predictive distribution of a value."""
        learn = _sklearn()
        loc, scale = (np.empty((len(queries), len(self.center))) for _ in range(2))
        for channel, theta in enumerate(self.theta):
            kernel = learn.kernel().clone_with_theta(theta)
            seen = _curve(series, channel, self.unit, CONTEXT)
            asked = ((queries - seen.origin) / self.unit)[:, None]
            process = learn.regressor(kernel, optimizer=None)
            if len(seen.values):
                standard = (seen.values - self.center[channel]) / self.spread[channel]
                process.fit(seen.times, standard)
            mean, deviation = process.predict(asked, return_std=True)
            loc[:, channel] = self.center[channel] + self.spread[channel] * mean
            scale[:, channel] = self.spread[channel] * deviation
        return loc, np.maximum(scale, 1e-9 * self.spread)


def fit_gaussian_process(task: Task) -> GaussianProcessPredictor:
    """Fit the kernel of each channel to all items, by the sum of their marginal likelihoods.

    Raises
    ------
    DeltaflowError
        If scikit-learn is not installed.

    References
    ----------
    Rasmussen & Williams, *Gaussian Processes for Machine Learning*, 2006.
    """
    entries = known_before(task)
    schema = schema_of(entries)
    reader = SeriesReader(schema)
    data = [reader.read(entry) for entry in entries]
    statistics = Statistics.fit(data, schema.target)
    channels = range(len(schema.target))
    spans = [np.ptp(one.times[: one.length]) for one in data if one.length > 1]
    unit = float(np.median(spans or [0.0])) or 1.0
    chosen = np.random.default_rng(0).permutation(len(data))[:MOST_ITEMS]
    theta = []
    for channel in channels:
        curves = [_curve(data[item], channel, unit, MOST_ROWS) for item in chosen]
        theta.append(
            _fit(
                [curve for curve in curves if len(curve.values)],
                statistics.center[channel],
                statistics.spread[channel],
            )
        )
    return GaussianProcessPredictor(
        prediction_length=task.prediction_length,
        data_schema=schema.to_dict(),
        theta=np.array(theta).tolist(),
        center=statistics.center[: len(schema.target)],
        spread=statistics.spread[: len(schema.target)],
        unit=unit,
    )


class _Curve(NamedTuple):
    """What was observed of a channel: times ``(n, 1)`` since an origin, and values ``(n,)``."""

    times: np.ndarray
    values: np.ndarray
    origin: float


def _curve(series: Series, channel: int, unit: float, most: int) -> _Curve:
    known = np.flatnonzero(np.isfinite(series.values[:, channel]))[-most:]
    origin = float(series.times[0]) if len(series.times) else 0.0
    times = (series.times[known] - origin) / unit
    return _Curve(times[:, None], series.values[known, channel], origin)


def _fit(curves: Sequence[_Curve], center: float, spread: float) -> np.ndarray:
    """Return the parameters under which the curves, each on its own, are most likely."""
    from scipy.optimize import minimize

    learn = _sklearn()
    kernel = learn.kernel()
    processes = []
    for curve in curves:
        process = learn.regressor(kernel, optimizer=None)
        processes.append(process.fit(curve.times, (curve.values - center) / spread))

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        parts = [one.log_marginal_likelihood(theta, eval_gradient=True) for one in processes]
        values, gradients = zip(*parts, strict=True)
        return -sum(values), -np.sum(gradients, axis=0)

    found = minimize(loss, kernel.theta, jac=True, bounds=kernel.bounds, method="L-BFGS-B")
    return found.x


class _Learn(NamedTuple):
    """The parts of scikit-learn that are used here."""

    kernel: Any
    regressor: Any


def _sklearn() -> _Learn:
    with needing("gaussian-process"):
        from sklearn.gaussian_process import GaussianProcessRegressor, kernels

    def kernel() -> Any:
        wide = (1e-4, 1e4)
        line = kernels.ConstantKernel(1.0, wide) * kernels.DotProduct(1.0, wide)
        process = kernels.ConstantKernel(1.0, wide) * kernels.Matern(0.3, (1e-3, 1e2), nu=1.5)
        return line + process + kernels.WhiteKernel(0.1, (1e-6, 1e1))

    return _Learn(kernel, GaussianProcessRegressor)
