"""Training on folds of the items: early stopping, averages and calibration by default."""

import itertools
import logging
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.common import Dataset
from gluonts.dataset.split import split
from lightning.pytorch.callbacks import Callback, EarlyStopping

from deltaflow import (
    ConformalPredictor,
    DeltaflowError,
    DeltaflowWarning,
    EnsemblePredictor,
    GRUEstimator,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataset,
    IrregularPredictor,
    SupportPredictor,
    errors,
    load_predictor,
)
from deltaflow.data import IrregularDataModule
from deltaflow.data.splitter import cut_entry
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.held_out import HeldOut
from deltaflow.forecast.seasonal import SeasonalPredictor
from deltaflow.forecast.support import Support
from deltaflow.training import blend, folds, simple
from deltaflow.training import plan as plans
from deltaflow.training.plan import Plan, plan_for
from deltaflow.training.stretches import cut_into_stretches

QUICK = {"max_epochs": 1, "enable_progress_bar": False, "logger": False}


def noisy_items(number: int, rows: int = 8, scale: float = 1.0, seed: int = 0) -> IrregularDataset:
    """Items of noise around a level of their own, at random times."""
    random = np.random.default_rng(seed)
    frames = [
        pd.DataFrame(
            {
                "item_id": f"i{item}",
                "timestamp": random.exponential(1.0, rows).cumsum(),
                "target": scale**item * (3 * random.normal() + random.normal(size=rows)),
            }
        )
        for item in range(number)
    ]
    return IrregularDataset.from_long_dataframe(pd.concat(frames))


def with_gaps(entry):
    """An entry that lacks a tenth of its values."""
    target = entry["target"].copy()
    target[::10] = np.nan
    return {**entry, "target": target}


def quick(**options) -> GRUEstimator:
    settings = {
        "prediction_length": 2,
        "hidden_size": 8,
        "num_batches_per_epoch": 2,
        "seed": 0,
        "blend": False,
        "trainer_kwargs": dict(QUICK),
    }
    return GRUEstimator(**{**settings, **options})


def forecasts_of(predictor, data) -> np.ndarray:
    inputs = split(data, offset=-2)[1].generate_instances(2).input
    return np.array([forecast.quantiles([0.1, 0.5, 0.9]) for forecast in predictor.predict(inputs)])


@pytest.fixture
def seen(monkeypatch) -> list[tuple[set, set]]:
    """The items that each network is trained, and validated, on."""
    pairs = []
    train = folds.engine.train

    def noting(module, data, *args, **kwargs):
        parts = (data.training_windows, data.validation_windows)
        pairs.append(tuple({part.data[i].item_id for i in part.items} for part in parts))
        return train(module, data, *args, **kwargs)

    monkeypatch.setattr(folds.engine, "train", noting)
    return pairs


def test_each_item_is_left_out_by_one_network_which_it_validates(seen):
    data = noisy_items(11, 7)
    predictor = quick().train(data)
    everyone = {entry["item_id"] for entry in data}
    assert len(seen) == 5
    assert all(trained | left_out == everyone for trained, left_out in seen)
    assert not any(trained & left_out for trained, left_out in seen)
    assert sorted(item for _, left_out in seen for item in left_out) == sorted(everyone)
    assert isinstance(predictor, ConformalPredictor)
    assert predictor.num_items == [11]
    assert len(predictor.predictor.members) == 5


@pytest.mark.parametrize(
    ("number", "networks", "kind"), [(40, 3, ConformalPredictor), (41, 1, IrregularPredictor)]
)
def test_of_many_items_each_network_holds_out_another_tenth(
    number, networks, kind, seen, monkeypatch
):
    monkeypatch.setattr(plans, "FEW_ITEMS", 30)
    monkeypatch.setattr(plans, "SOME_ITEMS", 40)
    predictor = quick().train(noisy_items(number))
    assert [tuple(map(len, pair)) for pair in seen] == [(number - 4, 4)] * networks
    assert len(set.union(*(left_out for _, left_out in seen))) == 4 * networks
    assert isinstance(predictor, kind)  # four items are too few to calibrate on


@pytest.mark.parametrize("few", [False, True])
def test_only_a_regression_on_cycles_is_blended_with_networks_of_many_items(few, monkeypatch):
    for module in (plans, folds):
        monkeypatch.setattr(module, "FEW_ITEMS", 30 if few else 10)
    random, hours = np.random.default_rng(0), np.arange(24.0 * 4)
    data = [
        {
            "item_id": f"i{item}",
            "start": pd.Period("2024-01-01", "h"),
            "target": random.normal(size=24)[hours.astype(int) % 24] + 0.1 * random.normal(size=96),
        }
        for item in range(20)
    ]
    prepared = folds.Folds(quick(folds=2), data, seed=0)
    kinds = [type(one) for one in prepared.simple_forecasts(prepared.examples)]
    processes = [GaussianProcessPredictor, GaussianProcessPredictor]
    assert kinds == [HoldPredictor, SeasonalPredictor, *processes] if few else [SeasonalPredictor]
    assert len(prepared.examples) == (20 if few else 10)
    assert "SeasonalPredictor" in repr(quick(blend=True, folds=2).train(data))


def test_simple_forecasts_of_many_items_know_the_rarest_channel(monkeypatch):
    for module in (plans, folds):
        monkeypatch.setattr(module, "FEW_ITEMS", 2)
    data = [dict(entry) for entry in seldom_observed(2, 1.0, items=12)]
    for entry in data[1:]:
        entry["target"][1] = np.nan
    prepared = folds.Folds(quick(folds=2), data, seed=0)
    assert any(np.isfinite(entry["target"][1]).any() for entry in prepared.examples)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"folds": 0}, IrregularPredictor),
        ({"folds": 3, "calibrate": False}, EnsemblePredictor),
        ({"folds": 1, "calibrate": False}, IrregularPredictor),
    ],
)
def test_each_part_is_switched_off_by_one_argument(options, kind):
    assert type(quick(**options).train(noisy_items(6))) is kind


