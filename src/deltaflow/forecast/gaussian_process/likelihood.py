"""Maximum-likelihood parameters of Gaussian processes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.signal import lombscargle
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deltaflow.forecast.gaussian_process.processes import NO_WAVE, ROUNDING, covariance
from deltaflow.forecast.location_scale import Curve

FEWEST_FOR_PERIOD = 8
"""The number of values that an item needs to determine a period."""

RATIOS = (0.1, 1.0, 10.0)
"""The initial variances of a wave, relative to that of the process, that are tried first."""


def most_likely(curves: Sequence[Curve], process: str) -> np.ndarray:
    """Return the parameters that maximise the likelihood of independent curves.

    Their times count from the start of the process.
    """
    if process != "cycle":
        return Likelihood(curves, process).highest()[0]
    theta, likelihood = Likelihood(curves, "matern").highest()
    without = np.insert(theta, -1, [math.log(NO_WAVE), 0.0, 0.0, 0.0])
    found = common_period(curves)
    if found is None:
        return without
    period, num_periods = found
    waves = Likelihood(curves, "cycle", period)
    starts = np.tile(without, (len(RATIOS), 1))
    starts[:, 2] -= np.log1p(RATIOS)  # the process and the wave share the variance
    starts[:, 4:-1] = np.log([[ratio, 1.0, period, 3 * period] for ratio in RATIOS])
    # Without the wave, all of its variance may have been attributed to noise.
    starts = np.vstack([starts, waves.start])
    heights = [waves.at(start) for start in starts]
    # Most data clearly have no cycle. The final threshold is the penalty of the Bayesian
    # information criterion for four parameters, plus that of trying so many periods.
    penalty = 2 * math.log(sum(len(one.values) for one in curves))
    if max(heights) < likelihood + penalty / 4:
        return without
    theta, higher = waves.highest(starts[int(np.argmax(heights))])
    return theta if higher > likelihood + penalty + math.log(num_periods) else without


def ranges_of(process: str, period: float) -> np.ndarray:
    """Return the initial value and the bounds of each parameter, ``(P, 3)``."""
    wide = (1.0, 1e-4, 1e4)
    length = (0.3, 1e-3, 1e2)
    wave = [
        wide,
        (1.0, 0.2, 1e2),
        (period, 0.8 * period, 1.25 * period),
        (3 * period, 0.1 * period, 1e3 * period),
    ]
    shapes = {"matern": [length], "cycle": [length, *wave], "trend": []}
    return np.array([wide, wide, wide, *shapes[process], (0.1, 1e-6, 1e1)])


class Likelihood:
    """The log-likelihood of curves under the sum of a line, a process and noise.

    Parameters
    ----------
    curves
        The curves.
    process
        One of `PROCESSES`.
    period
        The approximate period of a cycle.

    References
    ----------
    Rasmussen & Williams, *Gaussian Processes for Machine Learning*, 2006, equation 2.30.
    """

    def __init__(self, curves: Sequence[Curve], process: str, period: float = 1.0) -> None:
        self.process = process
        self.start, *bounds = np.log(ranges_of(process, period)).T
        self.bounds = np.transpose(bounds)
        times, values = (
            pad_sequence([torch.from_numpy(own) for own in part], batch_first=True)
            for part in zip(*curves, strict=True)
        )
        lengths = torch.tensor([len(one.values) for one in curves])
        self.known = (torch.arange(times.shape[1]) < lengths[:, None]).to(times)  # (I, n)
        self.times, self.values = times, values

    def at(self, theta: np.ndarray) -> float:
        """Return the sum over all curves."""
        with torch.no_grad():
            return float(self._sum(torch.from_numpy(theta)))

    def with_slope(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the log-likelihood and its gradient ``(P,)``."""
        with torch.enable_grad():
            parameters = torch.from_numpy(theta).requires_grad_()
            value = self._sum(parameters)
            (slope,) = torch.autograd.grad(value, parameters)
        return value.item(), slope.numpy()

    def highest(self, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Return a local maximiser of the log-likelihood from a start, and its value there."""

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self.with_slope(theta)
            return -value, -slope

        first = self.start if start is None else np.clip(start, *self.bounds.T)
        found = minimize(loss, first, jac=True, bounds=self.bounds, method="L-BFGS-B")
        return found.x, -float(found.fun)

    def _sum(self, theta: Tensor) -> Tensor:
        between = covariance(theta, self.times[:, :, None], self.times[:, None, :], self.process)
        both = self.known[:, :, None] * self.known[:, None, :]
        least = ROUNDING * between.detach().amax()
        # Padding has variance 1, and is independent of all values.
        noise = self.known * (theta[-1].exp() + least) + (1 - self.known)
        factor = torch.linalg.cholesky(between * both + torch.diag_embed(noise))
        solved = torch.linalg.solve_triangular(factor, self.values[..., None], upper=False)
        logs = factor.diagonal(dim1=1, dim2=2).log()
        return -(solved**2).sum() / 2 - logs.sum() - math.log(2 * math.pi) / 2 * self.known.sum()


def common_period(curves: Sequence[Curve]) -> tuple[float, int] | None:
    """Return the period of the wave that explains most of the variance around a line.

    Each curve has its own phase and amplitude. Periods range from two mean gaps to half of the time
    span of a typical curve. Return None without such a period or a long enough curve.

    Returns
    -------
    period, num_periods
        The period, and the number of tried periods with uncorrelated waves.

    References
    ----------
    Lomb, *Least-squares frequency analysis of unequally spaced data*, 1976.
    """
    long = [one for one in curves if len(one.values) >= FEWEST_FOR_PERIOD]
    if not long:
        return None
    span = float(np.median([np.ptp(one.times) for one in long]))
    count = float(np.median([len(one.times) for one in long]))
    turns = np.arange(2.0, (count - 1) / 2, 0.25)  # of a typical curve
    frequencies = turns / span
    if not len(frequencies):
        return None
    explained = np.zeros(len(frequencies))
    for times, values in long:
        rest = values - np.polyval(np.polyfit(times, values, 1), times)
        if np.ptp(rest) > 1e-9:
            share = lombscargle(times, rest, 2 * np.pi * frequencies, normalize=True)
            explained += len(values) * share
    if not explained.any():
        return None
    return 1 / frequencies[explained.argmax()], math.ceil(np.ptp(turns)) + 1
