"""Synthetic data: waves, dynamical systems, correlated channels, and regular seasonal series.

Time is measured in hours. Every generator draws from its own `numpy.random.default_rng(seed)`: the
same arguments give the same data, and NumPy's global generator is not used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.integrate import solve_ivp

from deltaflow.data import IrregularDataset, TimeSplitter
from deltaflow.errors import check_registered, check_whole
from deltaflow.tasks.task import Task, task_after

START = pd.Timestamp("2024-01-01")
"""The timestamp of hour 0 of every generated series."""

DAY = 24.0
"""Common period of the periodic series, in hours."""

RELAXATION = 12.0
"""Hours in which the memory of :func:`sparse_multivariate` decays to 1/e."""


WAVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sine": lambda cycles: np.sin(2 * np.pi * cycles),
    "sawtooth": lambda cycles: 2 * (cycles % 1) - 1,
    "square": lambda cycles: np.where(cycles % 1 < 0.5, 1.0, -1.0),
    "triangle": lambda cycles: 4 * np.abs((cycles - 0.25) % 1 - 0.5) - 1,
}
"""Waves by name: functions from elapsed cycles (any shape) to values in [-1, 1]."""


SINK_MATRIX = np.array([[-4.0, 10.0], [-3.0, 2.0]])
"""Eigenvalues -1 ± i√21: trajectories spiral into the origin."""


def sink(start: np.ndarray, times: np.ndarray) -> np.ndarray:
    r"""Solve :math:`\dot x = A x` with :data:`SINK_MATRIX`, in closed form.

    As :math:`(A + I)^2 = -\omega^2 I` with :math:`\omega = \sqrt{21}`, the matrix exponential is

    .. math:: e^{A t} = e^{-t} (\cos \omega t \; I + \omega^{-1} \sin \omega t \; (A + I)).

    Parameters
    ----------
    start
        `(N, 2)` states at time 0.
    times
        `(N, T)` times.

    Returns
    -------
    `(N, T, 2)` states.
    """
    omega = np.sqrt(21.0)
    turned = start @ (SINK_MATRIX + np.eye(2)).T / omega
    angle = omega * times[..., None]
    return np.exp(-times[..., None]) * (
        np.cos(angle) * start[:, None] + np.sin(angle) * turned[:, None]
    )


def ellipse(start: np.ndarray, times: np.ndarray) -> np.ndarray:
    r"""Solve the predator–prey equations, whose closed orbits Biloš et al. (2021) call ellipses.

    .. math:: \dot x = \tfrac{2}{3} x (1 - y), \quad \dot y = y (x - 1).

    Along an orbit, :math:`x - \ln x + \tfrac{2}{3} (y - \ln y)` is constant. Both coordinates
    are positive; arguments and result as in :func:`sink`, times in increasing order.
    """
    return _integrate(lambda x, y: [2 / 3 * x * (1 - y), y * (x - 1)], start, times)


def lorenz(start: np.ndarray, times: np.ndarray) -> np.ndarray:
    r"""Solve the chaotic system of Lorenz (1963) with :math:`\sigma, \rho, \beta = 10, 28, 8/3`.

    .. math:: \dot x = \sigma (y - x), \; \dot y = x (\rho - z) - y, \; \dot z = x y - \beta z.

    Arguments and result as in :func:`sink`, in three dimensions, times in increasing order.
    """
    return _integrate(
        lambda x, y, z: [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], start, times
    )


def _integrate(
    field: Callable[..., list[np.ndarray]], start: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Integrate all series at once, `(N, D)` states and `(N, T)` times to `(N, T, D)`."""
    solution = solve_ivp(
        lambda _, flat: np.stack(field(*flat.reshape(start.shape).T), axis=-1).ravel(),
        t_span=(0.0, times.max()),
        y0=start.ravel(),
        method="DOP853",
        rtol=1e-9,
        atol=1e-9,
        dense_output=True,
    ).sol
    states = (solution(row).reshape(*start.shape, -1) for row in times)
    return np.stack([state[number].T for number, state in enumerate(states)])


class System(NamedTuple):
    """A dynamical system from which series are generated.

    Attributes
    ----------
    solve
        A function from `(N, D)` states at time 0 and `(N, T)` times to `(N, T, D)` states.
    draw
        A function from a random generator and N to random states at time 0, `(N, D)`.
    pace
        The units of the system's own time in a :data:`DAY`.
    """

    solve: Callable[[np.ndarray, np.ndarray], np.ndarray]
    draw: Callable[[np.random.Generator, int], np.ndarray]
    pace: float


def _near_the_attractor(rng: np.random.Generator, num_series: int) -> np.ndarray:
    """Draw states of the Lorenz system after ten units of time, close to its attractor."""
    start = rng.normal(loc=[0.0, 0.0, 25.0], size=(num_series, 3))
    return lorenz(start, np.full((num_series, 1), 10.0))[:, 0]


