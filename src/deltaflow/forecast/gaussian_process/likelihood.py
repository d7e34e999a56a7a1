"""The parameters of Gaussian processes under which curves are most likely, by scikit-learn."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.optimize import minimize
from scipy.signal import lombscargle
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from deltaflow.forecast.gaussian_process.processes import NO_WAVE, Curve, integrated_walk

FEWEST_FOR_PERIOD = 8
"""Fewer values of an item say nothing about a period."""

RATIOS = (0.1, 1.0, 10.0)
"""Variances of a wave, beside that of the process, which are tried first."""


def most_likely(curves: Sequence[Curve], process: str) -> np.ndarray:
    """Return the parameters under which the curves, each on its own, are most likely.

    Their times count from the start of the process.
    """
    if process != "cycle":
        return Likelihood(curves, process).highest()[0]
    theta, likelihood = Likelihood(curves, "matern").highest()
    without = np.insert(theta, -1, [math.log(NO_WAVE), 0.0, 0.0, 0.0])
    period = common_period(curves)
    if period is None:
        return without
    waves = Likelihood(curves, "cycle", period)
    starts = np.tile(without, (len(RATIOS), 1))
    starts[:, 2] -= np.log1p(RATIOS)  # the process and the wave share the variance
    starts[:, 4:-1] = np.log([[ratio, 1.0, period, 3 * period] for ratio in RATIOS])
    start = max(starts, key=waves.at)
    # Most data have no cycle, which is seen at once. What is asked in the end is twice the penalty
    # of the Bayesian information criterion for four parameters, since many periods are tried.
    penalty = math.log(sum(len(one.values) for one in curves))
    if waves.at(start) < likelihood + penalty:
        return without
    theta, higher = waves.highest(start)
    return theta if higher > likelihood + 4 * penalty else without


class Likelihood:
    """The log-likelihood of curves under a line, a process and noise.

    Parameters
    ----------
    curves
        The curves.
    process
        One of `PROCESSES`.
    period
        That of a cycle, roughly.
    """

    def __init__(self, curves: Sequence[Curve], process: str, period: float = 1.0) -> None:
        wide = (1e-4, 1e4)
        line = kernels.ConstantKernel(1.0, wide) * kernels.DotProduct(1.0, wide)
        walk = IntegratedWalk() if process == "trend" else kernels.Matern(0.3, (1e-3, 1e2), nu=1.5)
        if process == "cycle":
            shape = kernels.ExpSineSquared(1.0, period, (0.2, 1e2), (0.8 * period, 1.25 * period))
            memory = kernels.Matern(3 * period, (0.1 * period, 1e3 * period), nu=1.5)
            walk += kernels.ConstantKernel(1.0, wide) * (shape * memory)
        walk = kernels.ConstantKernel(1.0, wide) * walk
        self.kernel = line + walk + kernels.WhiteKernel(0.1, (1e-6, 1e1))
        process_of = partial(GaussianProcessRegressor, self.kernel, optimizer=None)  # pyright: ignore[reportArgumentType]
        self.processes = [process_of().fit(one.times[:, None], one.values) for one in curves]

    def at(self, theta: np.ndarray) -> float:
        """Return the sum over all curves."""
        return float(np.sum([one.log_marginal_likelihood(theta) for one in self.processes]))

    def highest(self, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Return the parameters at which it is highest, near a start, and its value there."""

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            parts = [
                one.log_marginal_likelihood(theta, eval_gradient=True) for one in self.processes
            ]
            values, gradients = zip(*parts, strict=True)
            return -sum(values), -np.sum(gradients, axis=0)

        bounds = self.kernel.bounds
        start = self.kernel.theta if start is None else np.clip(start, *bounds.T)
        found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B")
        return found.x, -float(found.fun)


def common_period(curves: Sequence[Curve]) -> float | None:
    """Return the period of the wave that explains most of the curves' variance beside a line.

    Each curve may have a phase and an amplitude of its own. The periods are at least two mean gaps
    long, and at most half of the time that a typical curve spans; None if there are none, or no
    curve is long enough.

    References
    ----------
    Lomb, *Least-squares frequency analysis of unequally spaced data*, 1976.
    """
    long = [one for one in curves if len(one.values) >= FEWEST_FOR_PERIOD]
    if not long:
        return None
    span = float(np.median([np.ptp(one.times) for one in long]))
    count = float(np.median([len(one.times) for one in long]))
    frequencies = np.arange(2.0, (count - 1) / 2, 0.25) / span
    if not len(frequencies):
        return None
    explained = np.zeros(len(frequencies))
    for times, values in long:
        rest = values - np.polyval(np.polyfit(times, values, 1), times)
        if np.ptp(rest) > 1e-9:
            share = lombscargle(times, rest, 2 * np.pi * frequencies, normalize=True)
            explained += len(values) * share
    return 1 / frequencies[explained.argmax()] if explained.any() else None


class IntegratedWalk(kernels.Kernel):
    """The covariance of the integral of a random walk, which starts at time 0.

    It has no parameters: the walk makes steps of variance 1 per unit of time.
    """

    def __init__(self):
        """scikit-learn takes the parameters of a kernel from here."""

    def __call__(self, X, Y=None, eval_gradient=False):
        """Return the covariances ``(n, m)`` between times ``(n, 1)`` and ``(m, 1)``.

        With ``eval_gradient``, return the gradient by no parameters ``(n, n, 0)``, too.
        """
        covariance = integrated_walk(X, (X if Y is None else Y).T)
        return (covariance, np.empty((*covariance.shape, 0))) if eval_gradient else covariance

    def diag(self, X):
        """Return the variances ``(n,)`` at times ``(n, 1)``."""
        return integrated_walk(X, X)[:, 0]

    def is_stationary(self):
        """Tell that covariances depend on more than the time between two values."""
        return False
