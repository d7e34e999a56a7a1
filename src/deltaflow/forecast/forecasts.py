"""Forecasts that GluonTS can evaluate and that know their real timestamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gluonts.model.forecast as gluonts_forecast
import gluonts.torch.model.forecast as gluonts_torch_forecast
import numpy as np
import pandas as pd
import torch
from torch.distributions import Distribution

from deltaflow.data.schema import TICKS_PER_SECOND, unit_seconds
from deltaflow.data.validation import check_columns
from deltaflow.errors import DataError, DeltaflowError
from deltaflow.forecast.plot import Interval, draw_forecast


def read_levels(quantile_levels: Sequence[float]) -> list[float]:
    """Read the levels of quantiles.

    >>> read_levels([0.1, "0.9"])
    [0.1, 0.9]
    """
    try:
        levels = [float(level) for level in quantile_levels]
    except (TypeError, ValueError):
        raise DataError(f"{quantile_levels!r} is no list of numbers", "give one such as [0.1, 0.9]",
                        field="quantile_levels") from None  # fmt: skip
    if not all(1e-12 <= level <= 1 - 1e-12 for level in levels):
        raise DataError(f"{levels} are not between 0 and 1, or too close to them",
                        "give levels such as 0.1", field="quantile_levels")  # fmt: skip
    return levels


class RealTime:
    """What the kinds of forecast share: real timestamps, a table and a plot.

    Attributes
    ----------
    query_times
        ``(Q,)`` float64 elapsed times of the queries, in ``info["time_unit"]``; NaN where the
        query only pads. None for a regular series.
    target
        Names of the channels.
    """

    # Given by GluonTS's forecast classes, beside which this class stands.
    item_id: str | None
    info: dict | None
    index: pd.PeriodIndex
    prediction_length: int
    quantile: Callable[..., np.ndarray]

    query_times: np.ndarray | None
    target: tuple[str, ...]

    def on_real_time(self, query_times: np.ndarray | None, target: Sequence[str]) -> Any:
        """Set the query times and the names of the channels, and return the forecast."""
        self.query_times = query_times
        self.target = tuple(target)
        return self

    @property
    def timestamps(self) -> pd.Index:
        """Return the ``(Q,)`` real time of each query.

        Timestamps, in the time zone of the data; elapsed numbers where the data's time is
        elapsed numbers. NaT or NaN where the query only pads.
        """
        if self.query_times is None:
            return self.index.to_timestamp()
        assert self.info is not None
        origin = self.info["time_origin"]
        if origin is None:
            return pd.Index(self.query_times)
        resolution = self.info["time_resolution"]
        seconds = unit_seconds(self.info["time_unit"])
        known = np.isfinite(self.query_times)
        ticks = np.round(
            np.where(known, self.query_times, 0.0) * seconds * TICKS_PER_SECOND[resolution]
        )
        first = np.datetime64(origin.removesuffix("Z"), resolution)
        times = pd.DatetimeIndex(first + ticks.astype(f"timedelta64[{resolution}]"))
        times = pd.DatetimeIndex(times.where(known))
        zone = self.info["schema"]["time_zone"]
        return times.tz_localize("UTC").tz_convert(zone) if zone else times

    def to_dataframe(self, quantile_levels: Sequence[float] = (0.1, 0.5, 0.9)) -> pd.DataFrame:
        """Return the forecast as a table, a row per query and channel.

        Parameters
        ----------
        quantile_levels
            The levels of the quantiles.

        Returns
        -------
        pandas.DataFrame
            Columns ``item_id``, ``timestamp``, ``target_name``, ``predictions`` (the median), and
            a column per level, named by it. Queries that only pad are left out.

        Raises
        ------
        DataError
            If the levels are no numbers between 0 and 1.
        """
        count, channels = self.prediction_length, len(self.target)
        table: dict[str, Any] = {
            "item_id": self.item_id,
            "timestamp": self.timestamps.repeat(channels),
            "target_name": list(self.target) * count,
            "predictions": self.quantile(0.5).reshape(-1),
        }
        for level in read_levels(quantile_levels):
            table[str(level)] = self.quantile(level).reshape(-1)
        frame = pd.DataFrame(table)
        return frame[frame["timestamp"].notna()].reset_index(drop=True)

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
            query are drawn as the past, those among the queries as the actual values.
        timestamp
            The name of the time column of ``history``.
        intervals
            The probabilities of the intervals.
        ax
            Matplotlib axes; the current ones if None.
        color
            The colour; the next of the axes' cycle if None.
        name
            Label of the forecast, to tell several apart in one plot.
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
        number = self.target.index(channel) if isinstance(channel, str) else channel
        times = self.timestamps
        order = np.argsort(times)[: np.count_nonzero(times.notna())]

        def line(level: float) -> np.ndarray:
            return self.quantile(level).reshape(self.prediction_length, -1)[order, number]

        observed = None
        if history is not None:
            check_columns(history, [timestamp, self.target[number]], "history")
            observed = history.set_index(timestamp)[self.target[number]]
        draw_forecast(
            ax,
            times[order],
            line(0.5),
            [Interval(share, line((1 - share) / 2), line((1 + share) / 2)) for share in intervals],
            observed=observed,
            color=color,
            name=name,
            show_label=show_label,
        )
        ax.legend(frameon=False)


class DistributionForecast(RealTime, gluonts_torch_forecast.DistributionForecast):
    """A forecast with an exact distribution at each query: ``(Q,)`` or ``(Q, D)``."""

    distribution: Distribution

    def quantile(self, level: float | str) -> np.ndarray:
        """Return the quantile of the given level, ``(Q,)`` or ``(Q, D)``."""
        value = gluonts_forecast.Quantile.parse(level).value
        quantiles = self.distribution.icdf(torch.tensor([value], dtype=torch.float64))
        return quantiles.reshape(self.shape).numpy()

    def copy_dim(self, dim: int) -> DistributionForecast:
        """Return the forecast of one channel."""
        if len(self.shape) == 1:
            return self
        forecast = DistributionForecast(
            _Channel(self.distribution, dim), self.start_date, self.item_id, self.info
        )
        return forecast.on_real_time(self.query_times, self.target[dim : dim + 1])

    def dim(self) -> int:
        """Return the number of channels."""
        return 1 if len(self.shape) == 1 else int(self.shape[1])

    def to_sample_forecast(self, num_samples: int = 200) -> SampleForecast:
        """Draw samples, from each query on its own."""
        samples = self.distribution.sample(torch.Size((num_samples,))).numpy()
        forecast = SampleForecast(samples, self.start_date, self.item_id, self.info)
        return forecast.on_real_time(self.query_times, self.target)


class _Channel(Distribution):
    """One channel of a distribution of batch shape ``(Q, D)``."""

    def __init__(self, joint: Distribution, channel: int) -> None:
        super().__init__(joint.batch_shape[:1], validate_args=False)
        self.joint, self.channel = joint, channel

    @property
    def mean(self) -> torch.Tensor:
        return self.joint.mean[:, self.channel]

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        return self.joint.icdf(value)[..., self.channel]

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        return self.joint.sample(sample_shape)[..., self.channel]


class EnsembleForecast(RealTime, gluonts_forecast.Forecast):
    """The average of several forecasts of an item: of their means, and quantiles level by level.

    Parameters
    ----------
    members
        The forecasts, of the same item and queries.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        self.members = list(members)
        first = self.members[0]
        self.start_date, self.item_id, self.info = first.start_date, first.item_id, first.info
        self.prediction_length = first.prediction_length
        self.on_real_time(first.query_times, first.target)

    @property
    def mean(self) -> np.ndarray:
        """The mean, ``(Q,)`` or ``(Q, D)``."""
        return np.mean([member.mean for member in self.members], axis=0)

    def quantile(self, level: float | str) -> np.ndarray:
        """Return the quantile of the given level, ``(Q,)`` or ``(Q, D)``."""
        return np.mean([member.quantile(level) for member in self.members], axis=0)

    def copy_dim(self, dim: int) -> EnsembleForecast:
        """Return the forecast of one channel."""
        return EnsembleForecast([member.copy_dim(dim) for member in self.members])

    def dim(self) -> int:
        """Return the number of channels."""
        return self.members[0].dim()