SYSTEMS: dict[str, System] = {
    "sink": System(sink, lambda rng, n: rng.uniform(0, 1, size=(n, 2)), pace=0.5),
    "ellipse": System(ellipse, lambda rng, n: rng.uniform(0, 1, size=(n, 2)), pace=5.0),
    "lorenz": System(lorenz, _near_the_attractor, pace=1.0),
}
"""Dynamical systems by name. Sink and ellipse start in the unit square and have the constants of
Biloš et al. (2021). At the paces chosen here, a sink turns 1.5 times and decays to 13 % within four
days, an orbit takes at least 1.5 days, and the distance of two close Lorenz states grows by a
factor of e in 1.1 days."""

SPAN = 4 * DAY
"""The length of a training series of :func:`synthetic_task`, in hours."""


def synthetic_task(
    name: str, *, num_series: int = 300, length: int = 96, noise: float = 0.05, seed: int = 0
) -> Task:
    """Return a task of Biloš et al. (2021), with tests within and beyond the trained horizons.

    The series are independent and observed at times that are uniform over twice the :data:`SPAN`.
    Three fifths of them, cut off at the span, are for training, one fifth for validation and one
    fifth for the test. Every forecast reads the first half of the span. The test with the task's
    own name forecasts the second half, at horizons that occur in training. The other test,
    `name_beyond`, forecasts the last quarter of the double span, at horizons that are longer than
    any training series.

    Parameters
    ----------
    name
        A wave of :data:`WAVES`, with a random phase, or a system of :data:`SYSTEMS`.
    num_series
        Number of series.
    length
        Observations per series, before it is cut.
    noise
        Standard deviation of the measurement noise, as a share of the channel's standard deviation.
    seed
        Seed of the random generator.

    References
    ----------
    Neural Flows: Efficient Alternative to Neural ODEs (Biloš et al., 2021), section 4.1
    https://arxiv.org/abs/2110.13040

    Examples
    --------
    >>> task = synthetic_task("sine", num_series=10)
    >>> {name: len(test) for name, test in task.tests.items()}
    {'sine': 2, 'sine_beyond': 2}
    """
    check_registered("synthetic task", name, [*WAVES, *SYSTEMS])
    check_whole(1, num_series=num_series, length=length)
    rng = np.random.default_rng(seed)
    hours = np.sort(rng.uniform(0, 2 * SPAN, size=(num_series, length)), axis=1)
    values = _curves(name, rng, hours)  # (N, T, D)
    values += noise * values.std(axis=(0, 1)) * rng.standard_normal(values.shape)
    channels = [f"x{d + 1}" for d in range(values.shape[-1])]
    columns = {name: values[..., d] for d, name in enumerate(channels)}
    frame = _long_frame("hours", hours, columns)

    fifth = pd.Series(np.repeat(np.arange(num_series) * 5 // num_series, length))
    elapsed = frame["hours"] / SPAN

    def dataset(rows: pd.Series) -> IrregularDataset:
        return IrregularDataset.from_long_dataframe(
            frame[rows], timestamp="hours", target=channels if len(channels) > 1 else channels[0]
        )

    splitter = TimeSplitter(after=f"{SPAN / 2}h")
    training = dataset((fifth < 3) & (elapsed < 1))
    validation = dataset((fifth == 3) & (elapsed < 1))
    tests = {
        name: dataset((fifth == 4) & (elapsed < 1)),
        f"{name}_beyond": dataset((fifth == 4) & ((elapsed < 0.5) | (elapsed >= 1.5))),
    }
    length = max(splitter.prediction_length(part) for part in (validation, *tests.values()))
    return task_after(name, splitter, training, validation, tests, length)


def _curves(name: str, rng: np.random.Generator, hours: np.ndarray) -> np.ndarray:
    """Draw noiseless series of a wave or a system at `(N, T)` times: `(N, T, D)`."""
    if name in WAVES:
        phase = rng.uniform(size=(len(hours), 1))
        return WAVES[name](hours / DAY + phase)[..., None]
    system = SYSTEMS[name]
    return system.solve(system.draw(rng, len(hours)), hours / DAY * system.pace)


def irregular_wave(
    wave: str = "sine",
    *,
    num_series: int = 100,
    length: int = 50,
    mean_gap: float = 2.0,
    noise: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """Return noisy waves with a period of one :data:`DAY`, observed at random times.

    The times of a series are a Poisson process, so its gaps are independent and exponential. Its
    phase is uniform over the period.

    Parameters
    ----------
    wave
        A name in :data:`WAVES`.
    num_series
        Number of series.
    length
        Observations per series.
    mean_gap
        Mean time between two observations, in hours.
    noise
        Standard deviation of the Gaussian measurement noise; the amplitude is 1.
    seed
        Seed of the random generator.

    Returns
    -------
    A long table of `num_series * length` rows with columns `item_id` (str), `timestamp` and
    `target`, ordered by series and time.

    Examples
    --------
    >>> irregular_wave("square", num_series=1, length=3, noise=0.0)
        item_id                  timestamp  target
    0  series_0 2024-01-01 01:21:35.509709     1.0
    1  series_0 2024-01-01 03:23:56.608839     1.0
    2  series_0 2024-01-01 03:26:19.216810     1.0
    """
    rng = np.random.default_rng(seed)
    hours = rng.exponential(mean_gap, size=(num_series, length)).cumsum(axis=1)
    phase = rng.uniform(size=(num_series, 1))
    values = WAVES[wave](hours / DAY + phase)
    values += noise * rng.standard_normal(values.shape)
    return _long_frame("timestamp", _timestamps(hours), {"target": values})


def irregular_sine(
    *,
    num_series: int = 100,
    length: int = 50,
    mean_gap: float = 2.0,
    noise: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """Return :func:`irregular_wave` for the sine, the usual first test of a model.

    Parameters
    ----------
    num_series, length, mean_gap, noise, seed
        See :func:`irregular_wave`.
    """
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
    r"""Return correlated channels, whose values are missing at random.

    The channels follow a stationary Ornstein–Uhlenbeck process with mean 0, variance 1 and the
    same correlation between any two of them. Over a gap :math:`\Delta`, with
    :math:`\rho = e^{-\Delta / \tau}` and :math:`\tau` = :data:`RELAXATION`, it moves exactly by

    .. math:: x(t + \Delta) = \rho \, x(t) + \sqrt{1 - \rho^2} \; \xi, \quad \xi \sim N(0, \Sigma),

    so the best possible forecast is known, and the other channels help to estimate one that was not
    measured.

    Parameters
    ----------
    num_series
        Number of series.
    length
        Observation times per series; gaps are independent and exponential.
    num_channels
        Number of channels.
    mean_gap
        Mean time between two observation times, in hours.
    observed
        Probability that a channel is measured at an observation time. One channel, drawn at random,
        is always measured.
    correlation
        Correlation between any two channels, from 0 to 1.
    noise
        Standard deviation of the Gaussian measurement noise.
    seed
        Seed of the random generator.

    Returns
    -------
    A long table of `num_series * length` rows with columns `item_id` (str), `timestamp` and
    `target_0`, `target_1`, …, NaN where a channel is missing, ordered by series and time.
    """
    rng = np.random.default_rng(seed)
    shape = (num_series, length, num_channels)
    hours = rng.exponential(mean_gap, size=shape[:2]).cumsum(axis=1)  # (N, T)
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
    columns = {f"target_{d}": values[..., d] for d in range(num_channels)}
    return _long_frame("timestamp", _timestamps(hours), columns)


def regular_seasonal(
    *, num_series: int = 20, length: int = 14 * 24, seed: int = 0
) -> list[dict[str, Any]]:
    """Return an ordinary hourly GluonTS data set, for comparisons on regular time.

    Each series is the sum of a level (from 5 to 15), a slow linear trend (up to 2 a week, up or
    down), a daily sine (amplitude from 1 to 3, any phase) and Gaussian noise with standard
    deviation 0.3.

    Parameters
    ----------
    num_series
        Number of series.
    length
        Hours per series.
    seed
        Seed of the random generator.

    Returns
    -------
    Entries `{"item_id": str, "start": pd.Period, "target": (length,) float32}`, as GluonTS
    estimators with `freq="h"` take them.

    Examples
    --------
    >>> entry = regular_seasonal(num_series=3, length=48)[0]
    >>> str(entry["start"]), entry["target"].shape
    ('2024-01-01 00:00', (48,))
    """
    rng = np.random.default_rng(seed)
    hours = np.arange(length)
    level, slope, amplitude, phase = rng.uniform(
        low=[5, -2, 1, 0], high=[15, 2, 3, 1], size=(num_series, 4)
    ).T[..., None]  # (N, 1) each
    values = level + slope * hours / (7 * DAY) + amplitude * WAVES["sine"](hours / DAY + phase)
    values += 0.3 * rng.standard_normal(values.shape)
    start = pd.Period(START, freq="h")
    return [
        {"item_id": item_id, "start": start, "target": target}
        for item_id, target in zip(_item_ids(num_series), values.astype(np.float32), strict=True)
    ]


def _item_ids(num_series: int) -> list[str]:
    return [f"series_{i}" for i in range(num_series)]


def _timestamps(hours: np.ndarray) -> np.ndarray:
    """Return timestamps in whole microseconds."""
    return np.datetime64(START, "ns") + np.rint(3.6e9 * hours).astype("timedelta64[us]")


def _long_frame(time: str, times: np.ndarray, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Make a long table of `(N, T)` times, whose column is named, and of columns of values."""
    num_series, length = times.shape
    values = {name: values.ravel() for name, values in {time: times, **columns}.items()}
    return pd.DataFrame({"item_id": np.repeat(_item_ids(num_series), length), **values})