def test_given_validation_data_are_used_instead():
    assert type(quick().train(noisy_items(6), noisy_items(3, seed=1))) is IrregularPredictor


@pytest.mark.parametrize(("number", "kind"), [(1, IrregularPredictor), (3, EnsemblePredictor)])
def test_a_few_items_are_enough(number, kind):
    data = noisy_items(number)
    errors._SAID.clear()
    with pytest.warns(DeltaflowWarning, match=f"the training data have {number}: the"):
        predictor = quick().train(data)
    assert type(predictor) is kind
    assert np.isfinite(forecasts_of(predictor, data)).all()


def test_a_few_items_of_many_windows_are_not_said_to_calibrate(caplog):
    entries = list(noisy_items(9))
    named = [{**entry, "item_id": f"i{number % 3}"} for number, entry in enumerate(entries)]
    errors._SAID.clear()
    told = caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    with told, pytest.warns(DeltaflowWarning, match="the training data have 3: the"):
        assert type(quick().train(named)) is EnsemblePredictor
    assert "intervals not calibrated" in caplog.text


@pytest.mark.parametrize("names", [["a", "b"], [None, None]])
def test_stretches_of_items_without_names_are_distinct(names):
    entries = [
        {**entry, "item_id": name} for entry, name in zip(noisy_items(2, 30), names, strict=True)
    ]
    cut = cut_into_stretches(entries, 2, 64)
    assert len({one.entry["item_id"] for one in cut}) == len(cut) > 4


@pytest.mark.parametrize(("number", "rows"), [(1, 70), (3, 30)])
def test_few_long_items_are_cut_into_stretches_that_calibrate(number, rows, seen, caplog):
    data = noisy_items(number, rows)
    told = caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings(), told:
        warnings.simplefilter("error", DeltaflowWarning)
        predictor = quick(folds=2, supports="real").train(data)
    assert type(predictor) is ConformalPredictor
    assert all(not trained & left_out for trained, left_out in seen)
    named = set.union(*(trained | left_out for trained, left_out in seen))
    assert {name.partition(",")[0] for name in named} == {f"i{item}" for item in range(number)}
    noun = "item" if number == 1 else "items"
    assert f"({number} {noun} in {len(named)} stretches, each held out once)" in caplog.text


def stations(number: int) -> list[dict]:
    """Hourly series with the same weather, of a little more than three weeks."""
    weather = np.random.default_rng(0).normal(size=510).cumsum()
    noise = np.random.default_rng(1).normal(size=(number, 510)).astype(np.float32)
    start = pd.Period("2024-01-01", "h")
    return [
        {"start": start, "target": weather.astype(np.float32) + own, "item_id": f"s{item}"}
        for item, own in enumerate(noise)
    ]


def test_stretches_of_several_items_are_held_out_in_blocks_of_time():
    parts = folds.Folds(quick(folds=3), stations(3), seed=0)
    hours = [
        {hour for number in own for hour in hours_of(parts.stretches[number])}
        for own in parts.plan.left_out
    ]
    assert max(hours[0]) == 509  # the latest block first
    for later, earlier in itertools.pairwise(hours):
        assert min(later) == max(earlier) + 1
    alone = folds.Folds(quick(folds=3), stations(1), seed=0)
    first = [
        hour for number in alone.plan.left_out[0] for hour in hours_of(alone.stretches[number])
    ]
    assert max(first) - min(first) > len(first)


def test_in_the_first_cycle_of_an_item_that_is_cut_no_forecast_is_judged(monkeypatch):
    judged = []
    of = HeldOut.of.__func__

    def spied(cls, predictors, pairs, *args):
        judged.extend(len(known["target"]) for known, _ in pairs)
        return of(cls, predictors, pairs, *args)

    monkeypatch.setattr(HeldOut, "of", classmethod(spied))
    quick(folds=2).train(stations(1))
    assert judged
    assert 168 < min(judged) < 250


def hours_of(stretch) -> range:
    return range(stretch.start, stretch.start + len(stretch.entry["target"]))


def test_where_calendar_cycles_repeat_a_regression_on_them_is_blended_in(caplog):
    data = stations(2)
    parts = folds.Folds(quick(), data, seed=0)
    assert list(map(simple.name_of, parts.simple_forecasts(data)))[:2] == [
        "hold", "seasonal regression",
    ]  # fmt: skip
    week = np.random.default_rng(0).normal(size=168)
    weekly = [{**entry, "target": np.tile(week, 4)[:510].astype(np.float32)} for entry in data]
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        predictor = quick(folds=2, blend=True).train(weekly)
    assert "seasonal regression" in caplog.text
    (forecast, _) = predictor.predict(weekly)
    length = quick().prediction_length
    later = week[6 : 6 + length]
    assert np.abs(forecast.quantile(0.5) - later).mean() < 0.5 * np.abs(later).mean()


def test_a_cycle_longer_than_a_stretch_is_found_in_the_whole_item(caplog):
    time = np.arange(144.0)
    frame = pd.DataFrame({"item_id": "one", "timestamp": time})
    frame["target"] = np.sin(time / 3) + np.random.default_rng(0).normal(0, 0.1, len(time))
    data = IrregularDataset.from_long_dataframe(frame)
    parts = folds.Folds(quick(), data, seed=0)
    assert max(len(entry["target"]) for entry in parts.entries) < 6 * np.pi
    known = [parts.simple_forecasts(kind) for kind in (parts.entries, parts.whole)]
    assert [simple.name_of(forecasts[1]) for forecasts in known] == [
        "Gaussian process", "Gaussian process with a cycle",
    ]  # fmt: skip
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        quick(folds=2, blend=True).train(data)
    assert "Gaussian process with a cycle" in caplog.text


