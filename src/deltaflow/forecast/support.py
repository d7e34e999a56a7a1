"""Supports: constraining forecasts to possible values, such as non-negative concentrations."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gluonts.core.component import validated

from deltaflow.data.series import Series
from deltaflow.errors import DataError
from deltaflow.forecast.forecasts import RealTimeForecast, SampleForecast, WrappedForecast
from deltaflow.forecast.predictor import DeltaflowPredictor, WrappedPredictor


class Support(NamedTuple):
    """The possible values of a channel; or of several channels, with ``(D,)`` arrays.

    Attributes
    ----------
    low, high
        The smallest and the largest value.
    whole
        Whether all values are whole numbers.
    """

    low: Any = -math.inf
    high: Any = math.inf
    whole: Any = False

    @classmethod
    def of_all(cls, supports: Iterable["Support"]) -> "Support":
        """Return the support of several channels."""
        return cls(*map(np.array, zip(*supports, strict=True)))

    def of_only(self, channels: Any) -> "Support":
        """Return the support of some of several channels."""
        return Support(*(part[channels] for part in self))

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Return the nearest possible values ``(…, D)``; NaN stays NaN.

        >>> Support(low=0.0, whole=True).nearest(np.array([-0.3, 2.6, 0.4]))
        array([0., 3., 0.])
        """
        rounded = np.where(self.whole, np.rint(values), values)
        return np.clip(rounded, self.low, self.high) + 0.0  # no -0.0


REAL = Support()

SUPPORTS: dict[str, Support] = {
    "real": REAL,
    "non-negative": Support(low=0.0),
    "unit": Support(low=0.0, high=1.0),
    "integer": Support(whole=True),
    "count": Support(low=0.0, whole=True),
}
"""Every support by its name."""

Supports = str | Mapping[str, str | Sequence[float]]
"""``"recognised"``, or for each channel a name in `SUPPORTS` or a smallest and a largest value."""


def supports_of(given: Supports, data: Iterable[Series], target: Sequence[str]) -> list[Support]:
    """Return the support of each channel.

    Parameters
    ----------
    given
        ``"recognised"``, ``"real"`` or another name for all channels, or a support for each of
        some channels; the other channels are recognised.
    data
        The training data.
    target
        Names of the channels.

    Raises
    ------
    DataError
        If a value of the training data is outside a given support, or the support is invalid.
    """
    if isinstance(given, str):
        named = {} if given == "recognised" else dict.fromkeys(target, given)
    else:
        named = dict(given)
    if unknown := sorted(set(named) - set(target)):
        raise DataError(f"there is no channel {unknown[0]!r}, the channels are {list(target)}",
                        "name channels of the data", field="supports")  # fmt: skip
    declared = {name: _read(one, name) for name, one in named.items()}
    if len(declared) == len(target) and all(one == REAL for one in declared.values()):
        return [REAL] * len(target)
    bounds = Support.of_all(declared.get(name, REAL) for name in target)
    low, high = np.full(len(target), np.inf), np.full(len(target), -np.inf)
    whole = np.ones(len(target), dtype=bool)
    for series in data:
        values = series.values[:, : len(target)]
        known = np.isfinite(values)
        low = np.fmin(low, np.fmin.reduce(values, initial=np.inf))
        high = np.fmax(high, np.fmax.reduce(values, initial=-np.inf))
        whole &= ((values == np.rint(values)) | ~known).all(axis=0)
        wrong = known & (bounds.nearest(values) != values)
        if wrong.any():
            channel, row = map(int, np.argwhere(wrong.T)[0])
            raise DataError(
                f"{values[row, channel]:g} is not in the support declared",
                "correct the value, or declare another support",
                item=series.item_id,
                field=target[channel],
                position=row,
            )
    return [
        declared.get(name) or _recognised(*seen)
        for name, *seen in zip(target, low, high, whole, strict=True)
    ]


def _read(given: Any, channel: str) -> Support:
    if isinstance(given, str) and given in SUPPORTS:
        return SUPPORTS[given]
    if not isinstance(given, str) and len(given) == 2:
        low, high = map(float, given)
        if low < high:
            return Support(low, high)
    raise DataError(
        f"{given!r} is not a support of channel {channel!r}",
        f"give one of {', '.join(SUPPORTS)}, or two bounds such as (0, 10)",
        field="supports",
    )


