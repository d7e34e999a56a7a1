r"""How far intervals widen for errors that items share at the same time, and may narrow.

Let the error of item :math:`i` at time :math:`t`, in units of the forecast's own spread, be
:math:`b_t + e_{it}`, with a part :math:`b_t` that all items share, a random-effects model (Searle,
Casella & McCulloch, *Variance Components*, 1992). The products of the errors of two items at the
same time then have the mean :math:`\mathrm{Var}(b)`, whatever the distribution of the
:math:`e_{it}`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

TIMES = 20
"""The largest number of times; if there are more, neighbouring ones are merged."""

LARGEST = 4.0
"""The value at which errors are clipped, so that no single outlier decides."""

SIGNIFICANT = 2.0
"""The number of standard errors above which a correlation is significant."""

ASSUMED = 0.2
"""The smallest common part of later errors that is assumed, as a share of the mean square of those
on held-out items: a rehearsal shows a single future."""

NOMINAL = 0.8
"""The nominal coverage of the intervals by which the width of all intervals is judged."""

CERTAINTY = 0.95
"""The probability with which held-out values must show that narrower intervals suffice."""

FEWEST_TOGETHER = 9
"""With fewer items, the quantiles of levels 0.1 and 0.9 already lie beyond all errors."""


class Common(NamedTuple):
    """The common part of the errors of items.

    Attributes
    ----------
    variance
        The variance of the common part; negative if errors of different items are negatively
        correlated.
    correlation
        The variance as a share of the mean squared error.
    error
        The standard error of the correlation, by a jackknife over items (Arvesen, *Jackknifing
        U-Statistics*, 1969).
    """

    variance: float
    correlation: float
    error: float


def common(item: np.ndarray, time: np.ndarray, error: np.ndarray) -> Common | None:
    """Estimate the common part of errors of items at the same time.

    Parameters
    ----------
    item, time, error
        ``(n,)`` the item of each error, its time on a clock common to all items, and the error in
        units of the forecast's spread.

    Returns
    -------
    Common or None
        None if fewer than `FEWEST_TOGETHER` items have errors, or hardly any errors coincide in
        time.
    """
    _, column = np.unique(item, return_inverse=True)
    if not len(item) or column.max() + 1 < FEWEST_TOGETHER:
        return None
    known = np.unique(time)
    inner = np.quantile(time, np.linspace(0, 1, TIMES + 1)[1:-1])
    bounds = known[1:] if len(known) <= TIMES else np.unique(inner)
    row = np.searchsorted(bounds, time, side="right")
    total = np.zeros((len(bounds) + 1, column.max() + 1))
    count = np.zeros_like(total)
    np.add.at(total, (row, column), np.clip(error, -LARGEST, LARGEST))
    np.add.at(count, (row, column), 1.0)
    mean, seen = total / np.maximum(count, 1.0), count > 0
    items, sums, squares = seen.sum(axis=1), mean.sum(axis=1), (mean**2).sum(axis=1)
    variance, correlation = _estimates(items, sums, squares)
    without = [
        _estimates(items - own_seen, sums - own, squares - own**2)[1]
        for own, own_seen in zip(mean.T, seen.T, strict=True)
    ]
    if not np.isfinite([correlation, *without]).all():
        return None
    number = len(without)
    deviation = float(np.sqrt((number - 1) * np.var(without)))
    return Common(variance, correlation, deviation)


def _estimates(items: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """Return the mean product of the errors of two items at the same time, and its share of the
    mean square; of ``(times,)`` the number of items, and the sums of errors and of their squares.
    """
    several = items > 1
    products = ((sums**2 - squares)[several] / (items[several] - 1)).sum()
    number, square = items[several].sum(), squares[several].sum()
    if not number or square <= 0:
        return np.nan, np.nan
    return float(products / number), float(products / square)


def widening_for(left_out: "Errors", rehearsed: "Errors") -> float:
    r"""Return the factor by which intervals widen for the errors that items will share.

    With :math:`B`, the variance of the common part of errors beyond the training data, and
    :math:`S`, the mean squared error of held-out items, intervals become :math:`\sqrt{1 + B / S}`
    times as wide. In the rehearsal :math:`B` is estimated if the errors of held-out items are
    correlated at the `SIGNIFICANT` level, which shows that their common part is no course learned
    from other items. At least `ASSUMED` is taken for :math:`B / S`: the rehearsal is a single
    future, in which the common part may by chance be small. The factor is at most the one at which
    intervals have their nominal coverage in the rehearsal, times the root of 1 + `ASSUMED`: a
    few times with large common errors, such as holidays, are no reason to widen the intervals of
    all times. There is no guarantee; over many data sets, coverage is much closer to nominal.

    With fewer than `FEWEST_TOGETHER` items, intervals do not widen.

    Parameters
    ----------
    left_out, rehearsed
        Errors on held-out items, and on the last values of all items.
    """
    if len(np.unique(left_out.item)) < FEWEST_TOGETHER:
        return 1.0
    share, known, beyond = ASSUMED, common(*left_out), common(*rehearsed)
    if known and beyond and known.correlation > SIGNIFICANT * known.error:
        square = float((np.clip(left_out.error, -LARGEST, LARGEST) ** 2).mean())
        share = max(share, beyond.variance / square)
    needed = max(1.0, rehearsed.width() / max(1.0, left_out.width()))
    return float(min(np.sqrt(1 + share), needed * np.sqrt(1 + ASSUMED)))


def narrowing_for(held_out: "Sequence[Errors]") -> float:
    """Return the factor, at most 1, by which intervals may narrow.

    It is the smallest at which each set of held-out values shows with 95 % certainty that they
    still have their nominal coverage, by a one-sided binomial test. The test counts items instead
    of values, since an item may err in the same way at all times; fewer than 14 show nothing.
    """
    factor = 0.0
    for errors in held_out:
        items = len(np.unique(errors.item))
        enough = int(binom.ppf(CERTAINTY, items, NOMINAL)) + 1  # out of these items
        factor = max(factor, errors.width(enough / items) if enough <= items else 1.0)
    return min(1.0, factor)


class Errors(NamedTuple):
    """``(n,)`` the item of each error, its time, and the error; see `common`."""

    item: np.ndarray
    time: np.ndarray
    error: np.ndarray

    def width(self, level: float = NOMINAL) -> float:
        """Return the factor at which the forecasts' intervals cover a share of the values."""
        return float(np.quantile(np.abs(self.error), level)) if len(self.error) else 1.0