def test_whole_items_decide_on_the_kinds_of_simple_forecasts():
    """Its stretches have three values each: too few to tell a change of slope from noise."""
    time, random = np.arange(144.0), np.random.default_rng(0)
    values = np.where(time % 4 == 0, random.normal(size=144), np.nan)
    frame = pd.DataFrame({"item_id": "one", "timestamp": time, "target": values})
    parts = folds.Folds(quick(), IrregularDataset.from_long_dataframe(frame), seed=0)
    counts = [np.isfinite(entry["target"]).sum() for entry in parts.entries]
    assert parts.stretches
    assert np.median(counts) < simple.FEWEST_FOR_TREND
    assert "local trend" in map(simple.name_of, parts.simple_forecasts(parts.whole))


def test_what_was_left_out_is_forecast_once(monkeypatch):
    """For the weights of the blend and for the calibration alike."""
    forecast = []
    predict = HoldPredictor.predict

    def counted(self, entries, **options):
        forecast.append(len(entries))
        return predict(self, entries, **options)

    monkeypatch.setattr(HoldPredictor, "predict", counted)
    predictor = quick(folds=2, blend=True).train(noisy_items(6))
    assert isinstance(predictor, ConformalPredictor)
    assert len(forecast) == 2 + 1  # for two folds, and a rehearsal


def test_a_rehearsal_is_not_widened(monkeypatch):
    """Without their last values, no item may go on beyond the lead times that were learned."""
    calls = []
    widened = folds.widened
    monkeypatch.setattr(folds, "widened", lambda *args: calls.append(args) or widened(*args))
    quick(folds=2, blend=True, widening=True, context_length=64).train(noisy_items(8, 9))
    assert len(calls) == 2


def test_stretches_of_an_item_hold_each_of_its_rows_once():
    whole = [*noisy_items(2, 100), *noisy_items(1, 5, seed=1)]
    cut = cut_into_stretches(whole, prediction_length=6, context_length=9)
    assert [len(one.entry["target"]) for one in cut] == [16, 17, 17] * 4 + [5]
    for field in ("target", "feat_dynamic_real"):
        joined = np.concatenate([one.entry[field] for one in cut], axis=-1)
        given = np.concatenate([entry[field] for entry in whole], axis=-1)
        np.testing.assert_array_equal(joined, given)
    assert len({one.entry["item_id"] for one in cut}) == len(cut)


@pytest.mark.parametrize(
    ("rows", "lengths"), [(108, [21, 22, 21, 22, 22]), (30, [6] * 5), (20, [6, 7, 7])]
)
def test_a_short_item_is_cut_into_five_stretches_if_its_rows_suffice(rows, lengths):
    cut = cut_into_stretches(list(noisy_items(1, rows)), prediction_length=12, context_length=64)
    assert [len(one.entry["target"]) for one in cut] == lengths


def test_what_is_known_at_an_origin_in_a_stretch_begins_where_the_item_does():
    (item,) = noisy_items(1, 40)
    stretch = cut_into_stretches([item], prediction_length=4, context_length=8)[2]
    known, later = stretch.split(3, 7)
    start = stretch.start + 3
    np.testing.assert_array_equal(known["target"], item["target"][:start])
    np.testing.assert_array_equal(later["target"], item["target"][start : start + 4])
    assert known["item_id"] == later["item_id"] == stretch.entry["item_id"]


def test_a_single_item_too_short_to_cut_is_blended_with_equal_weights(caplog):
    with (
        caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"),
        pytest.warns(match="the training data have 1: the intervals will cover less"),
    ):
        predictor = quick(blend=True).train(noisy_items(1, 20))
    weights = predictor.summary()["weights"]
    assert weights == pytest.approx([1 / len(weights)] * len(weights), abs=1e-3)
    assert "Trained 1 network (1 item, 0 held out)" in caplog.text
    assert "intervals not calibrated" in caplog.text


def test_items_that_cannot_be_learned_from_are_told_of_once(seen):
    frame = pd.DataFrame({"item_id": "short", "timestamp": [0.0], "target": [1.0]})
    short = IrregularDataset.from_long_dataframe(frame)
    data = IrregularDataset([*noisy_items(6), *short], short.schema)
    with pytest.warns(match="1 of 7 items") as told:
        quick(folds=2).train(data)
    assert len([one for one in told if "items have no observed target" in str(one.message)]) == 1
    assert all("short" not in trained | left_out for trained, left_out in seen)


