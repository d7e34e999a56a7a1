"""The covariances of processes in time, and forecasts conditioned on values."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def matern(one: Tensor, other: Tensor, length: Tensor) -> Tensor:
    """Return the covariance of a Matérn process of smoothness 3/2 between times."""
    apart = math.sqrt(3) * (one - other).abs() / length
    return (1 + apart) * torch.exp(-apart)


def integrated_walk(one: Tensor, other: Tensor) -> Tensor:
    """Return the covariance of the integral of a random walk, which starts at time 0."""
    first, last = torch.minimum(one, other), torch.maximum(one, other)
    return first**2 * (last - first / 3) / 2


def cycle(
    one: Tensor,
    other: Tensor,
    length: Tensor,
    ratio: Tensor,
    roundness: Tensor,
    period: Tensor,
    memory: Tensor,
) -> Tensor:
    """Return the covariance of a Matérn process plus a wave whose shape changes slowly.

    The variance of the wave is ``ratio`` times that of the process. Its shape repeats after a
    period, is the smoother, the larger ``roundness`` is, and changes over times of ``memory``.
    """
    apart = torch.sin(math.pi * (one - other) / period) / roundness
    wave = torch.exp(-2 * apart**2) * matern(one, other, memory)
    return matern(one, other, length) + ratio * wave


PROCESSES: dict[str, Callable[..., Tensor]] = {
    "matern": matern,
    "cycle": cycle,
    "trend": integrated_walk,
}
"""The covariances with unit variance; further parameters follow the two times."""

NO_WAVE = 1e-12
"""The variance that stands for no wave."""

ROUNDING = 1e-13
"""The smallest noise, as a share of the largest variance: with less, long gaps cause numerical
errors."""


def covariance(theta: Tensor, one: Tensor, other: Tensor, process: str) -> Tensor:
    """Return the covariance of a line and a process between times, without noise.

    ``theta`` holds the logarithms of the slope's variance, of the line's height over its slope, of
    the size and the further parameters of the process, and of the noise's variance.
    """
    slope, height, size, *shape = theta[:-1].exp()
    return slope * (height**2 + one * other) + size * PROCESSES[process](one, other, *shape)


def predictive(
    theta: np.ndarray,
    times: np.ndarray,
    values: np.ndarray,
    asked: np.ndarray,
    process: str = "matern",
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation ``(Q,)`` of new values, given values ``(n,)`` at times."""
    parameters, known, queries = map(torch.from_numpy, (theta, times, asked))
    noise = parameters[-1].exp()
    own = covariance(parameters, known[:, None], known, process)
    least = ROUNDING * max(1.0, float(own.max())) if len(times) else 0.0
    own += (noise + least) * torch.eye(len(times), dtype=own.dtype)
    across = covariance(parameters, queries[:, None], known, process)  # (Q, n)
    right = torch.column_stack([torch.from_numpy(values), across.T])
    solved = torch.linalg.solve_triangular(torch.linalg.cholesky(own), right, upper=False)
    mean, weights = solved[:, 1:].T @ solved[:, 0], solved[:, 1:]
    variance = covariance(parameters, queries, queries, process) + noise - (weights**2).sum(dim=0)
    return mean.numpy(), variance.clamp(min=0.0).sqrt().numpy()
