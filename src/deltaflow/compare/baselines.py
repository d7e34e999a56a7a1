"""Baselines without a network: regressions on summaries of the observations.

Their forecasts are Laplace distributions: the point forecast is both mean and median, and the scale
is the mean absolute error of the validation forecasts.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from gluonts.core.component import validated
from gluonts.dataset.split import TestData
from torch.distributions import Laplace

from deltaflow.compare.progress import Tell
from deltaflow.data.schema import Schema
from deltaflow.data.series import Series, matched_series
from deltaflow.errors import needing
from deltaflow.forecast.location_scale import LocationScalePredictor
from deltaflow.tasks import Task

P = TypeVar("P", bound="LaplacePredictor")

SUMMARY = (
    "last", "previous", "first", "mean", "minimum", "maximum", "deviation", "count",
    "time of the last", "recent mean", "decaying mean",
)  # fmt: skip
"""The features that `summarise` computes for each channel."""

LAST, MEAN, DECAYING = (SUMMARY.index(name) for name in ("last", "mean", "decaying mean"))

NUM_ROUNDS = 600
"""The largest number of trees per channel."""

STOP_AFTER = 40
"""Boosting stops after this many trees without a lower validation error of the channel."""

TREES = {
    "objective": "l2",
    "learning_rate": 0.03,
    "num_leaves": 15,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.3,
    "verbose": -1,
}
"""Parameters of LightGBM."""


def summarise(series: Series, num_channels: int, recent: float) -> np.ndarray:
    """Return the `SUMMARY` of each channel's observed values.

    Parameters
    ----------
    series
        The series.
    num_channels
        The number D of channels.
    recent
        The largest age, at the last observation, of recent observations. The weights of the
        decaying mean fall to 1/e within the same time.

    Returns
    -------
    numpy.ndarray
        ``(D, len(SUMMARY))``; NaN where a channel has no such value.
    """
    values = series.values[:, :num_channels]  # (T, D)
    times = series.times[: series.length, None]
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    count = known.sum(axis=0)
    left = known[::-1].cumsum(axis=0)[::-1]  # the number of known values from here on
    age = times[-1:] - times

    def the_one(chosen: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.where(chosen.any(axis=0), np.where(chosen, of, 0.0).sum(axis=0), np.nan)

    def weighted_mean(weights: np.ndarray, of: np.ndarray = filled) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (weights * of).sum(axis=0) / weights.sum(axis=0)

    mean = weighted_mean(known)
    last = known & (left == 1)
    summary = np.stack(
        [
            the_one(last, filled),
            the_one(known & (left == 2), filled),
            the_one(known & (left == count), filled),
            mean,
            np.where(known, values, np.inf).min(axis=0, initial=np.inf),
            np.where(known, values, -np.inf).max(axis=0, initial=-np.inf),
            np.sqrt(weighted_mean(known, (filled - mean) ** 2)),
            count,
            the_one(last, times),
            weighted_mean(known & (age <= recent)),
            weighted_mean(known * np.exp(-age / recent)),
        ],
        axis=1,
    )
    return np.where(np.isfinite(summary), summary, np.nan)


class LaplacePredictor(LocationScalePredictor):
    """Forecasts Laplace distributions with the same scale at each query.

    A subclass implements :meth:`point`.

    Parameters
    ----------
    prediction_length, data_schema
        See `LocationScalePredictor`.
    center
        ``(D,)`` mean of each channel in the training set.
    scale
        ``(D,)`` scale of each channel's distribution.
    """

    family = Laplace

    @validated()
    def __init__(
        self, prediction_length: int, data_schema: dict, center: list, scale: list
    ) -> None:
        super().__init__(prediction_length, data_schema)
        self.center, self.scale = np.asarray(center), np.asarray(scale)

    @abstractmethod
    def point(self, series: Series, queries: np.ndarray) -> np.ndarray:
        """Return the location of each query and channel, ``(Q, D)`` or ``(1, D)``."""

    def locate(self, series: Series, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return location and scale ``(Q, D)``; see `LocationScalePredictor.locate`."""
        shape = len(queries), len(self.center)
        return (
            np.broadcast_to(self.point(series, queries), shape),
            np.broadcast_to(self.scale, shape),
        )


class LinearPredictor(LaplacePredictor):
    """Forecasts a channel by a line through its last value and the mean of its values.

    ``center + a (last - center) + b (mean - center) + c``; without an observed value, the first
    two terms vanish.

    Parameters
    ----------
    prediction_length, data_schema, center, scale
        See `LaplacePredictor`.
    weights
        ``(D, 3)`` a, b and c of each channel.
    """

    @validated()
    def __init__(
        self, prediction_length: int, data_schema: dict, weights: list, center: list, scale: list
    ) -> None:
        super().__init__(prediction_length, data_schema, center, scale)
        self.weights = np.asarray(weights)

    def point(self, series: Series, queries: np.ndarray) -> np.ndarray:
        """Return the locations, the same for each query."""
        summary = summarise(series, len(self.center), recent=1.0)
        return (self.center + (self.weights * _terms(summary, self.center)).sum(axis=1))[None]


