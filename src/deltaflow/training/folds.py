"""Training that does not overfit, whatever the size of the data: folds of items, early stopping,
averages, calibrated intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gluonts.dataset.common import DataEntry, Dataset
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_info

from deltaflow.data import Reader
from deltaflow.data.data_module import by_number
from deltaflow.data.series import Series
from deltaflow.data.splitter import cut_entry, select
from deltaflow.data.windows import SpreadWindows
from deltaflow.errors import warn_once
from deltaflow.forecast.conformal import FEWEST_ITEMS
from deltaflow.forecast.held_out import HeldOut, Pairs
from deltaflow.forecast.predictor import DeltaflowPredictor
from deltaflow.forecast.support import supports_of
from deltaflow.randomness import derived_seed
from deltaflow.training import engine
from deltaflow.training.blend import Finished, finish
from deltaflow.training.simple import SimpleForecasts, name_of, observed
from deltaflow.training.stretches import Stretch, stretches
from deltaflow.training.widening import widened

if TYPE_CHECKING:
    from deltaflow.training.estimator import IrregularEstimator

FEW_ITEMS = 250
"""Up to so many items, networks are trained on folds of them; with more, one network suffices."""

FOLDS, FOLDS_OF_LONG_ITEMS = 5, 3
"""The number of folds, and where the context of a typical item is longer than `LONG`."""

LONG = 48

SHARE_ASIDE = 0.1
"""The share of many items that is put aside for validation and calibration."""

MOST_ASIDE = 1000
"""The largest number of these items."""

SMALL: dict[str, Any] = {
    "dropout": 0.1,
    "weight_decay": 0.01,
    "batch_size": 64,
    "num_batches_per_epoch": 25,
}
"""Settings for few items, where the user gives no others; an epoch has as many windows as ever."""

EPOCHS, PATIENCE, DECAY = 25, 7, 0.98
"""For few items: the largest number of epochs; how many of them go by without a better validation
before a training run ends; and the decay per batch of the average of the weights."""

PATIENCE_OF_MANY, DECAY_OF_MANY = 15, 0.99
"""The same for many items, whose training runs keep the usual number of epochs."""

MOST_UNLIKE = 8.0
"""If the deviations of nine in ten items differ by no more than this factor, one unit fits all.
With several channels, the factor of the middle one counts."""

MANY_CHANNELS, SELDOM = 16, 1 / 3
"""With so many channels, of which a row observes at most this share, each gets a state of its own:
a joint one would hold hardly more than a number for each."""

PER_CHANNEL: dict[str, Any] = {
    "network": "channelwise",
    "balance": 0.4,
    "distr_output": "mean_quantile",
}
"""Settings for so many channels: seldom ones count more than by their number of values, and each
has a mean beside a distribution of any shape."""

PER_CHANNEL_OF_MANY: dict[str, Any] = {
    "encoder_kwargs": {"num_layers": 1},
    "lr": 4e-3,
    "weight_decay": 0.01,
    "batch_size": 64,
}
"""Settings for so many channels of many items: seldom channels take many windows to learn, and the
state of one channel needs no deep encoder."""

FEWEST_BATCHES, MOST_BATCHES = 25, 75
"""An epoch of them draws about one window of each item, in a number of batches between these."""

CLIP = 2.0
"""The norm to which their gradients are clipped: those of heavy-tailed channels vary much."""

FEWEST_VALUES = 8
"""The deviation of fewer values says little: chance alone would let it differ by such a factor."""


class Plan(NamedTuple):
    """How a data set is trained on.

    Attributes
    ----------
    left_out
        For each member, the numbers of the items that it does not learn from; empty for a single
        item, which is learned from as a whole.
    settings
        Arguments of the estimator.
    epochs, patience, decay
        See `EPOCHS`, `PATIENCE` and `DECAY`.
    clip
        The norm to which gradients are clipped.
    monitor
        The score of the validation that decides on the best epoch; a quantile loss if None.
    """

    left_out: list[np.ndarray]
    settings: dict[str, Any]
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
) -> Plan:
    """Choose folds and settings by the data.

    Parameters
    ----------
    data
        The items.
    usable
        The numbers of those that have anything to forecast.
    reader
        How they are read.
    folds
        The number of folds; by the number of items if None.
    seed
        Seed of the folds.
    """
    count = len(usable)
    order = np.random.default_rng(seed).permutation(usable)
    few = count <= FEW_ITEMS
    if folds is None and few:
        sample = [data[int(item)].length for item in order[:100]]
        length = min(float(np.median(sample)), reader.context_length)
        folds = FOLDS if length <= LONG else FOLDS_OF_LONG_ITEMS
    if count < 2:
        left_out = []
    elif folds is None or folds == 1:
        aside = min(max(1, round(SHARE_ASIDE * count if not few else 0.2 * count)), MOST_ASIDE)
        left_out = [order[:aside]]
    else:
        folds = min(folds, count)
        left_out = [order[first::folds] for first in range(folds)]
    some = [data[int(item)] for item in usable[:1000]]
    settings = {
        **(SMALL if few else {}),
        **_channel_settings_for(some, len(reader.schema.target)),
        "scaling": _scaling_for(some, len(reader.schema.target)),
    }
    if few:
        return Plan(left_out, settings, EPOCHS, PATIENCE, DECAY)
    plan = Plan(
        left_out, settings, int(engine.DEFAULTS["max_epochs"]), PATIENCE_OF_MANY, DECAY_OF_MANY
    )
    if "network" not in settings:
        return plan
    batches = np.clip(count // PER_CHANNEL_OF_MANY["batch_size"], FEWEST_BATCHES, MOST_BATCHES)
    settings = {**settings, **PER_CHANNEL_OF_MANY, "num_batches_per_epoch": int(batches)}
    # Of the mean, which the head learns beside its quantiles, a quantile loss says nothing.
    return plan._replace(settings=settings, clip=CLIP, monitor="val_loss")


def _channel_settings_for(items: Sequence[Series], channels: int) -> dict[str, Any]:
    """Keep a state per channel, where many are observed at times of their own."""
    observed = sum(int(np.isfinite(item.values[:, :channels]).sum()) for item in items)
    rows = sum(item.length for item in items)
    seldom = observed <= SELDOM * channels * rows
    return PER_CHANNEL if channels >= MANY_CHANNELS and seldom else {}


def _scaling_for(items: Sequence[Series], channels: int) -> str:
    """Forecast changes in one unit, unless the items are of units of their own.

    Then the deviations of most channels differ much between items.
    """
    deviations = np.full((len(items), channels), np.nan)
    for row, item in zip(deviations, items, strict=True):
        for channel, own in enumerate(item.values[:, :channels].T):
            known = own[np.isfinite(own)]
            if len(known) >= FEWEST_VALUES and np.ptp(known) > 0:
                row[channel] = np.std(known)
    spreads = []
    for own in deviations.T:
        own = own[np.isfinite(own)]
        if len(own) > 9:
            low, high = np.quantile(own, [0.05, 0.95])
            spreads.append(high / low)
    middle = np.quantile(spreads, 0.5, method="lower") if spreads else 0.0
    return "running" if middle > MOST_UNLIKE else "last"


class Folds:
    """The folds of a data set, and what is trained on them.

    Parameters
    ----------
    estimator
        Whose networks are trained.
    training_data
        The data.
    seed
        Seed of the folds and of windows.

    Attributes
    ----------
    items
        The number of items that have anything to forecast.
    cut
        The stretches, if they are so few that they are cut into some, which count as items from
        then on.
    whole, entries
        The items, by number; and the same or their stretches.
    usable
        The numbers of those that have anything to forecast.
    few
        Whether these are few enough for a network on each of several folds.
    supports
        The support of each channel.
    """

    def __init__(self, estimator: IrregularEstimator, training_data: Dataset, seed: int) -> None:
        self.seed = seed
        self._given = estimator
        self.whole = self.entries = by_number(training_data)
        self.cut: list[Stretch] = []
        self._base = estimator.create_data_module(self.whole, seed=seed)
        self.items = len(self._base.training_windows.items)
        if self.items < FEWEST_ITEMS:
            self._cut_into_stretches()
        self.usable = np.asarray(self._base.training_windows.items)
        self.few = len(self.usable) <= FEW_ITEMS
        target, series = self._base.reader.schema.target, self._base.training_windows.data
        self.supports = supports_of(estimator.supports, series, target)

    def _cut_into_stretches(self) -> None:
        """Cut few items into stretches; leave them as they are if they are too short for that."""
        whole = list(select(self.whole, self._base.training_windows.items))
        length = self._given.prediction_length
        cut = stretches(whole, length, self._base.reader.context_length)
        if len(cut) >= FEWEST_ITEMS:
            entries = [one.entry for one in cut]
            base = self._given.create_data_module(entries, seed=self.seed)
            if len(base.training_windows.items) >= FEWEST_ITEMS:
                self.cut, self.entries, self._base = cut, entries, base

    @cached_property
    def plan(self) -> Plan:
        """How the data are trained on."""
        data, reader = self._base.training_windows.data, self._base.reader
        plan = plan_for(data, self.usable, reader, self._given.folds, self.seed)
        # A long item has much to learn from.
        return plan._replace(epochs=int(engine.DEFAULTS["max_epochs"])) if self.cut else plan

    @cached_property
    def estimator(self) -> IrregularEstimator:
        """The estimator, with the settings of the plan."""
        return planned(self._given, self.plan)

    @property
    def enough(self) -> bool:
        """Whether enough items are left out to calibrate on."""
        return sum(map(len, self.plan.left_out)) >= FEWEST_ITEMS

    def train(self, fold: int, estimator: IrregularEstimator, number: int) -> Member:
        """Train a network of an estimator on all folds but one; the number is that of its seed."""
        left_out = self.plan.left_out[fold]
        reader = replace(self._base.reader, scaling=estimator.data.scaling)
        inside = np.setdiff1d(self.usable, left_out)
        trained = self._train(estimator, self.entries, inside, left_out, number, reader)
        predictor, windows, epochs = trained
        return Member(predictor, self._pairs(windows, left_out), epochs)

    def _pairs(self, windows: SpreadWindows, left_out: np.ndarray) -> Pairs:
        """Return what was known and what followed at the later origins of validation windows.

        Forecasts are usually asked for when most is known: at the earlier half of an item's origins
        they are harder, and would widen the intervals. For the same reason, what is known at an
        origin in a stretch begins where the whole item does.
        """
        items, origins = np.array(windows.items), np.array(windows.origins)
        pairs = []
        for number, (item, origin) in enumerate(zip(items, origins, strict=True)):
            if origin >= np.median(origins[items == item]):
                place, end = int(left_out[item]), windows[number].queries.stop
                whole = partial(cut_entry, self.entries[place])
                split = self.cut[place].split if self.cut else whole
                pairs.append(split(origin, end))
        return pairs

    def simple_forecasts(self, entries: Sequence[DataEntry]) -> list[DeltaflowPredictor]:
        """Fit the forecasts that are blended with networks, of the same kinds for any entries."""
        return self._simple.fit(entries, self._given.prediction_length)

    @cached_property
    def _simple(self) -> SimpleForecasts:
        some, length = list(self.whole[:FEW_ITEMS]), self._given.prediction_length
        return SimpleForecasts.for_data(some, self.supports, length)

    def rehearsal(self, estimator: IrregularEstimator) -> HeldOut | None:
        """Train a network of an estimator without the last values of all items, which are held out.

        Items that a network leaves out show how well it forecasts other items; but at no later time
        than it has seen. Where all items change in the same way, only this rehearsal shows how much
        it errs when it goes beyond. Stretches that are left out already lie at other times than the
        others: they need none.

        Returns
        -------
        HeldOut or None
            The last ``prediction_length`` values of all items that have others before; None if too
            few have.
        """
        if self.cut:
            return None
        length = estimator.prediction_length
        ends = [(entry, entry["target"].shape[-1]) for entry in self.whole]
        cut = [cut_entry(entry, end - length, end) for entry, end in ends if end > length]
        pairs = [(known, later) for known, later in cut if _count(known) > 1 and _count(later)]
        early = [known for known, _ in pairs]
        if len(pairs) < FEWEST_ITEMS or not observed(early).all():
            return None
        base = estimator.create_data_module(early, seed=self.seed)
        usable, folds = np.asarray(base.training_windows.items), len(self.plan.left_out)
        aside = np.random.default_rng(self.seed).permutation(usable)[:: max(2, folds)]
        inside = np.setdiff1d(usable, aside)
        if not len(inside):
            return None
        plain = estimator.with_settings(widening=False)
        network, *_ = self._train(plain, early, inside, aside, folds, base.reader)
        return HeldOut.of([network, *self.simple_forecasts(early)], pairs, network.schema)

    def _train(
        self,
        estimator: IrregularEstimator,
        entries: Sequence[DataEntry],
        inside: np.ndarray,
        left_out: np.ndarray,
        number: int,
        reader: Reader,
    ) -> tuple[DeltaflowPredictor, SpreadWindows, int]:
        """Train a network on the entries ``inside``, and stop it by those that are left out.

        Returns
        -------
        predictor, windows, epochs
            The network, the windows it was stopped by, and after how many epochs.
        """
        plan, aside = self.plan, select(entries, left_out)
        data = estimator.create_data_module(
            select(entries, inside),
            aside,
            seed=derived_seed(self.seed, number),
            reader=reader,
            validation_origins="spread",
        )
        module = estimator.create_lightning_module(data)
        several = len(reader.schema.target) > 1
        usual = "val_balanced_quantile_loss" if several else "val_mean_weighted_quantile_loss"
        monitor = plan.monitor or usual
        settings = {"max_epochs": plan.epochs, "gradient_clip_val": plan.clip}
        stopping = EarlyStopping(monitor, patience=plan.patience, strict=False)
        trainer = engine.train(
            module,
            data,
            {**settings, **estimator.trainer_kwargs},
            monitor=monitor,
            callbacks=[stopping, engine.moving_average(plan.decay)],
        )
        predictor = estimator.create_predictor(module)
        if estimator.widening:
            predictor = widened(predictor, data, aside)
        windows = data.validation_windows
        assert isinstance(windows, SpreadWindows)
        return predictor, windows, trainer.current_epoch


class Member(NamedTuple):
    """A network of a fold.

    Attributes
    ----------
    predictor
        The network.
    pairs
        What was known and what followed of the items that it has left out.
    epochs
        The number of epochs that it was trained.
    """

    predictor: DeltaflowPredictor
    pairs: Pairs
    epochs: int


def train_folds(
    estimator: IrregularEstimator, training_data: Dataset, seed: int
) -> DeltaflowPredictor:
    """Train a network on all folds but one, for each fold; average them, and calibrate.

    Each is trained until its forecasts of the items that it leaves out get no better, and these
    items calibrate its intervals. What is not given to the estimator follows the data.

    Returns
    -------
    ConformalPredictor, EnsemblePredictor or IrregularPredictor
        A `ConformalPredictor`, if the estimator calibrates and there are items enough; of an
        `EnsemblePredictor`, if there are several members.
    """
    folds = Folds(estimator, training_data, seed)
    count = len(folds.usable)
    if estimator.calibrate and count < FEWEST_ITEMS:
        warn_once(
            f"calibrated intervals take at least {FEWEST_ITEMS} items, or longer ones to cut into "
            f"so many stretches; the training data have {count}: the intervals will cover less "
            "than they say"
        )
    careful = folds.estimator
    members = [folds.train(number, careful, number) for number in range(len(folds.plan.left_out))]
    if not members:
        output = careful.train_model(folds.entries, validation_data=None)
        members = [Member(output.predictor, [], output.trainer.current_epoch)]
    simple: list[DeltaflowPredictor] = []
    rehearsed = None
    if estimator.blend and folds.few and estimator.sampling == "marginal":
        simple = folds.simple_forecasts(folds.whole)  # a cycle may be longer than a stretch
        rehearsed = folds.rehearsal(careful)
    networks = [member.predictor for member in members]
    pairs = [member.pairs for member in members]
    finished = finish(careful, networks, simple, pairs, rehearsed, folds.supports, folds.enough)
    epochs = [member.epochs for member in members]
    rank_zero_info(_told(folds, epochs, simple, finished, rehearsed is not None))
    return finished.predictor


def _count(entry: DataEntry) -> int:
    """Return the number of rows in which a target is observed."""
    return int(np.isfinite(np.atleast_2d(entry["target"])).any(axis=0).sum())


def planned(estimator: IrregularEstimator, plan: Plan) -> IrregularEstimator:
    """Return the estimator with the settings of a plan, as far as it was given no others."""
    free = [name for name in estimator.free_options if name in plan.settings]
    return estimator.with_settings(**{name: plan.settings[name] for name in free})


def _told(
    folds: Folds,
    epochs: list[int],
    simple: Sequence[DeltaflowPredictor],
    finished: Finished,
    rehearsed: bool,
) -> str:
    """Say in one line what was done."""
    plan, estimator = folds.plan, folds.estimator
    members = len(plan.left_out)
    items = f"{folds.items} {'item' if folds.items == 1 else 'items'}"
    items += f" in {len(folds.usable)} stretches" * bool(folds.cut)
    what = "1 network" if members < 2 else f"{members} networks on folds of the items"
    aside = "each left out once" if members > 1 else f"{sum(map(len, plan.left_out))} put aside"
    last = ", and one to judge by without their last values" if rehearsed else ""
    most = f"{min(epochs)} to {max(epochs)}" if min(epochs) < max(epochs) else f"{epochs[0]}"
    names = ["networks", *map(name_of, simple)]
    parts = [
        f"{weight:.0%} {name}"
        for name, weight in zip(names, finished.weights, strict=True)
        if weight
    ]
    blend = f"blended from {', '.join(parts)}; " if simple else ""
    wider = (
        f" and widened {finished.widened:.2g} times, because items err together at the same time"
        if finished.widened > 1
        else ""
    )
    options = {**vars(estimator.data), **vars(estimator.model), **vars(estimator.optimizer)}
    settings = ", ".join(f"{name}={options[name]!r}" for name in plan.settings)
    return (
        f"Trained {what} ({items}, {aside}){last}, stopped after {most} epochs; "
        f"{settings}; {blend}"
        f"intervals {'calibrated' if finished.is_calibrated else 'not calibrated'}{wider}. "
        "folds=0 trains one network on all items."
    )
