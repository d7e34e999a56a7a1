"""Folds and settings that suit a data set, where the user gives none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from deltaflow.data import Reader
from deltaflow.data.series import Series
from deltaflow.data.splitter import by_item
from deltaflow.training import engine
from deltaflow.training.network_estimator import NetworkEstimator

FEW_ITEMS = 250
"""Up to this many items, networks are trained on folds of all of them."""

SOME_ITEMS, NETWORKS_OF_SOME = 1000, 3
"""Above `FEW_ITEMS` and up to this many items, this many networks are trained; above it, one. Each
holds out a `SHARE_ASIDE` of the items, which no other holds out."""

FOLDS, FOLDS_OF_LONG_ITEMS = 5, 3
"""The number of folds, usually and for items with a context longer than `LONG`."""

LONG = 48

SHORT_CONTEXT, WORSE = 5, 1.05
"""The short context that is tried if items are few, and the largest loss on held-out items,
relative to that with the usual context, at which it is chosen. Networks with the usual context also
learn how items change at each age, which misleads them at ages beyond the training data."""

BETTER, AS_GOOD = 0.97, 1.03
"""One scale for all items is tried if they are few and differ in scale. It is chosen if the loss on
held-out items, relative to that with a scale for each item, is at most the first number in total,
and at most the second as a mean over items. With a common scale, networks see the level of an item,
which helps where the spread follows the level; elsewhere, items of small scale would suffer."""

TRIED = 2
"""The number of folds on which alternative settings are tried."""

OBSERVED = 0.95
"""The smallest share of observed target values at which a short context is tried. If more are
missing, it may not contain the last value of each channel."""

SHARE_ASIDE = 0.1
"""The share of many items that is held out for validation and calibration."""

MOST_ASIDE = 1000
"""The largest number of items held out."""

SMALL: dict[str, Any] = {
    "dropout": 0.1,
    "weight_decay": 0.01,
    "batch_size": 64,
    "num_batches_per_epoch": 25,
}
"""Settings for few items, unless the user gives others; windows per epoch are as many as usual."""

EPOCHS, PATIENCE, DECAY = 25, 7, 0.98
"""For few items: the largest number of epochs, the patience of early stopping in epochs, and the
decay per batch of the weight average."""

PATIENCE_OF_MANY, DECAY_OF_MANY = 15, 0.99
"""Patience and decay for many items, whose number of epochs is the usual one."""

MOST_UNLIKE = 8.0
"""If the standard deviations of nine in ten items differ by at most this factor, one scale fits all
items. With several channels, the median of their factors decides."""

MANY_CHANNELS, SELDOM = 16, 1 / 3
"""With at least so many channels, of which a row observes at most this share on average, each has
its own state: a joint one would have hardly more than one number per channel."""

PER_CHANNEL: dict[str, Any] = {
    "network": "channelwise",
    "balance": 0.4,
    "distr_output": "mean_quantile",
}
"""Settings for many channels: rarely observed ones get more weight, and each has a mean besides a
distribution of any shape."""

PER_CHANNEL_OF_MANY: dict[str, Any] = {
    "encoder_kwargs": {"num_layers": 1},
    "lr": 4e-3,
    "weight_decay": 0.01,
    "batch_size": 64,
}
"""Settings for many channels and many items: rarely observed channels need many windows, and the
state of one channel needs no deep encoder."""

FEWEST_BATCHES, MOST_BATCHES = 25, 75
"""The bounds of the number of batches per epoch, which draws about one window per item."""

CLIP = 2.0
"""The norm to which gradients are clipped: those of heavy-tailed channels vary strongly."""

FEWEST_VALUES = 8
"""With fewer values, standard deviations can differ by such a factor by chance."""


class Plan(NamedTuple):
    """How a data set is trained on.

    Attributes
    ----------
    left_out
        For each member, the numbers of its held-out items; empty for a single item, on which a
        network is trained as a whole.
    settings
        Arguments of the estimator.
    few
        Whether the items are few, see `FEW_ITEMS`.
    epochs, patience, decay
        See `EPOCHS`, `PATIENCE` and `DECAY`.
    clip
        The norm to which gradients are clipped.
    monitor
        The validation score that determines the best epoch; a quantile loss if None.
    """

    left_out: list[np.ndarray]
    settings: dict[str, Any]
    few: bool
    epochs: int
    patience: int
    decay: float
    clip: float = engine.DEFAULTS["gradient_clip_val"]
    monitor: str | None = None


def plan_for(
    data: Sequence[Series],
    usable: np.ndarray,
    reader: Reader,
    folds: int | None,
    seed: int,
    start_times: np.ndarray | None = None,
) -> Plan:
    """Choose folds and settings from the data.

    Parameters
    ----------
    data
        The entries. Those of one item, such as rolled windows, are held out together.
    usable
        The numbers of those with values to forecast.
    reader
        How they are read.
    folds
        The number of folds; by the number of items if None.
    seed
        Seed of the folds.
    start_times
        The time at which each entry begins. If given, the folds are blocks of time, the latest
        first, and entries that begin at the same time are held out together; otherwise the folds
        are random.
    """
    if start_times is None:
        items = by_item([data[number].item_id for number in usable.tolist()])
        if len(items) == 1:  # its entries are all there is to hold out
            items = [[place] for place in range(len(usable))]
        random = np.random.default_rng(seed)
        order = [usable[items[place]] for place in random.permutation(len(items))]
    else:
        times = start_times[usable]
        order = [usable[times == time] for time in np.unique(times)[::-1]]
    count = len(order)
    few = count <= FEW_ITEMS
    if folds is None and few:
        sample = [data[entries[0]].length for entries in order[:100]]
        length = min(float(np.median(sample)), reader.context_length)
        folds = FOLDS if length <= LONG else FOLDS_OF_LONG_ITEMS
    if count < 2:
        left_out = []
    elif folds is None or folds == 1:
        aside = min(max(1, round(SHARE_ASIDE * count if not few else 0.2 * count)), MOST_ASIDE)
        networks = NETWORKS_OF_SOME if folds is None and count <= SOME_ITEMS else 1
        left_out = [np.hstack(order[number * aside :][:aside]) for number in range(networks)]
    else:
        folds = min(folds, count)
        parts = [order[first::folds] for first in range(folds)]
        if start_times is not None:
            bounds = [count * number // folds for number in range(folds + 1)]
            parts = [order[slice(*own)] for own in pairwise(bounds)]
        left_out = [np.hstack(part) for part in parts]
    some = [data[int(item)] for item in usable[:1000]]
    settings = {
        **(SMALL if few else {}),
        **_channel_settings_for(some, len(reader.schema.target)),
        "scaling": scaling_for([item.values[:, : len(reader.schema.target)] for item in some]),
    }
    if few:
        return Plan(left_out, settings, few, EPOCHS, PATIENCE, DECAY)
    epochs = int(engine.DEFAULTS["max_epochs"])
    plan = Plan(left_out, settings, few, epochs, PATIENCE_OF_MANY, DECAY_OF_MANY)
    if "network" not in settings:
        return plan
    batches = np.clip(count // PER_CHANNEL_OF_MANY["batch_size"], FEWEST_BATCHES, MOST_BATCHES)
    settings = {**settings, **PER_CHANNEL_OF_MANY, "num_batches_per_epoch": int(batches)}
    # A quantile loss would ignore the mean, which the head learns besides the quantiles.
    return plan._replace(settings=settings, clip=CLIP, monitor="val_loss")


def _channel_settings_for(items: Sequence[Series], channels: int) -> dict[str, Any]:
    """Choose a state per channel if there are many, observed at different times."""
    observed = sum(int(np.isfinite(item.values[:, :channels]).sum()) for item in items)
    rows = sum(item.length for item in items)
    seldom = observed <= SELDOM * channels * rows
    return PER_CHANNEL if channels >= MANY_CHANNELS and seldom else {}


def scaling_for(items: Sequence[np.ndarray]) -> str:
    """Choose one scale for all items, unless most channels' deviations differ between items.

    Parameters
    ----------
    items
        The values of each item ``(T, D)``.
    """
    deviations = np.full((len(items), items[0].shape[1]), np.nan)
    for row, values in zip(deviations, items, strict=True):
        for channel, own in enumerate(values.T):
            known = own[np.isfinite(own)]
            if len(known) >= FEWEST_VALUES and np.ptp(known) > 0:
                row[channel] = np.std(known)
    spreads = []
    for own in deviations.T:
        own = own[np.isfinite(own)]
        if len(own) > 1:
            low, high = np.quantile(own, [0.05, 0.95])
            spreads.append(high / low)
    middle = np.quantile(spreads, 0.5, method="lower") if spreads else 0.0
    return "running" if middle > MOST_UNLIKE else "last"


def planned(estimator: NetworkEstimator, plan: Plan) -> NetworkEstimator:
    """Return the estimator with those settings of a plan that it was not given itself."""
    free = [name for name in estimator.free_options if name in plan.settings]
    return estimator.with_settings(**{name: plan.settings[name] for name in free})
