"""Networks and simple forecasts become one predictor: blended, calibrated, within supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize

from deltaflow.forecast.conformal import ConformalPredictor
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.held_out import INNER, HeldOut, Pairs
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.support import Support, SupportPredictor
from deltaflow.heads import DECILES, is_centred, make_output

if TYPE_CHECKING:
    from deltaflow.training.estimator import IrregularEstimator

SHRINKAGE, ENOUGH_ITEMS = 0.1, 25
"""How much the weights of a blend are drawn towards equal ones, and from how many items on; with
half as many, they are drawn twice as much. See `blend_weights`."""

COUNTS = 0.75, 0.25
"""What the items left out, and the last values of all items, count for the weights of a blend: all
items together have but one common future."""

LEAST_OF_NETWORKS = 0.1
"""The least weight of the networks in a blend: they alone heed covariates and other channels."""

LEAST_WEIGHT = 0.02
"""What counts less in a blend is left out of it."""


class Finished(NamedTuple):
    """What networks were made into.

    Attributes
    ----------
    predictor
        The predictor.
    weights
        What the networks count together, and each simple forecast; see `blend_weights`.
    is_calibrated
        Whether its intervals are calibrated.
    widened
        How many times as wide they are, for errors that items share at the same time: at most, of
        all channels.
    """

    predictor: DeltaflowPredictor
    weights: list[float]
    is_calibrated: bool
    widened: float


def finish(
    estimator: IrregularEstimator,
    members: Sequence[DeltaflowPredictor],
    simple: Sequence[DeltaflowPredictor],
    pairs: Sequence[Pairs],
    rehearsed: HeldOut | None,
    supports: Sequence[Support],
    enough: bool,
) -> Finished:
    """Blend networks with simple forecasts, calibrate them, and keep them within supports.

    Parameters
    ----------
    estimator
        Which says whether to calibrate.
    members, simple
        The networks, and other forecasts to blend in.
    pairs
        For each network, what was known and what followed of the items that it left out.
    rehearsed
        What was held out in a rehearsal, if any.
    supports
        The support of each channel.
    enough
        Whether there are items enough to calibrate on.
    """
    positive = all(support.low >= 0 for support in supports)
    # Calibrated quantiles have to stay where the distribution has values.
    bounded = not is_centred(make_output(estimator.model.distr_output))
    calibrated = estimator.calibrate and enough and (positive or not bounded)
    schema, weights, left_out = members[0].schema, [1.0], []
    if simple or calibrated:
        left_out = [
            HeldOut.of([member, *simple], own, schema, DECILES if simple else INNER)
            for member, own in zip(members, pairs, strict=True)
        ]
    if simple:
        groups = [left_out, [rehearsed]] if rehearsed else [left_out]
        weights = blend_weights(groups, len(supports))
    networks = EnsemblePredictor.of(members)
    chosen = [pair for pair in zip([networks, *simple], weights, strict=True) if pair[1] > 0]
    predictor = chosen[0][0]
    if len(chosen) > 1:
        predictor = EnsemblePredictor(*map(list, zip(*chosen, strict=True)))
    widened = 1.0
    if calibrated:
        # A rehearsal only widens: its errors have a common sign, which the next need not have.
        predictor = ConformalPredictor.of_scores(
            predictor,
            [one.averaged(weights) for one in left_out],
            least=[0.5 if support.whole else 0.0 for support in supports],
            rehearsal=rehearsed.averaged(weights) if rehearsed else None,
        )
        widened = max(predictor.widened)
    return Finished(SupportPredictor.of(predictor, supports), weights, calibrated, widened)


def losses(held_out: HeldOut, weights: np.ndarray) -> np.ndarray:
    """Return the quantile loss ``(n,)`` of the predictors' average by weights ``(P,)``."""
    levels = np.array(DECILES)[:, None]
    over = held_out.value - np.tensordot(weights, held_out.quantiles, 1)
    return np.maximum(levels * over, (levels - 1) * over).mean(axis=0)


def shares(held_out: HeldOut, weights: np.ndarray, channels: int) -> np.ndarray:
    """Return what each value counts ``(n,)`` in a mean loss that is 1 with these weights.

    Each item counts the same, and so does each channel, whatever its unit.
    """
    _, place, size = np.unique(held_out.item, return_inverse=True, return_counts=True)
    share = 1 / size[place]
    usual = np.bincount(held_out.channel, share * losses(held_out, weights), minlength=channels)
    return share / np.maximum(usual, np.finfo(float).tiny)[held_out.channel] / channels


def compared_loss(predictor: DeltaflowPredictor, other: DeltaflowPredictor, pairs: Pairs) -> float:
    """Return a predictor's quantile loss as a share of another's, averaged over channels."""
    judged = HeldOut.of([predictor, other], pairs, predictor.schema)
    own, others = (
        np.bincount(judged.channel, losses(judged, weights), len(predictor.schema.target))
        for weights in np.eye(2)
    )
    seen = others > 0
    return float((own[seen] / others[seen]).mean()) if seen.any() else math.inf


def blend_weights(held_out: Sequence[Sequence[HeldOut]], channels: int) -> list[float]:
    """Return the weights of the networks together, and of each simple forecast.

    They are those of the lowest quantile loss on the values held out, of which one group or two
    count as `COUNTS` says. They are drawn towards equal weights (`SHRINKAGE`), the more so, the
    fewer items the first group has: few items say little, and none nothing.
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
        return float(mean + shrinkage * ((weights - equal) ** 2).sum())

    bounds = [(LEAST_OF_NETWORKS, 1.0), *[(0.0, 1.0)] * (count - 1)]
    total = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    found = minimize(loss, equal, bounds=bounds, constraints=total, method="SLSQP").x
    found = np.where(found < LEAST_WEIGHT, 0.0, found)
    return (found / found.sum()).tolist()
