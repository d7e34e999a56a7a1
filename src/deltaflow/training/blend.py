"""Networks and simple forecasts become one predictor: blended, calibrated, within supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from gluonts.dataset.common import DataEntry
from scipy.optimize import minimize

from deltaflow.data.schema import Schema
from deltaflow.forecast.conformal import ConformalPredictor, Scored, forecast_pairs, scores_of
from deltaflow.forecast.ensemble import EnsemblePredictor
from deltaflow.forecast.forecasts import EnsembleForecast, RealTimeForecast
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.hold import HoldPredictor
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

MOST_PROCESSES = 16
"""With more channels, Gaussian processes of all of them take long to fit, and to forecast."""

FEWEST_FOR_TREND = 5
"""With fewer values of a typical item and channel, a change of slope cannot be told from noise."""


Pairs = Sequence[tuple[DataEntry, DataEntry]]
"""What was known and what followed."""


class HeldOut(NamedTuple):
    """Values that some predictors have not learned from.

    Attributes
    ----------
    forecasts
        For each predictor, its forecasts of what followed.
    pairs
        What was known, and the values that followed.
    """

    forecasts: Sequence[Sequence[RealTimeForecast]]
    pairs: Pairs

    @classmethod
    def of(cls, predictors: Sequence[DeltaflowPredictor], pairs: Pairs) -> HeldOut:
        """Forecast what followed by each predictor."""
        return cls([list(forecast_pairs(one, pairs)) for one in predictors], pairs)

    def scores(self, weights: Sequence[float], schema: Schema) -> Scored:
        """Return the scores of the forecasts' average, see `ConformalPredictor`."""
        chosen = [own for own, weight in zip(self.forecasts, weights, strict=True) if weight > 0]
        kept = [weight for weight in weights if weight > 0]
        blended = (EnsembleForecast(own, kept) for own in zip(*chosen, strict=True))
        return scores_of(blended, self.pairs, schema)


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
    weights, left_out = [1.0], []
    if simple or calibrated:
        left_out = [
            HeldOut.of([member, *simple], own) for member, own in zip(members, pairs, strict=True)
        ]
    if simple:
        groups = [left_out, [rehearsed]] if rehearsed else [left_out]
        weights = blend_weights(groups, len(supports))
    networks = members[0] if len(members) == 1 else EnsemblePredictor(list(members))
    chosen = [pair for pair in zip([networks, *simple], weights, strict=True) if pair[1] > 0]
    predictor = chosen[0][0]
    if len(chosen) > 1:
        predictor = EnsemblePredictor(*map(list, zip(*chosen, strict=True)))
    widened = 1.0
    if calibrated:
        schema = predictor.schema
        # A rehearsal only widens: its errors have a common sign, which the next need not have.
        predictor = ConformalPredictor.of_scores(
            predictor,
            [one.scores(weights, schema) for one in left_out],
            least=[0.5 if support.whole else 0.0 for support in supports],
            rehearsal=rehearsed.scores(weights, schema) if rehearsed else None,
        )
        widened = max(predictor.widened)
    return Finished(SupportPredictor.of(predictor, supports), weights, calibrated, widened)


class Judged(NamedTuple):
    """The n observed labels of some forecasts, and their forecasts by P predictors.

    Attributes
    ----------
    value, channel, item
        ``(n,)`` the label, the number of its channel, and the item.
    quantile
        ``(P, K, n)`` the forecast deciles.
    """

    value: np.ndarray
    channel: np.ndarray
    item: np.ndarray
    quantile: np.ndarray

    @classmethod
    def of(cls, held_out: HeldOut, channels: int) -> Judged:
        """Return the labels of what was held out, with their forecasts."""
        parts = []
        for (known, label), *forecasts in zip(held_out.pairs, *held_out.forecasts, strict=True):
            value = label["target"].T.reshape(-1, channels)  # (Q, D)
            seen = np.isfinite(value)
            deciles = [one.quantiles(DECILES)[:, : len(value)] for one in forecasts]
            quantile = np.array(deciles).reshape(len(forecasts), len(DECILES), *value.shape)
            item = np.full(int(seen.sum()), str(known.get("item_id")), dtype=object)
            parts.append(cls(value[seen], np.nonzero(seen)[1], item, quantile[:, :, seen]))
        return cls.joined(parts)

    @classmethod
    def joined(cls, parts: Sequence[Judged]) -> Judged:
        """Put labels one after the other."""
        return cls(*(np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))

    def losses(self, weights: np.ndarray) -> np.ndarray:
        """Return the quantile loss ``(n,)`` of the predictors' average by weights ``(P,)``."""
        levels = np.array(DECILES)[:, None]
        over = self.value - np.tensordot(weights, self.quantile, 1)
        return np.maximum(levels * over, (levels - 1) * over).mean(axis=0)

    def shares(self, weights: np.ndarray, channels: int) -> np.ndarray:
        """Return what each label counts ``(n,)`` in a mean that is 1 with these weights.

        Each item counts the same, and so does each channel, whatever its unit.
        """
        _, place, size = np.unique(self.item, return_inverse=True, return_counts=True)
        share = 1 / size[place]
        usual = np.bincount(self.channel, share * self.losses(weights), minlength=channels)
        return share / np.maximum(usual, np.finfo(float).tiny)[self.channel] / channels


