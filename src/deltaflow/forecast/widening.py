"""Intervals that widen beyond the lead times that a model has learned."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gluonts.core.component import validated

from deltaflow.errors import DataError
from deltaflow.forecast.forecasts import RealTimeForecast, SampleForecast, WrappedForecast
from deltaflow.forecast.held_out import INNER, HeldOut, Pairs
from deltaflow.forecast.predictor import DeltaflowPredictor, WrappedPredictor, numbers_of

LEVEL = 0.8
"""The nominal coverage of the interval between the quantiles of levels 0.1 and 0.9."""

LARGEST_POWER = 8.0
"""The largest fitted power. Close to the reach, where lead times hardly grow, only an enormous
power would make up for intervals that are too narrow from the start."""

LARGEST_FACTOR = 1e100
"""The largest factor by which distances are multiplied, so that quantiles stay finite."""


class WideningPredictor(WrappedPredictor):
    r"""Widens a predictor's intervals at lead times beyond its training data.

    Beyond the lead times of its training windows, a network's intervals keep the width that it has
    learned, while its errors grow. This growth can be measured on held-out items, at lead times
    with few or no training targets. Let :math:`T`, the reach, be the lead time within which nearly
    all targets of training windows lie. At a lead time :math:`t` beyond it, the distance of each
    quantile from the median is multiplied by :math:`(t / T)^p`, with the smallest power :math:`p`
    for which the interval between the quantiles of levels 0.1 and 0.9 covers 80 % of the held-out
    values beyond the reach, or 8 if that is smaller. Values on a side where the interval has no
    width, which no power widens, do not count. Up to the reach, forecasts do not change.

    Beyond the lead times of the held-out items, this is an extrapolation without any guarantee,
    plausible if errors continue to grow in the same way.

    Usually created by :meth:`fit`, or by an estimator with ``widening=True``.

    Parameters
    ----------
    predictor
        Any predictor of deltaflow.
    reach
        The longest learned lead time: seconds after the last observation of an item, or periods of
        a regular series.
    powers
        ``(D,)`` the power of each channel; 0 leaves its intervals unchanged.
    """

    @validated()
    def __init__(self, predictor: DeltaflowPredictor, reach: float, powers: list) -> None:
        super().__init__(predictor)
        self.reach = float(reach)
        self.powers = numbers_of(powers, (len(self.schema.target),), "powers")
        if not 0 < self.reach < math.inf:
            raise ValueError(f"reach must be a positive lead time, got {reach}")
        if (self.powers < 0).any():
            raise ValueError(f"powers must be at least 0, got {powers}")

    @classmethod
    def fit(
        cls, predictor: DeltaflowPredictor, reach: float, held_out: Pairs
    ) -> "WideningPredictor":
        """Fit the powers to held-out items.

        Parameters
        ----------
        predictor, reach
            The predictor, and its longest learned lead time.
        held_out
            Pairs of context and targets beyond the reach.

        Raises
        ------
        DataError
            If nothing was observed beyond the reach.
        """
        target = predictor.schema.target
        scored = HeldOut.of([predictor], held_out, predictor.schema, INNER)
        ratio = scored.lead / reach
        side, distance = scored.side, np.abs(scored.value - scored.inner[1])
        if not (ratio > 1).any():
            raise DataError(
                "no held-out item extends beyond the learned lead times",
                "hold out longer items, or train without widening",
            )
        powers = []
        for number in range(len(target)):
            own = (scored.channel == number) & (ratio > 1) & ((side > 0) | (distance == 0))
            # A value is covered if its distance is at most side * ratio ** power.
            logs = [np.log(np.maximum(part[own], 1e-300)) for part in (distance, side)]
            needed = (logs[0] - logs[1]) / np.log(ratio[own])
            power = float(np.quantile(needed, LEVEL, method="higher")) if len(needed) else 0.0
            powers.append(min(max(0.0, power), LARGEST_POWER))
        return cls(predictor, float(reach), powers)

    def adjusted(self, forecast: RealTimeForecast, lead: np.ndarray) -> RealTimeForecast:
        """Widen a forecast; see `WrappedPredictor.adjusted`."""
        powers = self.powers[[self.schema.target.index(name) for name in forecast.target]]
        ratio = np.fmax(lead / self.reach, 1.0)  # 1 for padding, whose lead is NaN
        factor = np.exp(np.minimum(powers * np.log(ratio[:, None]), np.log(LARGEST_FACTOR)))
        return forecast if (factor == 1).all() else widened(forecast, factor)

    def summary(self) -> dict[str, Any]:
        """Return a description of the predictor, with its reach and powers."""
        powers = dict(zip(self.schema.target, self.powers.tolist(), strict=True))
        return {**super().summary(), "reach": self.reach, "widening_powers": powers}


def widened(forecast: Any, factor: np.ndarray) -> RealTimeForecast:
    """Multiply the distances of a forecast's values from its medians by ``factor`` ``(Q, D)``."""
    if not isinstance(forecast, SampleForecast):
        return WidenedForecast(forecast, factor)
    median = np.median(forecast.samples, axis=0)
    samples = median + factor.reshape(median.shape) * (forecast.samples - median)
    return forecast.sampled(samples)


class WidenedForecast(WrappedForecast):
    """A forecast whose distances from the median are multiplied by a factor per query and channel.

    Parameters
    ----------
    forecast
        Any other forecast.
    factor
        ``(Q, D)`` the factors.
    """

    def __init__(self, forecast: Any, factor: np.ndarray) -> None:
        super().__init__(forecast)
        self._median = forecast.quantile(0.5)
        self._factor = factor.reshape(self._median.shape)

    def quantiles(self, levels: Sequence[float], cells: np.ndarray | None = None) -> np.ndarray:
        """Return the quantiles of L levels; see `RealTimeForecast.quantiles`."""
        median, factor = self._median, self._factor
        if cells is not None:
            median, factor = median[cells], factor[cells]
        return median + factor * (self.forecast.quantiles(levels, cells) - median)

    def log_prob(self, values: np.ndarray) -> np.ndarray | None:
        """Return the log-density of values; see `RealTimeForecast.log_prob`."""
        log_prob = self.forecast.log_prob(self._median + (values - self._median) / self._factor)
        return None if log_prob is None else log_prob - np.log(self._factor)

    def copy_dim(self, dim: int) -> "WidenedForecast":
        """Return the forecast of one channel."""
        if self._median.ndim == 1:
            return self
        return WidenedForecast(self.forecast.copy_dim(dim), self._factor[:, dim : dim + 1])
