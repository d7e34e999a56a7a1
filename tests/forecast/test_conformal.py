"""Conformal quantiles cover what they say, for items that are exchangeable with the calibration."""

import json

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split
from gluonts.model.predictor import Predictor

from deltaflow import ConformalPredictor, DataError, HoldPredictor, IrregularDataset, load_predictor
from deltaflow.forecast import conformal
from deltaflow.forecast.conformal import LEVELS, conformal_quantiles, expected_quantiles

ROWS, AHEAD = 8, 3


def items(number: int, random: np.random.Generator, channels: int = 1) -> IrregularDataset:
    """Exchangeable items, each with a level, noise, growth and times of its own."""
    frames = []
    for item in range(number):
        times = random.exponential(1.0, ROWS).cumsum()
        frame = pd.DataFrame({"item_id": f"i{item}", "timestamp": times})
        for channel in range(channels):
            noise = random.gamma(1.0) * random.normal(size=ROWS)
            frame[f"x{channel}"] = 10 * random.normal() + times * random.normal() + noise
        frames.append(frame)
    target = "x0" if channels == 1 else [f"x{channel}" for channel in range(channels)]
    return IrregularDataset.from_long_dataframe(pd.concat(frames), target=target)


def pairs(data: IrregularDataset, windows: int = 1):
    """The last values of each item, or also those before them."""
    length = AHEAD if windows == 1 else 1
    return split(data, offset=-length * windows)[1].generate_instances(length, windows=windows)


def narrow_hold(random: np.random.Generator) -> HoldPredictor:
    """A predictor that knows how a random walk moves, and these items not at all."""
    frame = pd.DataFrame({"item_id": "a", "timestamp": np.arange(60.0)})
    frame["x0"] = random.normal(size=60).cumsum()
    return HoldPredictor.fit(IrregularDataset.from_long_dataframe(frame, target="x0"), AHEAD)


def covered(predictor, test, low: float, high: float) -> np.ndarray:
    labels = np.array([label["target"] for _, label in test])
    forecasts = list(predictor.predict([past for past, _ in test]))
    bounds = [np.array([forecast.quantile(level) for forecast in forecasts])
              for level in (low, high)]  # fmt: skip
    return (bounds[0] <= labels) & (labels <= bounds[1])


@pytest.mark.parametrize(("num_items", "alpha"), [(9, 0.1), (19, 0.1), (19, 0.25)])
def test_a_new_exchangeable_item_is_covered_as_promised(num_items, alpha):
    """The law: on average over calibrations and new items, the interval between the levels α and
    1 − α covers at least 1 − 2α, and hardly more than 2 / (K + 1) beyond that."""
    random = np.random.default_rng(num_items)
    predictor = narrow_hold(random)
    repeats, new = 40, 8
    pool = items(repeats * (num_items + new), random)
    shares, plain = [], []
    for own in np.arange(len(pool)).reshape(repeats, -1):
        calibrated = ConformalPredictor.fit(predictor, pairs(pool.select(own[new:])))
        test = list(pairs(pool.select(own[:new])))
        shares.append(covered(calibrated, test, alpha, 1 - alpha).mean())
        plain.append(covered(predictor, test, alpha, 1 - alpha).mean())
    error = np.std(shares) / np.sqrt(repeats)
    assert np.mean(shares) > 1 - 2 * alpha - 3 * error
    assert np.mean(shares) < 1 - 2 * alpha + 2 / (num_items + 1) + 3 * error
    assert np.mean(plain) < 1 - 2 * alpha - 3 * error  # which shows that there was work to do


def test_items_count_alike_however_many_values_they_have():
    few, many = np.arange(10.0), np.full(1000, 100.0)
    item = np.concatenate([np.arange(10), np.full(1000, 10)])
    quantiles = conformal_quantiles(item, np.concatenate([few, many]))
    alone = conformal_quantiles(np.arange(11), np.append(few, 100.0))
    inside = (LEVELS > 1 / 12) & (LEVELS < 11 / 12)
    np.testing.assert_array_equal(quantiles[inside], alone[inside])