class TrendPredictor(LaplacePredictor):
    """Forecasts each channel by a straight line through its observed values in the item.

    A single value is held constant; without any, the mean of the training set is forecast. See
    `LaplacePredictor` for the parameters.
    """

    def point(self, series: Series, queries: np.ndarray) -> np.ndarray:
        """Return the lines ``(Q, D)`` at the queries."""
        lines = np.tile(self.center, (len(queries), 1))
        for channel, values in enumerate(series.values[:, : len(self.center)].T):
            known = np.isfinite(values)
            times = series.times[: series.length][known]
            if not len(times):
                continue
            since, value = times - times.mean(), values[known]
            variation = (since**2).sum()
            slope = (since * value).sum() / variation if variation > 0 else 0.0
            lines[:, channel] = value.mean() + slope * (queries - times.mean())
        return lines


class TreesPredictor(LaplacePredictor):
    """Forecasts a channel by its last value plus a change, which boosted trees predict.

    The features are the time of the query, the channel's `SUMMARY`, and the last value, mean and
    decaying mean of every channel.

    Parameters
    ----------
    prediction_length, data_schema, center, scale
        See `LaplacePredictor`; the mean replaces a missing last value.
    models
        For each of the D channels, LightGBM's model string, or None without trees.
    recent
        See `summarise`, in seconds, or periods of a regular series.
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        data_schema: dict,
        models: list,
        recent: float,
        center: list,
        scale: list,
    ) -> None:
        super().__init__(prediction_length, data_schema, center, scale)
        with needing("trees"):
            from lightgbm import Booster
        self.boosters = [None if text is None else Booster(model_str=text) for text in models]
        self.recent = recent

    def point(self, series: Series, queries: np.ndarray) -> np.ndarray:
        """Return the locations."""
        summary = summarise(series, len(self.center), self.recent)
        times, place = np.unique(queries, return_inverse=True)
        loc = np.tile(_held(summary, self.center), (len(times), 1))
        for channel, booster in enumerate(self.boosters):
            if booster is not None:
                features = _tree_features(summary[None], times, channel)
                loc[:, channel] += booster.predict(features, num_threads=1)
        return loc[place]


def fit_training_mean(task: Task) -> LinearPredictor:
    """Forecast each channel by its mean in the training set."""
    return _fit_lines(task, lambda terms, values: (0.0, 0.0, 0.0))


def fit_item_mean(task: Task) -> LinearPredictor:
    """Forecast each channel by the mean of its observed values in the item."""
    return _fit_lines(task, lambda terms, values: (0.0, 1.0, 0.0))


def fit_item_trend(task: Task) -> TrendPredictor:
    """Forecast each channel by a straight line through its observed values in the item."""
    return _Basis(task).scaled(TrendPredictor)


def fit_least_squares(task: Task) -> LinearPredictor:
    """Fit the three weights of each channel to the training forecasts by least squares."""
    return _fit_lines(task, lambda terms, values: np.linalg.lstsq(terms, values, rcond=None)[0])


def fit_boosted_trees(
    task: Task, seed: int, num_threads: int, tell: Tell
) -> tuple[TreesPredictor, int]:
    """Fit trees to the training forecasts; the validation forecasts determine their number.

    Parameters
    ----------
    task
        The task.
    seed
        Seed of the choice of features of each tree.
    num_threads
        The number of LightGBM's threads.
    tell
        Called with the number of the channel being fitted.

    Returns
    -------
    TreesPredictor, int
        The predictor, and the number of its leaves.

    Raises
    ------
    DeltaflowError
        If LightGBM is not installed.

    References
    ----------
    Ke et al., *LightGBM: A Highly Efficient Gradient Boosting Decision Tree*, 2017.
    """
    with needing("trees"):
        import lightgbm
    basis = _Basis(task)
    spans = [np.ptp(s.times[: s.length]) for s in basis.training.series if s.length]
    recent = float(np.median(spans or [0.0])) / 4 or 1.0
    num_channels = len(basis.center)
    training, validation = (
        np.stack([summarise(series, num_channels, recent) for series in part.series])
        for part in (basis.training, basis.validation)
    )  # (N, D, len(SUMMARY))
    parameters = {**TREES, "seed": seed, "num_threads": num_threads, "deterministic": True}
    models: list[str | None] = []
    num_leaves = 0
    for channel in range(num_channels):
        tell(f"channel {channel + 1} of {num_channels}", (channel + 0.5) / num_channels)
        models.append(None)
        sets = []
        for part, summaries in ((basis.training, training), (basis.validation, validation)):
            items, times, values = part.of_channel(channel)
            held = _held(summaries, basis.center)[items, channel]
            sets.append((_tree_features(summaries, times, channel, items), values - held))
        if not all(len(changes) for _, changes in sets):
            continue
        data = lightgbm.Dataset(*sets[0])
        booster = lightgbm.train(
            parameters,
            data,
            num_boost_round=NUM_ROUNDS,
            valid_sets=[lightgbm.Dataset(*sets[1], reference=data)],
            callbacks=[lightgbm.early_stopping(STOP_AFTER, verbose=False)],
        )
        models[-1] = booster.model_to_string(num_iteration=booster.best_iteration)
        trees = booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]
        num_leaves += sum(tree["num_leaves"] for tree in trees)
    return basis.scaled(TreesPredictor, models=models, recent=recent), num_leaves


class _Forecasts:
    """The observations before the origin of each forecast, and the n labels of all queries.

    Parameters
    ----------
    test, schema
        The forecasts, and the schema of the training data.

    Attributes
    ----------
    series
        The observations and the query times of each forecast.
    items, times
        ``(n,)`` the number of the forecast and the time of each query.
    values
        ``(n, D)`` the labels, NaN where not observed.
    """

    def __init__(self, test: TestData, schema: Schema) -> None:
        self.series, labels = list[Series](), []
        for past, label in test:
            values = np.atleast_2d(label["target"]).T
            found, one = matched_series(past, schema, num_queries=len(values))
            self.series.append(one)
            labels.append(values[:, found.rows["target"]])
        self.items = np.repeat(np.arange(len(labels)), [len(own) for own in labels])
        self.times = np.concatenate([one.times[one.length :] for one in self.series])
        self.values = np.concatenate(labels)

    def of_channel(self, channel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return item, time and value of the observed labels of a channel."""
        known = np.isfinite(self.values[:, channel])
        return self.items[known], self.times[known], self.values[known, channel]


