"""Made data whose law is known: irregular waves, sparse correlated channels, a regular season.

Time is measured in hours. Every generator draws from its own `numpy.random.default_rng(seed)`: the
same arguments give the same data, and the global generator is left alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

START = pd.Timestamp("2024-01-01")
"""Where the clock of every generated series stands at hour 0."""

DAY = 24.0
"""Common period of the periodic series, in hours."""

RELAXATION = 12.0
"""Hours in which :func:`sparse_multivariate` forgets its state to 1/e."""


def _sine(cycles: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * cycles)


def _sawtooth(cycles: np.ndarray) -> np.ndarray:
    return 2 * (cycles % 1) - 1


def _square(cycles: np.ndarray) -> np.ndarray:
    return np.where(cycles % 1 < 0.5, 1.0, -1.0)


def _triangle(cycles: np.ndarray) -> np.ndarray:
    return 4 * np.abs((cycles - 0.25) % 1 - 0.5) - 1


WAVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sine": _sine,
    "sawtooth": _sawtooth,
    "square": _square,
    "triangle": _triangle,
}
"""Waves by name: elapsed cycles (any shape) to values in [-1, 1], repeating after each cycle."""


def irregular_wave(
    wave: str = "sine",
    *,
    num_series: int = 100,
    length: int = 50,
    mean_gap: float = 2.0,
    noise: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """Return noisy waves of one common period, :data:`DAY`, seen at random times.

    The times of a series are a Poisson process, its gaps independent and exponential; its phase is
    uniform over the period.

    Arguments:
        wave: a name in :data:`WAVES`.
        num_series: number of series.
        length: observations per series.
        mean_gap: mean time between two observations, in hours.
        noise: standard deviation of the Gaussian measurement noise; the amplitude is 1.
        seed: seed of the random generator.

    Returns:
        A long table of `num_series * length` rows with columns `item_id` (str), `timestamp` and
        `target`, ordered by series and time.

    Example:
        >>> irregular_wave("square", num_series=1, length=3, noise=0.0)
            item_id                  timestamp  target
        0  series_0 2024-01-01 01:21:35.509709     1.0
        1  series_0 2024-01-01 03:23:56.608839     1.0
        2  series_0 2024-01-01 03:26:19.216810     1.0
    """
    rng = np.random.default_rng(seed)
    hours = _exponential_times(rng, num_series, length, mean_gap)  # (N, T)
    phase = rng.uniform(size=(num_series, 1))
    values = WAVES[wave](hours / DAY + phase)
    values += noise * rng.standard_normal(values.shape)
    return _long_frame(hours, {"target": values})


def irregular_sine(
    *,
    num_series: int = 100,
    length: int = 50,
    mean_gap: float = 2.0,
    noise: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """Return :func:`irregular_wave` of the sine, the usual first test of a model."""
    return irregular_wave(
        "sine", num_series=num_series, length=length, mean_gap=mean_gap, noise=noise, seed=seed
    )


def sparse_multivariate(
    *,
    num_series: int = 100,
    length: int = 50,
    num_channels: int = 3,
    mean_gap: float = 2.0,
    observed: float = 0.5,
    correlation: float = 0.8,
    noise: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Return correlated channels, each of them missing at random at each time.

    The channels follow a stationary Ornstein–Uhlenbeck process with mean 0, variance 1 and the
    same correlation between any two of them. Over a gap :math:`\Delta`, with
    :math:`\rho = e^{-\Delta / \tau}` and :math:`\tau` = :data:`RELAXATION`, it moves exactly by

    .. math:: x(t + \Delta) = \rho \, x(t) + \sqrt{1 - \rho^2} \; \xi, \quad \xi \sim N(0, \Sigma),

    so the best possible forecast is known, and a channel that was not measured is best guessed
    from those that were.

    Arguments:
        num_series: number of series.
        length: observation times per series; gaps are independent and exponential.
        num_channels: number of channels.
        mean_gap: mean time between two observation times, in hours.
        observed: probability that a channel is measured at an observation time. At each time one
            channel, drawn at random, is measured in any case.
        correlation: correlation between any two channels, from 0 to 1.
        noise: standard deviation of the Gaussian measurement noise.
        seed: seed of the random generator.

    Returns:
        A long table of `num_series * length` rows with columns `item_id` (str), `timestamp` and
        `target_0`, `target_1`, …, NaN where a channel is missing, ordered by series and time.
    """
    rng = np.random.default_rng(seed)
    shape = (num_series, length, num_channels)
    hours = _exponential_times(rng, num_series, length, mean_gap)  # (N, T)
    decay = np.exp(-np.diff(hours, axis=1) / RELAXATION)[..., None]  # (N, T - 1, 1)

    covariance = np.full((num_channels, num_channels), float(correlation))
    np.fill_diagonal(covariance, 1.0)
    shocks = rng.multivariate_normal(np.zeros(num_channels), covariance, size=shape[:2])
    states = shocks.copy()  # (N, T, D)
    for n in range(1, length):
        rho = decay[:, n - 1]
        states[:, n] = rho * states[:, n - 1] + np.sqrt(1 - rho**2) * shocks[:, n]

    always = rng.integers(num_channels, size=shape[:2])
    mask = (rng.uniform(size=shape) < observed) | (np.arange(num_channels) == always[..., None])
    values = np.where(mask, states + noise * rng.standard_normal(shape), np.nan)
    return _long_frame(hours, {f"target_{d}": values[..., d] for d in range(num_channels)})


