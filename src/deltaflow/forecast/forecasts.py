"""Forecasts with real timestamps, which GluonTS can evaluate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, cast

import gluonts.model.forecast as gluonts_forecast
import gluonts.torch.model.forecast as gluonts_torch_forecast
import numpy as np
import pandas as pd
import torch
from gluonts.torch.distributions import BinnedUniforms
from scipy.special import stdtrit
from torch import Tensor
from torch.distributions import Distribution, StudentT

from deltaflow.data.schema import TICKS_PER_SECOND, unit_seconds
from deltaflow.data.series import starts_of
from deltaflow.data.validation import check_columns
from deltaflow.errors import DataError, DeltaflowError
from deltaflow.forecast.plot import draw_forecast

CELLS_AT_ONCE = 4096
"""The approximate number of quantiles, each of one query and channel, computed together."""


@lru_cache(maxsize=1024, typed=True)  # because parsing takes 50 microseconds
def parsed_level(level: float | str) -> gluonts_forecast.Quantile:
    """Parse the level of a quantile, a number or a string such as "0.9" or "p90", as GluonTS does.

    >>> parsed_level("p90")
    Quantile(value=0.9, name='0.9')
    """
    return gluonts_forecast.Quantile.parse(level if isinstance(level, str) else as_written(level))


def as_written(number: Any) -> float:
    """Return a number without the digits that its conversion to float64 would add.

    >>> as_written(np.float32(0.1))
    0.1
    """
    return float(str(number) if isinstance(number, np.floating) else number)


def read_levels(quantile_levels: Sequence[float]) -> list[float]:
    """Parse the levels of quantiles; their names have no digits that only rounding adds.

    >>> read_levels([0.1, "0.9", np.float32(0.2), 3 * 0.1])
    [0.1, 0.9, 0.2, 0.3]
    """
    try:
        levels = [round(as_written(level), 12) for level in quantile_levels]
    except (TypeError, ValueError):
        raise DataError(
            f"{quantile_levels!r} is not a list of numbers",
            "give one such as [0.1, 0.9]",
            field="quantile_levels",
        ) from None
    if not all(1e-12 <= level <= 1 - 1e-12 for level in levels):
        raise DataError(f"{levels} are not between 0 and 1, or too close to them",
                        "give levels such as 0.1", field="quantile_levels")  # fmt: skip
    return levels


def even_levels(count: int, first: float = 0.5) -> list[float]:
    """Return evenly spaced levels, whose quantiles represent as many samples.

    ``first`` says where each lies in its part of the range from 0 to 1.

    >>> even_levels(4)
    [0.125, 0.375, 0.625, 0.875]
    """
    return ((np.arange(count) + first) / count).tolist()


class RealTimeForecast(gluonts_forecast.Forecast):
    """The base of all forecasts: real timestamps, a table and a plot.

    A subclass implements :meth:`quantile` or :meth:`quantiles`; each is derived from the other. The
    item and its times are set after construction, see `ReadEntry.answer` and :meth:`labelled_like`.

    Attributes
    ----------
    start_date, item_id, info
        See GluonTS's forecasts.
    query_times
        ``(Q,)`` float64 elapsed times of the queries, in ``info["time_unit"]``; NaN for padding.
        None for a regular series.
    target
        Names of the channels, in the order of the data.
    ignored
        Channels of the data that the model does not know, and does not forecast.
    """

    start_date: Any = None
    item_id: str | None = None
    info: dict | None = None
    query_times: np.ndarray | None = None
    target: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def labelled(
        self, query_times: np.ndarray | None, target: Sequence[str], ignored: Sequence[str] = ()
    ) -> Any:
        """Set the query times and the names of the channels, and return the forecast itself."""
        self.query_times = query_times
        self.target = tuple(target)
        self.ignored = tuple(ignored)
        return self

    def labelled_like(self, forecast: RealTimeForecast, target: Sequence[str] | None = None) -> Any:
        """Take item, times and channels from another forecast, and return the forecast itself.

        ``target`` names the channels, if they differ.
        """
        self.start_date, self.item_id = forecast.start_date, forecast.item_id
        self.info = forecast.info
        if target is not None:
            return self.labelled(forecast.query_times, target)
        return self.labelled(forecast.query_times, forecast.target, forecast.ignored)

    def sampled(self, samples: np.ndarray) -> SampleForecast:
        """Return samples ``(N, Q)`` or ``(N, Q, D)`` as a forecast of the same queries."""
        return SampleForecast(samples, self.paths() is not None).labelled_like(self)

    def __repr__(self) -> str:
        channels = ", ".join(self.target)
        queries = f"{self.prediction_length} queries"
        return f"{type(self).__name__}(item {self.item_id!r}, {queries}, target: {channels})"

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the mean, the median or a quantile, by its name in GluonTS's evaluation."""
        self._check_complete()
        return super().__getitem__(name)

    def dim(self) -> int:
        """Return the number of channels."""
        self._check_complete()
        return len(self.target)

    @property
    def has_mean(self) -> bool:
        """Whether the mean is known; a model that forecasts only quantiles does not know it."""
        try:
            self.mean  # noqa: B018
        except NotImplementedError:  # from a distribution whose mean has no formula
            return False
        return True

    def mean_within(self, nearest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the mean ``(Q,)`` or ``(Q, D)`` after all values move to the nearest possible
        ones.

        The mean of a distribution moves by the average change of its quantiles.

        Parameters
        ----------
        nearest
            Returns the nearest possible values of ``(…, Q)`` or ``(…, Q, D)``.
        """
        mean = self.mean
        levels = even_levels(200)  # the average of their quantiles is close to the mean
        ends = self.quantiles([levels[0], levels[-1]])
        moved = (nearest(ends) != ends).any(axis=0)
        if moved.any():
            quantiles = np.repeat(ends[:1], len(levels), axis=0)
            quantiles[:, moved] = self.quantiles(levels, moved)
            mean = mean + (nearest(quantiles) - quantiles).mean(axis=0)
        return nearest(mean)

    def _check_complete(self) -> None:
        """Raise an error if an evaluation would compare a channel with the labels of another."""
        if self.ignored:
            raise DataError(
                "the model does not know this channel, so its label has no forecast; known are "
                f"{list(self.target)}",
                "evaluate data without it, or read the forecast by mean, quantile or to_dataframe",
                item=self.item_id,
                field=self.ignored[0],
            )

    @property
    def timestamps(self) -> pd.Index:
        """Return the ``(Q,)`` real time of each query.

        Timestamps in the time zone of the data, or elapsed numbers; NaT or NaN for padding.
        """
        if self.query_times is None:
            periods = cast(pd.PeriodIndex, self.index)
            try:
                return periods.to_timestamp()
            except pd.errors.OutOfBoundsDatetime:
                return starts_of(periods)
        info = cast(dict, self.info)
        if info["time_origin"] is None:
            return pd.Index(self.query_times)
        resolution, zone = info["time_resolution"], info["schema"]["time_zone"]
        origin = np.datetime64(info["time_origin"].removesuffix("Z"), resolution)
        known = np.isfinite(self.query_times)
        seconds = np.where(known, self.query_times, 0.0) * unit_seconds(info["time_unit"])
        ticks = np.round(seconds * TICKS_PER_SECOND[resolution])
        times = origin + ticks.astype(f"timedelta64[{resolution}]")
        times[~known] = np.datetime64("NaT")
        index = pd.DatetimeIndex(times)
        return index.tz_localize("UTC").tz_convert(zone) if zone else index

    def quantile(self, level: float | str) -> np.ndarray:
        """Return the quantile of the given level, ``(Q,)`` or ``(Q, D)``."""
        return self.quantiles([parsed_level(level).value])[0]

    def quantiles(self, levels: Sequence[float], cells: np.ndarray | None = None) -> np.ndarray:
        """Return the quantiles of L levels.

        Parameters
        ----------
        levels
            The levels.
        cells
            Mask, ``(Q,)`` or ``(Q, D)``, of the n queries and channels to compute; all if None.

        Returns
        -------
        numpy.ndarray
            ``(L, Q)`` or ``(L, Q, D)``; with ``cells``, ``(L, n)``.
        """
        quantiles = np.stack([self.quantile(level) for level in levels])
        return quantiles if cells is None else quantiles[:, cells]

    @property
    def mean_ts(self) -> pd.Series:
        """The mean of a univariate forecast as a series, whose index is nominal as in GluonTS."""
        return pd.Series(self.mean, index=self.index)

    def to_quantile_forecast(self, quantiles: Sequence[float | str]) -> QuantileForecast:
        """Return the forecast as some quantiles, and the mean if ``"mean"`` is among them."""
        values = [self.mean if key == "mean" else self.quantile(key) for key in quantiles]
        return QuantileForecast(np.stack(values), quantiles).labelled_like(self)

    def to_sample_forecast(self, num_samples: int = 200) -> SampleForecast:
        """Draw samples at each query and channel.

        They are quantiles at evenly spread levels: from a random start, in a random order for each
        query and channel; or, if the model draws paths, with the ranks of the :meth:`paths`, and as
        many. Paths thus keep the dependence between queries and channels, which quantiles do not
        describe (Schefzik, Thorarinsdottir & Gneiting, *Uncertainty Quantification in Complex
        Simulation Models Using Ensemble Copula Coupling*, 2013).
        """
        paths = self.paths()
        if paths is None:
            first = torch.rand((), dtype=torch.float64).item()
            quantiles = self.quantiles(even_levels(num_samples, first))
            ranks = torch.rand(quantiles.shape).argsort(dim=0).numpy()
        else:
            quantiles = self.quantiles(even_levels(len(paths)))
            ranks = paths.argsort(axis=0, kind="stable").argsort(axis=0)
        return self.sampled(np.take_along_axis(quantiles, ranks, axis=0))

    def paths(self) -> np.ndarray | None:
        """Return the sampled paths ``(N, Q)`` or ``(N, Q, D)``, or None if none were sampled.

        They need not be calibrated: their ranks alone are used, see :meth:`to_sample_forecast`.
        """
        return None

    def log_prob(self, values: np.ndarray) -> np.ndarray | None:
        """Return the log-density of values ``(Q,)`` or ``(Q, D)``, None if there is no density.

        NaN where a value is NaN.
        """
        return None

    def columns(self, levels: Sequence[float]) -> dict[str, np.ndarray]:
        """Return the numbers of the forecast by the names of their columns in tables.

        Returns
        -------
        dict
            ``predictions`` (the median), ``mean`` if it is known, and the quantile of each level,
            named by it; each ``(Q,)`` or ``(Q, D)``.
        """
        median, *quantiles = self.quantiles([0.5, *levels])
        mean = {"mean": self.mean} if self.has_mean else {}
        named = zip(map(str, levels), quantiles, strict=True)
        return {"predictions": median, **mean, **dict(named)}

    def to_dataframe(self, quantile_levels: Sequence[float] = (0.1, 0.5, 0.9)) -> pd.DataFrame:
        """Return the forecast as a table, a row per query and channel.

        Parameters
        ----------
        quantile_levels
            The levels of the quantiles.

        Returns
        -------
        pandas.DataFrame
            Columns ``item_id``, ``timestamp``, ``target_name``, and those of :meth:`columns`.
            Padding is left out.

        Raises
        ------
        DataError
            If the levels are not numbers between 0 and 1.
        """
        return tabulated([self], quantile_levels).reset_index(drop=True)

    def plot(
        self,
        *,
        history: pd.DataFrame | None = None,
        timestamp: str = "timestamp",
        intervals: Sequence[float] = (0.5, 0.9),
        ax: Any = None,
        color: Any = None,
        name: str | None = None,
        show_label: bool = True,
        channel: int | str = 0,
    ) -> None:
        """Plot the median and the prediction intervals of one channel on the true time axis.

        Parameters
        ----------
        history
            Observations of this item: a column per channel, and the time. Those before the first
            query are drawn as the past, later ones as the actual values.
        timestamp
            The name of the time column of ``history``.
        intervals
            The probabilities of the intervals.
        ax
            Matplotlib axes; the current ones if None.
        color
            The colour; the next of the axes' cycle if None.
        name
            Label of the forecast, to distinguish several in one plot.
        show_label
            Whether the intervals appear in the legend.
        channel
            The channel's number or name.

        See Also
        --------
        plot_forecasts : Draws several items and channels.
        """
        import matplotlib.pyplot as plt

        ax = plt.gca() if ax is None else ax
        target = channel if isinstance(channel, str) else self.target[channel]
        if target not in self.target:
            raise DataError(f"there is no channel {target!r}", f"there are {list(self.target)}",
                            field="channel")  # fmt: skip
        levels = [(1 + side * share) / 2 for share in intervals for side in (-1, 1)]
        table = self.to_dataframe(levels)
        observed = None
        if history is not None:
            check_columns(history, [timestamp, target], "history")
            observed = history.set_index(timestamp)[target]
        draw_forecast(
            ax,
            table[table["target_name"] == target],
            observed=observed,
            color=color,
            name=name,
            show_label=show_label,
        )
        ax.legend(frameon=False)


class SharedDistribution:
    """The distribution of all queries of several forecasts, each of which owns some rows.

    Computing quantiles and means of many forecasts takes hardly longer than those of one. Those of
    neighbouring forecasts are therefore computed together, and kept.

    Parameters
    ----------
    family
        A function that returns a distribution of its arguments.
    args
        The arguments, each ``(R, D)`` or ``(R, D, …)``, of the D channels.
    bounds
        ``(N + 1,)``: forecast ``n`` owns the rows ``bounds[n]:bounds[n + 1]``.
    """

    def __init__(
        self,
        family: Callable[..., Distribution],
        args: Sequence[Tensor | np.ndarray],
        bounds: np.ndarray,
    ) -> None:
        # Tensors would be sent to other processes through shared memory, with an open file each.
        self.family, self.args, self.bounds = family, [np.asarray(arg) for arg in args], bounds
        # Forecasts are computed in groups of a few thousand cells.
        self._groups = bounds[:-1] * self.args[0].shape[1] // CELLS_AT_ONCE
        self._known: dict[tuple[int, tuple[float, ...]], np.ndarray] = {}

    def at(self, cells: Any) -> Distribution:
        """Return the distribution of some cells, chosen by an index of arrays ``(R, D)``."""
        return self.family(*(torch.from_numpy(arg[cells]) for arg in self.args))

    def rows(self, number: int) -> np.ndarray:
        """Return the numbers of the rows of a forecast."""
        return np.arange(self.bounds[number], self.bounds[number + 1])

    def only(self, number: int) -> SharedDistribution:
        """Return the distribution of a single forecast."""
        own = self.rows(number)
        return SharedDistribution(
            self.family, [arg[own] for arg in self.args], np.array([0, len(own)])
        )

    def quantiles(self, number: int, levels: tuple[float, ...]) -> np.ndarray:
        """Return the quantiles of L levels of a forecast, ``(L, Q, D)``."""
        return self._get(number, levels, lambda joint: quantiles_of(joint, levels))

    def mean(self, number: int) -> np.ndarray:
        """Return the mean of a forecast, ``(Q, D)``."""
        return self._get(number, (), lambda joint: joint.mean.unsqueeze(0).numpy())[0]

    def _get(
        self, number: int, key: tuple[float, ...], compute: Callable[[Distribution], np.ndarray]
    ) -> np.ndarray:
        group = self._groups[number]
        first, end = (int(np.searchsorted(self._groups, group, side)) for side in ("left", "right"))
        low = self.bounds[first]
        if (group, key) not in self._known:
            self._known[group, key] = compute(self.at(slice(low, self.bounds[end])))
        own = slice(self.bounds[number] - low, self.bounds[number + 1] - low)
        return self._known[group, key][:, own].copy()


def quantiles_of(distribution: Distribution, levels: Sequence[float]) -> np.ndarray:
    """Return the quantiles of L levels of a distribution, ``(L, …)``."""
    shape = (len(levels), *[1] * len(distribution.batch_shape))
    wanted = torch.tensor(levels, dtype=torch.float64).reshape(shape)
    base, transforms = (getattr(distribution, name, None) for name in ("base_dist", "transforms"))
    if isinstance(base or distribution, BinnedUniforms):  # which broadcasts no levels
        each = [distribution.icdf(level.expand(distribution.batch_shape)) for level in wanted]
        return torch.stack(each).numpy()
    if transforms is None or not isinstance(base, StudentT):
        return distribution.icdf(wanted).numpy()
    # Like GluonTS's, whose setup by SciPy takes a millisecond longer.
    standard = torch.from_numpy(stdtrit(base.df.numpy(), wanted.numpy()))
    # At 0 and 1, SciPy's depend on its version: NaN up to 1.16, and +inf for both since then.
    standard = standard.where(wanted > 0, -torch.inf).where(wanted < 1, torch.inf)
    quantiles = standard * base.scale + base.loc
    for transform in transforms:
        quantiles = transform(quantiles)
    return quantiles.numpy()


class DistributionForecast(RealTimeForecast, gluonts_torch_forecast.DistributionForecast):
    """A forecast with an exact distribution at each query: ``(Q,)`` or ``(Q, D)``.

    Parameters
    ----------
    shared, number
        The distribution of several forecasts, and the number of this one among them.
    channels
        The numbers of its channels, or the only one of a univariate forecast.
    """

    def __init__(
        self, shared: SharedDistribution, number: int, channels: int | Sequence[int]
    ) -> None:
        self._shared, self._number, self._channels = shared, number, channels
        self.prediction_length = len(shared.rows(number))

    @property
    def distribution(self) -> Distribution:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The distribution of the queries."""
        rows = self._shared.rows(self._number)
        rows = rows[:, None] if np.ndim(self._channels) else rows
        return self._shared.at((rows, self._channels))

    def __getstate__(self) -> dict[str, Any]:
        # A pickled forecast contains its own distribution, without those of its neighbours.
        return {**self.__dict__, "_shared": self._shared.only(self._number), "_number": 0}

    @property
    def mean(self) -> np.ndarray:
        """The mean, ``(Q,)`` or ``(Q, D)``."""
        return self._shared.mean(self._number)[..., self._channels]

    def quantiles(self, levels: Sequence[float], cells: np.ndarray | None = None) -> np.ndarray:
        """Return the quantiles of L levels; see `RealTimeForecast.quantiles`."""
        if cells is None:
            return self._shared.quantiles(self._number, tuple(levels))[..., self._channels]
        # A few cells out of many are computed separately.
        joint = self._at(cells)
        return np.empty((len(levels), 0)) if joint is None else quantiles_of(joint, levels)

    def log_prob(self, values: np.ndarray) -> np.ndarray:
        """Return the log-density of values; see `RealTimeForecast.log_prob`."""
        known = np.isfinite(values)
        result = np.full(known.shape, np.nan)
        if (joint := self._at(known)) is not None:
            result[known] = joint.log_prob(torch.from_numpy(values[known])).numpy()
        return result

    def _at(self, cells: np.ndarray) -> Distribution | None:
        """Return the distribution ``(n,)`` of the cells of a mask, None if there are none."""
        if not cells.any():
            return None
        row, *channel = np.nonzero(cells)
        channels = np.asarray(self._channels)[tuple(channel)]
        return self._shared.at((self._shared.rows(self._number)[row], channels))

    def copy_dim(self, dim: int) -> DistributionForecast:
        """Return the forecast of one channel."""
        if isinstance(self._channels, int):
            return self
        forecast = DistributionForecast(self._shared, self._number, self._channels[dim])
        return forecast.labelled_like(self, self.target[dim : dim + 1])

    def to_sample_forecast(self, num_samples: int = 200) -> SampleForecast:
        """Draw independent samples at each query."""
        # Drawn in the model's order of channels, so that the order of the data makes no difference.
        joint = self._shared.at(self._shared.rows(self._number))
        samples = joint.sample(torch.Size((num_samples,))).numpy()
        return self.sampled(samples[..., self._channels])


class EnsembleForecast(RealTimeForecast):
    """The average of several forecasts of an item: of their means, and quantiles level by level.

    Parameters
    ----------
    members
        The forecasts, of the same item and queries.
    weights
        Their weights, with sum 1; equal by default.
    """

    def __init__(self, members: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        self.members, self.weights = list(members), weights
        self.prediction_length = self.members[0].prediction_length
        self.labelled_like(self.members[0])

    @property
    def mean(self) -> np.ndarray:
        """The mean, ``(Q,)`` or ``(Q, D)``."""
        return self._averaged([member.mean for member in self.members])

    @property
    def has_mean(self) -> bool:
        """Whether all members know their mean."""
        return all(member.has_mean for member in self.members)

    def mean_within(self, nearest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the average of the members' means; see `RealTimeForecast.mean_within`."""
        return self._averaged([member.mean_within(nearest) for member in self.members])

    def quantiles(self, levels: Sequence[float], cells: np.ndarray | None = None) -> np.ndarray:
        """Return the quantiles of L levels; see `RealTimeForecast.quantiles`."""
        return self._averaged([member.quantiles(levels, cells) for member in self.members])

    def paths(self) -> np.ndarray | None:
        """Return an equal share of the paths of each member; see `RealTimeForecast.paths`."""
        paths = [member.paths() for member in self.members]
        if any(own is None for own in paths):
            return None
        return np.concatenate([own[number :: len(paths)] for number, own in enumerate(paths)])

    def copy_dim(self, dim: int) -> EnsembleForecast:
        """Return the forecast of one channel."""
        return EnsembleForecast([member.copy_dim(dim) for member in self.members], self.weights)

    def _averaged(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.average(parts, axis=0, weights=self.weights)


class WrappedForecast(EnsembleForecast):
    """The base of forecasts that modify another one: the only member of the ensemble.

    A subclass implements :meth:`quantiles` and :meth:`copy_dim`. Queries, mean and paths are those
    of the other forecast.

    Parameters
    ----------
    forecast
        The other forecast.
    """

    def __init__(self, forecast: RealTimeForecast) -> None:
        super().__init__([forecast])
        self.forecast = forecast


class SampleForecast(RealTimeForecast, gluonts_forecast.SampleForecast):
    """A forecast of sampled values: ``(num_samples, Q)`` or ``(num_samples, Q, D)``.

    Parameters
    ----------
    samples
        The samples.
    coherent
        Whether each sample is a path through all queries, instead of independent values.
    """

    def __init__(self, samples: np.ndarray, coherent: bool = False) -> None:
        self.coherent = coherent
        # As in GluonTS, which checks the arguments of each forecast, and requires a start.
        self.samples = samples
        self._sorted_samples_value = self._mean = self._dim = None

    def __getnewargs_ex__(self) -> tuple[tuple, dict]:
        return (), {}  # GluonTS's would be its checked arguments

    def __getstate__(self) -> dict[str, Any]:
        # Samples are sorted again, instead of being pickled twice.
        return {**self.__dict__, "_sorted_samples_value": None}

    def quantile(self, level: float | str) -> np.ndarray:
        """Return the quantile of the given level, ``(Q,)`` or ``(Q, D)``."""
        return gluonts_forecast.SampleForecast.quantile(self, parsed_level(level))  # pyright: ignore[reportArgumentType]

    def copy_dim(self, dim: int) -> SampleForecast:
        """Return the forecast of one channel."""
        samples = self.samples if self.samples.ndim == 2 else self.samples[..., dim]
        forecast = SampleForecast(samples, self.coherent)
        return forecast.labelled_like(self, self.target[dim : dim + 1])

    def copy_aggregate(self, agg_fun: Callable) -> SampleForecast:
        """Return the forecast of an aggregate over the channels."""
        samples = super().copy_aggregate(agg_fun).samples
        return SampleForecast(samples, self.coherent).labelled_like(self, ["aggregate"])

    def to_sample_forecast(self, num_samples: int = 200) -> SampleForecast:
        """Return the forecast itself; the number of its samples does not change."""
        return self

    def paths(self) -> np.ndarray | None:
        """Return the samples if they are paths; see `RealTimeForecast.paths`."""
        return self.samples if self.coherent else None


class QuantileForecast(RealTimeForecast, gluonts_forecast.QuantileForecast):
    """A forecast of quantiles: ``(K, Q)`` or ``(K, Q, D)``."""

    def __init__(self, forecast_arrays: np.ndarray, forecast_keys: Sequence[float | str]) -> None:
        # As in GluonTS, which spends half a millisecond per forecast on parsing the keys.
        self.forecast_array = forecast_arrays
        self.forecast_keys = [
            "mean" if key == "mean" else parsed_level(key).name for key in forecast_keys
        ]
        self.prediction_length = forecast_arrays.shape[1]
        self._dim = None
        self._forecast_dict = dict(zip(self.forecast_keys, forecast_arrays, strict=True))
        self._nan_out = np.full(self.prediction_length, np.nan)

    @property
    def has_mean(self) -> bool:
        """Whether the mean was forecast besides the quantiles."""
        return "mean" in self._forecast_dict

    def mean_within(self, nearest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the possible value nearest to the mean; see `RealTimeForecast.mean_within`.

        It is used because the mean was learned from possible values, independently of the
        quantiles.
        """
        return nearest(self.mean)

    def quantile(self, level: float | str) -> np.ndarray:
        """Return the quantile of the given level, ``(Q,)`` or ``(Q, D)``.

        Between the levels of the head and beyond them, GluonTS inter- and extrapolates.

        Raises
        ------
        DeltaflowError
            If the head has only one level, which differs from the given one.
        """
        known = {float(key): key for key in self.forecast_keys if key != "mean"}
        value = parsed_level(level).value
        if value in known:
            return self._forecast_dict[known[value]]
        if len(known) == 1:
            (only,) = known
            raise DeltaflowError(
                f"no quantile {level} follows from the level {only} alone: train a head of "
                "several levels, such as 'quantile'"
            )
        return gluonts_forecast.QuantileForecast.quantile(self, value)

    def copy_dim(self, dim: int) -> QuantileForecast:
        """Return the forecast of one channel."""
        copy = super().copy_dim(dim)
        forecast = QuantileForecast(copy.forecast_array, copy.forecast_keys)
        return forecast.labelled_like(self, self.target[dim : dim + 1])


def joined_columns(
    forecasts: Iterable[RealTimeForecast], levels: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return the columns of forecasts by one predictor, see `RealTimeForecast.columns`.

    Each has a value per forecast, query and channel, in this order.
    """
    parts = [forecast.columns(levels) for forecast in forecasts]
    return {name: np.concatenate([part[name].ravel() for part in parts]) for name in parts[0]}


def tabulated(
    forecasts: Sequence[RealTimeForecast], quantile_levels: Sequence[float]
) -> pd.DataFrame:
    """Return forecasts as one table, whose index is the number of each row's forecast.

    Its columns are those of `RealTimeForecast.to_dataframe`.

    Parameters
    ----------
    forecasts
        At least one forecast; all by one predictor.
    quantile_levels
        The levels of the quantiles.
    """
    levels = read_levels(quantile_levels)
    values = joined_columns(forecasts, levels)
    items = np.array([forecast.item_id for forecast in forecasts], dtype=object)
    queries = np.array([forecast.prediction_length for forecast in forecasts])
    channels = np.array([len(forecast.target) for forecast in forecasts])
    names = [f.target * int(count) for f, count in zip(forecasts, queries, strict=True)]
    first, *others = (forecast.timestamps for forecast in forecasts)
    times = first.append(others).repeat(channels.repeat(queries))
    number = np.arange(len(forecasts)).repeat(queries * channels)
    known = times.notna()
    table = {
        "item_id": items[number[known]],
        "timestamp": times[known],
        "target_name": np.array(list(itertools.chain(*names)), dtype=object)[known],
        **{name: own[known] for name, own in values.items()},
    }
    return pd.DataFrame(table, index=number[known])
