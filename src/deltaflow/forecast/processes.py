"""Covariances of Gaussian processes between times."""

import math
from collections.abc import Callable

import numpy as np


def matern(one: np.ndarray, other: np.ndarray, length: float) -> np.ndarray:
    """Return the covariance of a Matérn process of smoothness 3/2 between times."""
    apart = math.sqrt(3) * np.abs(one - other) / length
    return (1 + apart) * np.exp(-apart)


def integrated_walk(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the covariance of the integral of a random walk, which starts at time 0."""
    first, last = np.minimum(one, other), np.maximum(one, other)
    return first**2 * (last - first / 3) / 2


PROCESSES: dict[str, Callable[..., np.ndarray]] = {"matern": matern, "trend": integrated_walk}
"""The covariances of unit size, whose further parameters come after the two times."""