def test_the_quantiles_of_scores_are_the_ranks_of_order_statistics():
    """With K items of one score each: ranks ⌊α (K + 1)⌋ and ⌈(1 − α) (K + 1)⌉."""
    for count in (7, 19, 50):
        scores = np.random.default_rng(count).normal(size=count)
        quantiles = conformal_quantiles(np.arange(count), scores)
        for level, quantile in zip(LEVELS, quantiles, strict=True):
            ranks = level * (count + 1)
            rank = int(ranks + 1e-6) if level < 0.5 else int(np.ceil(ranks - 1e-6))
            if 1 <= rank <= count and not np.isclose(level, 0.5):
                assert quantile == np.sort(scores)[rank - 1]
        assert (np.diff(quantiles) >= 0).all()
        assert quantiles[0] < scores.min()
        assert quantiles[-1] > scores.max()


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [10, 15, 40])
def test_interpolated_quantiles_of_scores_are_nearer_to_their_level(count, alike):
    """The law of `expected_quantiles`: a new item's score lies within the interval as often as it
    says, or somewhat more often, whatever the scores of an item have in common."""
    random = np.random.default_rng(count)
    of_item = np.sqrt(alike) * random.normal(size=(200, 2 * count, 1))
    scores = of_item + np.sqrt(1 - alike) * random.normal(size=(200, 2 * count, 6))
    item, shares = np.arange(count).repeat(6), {}
    for quantiles in (expected_quantiles, conformal_quantiles):
        within = []
        for known, new in zip(scores[:, :count], scores[:, count:], strict=True):
            low, high = quantiles(item, known.ravel())[np.isin(LEVELS, [0.1, 0.9])]
            within.append(((low <= new) & (new <= high)).mean())
        shares[quantiles] = np.mean(within)
    error = np.std(within) / np.sqrt(200)
    assert 0.8 - 3 * error < shares[expected_quantiles] < 0.8 + 1 / count
    assert shares[conformal_quantiles] > shares[expected_quantiles] + 0.01


def test_with_few_items_folds_cover_nearly_as_often_as_they_say():
    """Ten items of three values each: rounded outwards, intervals of 80 % cover about 90 %, as they
    do where there is a single member, which keeps the promise."""
    random = np.random.default_rng(0)
    members = [narrow_hold(random) for _ in range(5)]
    pool, shares = items(20 * 20, random), []
    for own in np.arange(len(pool)).reshape(20, 20):
        test, every = list(pairs(pool.select(own[10:]))), pairs(pool.select(own[:10]))
        folds = [pairs(pool.select(own[first:10:5])) for first in range(5)]
        average = ConformalPredictor.fit_folds(members, folds)
        rounded = ConformalPredictor.fit(average.predictor, every)
        single = ConformalPredictor.fit_folds([average.predictor], [every])
        shares.append([covered(one, test, 0.1, 0.9).mean() for one in (average, rounded, single)])
    average, rounded, single = np.mean(shares, axis=0)
    error = np.std(shares, axis=0)[0] / np.sqrt(20)
    assert 0.8 - 3 * error < average < 0.8 + 1 / 11 + error
    assert rounded == single > average + 0.03


def test_each_range_of_lead_times_is_calibrated_on_its_own():
    """A predictor of constant width, and values that move further the longer it takes."""
    random = np.random.default_rng(0)
    data = items(240, random)
    predictor = narrow_hold(random)
    predictor.leads, predictor.changes = [np.array([1e18])], [predictor.changes[0][:1]]
    calibrated = ConformalPredictor.fit(predictor, pairs(data))
    scores = calibrated.scores[0]
    assert len(scores) == len(calibrated.leads[0]) + 1 == 6
    assert scores[-1, LEVELS == 0.9] > 1.5 * scores[0, LEVELS == 0.9]
    assert scores[-1, LEVELS == 0.1] < 1.5 * scores[0, LEVELS == 0.1]


def test_lead_times_that_differ_by_rounding_are_in_one_range():
    random = np.random.default_rng(0)
    item, lead = np.repeat(np.arange(200), 8), np.tile(np.arange(1.0, 9.0), 200)
    score = random.normal(size=lead.shape) * lead
    rounded = lead * (1 + 1e-15 * random.integers(-9, 10, lead.shape))
    exact, close = (
        conformal._calibrate(item, own, score, conformal_quantiles)[1] for own in (lead, rounded)
    )
    np.testing.assert_array_equal(close, exact)


def test_quantiles_are_ordered_and_the_mean_is_the_predictors():
    random = np.random.default_rng(1)
    data = items(30, random, channels=2)
    predictor = HoldPredictor.fit(data, AHEAD)
    calibrated = ConformalPredictor.fit(predictor, pairs(data))
    entries = [past for past, _ in pairs(data)]
    levels = [1e-6, 0.001, 0.01, 0.1, 0.123, 0.5, 0.77, 0.9, 0.999, 1 - 1e-6]
    for one, plain in zip(calibrated.predict(entries), predictor.predict(entries), strict=True):
        quantiles = one.quantiles(levels)
        assert quantiles.shape == (len(levels), AHEAD, 2)
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles, axis=0) >= 0).all()
        np.testing.assert_array_equal(one.mean, plain.mean)
        np.testing.assert_array_equal(one.copy_dim(1).quantile(0.9), one.quantile(0.9)[:, 1])


