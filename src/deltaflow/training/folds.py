"""Training without overfitting: folds, early stopping, ensembles, calibrated intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gluonts.dataset.common import DataEntry, Dataset
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_info

from deltaflow.data import Reader
from deltaflow.data.data_module import by_number
from deltaflow.data.series import in_order
from deltaflow.data.splitter import by_item, cut_entry, select
from deltaflow.data.windows import SpreadWindows
from deltaflow.errors import DataError, DeltaflowError, warn_once
from deltaflow.forecast.conformal import FEWEST_ITEMS
from deltaflow.forecast.held_out import HeldOut, Pairs
from deltaflow.forecast.predictor import DeltaflowPredictor, times_of
from deltaflow.forecast.seasonal import cycles_of
from deltaflow.forecast.support import supports_of
from deltaflow.heads import is_centred, make_output
from deltaflow.randomness import derived_seed, seeded_run
from deltaflow.training import engine
from deltaflow.training.blend import Finished, Member, compared_by_item, compared_loss, finish
from deltaflow.training.network_estimator import NetworkEstimator
from deltaflow.training.plan import (
    AS_GOOD,
    BETTER,
    FEW_ITEMS,
    FOLDS_OF_LONG_ITEMS,
    OBSERVED,
    SHORT_CONTEXT,
    TRIED,
    WORSE,
    Plan,
    plan_for,
    planned,
)
from deltaflow.training.runs import Run, train_all
from deltaflow.training.simple import SimpleForecasts, name_of, observed
from deltaflow.training.stretches import Stretch, cut_into_stretches
from deltaflow.training.widening import widened

LONG_IN_HORIZONS = 30
"""If the median item is longer than this many horizons, the values to forecast lie only slightly
beyond the ages seen in training."""

Suits: TypeAlias = Callable[[Sequence[Member], Sequence[Member]], bool]
"""Whether settings suit the data, by members of the same folds with these and the usual ones."""


class Folds:
    """The folds of a data set, and training on them.

    Parameters
    ----------
    estimator
        The estimator whose networks are trained.
    training_data
        The data.
    seed
        Seed of the folds and of windows.

    Attributes
    ----------
    items
        The number of items with values to forecast.
    stretches
        The stretches into which few items are cut; they then count as items.
    whole, entries
        The items, by number; and the same items or their stretches.
    usable
        The numbers of the entries with values to forecast.
    supports
        The support of each channel.
    """

    def __init__(self, estimator: NetworkEstimator, training_data: Dataset, seed: int) -> None:
        self.seed = seed
        self._given = estimator
        entries = by_number(training_data)
        self.stretches: list[Stretch] = []
        self._base = estimator.create_data_module(entries, seed=seed)
        reader = self._base.reader
        self._cycles = cycles_of(reader.schema, reader.statistics)  # of whole items
        if isinstance(entries, list):  # of one or several data sets
            entries = [in_order(entry, self._base.reader.schema) for entry in entries]
        self.whole = self.entries = entries
        self.items = len(self._base.training_windows.items)
        # Stretches do not begin where items do, from where `origins_within` counts.
        if self.items < FEWEST_ITEMS and estimator.data.origins_within is None:
            self._cut_into_stretches()
        self.usable = np.asarray(self._base.training_windows.items)
        target, series = self._base.reader.schema.target, self._base.training_windows.data
        self.supports = supports_of(estimator.supports, series, target)

    def _cut_into_stretches(self) -> None:
        """Cut few items into stretches, unless they are too short."""
        whole = list(select(self.whole, self._base.training_windows.items))
        length = self._given.prediction_length
        cut = cut_into_stretches(whole, length, self._base.reader.context_length)
        if len(cut) >= FEWEST_ITEMS:
            entries = [one.entry for one in cut]
            base = self._given.create_data_module(entries, seed=self.seed)
            if len(base.training_windows.items) >= FEWEST_ITEMS:
                self.stretches, self.entries, self._base = cut, entries, base

    @cached_property
    def plan(self) -> Plan:
        """The folds and settings for the data."""
        data, reader = self._base.training_windows.data, self._base.reader
        plan = plan_for(data, self.usable, reader, self._given.folds, self.seed, self._start_times)
        # Long items are worth more epochs.
        return plan._replace(epochs=int(engine.DEFAULTS["max_epochs"])) if self.stretches else plan

    @property
    def _start_times(self) -> np.ndarray | None:
        """The times at which stretches begin, if folds are to be blocks of time.

        That is so if there are several items: if they change alike, networks must not learn one's
        held-out values from the other. Each item needs a stretch in most blocks.
        """
        counts = Counter(id(one.whole) for one in self.stretches)
        if len(counts) < 2 or min(counts.values()) < FOLDS_OF_LONG_ITEMS:
            return None
        return np.array([one.start_time for one in self.stretches])

    @cached_property
    def estimator(self) -> NetworkEstimator:
        """The estimator, with the settings of the plan."""
        return planned(self._given, self.plan)

    @property
    def calibrate(self) -> bool:
        """Whether intervals are calibrated: if asked for, and enough items are left out."""
        model = self.estimator.model
        # Calibrated quantiles must stay within the support of the distribution.
        bounded = not is_centred(make_output(model.distr_output))
        negative = any(support.low < 0 for support in self.supports)
        return self._given.calibrate and self.enough and not (bounded and negative)

    @property
    def enough(self) -> bool:
        """Whether enough items are left out to calibrate on."""
        return self.num_left_out >= FEWEST_ITEMS

    @cached_property
    def num_left_out(self) -> int:
        """The number of items that are left out, which may have several entries."""
        data = self._base.training_windows.data
        folds = ([data[number].item_id for number in own.tolist()] for own in self.plan.left_out)
        return sum(len(by_item(names)) for names in folds)

    def alternatives(self) -> list[tuple[dict[str, Any], Suits]]:
        """The settings that are worth trying on some folds, and when they suit the data.

        One scale for all items, if they are few and differ in scale. A short context, if items are
        few, forecasts lie at ages beyond the training data, nearly all target values are observed,
        and no context is given.
        """
        if not self.plan.few or self.stretches or len(self.plan.left_out) < TRIED:
            return []
        found: list[tuple[dict[str, Any], Suits]] = []
        given, data = self._given, self._base.training_windows.data
        if "scaling" in given.free_options and self.plan.settings["scaling"] == "running":
            found.append(({"scaling": "last"}, self._one_scale_suits))
        if given.data.context_length or given.data.context or not self._goes_beyond:
            return found
        lengths = [data[int(item)].length for item in self.usable]
        targets = slice(len(self._base.reader.schema.target))
        values = np.concatenate([data[int(item)].values[:, targets] for item in self.usable])
        is_long = np.median(lengths) - given.prediction_length > SHORT_CONTEXT
        if is_long and np.isfinite(values).mean() >= OBSERVED:
            found.append(({"context_length": SHORT_CONTEXT}, self._short_context_suits))
        return found

    def _one_scale_suits(self, one: Sequence[Member], own: Sequence[Member]) -> bool:
        """Return whether the members of some folds are better with one scale for all items."""
        held_out, channels = self._compared(one, own)
        better = compared_loss(held_out, channels) <= BETTER
        return better and compared_by_item(held_out) <= AS_GOOD

    def _short_context_suits(self, short: Sequence[Member], usual: Sequence[Member]) -> bool:
        """Return whether the members of some folds are hardly worse with a short context.

        Where both contexts are as good, networks with the short one are better at times beyond the
        training data, which held-out items do not show.
        """
        return compared_loss(*self._compared(short, usual)) <= WORSE

    def _compared(self, ones: Sequence[Member], others: Sequence[Member]) -> tuple[HeldOut, int]:
        """Return the forecasts of the same held-out items by two members per fold."""
        schema = self._base.reader.schema
        held_out = [
            HeldOut.of([one.predictor, other.predictor], one.pairs, schema)
            for one, other in zip(ones, others, strict=True)
        ]
        return HeldOut.joined(held_out), len(schema.target)

    @property
    def _goes_beyond(self) -> bool:
        """Whether forecasts lie at ages beyond those of all training data, see `LONG_IN_HORIZONS`.

        A stretch lies among other stretches of its item.
        """
        lengths = [entry["target"].shape[-1] for entry in self.whole]
        longest = LONG_IN_HORIZONS * self._given.prediction_length
        return not self.stretches and bool(np.median(lengths) <= longest)

    def prepare(self, fold: int, estimator: NetworkEstimator, number: int) -> Run:
        """Prepare training on all folds but one; ``number`` determines the seed."""
        left_out, options = self.plan.left_out[fold], estimator.data
        length = options.context_length_for(estimator.prediction_length)
        reader = replace(self._base.reader, scaling=options.scaling, context_length=length)
        inside = np.setdiff1d(self.usable, left_out)
        return self._prepare(estimator, self.entries, inside, left_out, number, reader)

    def member(self, fold: int, estimator: NetworkEstimator, run: Run) -> Member:
        """Return the trained network of a fold."""
        left_out = self.plan.left_out[fold]
        predictor: DeltaflowPredictor = estimator.create_predictor(run.module)
        if estimator.widening:
            predictor = widened(predictor, run.data, select(self.entries, left_out))
        windows = run.data.validation_windows
        assert isinstance(windows, SpreadWindows)
        return Member(predictor, self._pairs(windows, left_out))

    def _pairs(self, windows: SpreadWindows, left_out: np.ndarray) -> Pairs:
        """Return context and targets at the later origins of validation windows.

        Users forecast from the longest contexts. At the earlier half of an item's origins forecasts
        are harder, and would widen the intervals. For the same reason, the context at an origin in
        a stretch begins where the whole item does, and an origin before the first whole cycle is
        left out. An item without a name gets one, so that all of its origins count as those of one
        item.
        """
        items, origins = np.array(windows.items), np.array(windows.origins)
        pairs = []
        for number, (item, origin) in enumerate(zip(items, origins, strict=True)):
            if origin >= np.median(origins[items == item]):
                place, end = int(left_out[item]), windows[number].queries.stop
                whole = partial(cut_entry, self.entries[place])
                split = self.stretches[place].split if self.stretches else whole
                known, later = split(origin, end)
                if known.get("item_id") is None:
                    known = {**known, "item_id": f"#{place}"}
                pairs.append((known, later))
        shortest = max(self._cycles, default=0.0) if self.stretches else 0.0
        return [pair for pair in pairs if np.ptp(times_of(pair[0], 0)) >= shortest] or pairs

    @cached_property
    def examples(self) -> list[DataEntry]:
        """The items to which simple forecasts are fitted: all or, if there are many, some.

        They are as many as it takes to have values of each channel.
        """
        order = np.random.default_rng(self.seed).permutation(len(self.whole))
        count = len(order) if self.plan.few else FEW_ITEMS
        while True:
            some = list(select(self.whole, np.sort(order[:count])))
            if count >= len(order) or observed(some).all():
                return some
            count *= 2

    def simple_forecasts(self, entries: Sequence[DataEntry]) -> list[DeltaflowPredictor]:
        """Fit the simple forecasts of a blend; their kinds do not depend on the entries."""
        return self._simple.fit(entries, self._given.prediction_length)

    @cached_property
    def _simple(self) -> SimpleForecasts:
        if not self.plan.few:  # networks learn all but cycles longer than their context
            return SimpleForecasts((), [], False, self._cycles)
        length = self._given.prediction_length
        return SimpleForecasts.for_data(self.examples, self.supports, length, self._cycles)

    def rehearsal(self, estimator: NetworkEstimator) -> Rehearsal | None:
        """Prepare the training of a network without the last values of all items.

        Held-out items show how well a network forecasts other items, but not later times than those
        of the training data. Where all items change in the same way, only this rehearsal shows the
        errors at later times. It is not needed for many items, for items much longer than the
        horizon, or for stretches: a held-out one already lies at other times than the others. Nor
        is it possible if an item has several entries, such as rolled windows: the last values of
        one are known from another.

        Returns
        -------
        Rehearsal or None
            None if there are too few items with earlier values than those in the last horizon, or
            if no rehearsal is needed or possible.
        """
        if not self.plan.few or not self._goes_beyond:
            return None
        names = [entry.get("item_id") for entry in self.whole]
        if len(by_item(names)) < len(names):
            return None
        pairs = []
        for entry, series in zip(self.whole, self._base.training_windows.data, strict=True):
            targets = series.values[:, : len(self._base.reader.schema.target)]
            seen = np.flatnonzero(np.isfinite(targets).any(axis=1))
            if len(seen) < 3:
                continue
            end = int(seen[-1]) + 1
            late = np.arange(seen[0] + 1, end)[-estimator.prediction_length :]
            # The first origin whose horizon reaches the last target.
            origin = int(late[(self._base.horizon.ends(series, late) >= end).argmax()])
            if (seen < origin).sum() > 1:
                pairs.append(cut_entry(entry, origin, end))
        early = [known for known, _ in pairs]
        if len(pairs) < FEWEST_ITEMS:
            return None
        try:
            base = estimator.create_data_module(early, seed=self.seed)
        except DataError:  # they lack a channel, or have no origin `origins_within`
            return None
        usable, folds = np.asarray(base.training_windows.items), len(self.plan.left_out)
        aside = np.random.default_rng(self.seed).permutation(usable)[:: max(2, folds)]
        inside = np.setdiff1d(usable, aside)
        if not len(inside):
            return None
        return Rehearsal(self._prepare(estimator, early, inside, aside, folds, base.reader), pairs)

    def rehearsed(self, estimator: NetworkEstimator, rehearsal: Rehearsal) -> HeldOut:
        """Forecast the last values of all items, after the training of a rehearsal."""
        network = estimator.create_predictor(rehearsal.run.module)
        simple = self.simple_forecasts([known for known, _ in rehearsal.pairs])
        return HeldOut.of([network, *simple], rehearsal.pairs, network.schema)

    def _prepare(
        self,
        estimator: NetworkEstimator,
        entries: Sequence[DataEntry],
        inside: np.ndarray,
        left_out: np.ndarray,
        number: int,
        reader: Reader,
    ) -> Run:
        """Prepare training on the entries ``inside``, with early stopping on those left out."""
        plan, seed = self.plan, derived_seed(self.seed, number)
        data = estimator.create_data_module(
            select(entries, inside),
            select(entries, left_out),
            seed=seed,
            reader=reader,
            validation_origins="spread",
        )
        with seeded_run(seed):
            module = estimator.create_lightning_module(data)
        several = len(reader.schema.target) > 1
        usual = "val_balanced_quantile_loss" if several else "val_mean_weighted_quantile_loss"
        monitor = plan.monitor or usual
        settings = {"max_epochs": plan.epochs, "gradient_clip_val": plan.clip}
        stopping = EarlyStopping(monitor, patience=plan.patience, strict=False)
        callbacks = [stopping, engine.moving_average(plan.decay)]
        kwargs = {**settings, **estimator.trainer_kwargs}
        return Run(module, data, kwargs, monitor, callbacks)


class Rehearsal(NamedTuple):
    """A network to train without the last values of all items, and these values.

    Attributes
    ----------
    run
        The network.
    pairs
        The earlier values of each item, and its last ones.
    """

    run: Run
    pairs: Pairs


def train_folds(
    estimator: NetworkEstimator, training_data: Dataset, seed: int
) -> DeltaflowPredictor:
    """Train a network for each fold, on all others; average and calibrate them.

    Each network is trained until its forecasts of the held-out fold no longer improve, and this
    fold calibrates its intervals. Options not given to the estimator are chosen from the data.

    Returns
    -------
    ConformalPredictor, EnsemblePredictor or IrregularPredictor
        A `ConformalPredictor`, if the estimator calibrates and there are enough items; it contains
        an `EnsemblePredictor`, if there are several members.
    """
    folds = Folds(estimator, training_data, seed)
    if estimator.calibrate and not folds.enough:
        warn_once(
            f"calibrating intervals takes at least {FEWEST_ITEMS} held-out items, or longer ones "
            "to cut into as many stretches; the training data have "
            f"{folds.num_left_out or folds.items}: the intervals will cover less than they should"
        )
    careful, tried, members = _with_settings(folds)
    others = range(len(tried), len(folds.plan.left_out))
    blended = estimator.blend and estimator.sampling == "marginal"
    runs = [folds.prepare(number, careful, number) for number in others]
    rehearsal = folds.rehearsal(careful) if blended else None
    train_all([*runs, rehearsal.run] if rehearsal else runs, estimator.processes)
    members += [
        folds.member(number, careful, run) for number, run in zip(others, runs, strict=True)
    ]
    epochs = [run.epochs for run in (*tried, *runs)]
    if not members:
        if estimator.widening:
            raise DeltaflowError(
                "widening needs held-out items: give validation_data, or more items"
            )
        output = careful.train_model(folds.entries, validation_data=None)
        members, epochs = [Member(output.predictor, [])], [output.trainer.current_epoch]
    # A cycle may be longer than a stretch.
    simple = folds.simple_forecasts(folds.examples) if blended else []
    rehearsed = folds.rehearsed(careful, rehearsal) if rehearsal else None
    finished = finish(members, simple, rehearsed, folds.supports, folds.calibrate)
    rank_zero_info(_described(folds, careful, epochs, simple, finished, rehearsal is not None))
    return finished.predictor


def _with_settings(folds: Folds) -> tuple[NetworkEstimator, list[Run], list[Member]]:
    """Return the estimator with settings that suit the data, and its networks trained so far."""
    best = folds.estimator, list[Run](), list[Member]()
    for settings, suits in folds.alternatives():
        due = [] if best[1] else [best[0]]
        due.append(best[0].with_settings(**settings))
        runs = [[folds.prepare(number, one, number) for number in range(TRIED)] for one in due]
        train_all([run for own in runs for run in own], best[0].processes)
        tried = [
            (one, own, [folds.member(number, one, run) for number, run in enumerate(own)])
            for one, own in zip(due, runs, strict=True)
        ]
        if len(tried) > 1:
            best = tried[0]
        if suits(tried[-1][2], best[2]):
            best = tried[-1]
    return best


def _described(
    folds: Folds,
    estimator: NetworkEstimator,
    epochs: list[int],
    simple: Sequence[DeltaflowPredictor],
    finished: Finished,
    rehearsed: bool,
) -> str:
    """Describe in one line what was done."""
    plan = folds.plan
    members = len(plan.left_out)
    items = f"{folds.items} {'item' if folds.items == 1 else 'items'}"
    items += f" in {len(folds.usable)} stretches" * bool(folds.stretches)
    what = "1 network" if members < 2 else f"{members} networks on folds of the items"
    held_out = sum(map(len, plan.left_out))
    aside = "each held out once" if held_out == len(folds.usable) else f"{held_out} held out"
    last = ", and one without their last values as a rehearsal" if rehearsed else ""
    least, most = min(epochs), max(epochs)
    count = f"{least} to {most}" if least < most else f"{most}"
    # Processes started by a strategy do not send their number of epochs.
    stopped = f", stopped after {count} {'epoch' if most == 1 else 'epochs'}" * bool(least)
    names = ["networks", *map(name_of, simple)]
    parts = [
        f"{weight:.0%} {name}"
        for name, weight in zip(names, finished.weights, strict=True)
        if weight
    ]
    blend = f"blended from {', '.join(parts)}; " if simple else ""
    wider = (
        f" and widened {finished.widened:.3g} times for errors that items share at the same time"
        if finished.widened > 1
        else ""
    )
    options = {**vars(estimator.data), **vars(estimator.model), **vars(estimator.optimizer)}
    chosen = [*plan.settings, *(["context_length"] if estimator.data.context_length else [])]
    settings = ", ".join(f"{name}={options[name]!r}" for name in chosen)
    return (
        f"Trained {what} ({items}, {aside}){last}{stopped}; "
        f"{settings}; {blend}"
        f"intervals {'calibrated' if folds.calibrate else 'not calibrated'}{wider}. "
        "folds=0 trains one network on all items."
    )
