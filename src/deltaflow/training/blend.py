"""Blending networks with simple forecasts, calibration and supports, into one predictor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from deltaflow.forecast.conformal import ConformalPredictor
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.held_out import INNER, HeldOut, Pairs
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.support import Support, SupportPredictor
from deltaflow.heads import DECILES

SHRINKAGE, ENOUGH_ITEMS = 0.1, 25
"""The strength of the shrinkage of a blend's weights towards equal ones from so many items on; with
half as many, it is twice as strong. See `blend_weights`."""

COUNTS = 0.75, 0.25
"""How much the loss on held-out items, and on the last values of all items, count in the choice of
a blend's weights: all items together are a single sample of their common future."""

LEAST_OF_NETWORKS = 0.03
"""The smallest weight of the networks in a blend: only they use covariates and other channels."""

LEAST_WEIGHT = 0.02
"""Forecasts with a smaller weight are left out of a blend."""

LEAST_LOSS = 1e-6
"""The smallest loss whose logarithm is taken, relative to that with equal weights."""

EXACT = 1e-3
"""A forecast is exact if its loss is at most this share of another's: as that of a hold is for a
channel that does not change, to which any other forecast would seem infinitely worse."""


class Finished(NamedTuple):
    """A finished predictor, and how it was made.

    Attributes
    ----------
    predictor
        The predictor.
    weights
        The weight of the networks together, and of each simple forecast; see `blend_weights`.
    widened
        The largest factor, over the channels, by which intervals were widened for correlated
        errors.
    """

    predictor: DeltaflowPredictor
    weights: list[float]
    widened: float


class Member(NamedTuple):
    """A network of a fold.

    Attributes
    ----------
    predictor
        The network.
    pairs
        Context and targets of its held-out items.
    """

    predictor: DeltaflowPredictor
    pairs: Pairs


def finish(
    members: Sequence[Member],
    simple: Sequence[DeltaflowPredictor],
    rehearsed: HeldOut | None,
    supports: Sequence[Support],
    calibrate: bool,
) -> Finished:
    """Blend networks with simple forecasts, calibrate them, and constrain them to their supports.

    Parameters
    ----------
    members, simple
        The networks, and the simple forecasts to blend in.
    rehearsed
        The held-out values of a rehearsal, if any.
    supports
        The support of each channel.
    calibrate
        Whether to calibrate on the held-out items.
    """
    networks = [member.predictor for member in members]
    schema, weights, left_out = networks[0].schema, [1.0], []
    if simple or calibrate:
        left_out = [
            HeldOut.of([network, *simple], pairs, schema, DECILES if simple else INNER)
            for network, pairs in members
        ]
    if simple:
        groups = [left_out, [rehearsed]] if rehearsed else [left_out]
        weights = blend_weights(groups, len(supports))
    parts = [EnsemblePredictor.of(networks), *simple]
    chosen = [pair for pair in zip(parts, weights, strict=True) if pair[1] > 0]
    predictor = chosen[0][0]
    if len(chosen) > 1:
        predictor = EnsemblePredictor(*map(list, zip(*chosen, strict=True)))
    widened = 1.0
    if calibrate:
        # A rehearsal only widens: its errors have a common sign, but the next may have the other.
        predictor = ConformalPredictor.of_scores(
            predictor,
            [one.averaged(weights) for one in left_out],
            # Far below a half, which would be rounded to a whole unit.
            least=[0.25 if support.whole else 0.0 for support in supports],
            rehearsal=rehearsed.averaged(weights) if rehearsed else None,
        )
        widened = max(predictor.widened)
    return Finished(SupportPredictor.of(predictor, supports), weights, widened)


def losses(held_out: HeldOut, weights: np.ndarray) -> np.ndarray:
    """Return the quantile loss ``(n,)`` of the predictors' average by weights ``(P,)``."""
    levels = np.array(DECILES)[:, None]
    over = held_out.value - np.tensordot(weights, held_out.quantiles, 1)
    return np.maximum(levels * over, (levels - 1) * over).mean(axis=0)


def losses_of_each(held_out: HeldOut, channels: int) -> np.ndarray:
    """Return the quantile loss ``(P, D)`` of each predictor, summed over the values by channel."""
    alone = np.eye(len(held_out.quantiles))
    sums = [np.bincount(held_out.channel, losses(held_out, one), channels) for one in alone]
    return np.array(sums)


def shares(held_out: HeldOut, weights: np.ndarray, channels: int) -> np.ndarray:
    """Return the share ``(n,)`` of each value in a mean loss that is 1 with these weights.

    Each item counts the same, and so does each channel, whatever its unit.
    """
    _, place, size = np.unique(held_out.item, return_inverse=True, return_counts=True)
    share = 1 / size[place]
    usual = np.bincount(held_out.channel, share * losses(held_out, weights), minlength=channels)
    return share / np.maximum(usual, np.finfo(float).tiny)[held_out.channel] / channels


def compared_loss(held_out: HeldOut, channels: int) -> float:
    """Return the quantile loss of the first of two predictors relative to that of the second.

    It is averaged over channels; without those that the second one forecasts exactly, if there are
    others.
    """
    own, others = losses_of_each(held_out, channels)
    for seen in (others > EXACT * own, others > 0):
        if seen.any():
            return float((own[seen] / others[seen]).mean())
    return math.inf


def compared_by_item(held_out: HeldOut) -> float:
    """Return the loss of the first of two predictors relative to that of the second, by item.

    It is a geometric mean, in which each channel of each item counts the same, whatever its scale.
    """
    _, place = np.unique([held_out.item, held_out.channel], axis=1, return_inverse=True)
    own, others = (np.bincount(place.ravel(), losses(held_out, one)) for one in np.eye(2))
    seen = (own > 0) & (others > 0)
    return float(np.exp(np.log(own[seen] / others[seen]).mean())) if seen.any() else math.inf


def blend_weights(held_out: Sequence[Sequence[HeldOut]], channels: int) -> list[float]:
    """Return the weights of the networks together, and of each simple forecast.

    They minimise the logarithm of the quantile loss on the held-out values, in one or two groups
    with the weights `COUNTS`, shrunk towards equal weights (`SHRINKAGE`), the more so, the fewer
    items the first group has. Without any items, they are equal.
    """
    groups = list(map(HeldOut.joined, held_out))
    count = len(groups[0].quantiles)
    equal = np.full(count, 1 / count)
    items = len(np.unique(groups[0].item))
    if not items:
        return equal.tolist()
    counted = [shares(group, equal, channels) for group in groups]
    shrinkage = SHRINKAGE * max(1.0, ENOUGH_ITEMS / items)

    def loss(weights: np.ndarray) -> float:
        means = [
            (share * losses(group, weights)).sum()
            for share, group in zip(counted, groups, strict=True)
        ]
        mean = np.average(means, weights=COUNTS[: len(means)])
        # Relative changes of the loss count the same, however small the best forecast makes it.
        log = math.log(max(mean, LEAST_LOSS))
        return log + shrinkage * float(((weights - equal) ** 2).sum())

    bounds = [(LEAST_OF_NETWORKS, 1.0), *[(0.0, 1.0)] * (count - 1)]
    total = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    found = minimize(loss, equal, bounds=bounds, constraints=total, method="SLSQP").x
    found = np.where(found < LEAST_WEIGHT, 0.0, found)
    return (found / found.sum()).tolist()
