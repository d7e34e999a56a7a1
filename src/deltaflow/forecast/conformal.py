"""Conformal intervals: quantiles with their nominal coverage, for any model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from scipy.special import ndtri

from deltaflow.errors import DataError
from deltaflow.forecast.common_errors import narrowing_for, widening_for
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.forecasts import RealTimeForecast, WrappedForecast
from deltaflow.forecast.held_out import INNER, HeldOut, Pairs
from deltaflow.forecast.predictor import DeltaflowPredictor, WrappedPredictor, numbers_of, sampled

LEVELS = np.round(np.arange(0.005, 0.9999, 0.005), 3)
"""The levels whose quantiles are calibrated; between them, quantiles are interpolated."""

ITEMS_PER_LEAD = 40
"""The number of items needed to calibrate a range of lead times on its own."""

MOST_LEADS = 8
"""The largest number of such ranges."""

ROUNDING = 1e-9
"""Lead times that differ by at most this share count as equal, since they are differences of
rounded times."""

TOLERATED = 0.5
"""The bias of several members, in units of the scores, up to which medians are not shifted."""

FEWEST_ITEMS = 5
"""With fewer items, a channel is not calibrated."""

_NORMAL = ndtri(LEVELS) / ndtri(0.9)
"""The scores of a perfect normal forecast; 1 at the level 0.9."""

_FEW = 1e-9
"""The tolerance for rounded levels."""


class ConformalPredictor(WrappedPredictor):
    r"""Calibrates the quantiles of a predictor to their nominal coverage.

    A score :math:`z` is the distance of a value from the median of its forecast, in units of the
    distance from the median to the quantile of level 0.9 (above the median) or 0.1 (below). The
    scores of held-out items are kept by channel and range of lead times. The calibrated quantile of
    level :math:`\alpha` is the median plus :math:`z_\alpha` times the predictor's own distance on
    that side, where :math:`z_\alpha` is the quantile of these scores.

    **Guarantee.** Let an item be exchangeable with the K calibration items, and take any of its
    values, for a given channel and range of lead times. For every :math:`\alpha < 1/2` in `LEVELS`
    with :math:`\alpha \ge 1/(K + 1)`, the value lies below the quantile of level :math:`\alpha`
    with probability at most :math:`\alpha`, and likewise above that of level :math:`1 - \alpha`, so
    that the interval between them covers it with probability at least :math:`1 - 2\alpha`. This
    holds for finite K and any predictor, on average over items and calibrations. Each item has the
    same weight, however many values it has (Lee, Barber & Willett 2023). There is no guarantee for
    a single item given its past, for all lead times at once, or where the future of the *same*
    items is unlike their past (Lin et al. 2022). For :math:`\alpha < 1/(K + 1)` the scores are
    extrapolated. The guarantee of :meth:`fit_folds` is weaker, see there.

    Usually created by :meth:`fit` or :meth:`fit_folds`.

    Parameters
    ----------
    predictor
        Any predictor of deltaflow.
    leads
        For each of the D channels, the increasing bounds between its ranges of lead times: seconds
        after the last observation time of the item, or periods of a regular series.
    scores
        For each channel, ``(bounds + 1, len(LEVELS))``: the quantiles of the scores.
    least
        ``(D,)`` the smallest distance in which a channel is measured.
    num_items
        ``(D,)`` the number K of items on which each channel was calibrated.
    widened
        ``(D,)`` the factor by which the scores of each channel are already widened for errors that
        items share; 1 for each if None.

    References
    ----------
    Vovk, Gammerman & Shafer, *Algorithmic Learning in a Random World*, 2005.
    Stankevičiūtė, Alaa & van der Schaar, *Conformal Time-Series Forecasting*, 2021.
    Lee, Barber & Willett, *Distribution-Free Inference with Hierarchical Data*, 2023.
    Lin, Trivedi & Sun, *Conformal Prediction with Temporal Quantile Adjustments*, 2022.
    """

    @validated()
    def __init__(
        self,
        predictor: DeltaflowPredictor,
        leads: list,
        scores: list,
        least: list,
        num_items: list,
        widened: list | None = None,
    ) -> None:
        super().__init__(predictor)
        channels = len(self.schema.target)
        self.leads = [numbers_of(own, (len(own),), "leads") for own in leads]
        shapes = [(len(own) + 1, len(LEVELS)) for own in leads]
        self.scores = [
            numbers_of(own, shape, "scores") for own, shape in zip(scores, shapes, strict=True)
        ]
        self.least = numbers_of(least, (channels,), "least distances")
        self.num_items = list(num_items)
        self.widened = list(widened or [1.0] * channels)
        if len(self.leads) != channels or not (self.least > 0).all():
            raise ValueError(f"leads and scores are not those of {channels} channels")
        if any((np.diff(own) <= 0).any() for own in self.leads):
            raise ValueError("leads do not increase")
        if any((np.diff(own) < 0).any() for own in self.scores):
            raise ValueError("scores decrease with their level")

    @classmethod
    def fit(cls, predictor: DeltaflowPredictor, calibration: Pairs) -> "ConformalPredictor":
        """Calibrate a predictor on held-out items.

        Parameters
        ----------
        predictor
            The predictor.
        calibration
            Pairs of context and targets, such as GluonTS's ``TestData``, at one or several origins
            per item. Choose origins like those of later forecasts. Pairs without an ``item_id``
            count as different items.

        Raises
        ------
        DataError
            If nothing was observed after the origins.
        """
        held_out = HeldOut.of([predictor], calibration, predictor.schema, INNER)
        return cls.of_scores(predictor, [held_out], free=True)

    @classmethod
    def fit_folds(
        cls,
        members: Sequence[DeltaflowPredictor],
        folds: Sequence[Pairs],
        predictor: DeltaflowPredictor | None = None,
        least: Sequence[float] | None = None,
        rehearsal: tuple[DeltaflowPredictor, Pairs] | None = None,
    ) -> "ConformalPredictor":
        """Calibrate the average of predictors, each on its own held-out items.

        Every item thus serves for training and for calibration. There is no exact guarantee: the
        scores are those of single members, and their average is usually more accurate, so that its
        intervals tend to cover more (Barber et al., *Predictive inference with the jackknife+*,
        2021, show what can be proved of such schemes). Quantiles are therefore interpolated between
        scores, see `expected_quantiles`, instead of rounded outwards: with few items, rounding
        makes intervals much wider than necessary. A single member keeps the guarantee.

        Intervals are widened where they cover too little, but made narrower than those of the
        predictor only as far as the held-out items and the rehearsal allow with some certainty, see
        `narrowing_for`: the future is seldom easier to forecast than the past. They are not shifted
        for a bias of up to half a unit of the scores: the bias at the earlier times of held-out
        items says little about that at later ones. A single member is corrected for any bias.

        Parameters
        ----------
        members
            The predictors.
        folds
            For each of them, pairs of context and targets of its held-out items.
        predictor
            The predictor to calibrate by the scores of the members; their average if None.
        least
            The smallest unit of each channel's scores, such as 0.25 for counts, whose quantiles may
            coincide.
        rehearsal
            A predictor trained without the last values of all items, and pairs of context and these
            values. Intervals are widened for the correlated errors that it shows, see
            `widening_for`.
        """
        if predictor is None:
            predictor = EnsemblePredictor.of(members)
        schema = predictor.schema
        parts = [
            HeldOut.of([one], fold, schema, INNER) for one, fold in zip(members, folds, strict=True)
        ]
        last = None
        if rehearsal is not None:
            last = HeldOut.of([rehearsal[0]], rehearsal[1], schema, INNER)
        return cls.of_scores(predictor, parts, least, last)

    @classmethod
    def of_scores(
        cls,
        predictor: DeltaflowPredictor,
        folds: Sequence[HeldOut],
        least: Sequence[float] | None = None,
        rehearsal: HeldOut | None = None,
        free: bool = False,
    ) -> "ConformalPredictor":
        """Calibrate a predictor by the held-out values of each fold; see :meth:`fit_folds`.

        Parameters
        ----------
        predictor, folds, least, rehearsal
            See :meth:`fit_folds`; the held-out values already have forecasts, by a single
            predictor.
        free
            Whether intervals may become as narrow as the scores are.
        """
        exact = len(folds) == 1
        quantiles = conformal_quantiles if exact else expected_quantiles
        known = HeldOut.joined(folds)
        if not len(known.value):
            raise DataError("nothing was observed after the origins of the calibration",
                            "give forecasts with labels")  # fmt: skip
        judged = [known] if rehearsal is None else [known, rehearsal]
        calibrated = []
        for number in range(len(predictor.schema.target)):
            own = known.of_channel(number)
            widths = own.inner[2] - own.inner[0]
            usual = 1e-9 * np.median(widths[widths > 0]) if (widths > 0).any() else 0.0
            floor = float(max(usual, least[number] if least else 0.0, 1e-300))
            errors = [one.of_channel(number).errors(floor) for one in judged]
            bounds, table = _calibrate(own.item, own.lead, errors[0].error, quantiles)
            if not exact:
                table -= table[:, LEVELS == 0.5].clip(-TOLERATED, TOLERATED)
            if not free:
                narrowest = narrowing_for(errors) * _NORMAL
                table = np.where(LEVELS < 0.5, np.minimum(table, narrowest), table)
                table = np.where(LEVELS > 0.5, np.maximum(table, narrowest), table)
            factor = 1.0 if rehearsal is None else widening_for(*errors)
            middle = table[:, LEVELS == 0.5]
            scores = (middle + factor * (table - middle)).tolist()
            num_items = len(np.unique(own.item))
            calibrated.append((bounds.tolist(), scores, floor, num_items, factor))
        return cls(predictor, *map(list, zip(*calibrated, strict=True)))

    def predict(
        self, dataset: Dataset, num_samples: int | None = None, seed: int | None = None
    ) -> Iterator[RealTimeForecast]:
        """Forecast each entry: quantiles, or ``num_samples`` samples drawn with ``seed``.

        Quantile forecasts keep the mean of the predictor. Paths that the predictor draws stay
        coherent, see `RealTimeForecast.to_sample_forecast`.
        """
        if not self.draws_paths:
            return sampled(super().predict(dataset, seed=seed), num_samples, seed)
        return (one.to_sample_forecast() for one in super().predict(dataset, num_samples, seed))

    def adjusted(self, forecast: RealTimeForecast, lead: np.ndarray) -> "ConformalForecast":
        """Calibrate a forecast; see `WrappedPredictor.adjusted`."""
        names = [self.schema.target.index(name) for name in forecast.target]
        lead = lead * (1 - ROUNDING)
        ranges = [np.searchsorted(self.leads[number], lead, side="left") for number in names]
        scores = [self.scores[number] for number in names]
        return ConformalForecast(forecast, scores, np.stack(ranges, axis=1), self.least[names])

    def summary(self) -> dict[str, Any]:
        """Return a description of the predictor, with the calibration items per channel."""
        items = dict(zip(self.schema.target, self.num_items, strict=True))
        summary = {**super().summary(), "calibrated_on_items": items}
        if all(factor == 1 for factor in self.widened):
            return summary
        widened = dict(zip(self.schema.target, np.round(self.widened, 3).tolist(), strict=True))
        return {**summary, "widened_for_common_errors": widened}


class ConformalForecast(WrappedForecast):
    """A forecast with calibrated quantiles, and the mean of the wrapped forecast.

    Parameters
    ----------
    forecast
        The forecast of the predictor.
    scores
        For each of the D channels, ``(ranges, len(LEVELS))``: the quantiles of the scores in each
        range of lead times.
    ranges
        ``(Q, D)`` the range of each query.
    least
        ``(D,)`` the smallest distance in which a channel is measured.
    """

    def __init__(
        self,
        forecast: RealTimeForecast,
        scores: Sequence[np.ndarray],
        ranges: np.ndarray,
        least: np.ndarray,
    ) -> None:
        super().__init__(forecast)
        self.scores, self.ranges, self.least = scores, ranges, least
        inner = forecast.quantiles(INNER)
        self._shape = inner.shape[1:]
        low, self._median, high = inner.reshape(len(INNER), *ranges.shape)
        self._below = np.maximum(self._median - low, least)
        self._above = np.maximum(high - self._median, least)

    def quantiles(self, levels: Sequence[float], cells: np.ndarray | None = None) -> np.ndarray:
        """Return the quantiles of L levels; see `RealTimeForecast.quantiles`."""
        pairs = zip(self.scores, self.ranges.T, strict=True)
        wanted = np.array(levels, dtype=np.float64)
        score = np.stack([_at_levels(table, wanted)[:, own] for table, own in pairs], axis=-1)
        values = self._median + score * np.where(score < 0, self._below, self._above)  # (L, Q, D)
        quantiles = values.reshape(len(levels), *self._shape)
        return quantiles if cells is None else quantiles[:, cells]

    def copy_dim(self, dim: int) -> "ConformalForecast":
        """Return the forecast of one channel."""
        if len(self._shape) == 1:
            return self
        own = slice(dim, dim + 1)
        parts = self.scores[own], self.ranges[:, own], self.least[own]
        return ConformalForecast(self.forecast.copy_dim(dim), *parts)


def _calibrate(
    item: np.ndarray,
    lead: np.ndarray,
    score: np.ndarray,
    quantiles: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds ``(B - 1,)`` of lead times, and the scores' quantiles between them ``(B, L)``.

    Parameters
    ----------
    item, lead, score
        ``(n,)`` of one channel.
    quantiles
        `conformal_quantiles` or `expected_quantiles`.
    """
    count = int(np.clip(len(np.unique(item)) // ITEMS_PER_LEAD, 1, MOST_LEADS))
    if not len(item):
        return np.empty(0), _NORMAL[None].copy()
    bounds = np.unique(np.quantile(lead, np.linspace(0, 1, count + 1)[1:-1], method="lower"))
    bounds = bounds[bounds < lead.max()]
    place = np.searchsorted(bounds, lead * (1 - ROUNDING), side="left")
    table = np.tile(_NORMAL, (len(bounds) + 1, 1))
    for number, row in enumerate(table):
        own = place == number
        if len(np.unique(item[own])) >= FEWEST_ITEMS:
            row[:] = quantiles(item[own], score[own])
    return bounds, table


def conformal_quantiles(item: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the quantiles, at `LEVELS`, of a new item's score, rounded outwards.

    Each of the K items has the weight 1 / (K + 1), shared among its scores, and so has a new one,
    which is placed below or above all others, whichever is worse.

    Parameters
    ----------
    item, score
        ``(n,)`` the item of each score, and the score.

    Examples
    --------
    >>> scores = conformal_quantiles(np.arange(19), np.arange(19.0))
    >>> scores[LEVELS == 0.1], scores[LEVELS == 0.9]  # the second of 19, and the last but one
    (array([1.]), array([17.]))
    """
    score, share, own = _weighed(item, score)
    up_to = share.cumsum()  # the weight of this and all lower scores
    lower = np.searchsorted(up_to - share + own, LEVELS + _FEW, side="right") - 1
    upper = np.searchsorted(up_to, LEVELS - _FEW, side="left")
    low = score[np.maximum(lower, 0)]
    high = score[np.minimum(upper, len(score) - 1)]
    quantiles = np.where(LEVELS < 0.5, low, high)
    middle = np.isclose(LEVELS, 0.5)
    quantiles[middle] = (low[middle] + high[middle]) / 2
    return _with_tails(quantiles, score, own, 1 - own)


def expected_quantiles(item: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the quantiles, at `LEVELS`, of a new item's score, interpolated between the scores.

    The weights are those of `conformal_quantiles`; that of the new item is split equally below and
    above all scores. If each item has one score, the j-th of K is the quantile of level j / (K +
    1), below which a new score lies with exactly this probability. If items have several scores,
    intervals cover too much rather than too little.

    Parameters
    ----------
    item, score
        ``(n,)`` the item of each score, and the score.

    Examples
    --------
    >>> scores = expected_quantiles(np.arange(9), np.arange(9.0))
    >>> scores[LEVELS == 0.1], scores[LEVELS == 0.85]
    (array([0.]), array([7.5]))
    """
    score, share, own = _weighed(item, score)
    level = share.cumsum() + (own - share) / 2
    quantiles = np.interp(LEVELS, level, score)
    return _with_tails(quantiles, score, float(level[0]), float(level[-1]))


def _weighed(item: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return increasing scores, the weight of each, and that of a new item.

    Each of the K items has the weight 1 / (K + 1), shared among its scores, and so has a new one.
    """
    _, place, size = np.unique(item, return_inverse=True, return_counts=True)
    order, own = np.argsort(score, kind="stable"), 1 / (len(size) + 1)
    return score[order], own / size[place[order]], own


def _with_tails(
    quantiles: np.ndarray, score: np.ndarray, lowest: float, highest: float
) -> np.ndarray:
    """Extrapolate quantiles below and above the levels within the range of the sorted scores."""
    below, above = LEVELS - lowest < -_FEW, LEVELS - highest > _FEW
    quantiles[below] = _beyond(score[0], lowest, LEVELS[below])
    quantiles[above] = _beyond(score[-1], highest, LEVELS[above])
    return np.maximum.accumulate(quantiles)


def _at_levels(table: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the quantiles ``(L, R)`` of scores ``(R, len(LEVELS))`` that are known at `LEVELS`."""
    quantiles = np.array([np.interp(levels, LEVELS, scores) for scores in table])
    nearest = np.clip(levels, LEVELS[0], LEVELS[-1])
    out = levels != nearest
    quantiles[:, out] = _beyond(quantiles[:, out], nearest[out], levels[out])
    return quantiles.T


def _beyond(score: Any, level: Any, wanted: np.ndarray) -> np.ndarray:
    """Extrapolate the quantiles of scores from a level to others further out, by a normal tail.

    They grow in proportion to the score, and at least as fast as those of a perfect forecast.
    """
    near, far = ndtri(level), ndtri(wanted)
    sign = np.where(wanted > 0.5, 1.0, -1.0)
    in_proportion = np.maximum(sign * score, 0.0) * (far / near - 1)
    return score + sign * np.maximum(in_proportion, np.abs(far - near) / ndtri(0.9))