def _recognised(low: float, high: float, whole: bool) -> Support:
    """Return the support of a channel from its lowest and highest value."""
    if low > high:  # nothing was observed
        return REAL
    # A range from exactly 0 to exactly 1 is hardly chance.
    unit = low == 0 and high == 1
    return Support(0.0 if low >= 0 else -math.inf, 1.0 if unit else math.inf, bool(whole))


class SupportPredictor(WrappedPredictor):
    """Constrains a predictor's forecasts to the supports of their channels.

    Values below the smallest possible value are replaced by it, and likewise above the largest: the
    forecast is censored at the bounds. Channels of whole numbers are rounded. Quantiles, samples
    and mean are those of the resulting forecast.

    Parameters
    ----------
    predictor
        Any predictor of deltaflow.
    supports
        For each of the D channels, the smallest value, the largest value (None without a bound),
        and whether values are whole numbers.
    """

    @validated()
    def __init__(self, predictor: DeltaflowPredictor, supports: list) -> None:
        super().__init__(predictor)
        self.supports = [
            Support(
                -math.inf if low is None else float(low),
                math.inf if high is None else float(high),
                whole,
            )
            for low, high, whole in supports
        ]
        if len(self.supports) != len(self.schema.target):
            raise ValueError(f"there are {len(supports)} supports of other channels")
        if not all(one.low < one.high and isinstance(one.whole, bool) for one in self.supports):
            raise ValueError(f"these are not supports: {supports!r}")

    @classmethod
    def of(cls, predictor: Any, supports: Sequence[Support]) -> Any:
        """Constrain a predictor to supports; return it unchanged if there are no constraints."""
        if all(support == REAL for support in supports):
            return predictor
        plain = [
            [None if math.isinf(low) else low, None if math.isinf(high) else high, whole]
            for low, high, whole in supports
        ]
        return cls(predictor, plain)

    def adjusted(self, forecast: RealTimeForecast, lead: np.ndarray) -> RealTimeForecast:
        """Return a forecast of the predictor within the supports of its channels."""
        own = Support.of_all(self.supports[self.schema.target.index(n)] for n in forecast.target)
        if isinstance(forecast, SampleForecast):
            return forecast.sampled(own.nearest(forecast.samples))
        return SupportForecast(forecast, own)

    def summary(self) -> dict[str, Any]:
        """Return a description of the predictor, and the support of each constrained channel."""
        named = dict(zip(self.schema.target, self.supports, strict=True))
        words = {name: describe(one) for name, one in named.items() if one != REAL}
        return {**super().summary(), "supports": words}


def describe(support: Support) -> str:
    """Return the name of a support, or its bounds.

    >>> describe(Support(low=0.0)), describe(Support(-1.0, 2.0))
    ('non-negative', 'from -1 to 2')
    """
    names = {known: name for name, known in SUPPORTS.items()}
    low, high, whole = support
    return names.get(support, f"{'whole numbers ' if whole else ''}from {low:g} to {high:g}")


class SupportForecast(WrappedForecast):
    """A forecast whose quantiles, samples and mean lie within a support.

    Parameters
    ----------
    forecast
        Any other forecast.
    support
        The support of all channels.
    """

    def __init__(self, forecast: Any, support: Support) -> None:
        super().__init__(forecast)
        self.support = support

    @property
    def mean(self) -> np.ndarray:
        """The mean within the support, ``(Q,)`` or ``(Q, D)``; it need not be a whole number."""
        return self.mean_within(lambda values: values)

    def mean_within(self, nearest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the mean within both supports; see `RealTimeForecast.mean_within`."""
        bounds = self.support._replace(whole=False)
        return self.forecast.mean_within(lambda values: nearest(bounds.nearest(values)))

    def quantiles(self, levels: Sequence[float], cells: np.ndarray | None = None) -> np.ndarray:
        """Return the quantiles of L levels; see `RealTimeForecast.quantiles`."""
        support = self.support
        if cells is not None and cells.ndim == 2:
            support = support.of_only(np.nonzero(cells)[1])
        return support.nearest(self.forecast.quantiles(levels, cells))

    def log_prob(self, values: np.ndarray) -> np.ndarray | None:
        """Return the log-density of the uncensored forecast; NaN where a value is NaN."""
        return self.forecast.log_prob(values)

    def copy_dim(self, dim: int) -> "SupportForecast":
        """Return the forecast of one channel."""
        own = self.support.of_only(slice(dim, dim + 1))
        return self if len(self.target) == 1 else SupportForecast(self.forecast.copy_dim(dim), own)