def test_samples_have_the_calibrated_distribution():
    random = np.random.default_rng(2)
    data = items(40, random)
    calibrated = ConformalPredictor.fit(HoldPredictor.fit(data, AHEAD), pairs(data))
    entry = next(iter(pairs(data)))[0]
    (exact,), (drawn,) = (calibrated.predict([entry], count, seed=1) for count in (None, 4000))
    (again,) = calibrated.predict([entry], 4000, seed=1)
    np.testing.assert_array_equal(drawn.samples, again.samples)
    below = (drawn.samples <= exact.quantile(0.3)).mean(axis=0)
    np.testing.assert_allclose(below, 0.3, atol=4 * np.sqrt(0.21 / 4000))


def test_folds_are_calibrated_by_the_member_that_left_them_out():
    random = np.random.default_rng(3)
    data = items(30, random)
    parts = [data.select(range(first, 30, 3)) for first in range(3)]
    rest = [data.select(i for i in range(30) if i % 3 != first) for first in range(3)]
    members = [HoldPredictor.fit(part, AHEAD) for part in rest]
    calibrated = ConformalPredictor.fit_folds(members, [pairs(part) for part in parts])
    assert calibrated.num_items == [30]
    assert calibrated.predictor.members == members
    assert calibrated.summary()["calibrated_on_items"] == {"x0": 30}


@pytest.mark.parametrize(("rise", "corrected"), [(0.1, False), (30.0, True)])
def test_folds_correct_only_a_large_bias(rise, corrected):
    """If members are a little too low on held-out items, they need not be so later on. A single
    member is corrected for any bias, and keeps the promise at every level."""
    random = np.random.default_rng(7)
    low = narrow_hold(random)
    rising = [{**entry, "target": entry["target"] + rise * np.arange(ROWS)}
              for entry in items(30, random)]  # fmt: skip
    test = list(split(rising, offset=-AHEAD)[1].generate_instances(AHEAD))
    several = ConformalPredictor.fit_folds([low, low], [test[::2], test[1::2]])
    single = ConformalPredictor.fit_folds([low], [test])
    entries = [past for past, _ in test]
    shifts = []
    for model in (several, single):
        forecasts = zip(model.predict(entries), low.predict(entries), strict=True)
        shifts.append([own.quantile(0.5) - plain.quantile(0.5) for own, plain in forecasts])
    assert (np.array(shifts[1]) > 0).all()
    assert (np.array(shifts[0]) > 0).all() == corrected
    assert np.any(shifts[0]) == corrected
    assert covered(several, test, 0.1, 0.9).mean() > 0.75


def test_several_origins_of_an_item_are_one_item():
    data = items(12, np.random.default_rng(4))
    predictor = HoldPredictor.fit(data, 1)
    assert ConformalPredictor.fit(predictor, pairs(data, windows=3)).num_items == [12]


def test_a_channel_that_was_hardly_observed_keeps_the_spread_of_the_predictor():
    data = items(12, np.random.default_rng(5), channels=2)
    predictor = HoldPredictor.fit(data, AHEAD)
    test = [(past, {**label, "target": label["target"] * [[1.0], [np.nan]]})
            for past, label in pairs(data)]  # fmt: skip
    calibrated = ConformalPredictor.fit(predictor, test)
    assert calibrated.num_items == [12, 0]
    entry = test[0][0]
    (one,), (plain,) = (model.predict([entry]) for model in (calibrated, predictor))
    np.testing.assert_allclose(
        one.quantiles([0.1, 0.9])[..., 1], plain.quantiles([0.1, 0.9])[..., 1]
    )


@pytest.mark.parametrize("load", [load_predictor, Predictor.deserialize], ids=["ours", "gluonts"])
def test_it_is_saved_as_plain_values(load, tmp_path):
    data = items(20, np.random.default_rng(6))
    calibrated = ConformalPredictor.fit(HoldPredictor.fit(data, AHEAD), pairs(data))
    calibrated.serialize(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, ConformalPredictor)
    assert json.loads((tmp_path / "predictor.json").read_text())["kwargs"]["num_items"] == [20]
    entries = [past for past, _ in pairs(data)]
    for one, other in zip(calibrated.predict(entries), loaded.predict(entries), strict=True):
        np.testing.assert_array_equal(one.quantile(0.123), other.quantile(0.123))


def test_what_cannot_be_calibrated_is_refused():
    data = items(6, np.random.default_rng(7))
    predictor = HoldPredictor.fit(data, AHEAD)
    nothing = [(past, {**label, "target": label["target"] * np.nan}) for past, label in pairs(data)]
    with pytest.raises(DataError, match="nothing was observed after the origins"):
        ConformalPredictor.fit(predictor, nothing)
    with pytest.raises(DataError, match="not a pair of context and targets"):
        ConformalPredictor.fit(predictor, data)  # pyright: ignore[reportArgumentType]
