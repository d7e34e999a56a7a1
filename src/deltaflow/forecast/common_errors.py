r"""Errors that items have in common at the same time, and how much wider intervals are for them.

Let the error of item :math:`i` at time :math:`t`, in units of the forecast's own spread, be
:math:`b_t + e_{it}`, with a part :math:`b_t` that all items share, as in a model of random effects
(Searle, Casella & McCulloch, *Variance Components*, 1992). Products of the errors of two items at
the same time then have the mean :math:`\mathrm{Var}(b)`, whatever the errors of single items are.
"""

from typing import NamedTuple

import numpy as np

TIMES = 20
"""The largest number of times; where there are more, neighbouring ones count as the same."""

LARGEST = 4.0
"""Larger errors count as this: one outlier must not decide."""

SIGNIFICANT = 2.0
"""How many standard errors above zero a correlation is more than chance."""

FEWEST_TOGETHER = 9
"""With fewer items, the quantiles of levels 0.1 and 0.9 lie beyond all errors, and are wide
enough."""


class Common(NamedTuple):
    """What the errors of items have in common.

    Attributes
    ----------
    variance
        The variance of the common part; below zero, if errors of different items rather differ.
    correlation
        The same as a share of the mean square.
    error
        The standard error of the correlation, by leaving out each item in turn (Arvesen,
        *Jackknifing U-Statistics*, 1969).
    """

    variance: float
    correlation: float
    error: float


def common(item: np.ndarray, time: np.ndarray, error: np.ndarray) -> Common | None:
    """Estimate what errors of items have in common at the same time.

    Parameters
    ----------
    item, time, error
        ``(n,)`` of each error the item, the time on a clock of all items, and the error in units
        of the forecast's spread.

    Returns
    -------
    Common or None
        None if fewer than `FEWEST_TOGETHER` items have errors, or hardly any at the same time.
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
    r"""Return how many times as wide intervals must be for the errors that items will share.

    Two conditions have to be met. Items that were left out err together, which shows that what
    they share at a time is not a course that others teach: their correlation is `SIGNIFICANT`. And
    beyond what was learned from they err together by more: with :math:`B` the common variance in
    the rehearsal, and :math:`S` the mean square of the errors of items left out, intervals become
    :math:`\sqrt{1 + B / S}` times as wide.

    The rehearsal is one future, in which the common part may by chance be small or large, so that
    nothing is promised; over many data sets, intervals cover far more nearly what they say.

    Parameters
    ----------
    left_out, rehearsed
        Errors on items that were left out, and on the last values of all items.
    """
    known, beyond = common(*left_out), common(*rehearsed)
    if known is None or beyond is None or known.correlation <= SIGNIFICANT * known.error:
        return 1.0
    square = float((np.clip(left_out.error, -LARGEST, LARGEST) ** 2).mean())
    return float(np.sqrt(1 + max(beyond.variance, 0.0) / square))


class Errors(NamedTuple):
    """``(n,)`` the item of each error, its time, and the error; see `common`."""

    item: np.ndarray
    time: np.ndarray
    error: np.ndarray