class SampleForecast(RealTime, gluonts_forecast.SampleForecast):
    """A forecast of sampled values: ``(num_samples, Q)`` or ``(num_samples, Q, D)``."""

    def copy_dim(self, dim: int) -> SampleForecast:
        """Return the forecast of one channel."""
        copy = super().copy_dim(dim)
        forecast = SampleForecast(copy.samples, copy.start_date, copy.item_id, copy.info)
        return forecast.on_real_time(self.query_times, self.target[dim : dim + 1])

    def copy_aggregate(self, agg_fun: Callable) -> SampleForecast:
        """Return the forecast of an aggregate over the channels."""
        copy = super().copy_aggregate(agg_fun)
        forecast = SampleForecast(copy.samples, copy.start_date, copy.item_id, copy.info)
        return forecast.on_real_time(self.query_times, ("aggregate",))


class QuantileForecast(RealTime, gluonts_forecast.QuantileForecast):
    """A forecast of quantiles: ``(K, Q)`` or ``(K, Q, D)``."""

    def quantile(self, level: float | str) -> np.ndarray:
        """Return the quantile of the given level, ``(Q,)`` or ``(Q, D)``.

        Between two levels of the head, and beyond them, GluonTS interpolates.

        Raises
        ------
        DeltaflowError
            If the head has a single level, which is another one.
        """
        known = {key for key in self.forecast_keys if key != "mean"}
        if len(known) == 1 and gluonts_forecast.Quantile.parse(level).name not in known:
            raise DeltaflowError(
                f"no quantile {level} follows from the level {known.pop()} alone: train a head of "
                "several levels, such as 'quantile'"
            )
        return super().quantile(level)

    def copy_dim(self, dim: int) -> QuantileForecast:
        """Return the forecast of one channel."""
        copy = super().copy_dim(dim)
        forecast = QuantileForecast(
            copy.forecast_array, copy.start_date, copy.forecast_keys, copy.item_id, copy.info
        )
        return forecast.on_real_time(self.query_times, self.target[dim : dim + 1])