class _Basis:
    """The training data of a regression for a task.

    Attributes
    ----------
    arguments
        The arguments that all predictors share.
    training, validation
        The forecasts.
    center, spread
        ``(D,)`` mean and standard deviation of each channel.
    """

    def __init__(self, task: Task) -> None:
        known, channels = task.statistics, len(task.schema.target)
        self.center, self.spread = (known[name][:channels] for name in ("center", "spread"))
        self.arguments = {
            "prediction_length": task.prediction_length,
            "data_schema": task.schema.to_dict(),
            "center": self.center.tolist(),
        }
        self.training = _Forecasts(task.training_forecasts, task.schema)
        self.validation = _Forecasts(task.validation, task.schema)

    def scaled(self, kind: type[P], **arguments: Any) -> P:
        """Return a predictor with the mean absolute value of its validation errors as scale.

        A channel without such errors gets the scale of its values in the training set.
        """
        make = partial(kind, **self.arguments, **arguments)
        locate = make(scale=self.spread.tolist()).locate
        located = [locate(one, one.times[one.length :])[0] for one in self.validation.series]
        errors = np.abs(self.validation.values - np.concatenate(located))
        count = np.isfinite(errors).sum(axis=0)
        mean = np.nansum(errors, axis=0) / np.maximum(count, 1)
        scale = np.where(count, np.maximum(mean, 1e-9 * self.spread), self.spread / np.sqrt(2))
        return make(scale=scale.tolist())


def _fit_lines(task: Task, fit: Callable[[np.ndarray, np.ndarray], Any]) -> LinearPredictor:
    """Compute each channel's weights by ``fit``, from terms ``(n, 3)`` and values ``(n,)``."""
    basis = _Basis(task)
    summaries = [summarise(s, len(basis.center), recent=1.0) for s in basis.training.series]
    terms = np.stack([_terms(summary, basis.center) for summary in summaries])  # (N, D, 3)
    weights = np.zeros((len(basis.center), 3))
    for channel, center in enumerate(basis.center):
        items, _, values = basis.training.of_channel(channel)
        weights[channel] = fit(terms[items, channel], values - center)
    return basis.scaled(LinearPredictor, weights=weights.tolist())


def _terms(summary: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the centred last value and mean, 0 where missing, and a constant 1: ``(D, 3)``."""
    last, mean = (np.nan_to_num(summary[:, name] - center) for name in (LAST, MEAN))
    return np.stack([last, mean, np.ones_like(center)], axis=1)


def _held(summary: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the last value ``(..., D)`` of each channel, its centre where there is none."""
    return np.where(np.isfinite(summary[..., LAST]), summary[..., LAST], center)


def _tree_features(
    summaries: np.ndarray, times: np.ndarray, channel: int, items: np.ndarray | int = 0
) -> np.ndarray:
    """Return the features ``(n, F)`` of queries at ``(n,)`` times for the trees of a channel.

    Parameters
    ----------
    summaries
        ``(N, D, len(SUMMARY))`` of all items.
    times
        ``(n,)`` times of the queries.
    channel
        The channel to forecast.
    items
        ``(n,)`` items of the queries, or one item for all of them.
    """
    others = summaries[:, :, [LAST, MEAN, DECAYING]].reshape(len(summaries), -1)  # (N, 3 D)
    known = np.concatenate([summaries[:, channel], others], axis=1)
    rows = np.broadcast_to(items, times.shape)
    return np.concatenate([times[:, None], known[rows]], axis=1)