def test_what_is_not_given_follows_the_data_and_is_said(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        predictor = quick(folds=2, weight_decay=0.5).train(noisy_items(6))
    (line,) = [text for text in caplog.messages if text.startswith("Trained")]
    for part in ("2 networks", "6 items", "scaling='last'", "dropout=0.1", "weight_decay=0.5"):
        assert part in line
    member = predictor.predictor.members[0]
    assert member.reader.scaling == "last"
    assert member.network_arguments["dropout"] == 0.1


@pytest.mark.parametrize(
    ("items", "rows", "scale", "scaling"),
    [
        (20, 8, 1.0, "last"),
        (20, 8, 1.5, "running"),
        (20, 3, 1.0, "last"),
        (2, 8, 1.0, "last"),
        (2, 8, 100.0, "running"),
    ],
)
def test_items_in_units_of_their_own_are_scaled_each(items, rows, scale, scaling):
    data = noisy_items(items, rows, scale)
    module = IrregularDataModule(data, prediction_length=2, context_length=8)
    plan = plan_for(module.training_windows.data, np.arange(items), module.reader, None, seed=0)
    assert plan.settings["scaling"] == scaling


def test_one_channel_that_differs_between_items_leaves_one_unit_for_all():
    random = np.random.default_rng(0)
    size = 10.0 ** random.uniform(-3, 3, 20).repeat(10)
    noise = random.normal(size=(2, 200))
    frame = pd.DataFrame({"a": noise[0], "b": size * noise[1], "c": 0.1 * size})
    frame = frame.assign(item_id=np.arange(20).repeat(10), timestamp=np.tile(np.arange(10.0), 20))
    for target, scaling in ((["a", "b", "c"], "last"), (["b"], "running"), (["c"], "last")):
        data = IrregularDataset.from_long_dataframe(frame, target=target)
        module = IrregularDataModule(data, prediction_length=2, context_length=8)
        plan = plan_for(module.training_windows.data, np.arange(20), module.reader, None, seed=0)
        assert plan.settings["scaling"] == scaling, target


@pytest.mark.parametrize(
    ("channels", "rate", "network"),
    [(16, 0.2, "channelwise"), (16, 0.5, "joint"), (3, 0.2, "joint")],
)
def test_many_channels_at_times_of_their_own_have_a_state_each(channels, rate, network):
    settings = plan_of(seldom_observed(channels, rate, items=6)).settings
    assert settings.get("network", "joint") == network


@pytest.mark.parametrize(
    ("items", "channels", "batches"),
    [(6, 16, None), (30, 16, 4), (60, 16, 7), (150, 16, 9), (60, 3, None)],
)
def test_many_channels_of_many_items_are_trained_on_more_windows(
    items, channels, batches, monkeypatch
):
    monkeypatch.setattr(plans, "FEW_ITEMS", 20)
    monkeypatch.setattr(plans, "FEWEST_BATCHES", 4)
    monkeypatch.setattr(plans, "MOST_BATCHES", 9)
    monkeypatch.setitem(plans.PER_CHANNEL_OF_MANY, "batch_size", 8)
    settings = plan_of(seldom_observed(channels, 0.2, items)).settings
    if batches is None:
        assert "lr" not in settings
    else:
        assert (settings["batch_size"], settings["num_batches_per_epoch"]) == (8, batches)


def test_their_settings_reach_the_network_and_the_trainer(monkeypatch):
    monkeypatch.setattr(plans, "FEW_ITEMS", 5)
    monkeypatch.setattr(plans, "SOME_ITEMS", 5)
    data = seldom_observed(16, 0.2, items=8)
    plan = plan_of(data)
    assert plan.clip == 2.0
    estimator = GRUFlowEstimator(2, num_batches_per_epoch=3, seed=0)
    chosen = plans.planned(estimator, plan)
    assert chosen.model.encoder_kwargs == {"num_layers": 1}
    assert (chosen.optimizer.lr, chosen.optimizer.weight_decay) == (4e-3, 0.01)
    assert (chosen.data.batch_size, chosen.data.num_batches_per_epoch) == (64, 3)
    assert plans.planned(GRUFlowEstimator(2, lr=0.1), plan).optimizer.lr == 0.1

    seen = []

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            (stopping,) = (one for one in trainer.callbacks if isinstance(one, EarlyStopping))
            seen.append((trainer.gradient_clip_val, stopping.monitor))

    for given in ({}, {"gradient_clip_val": 5.0}):
        trainer_kwargs = {**QUICK, **given, "callbacks": [Watch()]}
        quick(prediction_length=2, trainer_kwargs=trainer_kwargs).train(data)
    assert seen == [(2.0, "val_loss"), (5.0, "val_loss")]


def seldom_observed(channels: int, rate: float, items: int) -> IrregularDataset:
    """Items of 40 rows, each of which observes a share of the channels."""
    random = np.random.default_rng(0)
    values = random.normal(size=(40 * items, channels))
    values[random.random(values.shape) > rate] = np.nan
    frame = pd.DataFrame(values).add_prefix("c")
    times = np.tile(np.arange(40.0), items)
    frame = frame.assign(item_id=np.repeat(range(items), 40), timestamp=times)
    names = [f"c{number}" for number in range(channels)]
    return IrregularDataset.from_long_dataframe(frame, target=names)


def plan_of(data: Dataset, folds: int | None = None) -> Plan:
    """What is chosen for a data set."""
    module = IrregularDataModule(data, prediction_length=2, context_length=8)
    items = np.arange(len(data))
    return plan_for(module.training_windows.data, items, module.reader, folds, seed=0)


def test_long_items_are_split_into_fewer_folds():
    data = noisy_items(9, rows=100)
    module = IrregularDataModule(data, prediction_length=2, context_length=64)
    plan = plan_for(module.training_windows.data, np.arange(9), module.reader, None, seed=0)
    assert [len(own) for own in plan.left_out] == [3, 3, 3]


def test_a_seed_gives_the_same_forecasts_and_leaves_the_global_random_state():
    data = noisy_items(6)
    before = torch.get_rng_state()
    one, again, other = (forecasts_of(quick(seed=seed).train(data), data) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_intervals_cover_new_items():
    """40 items for the calibration; 200 new ones × 2 values: a spread of 0.06 for the coverage."""
    predictor = quick(num_batches_per_epoch=10).train(noisy_items(40))
    new = noisy_items(200, seed=1)
    labels = np.array([entry["target"][-2:] for entry in new])
    low, _, high = forecasts_of(predictor, new).transpose(1, 0, 2)
    assert ((low <= labels) & (labels <= high)).mean() == pytest.approx(0.82, abs=0.14)


def test_it_is_saved_and_loaded(tmp_path):
    data = noisy_items(6)
    predictor = quick(folds=2).train(data)
    predictor.serialize(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_predictor(tmp_path)
    np.testing.assert_array_equal(forecasts_of(predictor, data), forecasts_of(loaded, data))


def test_several_channels_and_heads(multivariate):
    for head in ("quantile", "negative_binomial"):
        data = multivariate
        if head == "negative_binomial":
            counts = [{**entry, "target": entry["target"].round()} for entry in multivariate]
            data = IrregularDataset(counts, multivariate.schema)
        predictor = quick(folds=2, distr_output=head).train(data)
        assert isinstance(predictor.predictor, ConformalPredictor)
        for quantiles in forecasts_of(predictor, data):
            assert (quantiles >= 0).all()
            assert head == "quantile" or (quantiles == quantiles.round()).all()


@pytest.mark.parametrize("folds", [1, 2])
def test_paths_stay_paths_when_they_are_calibrated(folds):
    """The samples of a query are in the order of those that were drawn for it."""
    predictor = quick(folds=folds, sampling="path", num_parallel_samples=400).train(noisy_items(30))
    assert isinstance(predictor, ConformalPredictor)
    data = noisy_items(3)
    inputs = split(data, offset=-2)[1].generate_instances(2).input
    bare = predictor.predictor.predict(inputs, seed=1)
    for forecast, before in zip(predictor.predict(inputs, seed=1), bare, strict=True):
        order = before.paths().argsort(axis=0)
        assert (np.diff(np.take_along_axis(forecast.samples, order, axis=0), axis=0) >= 0).all()
        assert not np.allclose(forecast.samples, before.paths())
    (few, *_) = predictor.predict(inputs, num_samples=7, seed=1)
    assert few.samples.shape == (7, 2)


def test_simple_forecasts_are_blended_in_and_said(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        predictor = quick(folds=2, blend=True).train(noisy_items(6))
    summary = predictor.summary()["members"][0]
    names = [member["predictor"] for member in summary["members"]]
    assert names[0] == "EnsemblePredictor"
    assert {*names[1:]} <= {"HoldPredictor", "GaussianProcessPredictor"}
    assert sum(summary["weights"]) == pytest.approx(1, abs=0.01)
    assert "blended from " in caplog.text
    assert "% local trend" in caplog.text


@pytest.mark.parametrize(("rows", "processes"), [(4, ["cycle"]), (5, ["cycle", "trend"])])
def test_a_local_trend_takes_items_of_some_length(rows, processes):
    entries = list(noisy_items(6, rows))
    chosen = simple.SimpleForecasts.for_data(entries, [Support()], 2)
    assert list(chosen.processes) == processes
    assert [one.process for one in chosen.fit(entries, 2)[1:]] == processes


def test_intervals_follow_the_scale_of_each_item():
    scale, number = 1.5, 24
    data = noisy_items(number, 20, scale)
    predictor = quick(folds=2, blend=True).train(data)
    low, _, high = np.moveaxis(forecasts_of(predictor, data), 1, 0)
    widths = (high - low).mean(axis=1) / scale ** np.arange(number)
    assert widths.max() < 10 * widths.min()


def test_of_items_of_any_scale_only_logarithms_have_simple_forecasts():
    noise = list(noisy_items(24, 20, 1.5))
    assert simple.SimpleForecasts.for_data(noise, [Support()], 2).fit(noise, 2) == []
    random = np.random.default_rng(0)
    frames = [
        pd.DataFrame({"item_id": f"i{item}", "timestamp": np.arange(16.0), "target": values})
        for item, values in enumerate(
            3.0 ** np.arange(12)[:, None]
            * np.exp(random.normal(0.2, 0.05, (12, 16)).cumsum(axis=1))
        )
    ]
    growing = list(IrregularDataset.from_long_dataframe(pd.concat(frames)))
    chosen = simple.SimpleForecasts.for_data(growing, [Support(low=0.0)], 2)
    assert chosen == (("cycle", "trend"), [0.0], False, [])
    assert [one.process for one in chosen.fit(growing, 2)] == ["cycle", "trend"]


@pytest.mark.parametrize(("rows", "is_rehearsed"), [(60, True), (61, False)])
def test_items_much_longer_than_the_horizon_are_not_rehearsed(rows, is_rehearsed):
    parts = folds.Folds(quick(), noisy_items(6, rows), seed=0)
    assert folds.LONG_IN_HORIZONS * quick().prediction_length == 60
    assert (parts.rehearsal(parts.estimator) is not None) == is_rehearsed


def test_a_channel_may_be_observed_only_at_the_end():
    """Nothing is rehearsed then."""
    entries = growing("by shares")[0]
    for entry in entries:
        entry["target"][1, :-3] = np.nan
    parts = folds.Folds(quick(prediction_length=3), entries, seed=0)
    assert parts.rehearsal(parts.estimator) is None
    assert len(parts.simple_forecasts(parts.whole)) == 3


def growing(how, rows=16, items=12):
    """Items that grow, and the same with the opposite sign."""
    random, frames, time = np.random.default_rng(0), [], np.arange(rows)
    for item in range(items):
        if how == "by shares":
            values = random.uniform(1, 9) * np.exp(random.normal(0.2, 0.05, rows).cumsum())
        else:
            values = 3 + random.uniform(1, 9) * time + random.normal(0, 0.5, rows)
        frames.append(pd.DataFrame({"item_id": f"i{item}", "timestamp": time, "up": values}))
    frame = pd.concat(frames)
    frame["down"] = -frame["up"]
    data = IrregularDataset.from_long_dataframe(frame, target=["up", "down"])
    return list(data), [Support(low=0.0), Support()]


@pytest.mark.parametrize(("how", "power"), [("by shares", 0.0), ("in a line", 1.0)])
def test_growth_decides_on_the_powers(how, power):
    entries, supports = growing(how)
    chosen = simple.powers_for(entries, supports, 3)
    assert chosen == [power, 1.0]
    # Items that are too short to forecast anything in have the root as ever.
    assert simple.powers_for(entries, supports, 15) == [0.5, 1.0]
    # A channel that may be negative, although it never was, keeps its values.
    assert simple.powers_for(entries, [Support()] * 2, 3) == [1.0, 1.0]
    entries[0]["target"][0, 0] = 0.0  # has no logarithm
    assert simple.powers_for(entries, supports, 3) == [0.5, 1.0]


def test_items_whose_channels_are_in_another_order_are_blended_alike():
    """A channel that grows by shares, and noise, of which some values are negative."""
    random = np.random.default_rng(0)
    growth = np.exp(0.2 * np.arange(12.0) + 0.1 * random.normal(size=(8, 12)))
    frame = pd.DataFrame({"item_id": np.arange(8).repeat(12), "growth": growth.ravel()})
    frame["noise"], frame["timestamp"] = random.normal(size=96), np.tile(np.arange(12.0), 8)
    orders = ["growth", "noise"], ["noise", "growth"]
    one, other = (IrregularDataset.from_long_dataframe(frame, target=names) for names in orders)
    quantiles = [
        forecasts_of(quick(folds=2, blend=True).train([*one[:4], *rest[4:]]), one)
        for rest in (one, other)
    ]
    np.testing.assert_array_equal(*quantiles)


def test_means_of_simple_forecasts_follow_growth_as_their_medians_do():
    entries, supports = growing("in a line")
    known = [cut_entry(entry, 13, 16)[0] for entry in entries]
    for one in simple.SimpleForecasts.for_data(entries, supports, 3).fit(entries, 3):
        for forecast, entry in zip(one.predict(known), known, strict=True):
            last = entry["target"][:, -1]
            change = forecast.quantile(0.5) - last
            np.testing.assert_allclose(forecast.mean - last, change, rtol=0.2, atol=0.5)


def test_the_fewer_the_items_the_more_alike_are_the_weights():
    """The same five items, once or several times: what is better on them gets more weight."""
    data = noisy_items(5)
    wide = IrregularDataset([{**e, "target": 1.7 * e["target"]} for e in data], data.schema)
    good, bad = HoldPredictor.fit(data, 2), HoldPredictor.fit(wide, 2)
    pairs, weights = list(split(data, offset=-2)[1].generate_instances(2)), []
    for times in (1, 2, 5, 10):
        many = [
            ({**past, "item_id": f"{past['item_id']}_{time}"}, label)
            for time in range(times)
            for past, label in pairs
        ]
        weights.append(blend.blend_weights([[HeldOut.of([good, bad], many, data.schema)]], 1)[0])
    assert 0.5 < weights[0] < weights[1] < weights[2] <= 1
    assert weights[3] == pytest.approx(weights[2], abs=1e-4)


def test_items_without_a_name_count_one_by_one():
    data = noisy_items(20)
    pairs = list(split(data, offset=-2)[1].generate_instances(2))
    nameless = [({**past, "item_id": None}, label) for past, label in pairs]
    hold = HoldPredictor.fit(data, 2)
    wrong = SupportPredictor(hold, [[8.0, None, False]])
    named, others = (
        blend.blend_weights([[HeldOut.of([hold, wrong], own, data.schema)]], 1)
        for own in (pairs, nameless)
    )
    assert named == pytest.approx(others)
    assert named[0] > 0.5


def test_a_channel_without_events_does_not_decide_on_a_network():
    """A hold forecasts its zeros exactly."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"item_id": np.arange(6).repeat(9), "timestamp": np.tile(range(9), 6)})
    frame["usual"] = random.normal(size=54)
    frame["event"] = np.where(frame["item_id"] == 0, random.integers(0, 2, 54), 0.0)
    data = IrregularDataset.from_long_dataframe(frame, target=["usual", "event"])
    pairs = list(split(data.select([1, 2, 3]), offset=-2)[1].generate_instances(2))
    hold, other = (HoldPredictor.fit(part, 2) for part in (data, data.select([0])))
    held_out = HeldOut.of([other, hold], pairs, data.schema)
    (loss, zeros), (least, none) = blend.losses_of_each(held_out, 2)
    assert none < 1e-6 < zeros
    assert blend.compared_loss(held_out, 2) == pytest.approx(loss / least)
    alone = held_out.of_channel(1)
    assert blend.compared_loss(alone, 2) == pytest.approx(zeros / none)


def test_items_need_no_names():
    """Several origins of an item without one still count as those of one item."""
    named = noisy_items(9, 14)
    nameless = [{**entry, "item_id": None} for entry in named]
    one, other = (quick(blend=True).train(data) for data in (named, nameless))
    assert one.num_items == other.num_items == [9]
    np.testing.assert_array_equal(forecasts_of(one, named), forecasts_of(other, named))


def test_a_blend_is_as_good_as_the_better_of_its_parts_on_the_items_left_out():
    """A network that knows nothing keeps the least weight, and one that knows all gets all."""
    data = noisy_items(20)
    pairs = list(split(data, offset=-2)[1].generate_instances(2))
    hold = HoldPredictor.fit(data, 2)
    wrong = SupportPredictor(hold, [[50.0, None, False]])

    def weights(network, simple):
        return blend.blend_weights([[HeldOut.of([network, simple], pairs, data.schema)]], 1)

    assert weights(wrong, hold) == pytest.approx([0.03, 0.97], abs=1e-6)
    assert weights(hold, wrong) == pytest.approx([1.0, 0.0], abs=1e-6)
    assert weights(hold, hold) == pytest.approx([0.5, 0.5], abs=1e-3)


def test_a_forecast_that_is_many_times_better_gets_nearly_all_weight():
    random, n = np.random.default_rng(0), 300
    value = random.normal(size=n)
    forecasts = [
        np.tile(value + size * random.normal(size=n), (9, 1)) for size in (3.0, 1.0, 1.0, 0.1)
    ]
    number = np.arange(n)
    held_out = HeldOut(
        number // 6, 0 * number, np.ones(n), number.astype(float), value, np.stack(forecasts)
    )
    assert blend.blend_weights([[held_out]], 1)[-1] > 0.95


def test_a_rehearsal_counts_less_than_the_items_left_out():
    """However many values it has: here a simple forecast is good on one group, and bad on one."""
    data = noisy_items(20)
    pairs = list(split(data, offset=-2)[1].generate_instances(2))
    hold = HoldPredictor.fit(data, 2)
    wrong = SupportPredictor(hold, [[50.0, None, False]])
    orders = [hold, wrong], [wrong, hold]
    good, bad = (HeldOut.of(own, pairs, data.schema) for own in orders)
    few = HeldOut.of([wrong, hold], pairs[:2], data.schema)
    for held_out in ([[good], [bad]], [[good], [few]], [[few], [good]]):
        first, second = blend.blend_weights(held_out, 1)
        assert (first > second) == (held_out[0][0] is good)


def test_a_rehearsal_learns_nothing_of_the_values_that_it_holds_out():
    data = noisy_items(8, 9)
    changed = [{**entry, "target": entry["target"].copy()} for entry in data]
    for entry in changed:
        entry["target"][..., -2:] += 100.0
    estimator = quick(folds=2)
    forecasts = []
    for known in (data, IrregularDataset(changed, data.schema)):
        parts = folds.Folds(estimator, known, 0)
        rehearsal = parts.rehearsal(estimator)
        rehearsal.run.train()
        held = parts.rehearsed(estimator, rehearsal)
        assert np.unique(held.item, return_counts=True)[1].tolist() == [2] * 8
        forecasts.append(held.quantiles)
    np.testing.assert_array_equal(*forecasts)


def test_what_is_blended_is_the_same_in_a_rehearsal_of_shorter_items():
    predictor = quick(folds=2, blend=True).train(noisy_items(6, 5))  # three rows, if two are left
    assert len(predictor.summary()["members"][0]["weights"]) > 1


def test_without_room_for_the_last_values_there_is_no_rehearsal():
    estimator = quick(folds=2)
    assert folds.Folds(estimator, noisy_items(8, 3), 0).rehearsal(estimator) is None


def test_a_rehearsal_forecasts_the_last_horizon():
    """Of rows a quarter of an hour apart, then an hour apart; an hour is four rows, or one."""
    times = np.concatenate([np.arange(0.0, 2.0, 0.25), np.arange(2.0, 6.0)])
    frame = pd.DataFrame({"item_id": np.arange(6).repeat(12), "timestamp": np.tile(times, 6)})
    frame["target"] = np.random.default_rng(0).normal(size=len(frame))
    estimator = quick(prediction_length=4, horizon="1h")
    parts = folds.Folds(estimator, IrregularDataset.from_long_dataframe(frame), seed=0)
    labels = [label["target"] for _, label in parts.rehearsal(estimator).pairs]
    assert list(map(len, labels)) == [1] * 6


def test_a_rehearsal_ends_with_the_last_targets():
    """Later rows may have values of other channels only."""
    frame = pd.DataFrame({"item_id": np.arange(6).repeat(12), "timestamp": np.tile(range(12), 6)})
    frame["beside"] = np.random.default_rng(0).normal(size=len(frame))
    frame["target"] = frame["beside"].where(frame["timestamp"] < 8)
    data = IrregularDataset.from_long_dataframe(frame, past_feat_dynamic_real=["beside"])
    parts = folds.Folds(quick(), data, seed=0)
    for known, label in parts.rehearsal(parts.estimator).pairs:
        assert known["target"].shape == (6,)
        assert np.isfinite(label["target"]).tolist() == [True, True]


@pytest.mark.parametrize("number", [1, 8])
def test_origins_near_the_end_of_items_need_neither_stretches_nor_a_rehearsal(number):
    """Both would have no such origin."""
    frame = pd.DataFrame({"item_id": np.arange(number).repeat(40)})
    frame["timestamp"] = np.tile(np.arange(40.0), number)
    frame["target"] = np.random.default_rng(0).normal(size=len(frame))
    data = IrregularDataset.from_long_dataframe(frame)
    estimator = quick(folds=2, calibrate=False, origins_within=("38h", "39h"))
    parts = folds.Folds(estimator, data, seed=0)
    assert not parts.stretches
    assert parts.rehearsal(estimator) is None
    assert np.isfinite(forecasts_of(estimator.train(data), data)).all()


def test_items_without_any_event_do_not_end_the_training(monkeypatch):
    """The quantile loss is divided by the size of the values, which is 0."""
    epochs = []
    monkeypatch.setattr(folds, "_described", lambda *given: epochs.extend(given[2]))
    start = pd.Period("2024-01-01", freq="D")
    targets = np.zeros((6, 12))
    targets[0, ::3] = 1.0
    entries = [
        {"item_id": str(item), "start": start, "target": own} for item, own in enumerate(targets)
    ]
    quick(folds=3, trainer_kwargs={**QUICK, "max_epochs": 3}).train(entries)
    assert epochs == [3, 3, 3]


@pytest.mark.parametrize("repeated", [False, True])
def test_windows_of_the_same_items_are_not_rehearsed(repeated):
    estimator, entries = quick(folds=2), list(noisy_items(8))
    named = [{**entry, "item_id": f"i{number % 4}"} for number, entry in enumerate(entries)]
    data = named if repeated else entries
    rehearsal = folds.Folds(estimator, data, 0).rehearsal(estimator)
    assert (rehearsal is None) == repeated


@pytest.mark.parametrize("common", [0.0, 4.0])
def test_where_items_err_together_intervals_are_widened_and_it_is_said(common, caplog):
    random = np.random.default_rng(0)
    walk = common * random.normal(size=8).cumsum()
    values = random.normal(size=(16, 8)).cumsum(axis=1) + walk
    frame = pd.DataFrame({"item_id": np.arange(16).repeat(8), "target": values.ravel()})
    frame["timestamp"] = np.tile(np.arange(8.0), 16)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        predictor = quick(folds=2, blend=True).train(IrregularDataset.from_long_dataframe(frame))
    (line,) = [text for text in caplog.messages if text.startswith("Trained")]
    factor = predictor.summary()["widened_for_common_errors"]["target"]
    (said,) = re.findall(r"widened ([\d.]+) times for errors that items share", line)
    assert float(said) == pytest.approx(factor, rel=0.01)
    assert factor > 1.2 if common else factor == pytest.approx(np.sqrt(1.2), abs=1e-3)


def test_a_negative_number_of_folds_is_refused():
    with pytest.raises(DeltaflowError, match="folds must be at least 0, got -1"):
        quick(folds=-1)


def test_intervals_of_folds_narrow_only_as_far_as_is_certain():
    """On the past of items, a forecast may do better than it will do on what lies ahead."""
    data = noisy_items(20)
    pairs = list(split(data, offset=-2)[1].generate_instances(2))
    tenfold = IrregularDataset([{**e, "target": 10 * e["target"]} for e in data], data.schema)
    wide = HoldPredictor.fit(tenfold, 2)
    surprised = [(past, {**label, "target": label["target"] + 100}) for past, label in pairs]
    exact = ConformalPredictor.fit(wide, pairs)
    folds = ConformalPredictor.fit_folds([wide], [pairs])
    rehearsed = ConformalPredictor.fit_folds([wide], [pairs], rehearsal=(wide, surprised))
    widths = [np.ptp(forecasts_of(one, data), axis=1) for one in (exact, folds, rehearsed, wide)]
    assert (widths[0] < 0.9 * widths[1]).all()
    assert (widths[1] < 0.5 * widths[3]).all()
    assert (widths[2] >= widths[3] - 1e-9).all()


@pytest.mark.parametrize(("worse", "length"), [(0.0, 64), (np.inf, plans.SHORT_CONTEXT)])
def test_the_context_is_chosen_by_the_first_folds(worse, length, monkeypatch, caplog):
    monkeypatch.setattr(folds, "WORSE", worse)
    data = noisy_items(8, 12)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        chosen = quick(blend=True).train(data)
    assert ("context_length=5" in caplog.text) == (length == 5)
    given = quick(blend=True, context_length=length).train(data)
    np.testing.assert_array_equal(forecasts_of(chosen, data), forecasts_of(given, data))


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"context_length": 7}, noisy_items(8, 12)),
        ({"context": "3d"}, noisy_items(8, 12)),
        ({"folds": 1}, noisy_items(8, 12)),
        ({}, noisy_items(8, 7)),  # hardly more rows than a short context
        ({}, noisy_items(1, 200)),  # cut into stretches
        ({}, noisy_items(8, 61)),  # much longer than the horizon
        ({}, [with_gaps(entry) for entry in noisy_items(8, 12)]),
    ],
)
def test_a_short_context_is_not_tried(options, data):
    estimator = quick(**options)
    assert not folds.Folds(estimator, data, seed=0).alternatives()


def of_unlike_scale(data):
    """Multiply the items by powers of ten."""
    return [{**one, "target": one["target"] * 10.0**place} for place, one in enumerate(data)]


@pytest.mark.parametrize(("alike", "scaling"), [(0.0, "running"), (np.inf, "last")])
def test_the_scaling_of_unlike_items_is_chosen_by_the_first_folds(
    alike, scaling, monkeypatch, caplog
):
    for name in ("BETTER", "AS_GOOD"):
        monkeypatch.setattr(folds, name, alike)
    monkeypatch.setattr(folds, "WORSE", 0.0)
    data = of_unlike_scale(noisy_items(8, 12))
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        chosen = quick(blend=True).train(data)
    assert f"scaling='{scaling}'" in caplog.text
    given = quick(blend=True, context_length=64, scaling=scaling).train(data)
    np.testing.assert_array_equal(forecasts_of(chosen, data), forecasts_of(given, data))


def test_one_scale_and_a_short_context_are_chosen_one_after_the_other(monkeypatch, caplog):
    for name in ("BETTER", "AS_GOOD", "WORSE"):
        monkeypatch.setattr(folds, name, np.inf)
    data = of_unlike_scale(noisy_items(8, 12))
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        chosen = quick(blend=True).train(data)
    assert "scaling='last', context_length=5" in caplog.text
    given = quick(blend=True, context_length=5, scaling="last").train(data)
    np.testing.assert_array_equal(forecasts_of(chosen, data), forecasts_of(given, data))


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"scaling": "running"}, of_unlike_scale(noisy_items(8, 7))),
        ({}, noisy_items(8, 7)),  # of like scale
        ({}, of_unlike_scale(noisy_items(3, 200))),  # cut into stretches
    ],
)
def test_one_scale_is_not_tried(options, data):
    assert not folds.Folds(quick(**options), data, seed=0).alternatives()


def test_losses_by_item_do_not_depend_on_the_scales_of_items():
    """Twice the error for one item and half for another are as good, however large one is."""
    size = 10.0 ** np.arange(4)
    value = np.zeros(4)
    errors = np.array([[2.0, 0.5, 1.0, 1.0] * size, size])
    levels = np.repeat(errors[:, None], 9, axis=1)
    held_out = HeldOut(np.array([0, 1, 2, 3]), np.zeros(4, int), value, value, value, levels)
    assert blend.compared_by_item(held_out) == pytest.approx(1)
    assert blend.compared_by_item(held_out._replace(quantiles=levels[[1, 1]] * 0)) == np.inf


@pytest.mark.parametrize("folds", [None, 1, 3])
def test_entries_of_one_item_are_left_out_together(folds):
    def entries(names):
        start = pd.Period("2024-01-01", freq="D")
        target = np.arange(20.0)
        return [{"item_id": name, "start": start, "target": target} for name in names]

    names = [f"item {number % 10}" for number in range(30)]
    left_out = plan_of(entries(names), folds).left_out
    for own in left_out:
        assert len(own) == 3 * len({names[entry] for entry in own})
    apart = plan_of(entries([f"{n} {k}" for k, n in enumerate(names)]), folds).left_out
    # Of a single item, and of items without names, entries are held out one by one.
    for same in (["item"] * 30, [None] * 30):
        for own, expected in zip(plan_of(entries(same), folds).left_out, apart, strict=True):
            np.testing.assert_array_equal(own, expected)