def compared_loss(
    predictor: DeltaflowPredictor,
    other: DeltaflowPredictor,
    pairs: Pairs,
) -> float:
    """Return a predictor's quantile loss as a share of another's, averaged over channels."""
    channels = len(predictor.schema.target)
    judged = Judged.of(HeldOut.of([predictor, other], pairs), channels)
    own, others = (
        np.bincount(judged.channel, judged.losses(weights), minlength=channels)
        for weights in np.eye(2)
    )
    seen = others > 0
    return float((own[seen] / others[seen]).mean()) if seen.any() else math.inf


def processes_for(entries: Sequence[DataEntry]) -> tuple[str, ...]:
    """Choose the Gaussian processes that are blended in, see `PROCESSES`."""
    values = np.array([np.isfinite(entry["target"]).sum(axis=-1) for entry in entries])
    if values[0].size > MOST_PROCESSES:
        return ()
    return ("cycle", "trend") if np.median(values) >= FEWEST_FOR_TREND else ("cycle",)


def simple_forecasts(
    entries: list[DataEntry],
    prediction_length: int,
    supports: Sequence[Support],
    processes: Sequence[str],
) -> list[DeltaflowPredictor]:
    """Fit a hold and Gaussian processes, which are blended with networks."""
    root = all(support.low >= 0 for support in supports)
    return [
        HoldPredictor.fit(entries, prediction_length),
        *(
            GaussianProcessPredictor.fit(entries, prediction_length, root, process)
            for process in processes
        ),
    ]


def blend_weights(held_out: Sequence[Sequence[HeldOut]], channels: int) -> list[float]:
    """Return the weights of the networks together, and of each simple forecast.

    They are those of the lowest quantile loss on the values held out, of which one group or two
    count as `COUNTS` says. They are drawn towards equal weights (`SHRINKAGE`), the more so, the
    fewer items the first group has: few items say little.
    """
    groups = [
        Judged.joined([Judged.of(one, channels) for one in group if one.pairs])
        for group in held_out
    ]
    count = len(groups[0].quantile)
    equal = np.full(count, 1 / count)
    shares = [group.shares(equal, channels) for group in groups]
    shrinkage = SHRINKAGE * max(1.0, ENOUGH_ITEMS / len(np.unique(groups[0].item)))

    def loss(weights: np.ndarray) -> float:
        means = [
            (share * group.losses(weights)).sum()
            for share, group in zip(shares, groups, strict=True)
        ]
        mean = np.average(means, weights=COUNTS[: len(means)])
        return float(mean + shrinkage * ((weights - equal) ** 2).sum())

    bounds = [(LEAST_OF_NETWORKS, 1.0), *[(0.0, 1.0)] * (count - 1)]
    total = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    found = minimize(loss, equal, bounds=bounds, constraints=total, method="SLSQP").x
    found = np.where(found < LEAST_WEIGHT, 0.0, found)
    return (found / found.sum()).tolist()


def name_of(simple: DeltaflowPredictor) -> str:
    """Return what a simple forecast of a blend is called."""
    if isinstance(simple, GaussianProcessPredictor):
        if simple.process == "trend":
            return "local trend"
        return "Gaussian process" + " with a cycle" * any(simple.periods)
    return "hold"