def regular_seasonal(
    *, num_series: int = 20, length: int = 14 * 24, seed: int = 0
) -> list[dict[str, Any]]:
    """Return an ordinary hourly GluonTS data set, for comparisons on regular time.

    Each series is its own level (from 5 to 15), a slow linear trend (up to 2 a week, up or down), a
    daily sine (amplitude from 1 to 3, any phase) and Gaussian noise of standard deviation 0.3.

    Arguments:
        num_series: number of series.
        length: hours per series.
        seed: seed of the random generator.

    Returns:
        Entries `{"item_id": str, "start": pd.Period, "target": (length,) float32}`, as GluonTS
        estimators with `freq="h"` take them.

    Example:
        >>> entry = regular_seasonal(num_series=3, length=48)[0]
        >>> str(entry["start"]), entry["target"].shape
        ('2024-01-01 00:00', (48,))
    """
    rng = np.random.default_rng(seed)
    hours = np.arange(length)
    level, slope, amplitude, phase = rng.uniform(
        low=[5, -2, 1, 0], high=[15, 2, 3, 1], size=(num_series, 4)
    ).T[..., None]  # (N, 1) each
    values = level + slope * hours / (7 * DAY) + amplitude * _sine(hours / DAY + phase)
    values += 0.3 * rng.standard_normal(values.shape)
    start = pd.Period(START, freq="h")
    return [
        {"item_id": item_id, "start": start, "target": target}
        for item_id, target in zip(_item_ids(num_series), values.astype(np.float32), strict=True)
    ]


def _item_ids(num_series: int) -> list[str]:
    return [f"series_{i}" for i in range(num_series)]


def _exponential_times(
    rng: np.random.Generator, num_series: int, length: int, mean_gap: float
) -> np.ndarray:
    """Draw the times of Poisson processes, in hours after hour 0: `(num_series, length)`."""
    return rng.exponential(mean_gap, size=(num_series, length)).cumsum(axis=1)


def _long_frame(hours: np.ndarray, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Put `(N, T)` times and columns of values into a long table, times to the microsecond."""
    num_series, length = hours.shape
    microseconds = np.rint(3.6e9 * hours.ravel()).astype(np.int64)
    return pd.DataFrame(
        {
            "item_id": np.repeat(_item_ids(num_series), length),
            "timestamp": START + pd.to_timedelta(microseconds, unit="us"),
            **{name: values.ravel() for name, values in columns.items()},
        }
    )
