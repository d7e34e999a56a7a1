"""Intervals are wider where items err together, and only a little wider where they do not."""

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split
from scipy.stats import norm

from deltaflow import ConformalPredictor, HoldPredictor, IrregularDataset, load_predictor
from deltaflow.forecast.common_errors import (
    ASSUMED,
    FEWEST_TOGETHER,
    Errors,
    common,
    narrowing_for,
    widening_for,
)
from deltaflow.forecast.conformal import LEVELS
from deltaflow.forecast.held_out import query_times

TIMES = 8

LEAST = np.sqrt(1 + ASSUMED)
"""The smallest widening of several items."""


def errors(
    random: np.random.Generator, items: int, shock: float, persists: float, times: int = TIMES
) -> Errors:
    """Errors of variance 1, and a common part of which one share is the same at all times."""
    own = random.normal(size=(times, items))
    shared = np.sqrt(persists) * random.normal() + np.sqrt(1 - persists) * random.normal(
        size=(times, 1)
    )
    item, time = np.tile(np.arange(items), times), np.arange(times).repeat(items)
    return Errors(item, time, (own + shock * shared).ravel())


def coverage(share: float, learned: float, items: int = 30) -> tuple[float, float]:
    """The share of a future that intervals of 80 % cover, before and after, on average over panels.

    The common part has a share of the variance of what is to come; of items left out, those that
    others have not learned from. It lasts throughout a future.
    """
    random = np.random.default_rng(0)
    shock = np.sqrt(share / (1 - share))
    before, after = [], []
    for _ in range(150):
        known = errors(random, items, (1 - learned) * shock, 0.0)
        widening = widening_for(known, errors(random, items, shock, 1.0, 3))
        width = np.quantile(np.abs(known.error), 0.8)
        future = np.abs(errors(random, items, shock, 1.0, 3).error)
        before.append((future < width).mean())
        after.append((future < widening * width).mean())
    return float(np.mean(before)), float(np.mean(after))


@pytest.mark.parametrize(("share", "learned"), [(0.5, 0.5), (0.7, 0.7), (0.9, 0.8)])
def test_where_items_share_a_shock_intervals_miss_the_level_by_less_than_half(share, learned):
    """By less, they cannot: of what is common to all items, a rehearsal shows one example."""
    before, after = coverage(share, learned)
    assert before < 0.72
    assert 0.8 - after < 0.5 * (0.8 - before)
    assert after < 0.81


def test_where_items_are_independent_intervals_are_a_little_wider():
    random = np.random.default_rng(0)
    widened = [
        widening_for(errors(random, items, 0.0, 0.0), errors(random, items, 0.0, 0.0, 3))
        for items in (9, 20, 60)
        for _ in range(50)
    ]
    assert np.min(widened) == LEAST
    assert np.mean(np.array(widened) > LEAST) < 0.1
    assert np.mean(widened) < LEAST + 0.01
    assert coverage(0.0, 0.0)[1] == pytest.approx(0.84, abs=0.02)


def test_a_course_that_items_teach_each_other_is_no_shock():
    """Beyond it all items err alike, but those left out do not: the course was learned."""
    random = np.random.default_rng(0)
    item, time, error = errors(random, 30, 0.0, 0.0, 3)
    beyond = Errors(item, time, error + 2)
    for shock, widened in ((0.0, LEAST), (0.7, 2.0)):
        found = [widening_for(errors(random, 30, shock, 0.0), beyond) for _ in range(20)]
        assert np.median(found) == pytest.approx(widened, rel=0.2 if shock else 1e-9)


def test_rare_shocks_do_not_widen_the_intervals_of_all_times():
    """Such as holidays: nine times out of ten, items err as independently as ever."""
    random = np.random.default_rng(0)
    left_out, last = errors(random, 30, 0.0, 0.0, 40), errors(random, 30, 0.0, 0.0, 10)
    known = left_out._replace(error=left_out.error - 4.0 * (left_out.time % 10 == 3))
    beyond = last._replace(error=last.error - 4.0 * (last.time == 3))
    assert common(*beyond).variance > 1
    within = np.abs(beyond.error) < np.quantile(np.abs(known.error), 0.8)
    assert within.mean() == pytest.approx(0.8, abs=0.05)
    assert widening_for(known, beyond) < LEAST + 0.1


@pytest.mark.parametrize("items", [20, 40, 200])
@pytest.mark.parametrize("alike", [False, True], ids=["independent", "each item alike"])
def test_intervals_that_narrow_keep_their_coverage(items, alike):
    """With a probability of 95 %, whether the errors of an item are independent or the same."""
    random, bound, kept = np.random.default_rng(0), norm.ppf(0.9), 0
    for _ in range(200):
        found = errors(random, items, 0.0, 0.0)
        error = np.tile(found.error[:items], TIMES) if alike else found.error
        factor = narrowing_for([found._replace(error=error / (6 * bound))])
        assert 0 < factor < 1
        kept += 2 * norm.cdf(6 * bound * factor) - 1 >= 0.8
    assert kept >= 0.93 * 200


def test_intervals_narrow_only_where_every_set_of_errors_allows_it():
    random = np.random.default_rng(0)
    found = errors(random, 40, 0.0, 0.0)
    small, large = (found._replace(error=factor * found.error) for factor in (0.1, 2.0))
    assert narrowing_for([small]) == narrowing_for([small, small]) < 0.3
    assert narrowing_for([small, large]) == 1.0
    for few in (0, 1, 13):
        assert narrowing_for([small, Errors(*(part[small.item < few] for part in small))]) == 1.0


def test_the_intervals_of_few_items_do_not_widen():
    random = np.random.default_rng(0)
    few = [errors(random, FEWEST_TOGETHER - 1, 1.0, 0.0) for _ in range(2)]
    assert widening_for(*few) == 1.0


def test_what_is_in_common_is_a_variance_whatever_the_number_of_items():
    random = np.random.default_rng(0)
    for items in (10, 100):
        found = [common(*errors(random, items, 1.0, 0.0, 20)) for _ in range(50)]
        variances, correlations, deviations = np.array(found).T
        assert variances.mean() == pytest.approx(1.0, abs=0.15)
        assert correlations.mean() == pytest.approx(0.5, abs=0.05)
        assert np.median(deviations) > 0


def test_few_items_and_items_that_never_meet_say_nothing():
    random = np.random.default_rng(0)
    assert common(*errors(random, FEWEST_TOGETHER - 1, 1.0, 0.0)) is None
    assert common(*errors(random, FEWEST_TOGETHER, 1.0, 0.0)) is not None
    apart = np.arange(15.0)
    assert common(apart, apart, apart) is None
    assert common(apart[:0], apart[:0], apart[:0]) is None


def shaken(random: np.random.Generator, items: int = 20, rows: int = 12) -> pd.DataFrame:
    """Random walks, of which most steps are those of all items at once; two channels, of which
    the other walks alone; on dates, from different days on."""
    days = pd.date_range("2024-01-01", periods=rows, freq="D")
    common_walk = 3 * random.normal(size=rows).cumsum()
    frames = []
    for item in range(items):
        own = random.normal(size=(2, rows)).cumsum(axis=1)
        frame = pd.DataFrame(
            {"item_id": f"i{item}", "timestamp": days, "a": own[0] + common_walk, "b": own[1]}
        )
        frames.append(frame.iloc[item % 3 :])
    return pd.concat(frames)


def test_a_predictor_is_widened_by_channel_and_says_so(tmp_path):
    random = np.random.default_rng(1)
    data = IrregularDataset.from_long_dataframe(shaken(random), target=["a", "b"])
    pairs = list(split(data, offset=-6)[1].generate_instances(2, windows=3))
    last = list(split(data, offset=-2)[1].generate_instances(2))
    days = pd.date_range("2024-01-01", periods=60, freq="D")
    walk = pd.DataFrame({"timestamp": days, "item_id": "x"})
    for name in ("a", "b"):
        walk[name] = random.normal(size=60).cumsum()
    hold = HoldPredictor.fit(IrregularDataset.from_long_dataframe(walk, target=["a", "b"]), 2)
    members, folds = [hold, hold], [pairs[::2], pairs[1::2]]
    plain = ConformalPredictor.fit_folds(members, folds)
    ConformalPredictor.fit_folds(members, folds, rehearsal=(hold, last)).serialize(tmp_path)
    wider = load_predictor(tmp_path)
    factor = wider.summary()["widened_for_common_errors"]
    assert factor["a"] > 1.1
    assert factor["b"] == pytest.approx(LEAST, abs=1e-3)
    assert "widened_for_common_errors" not in plain.summary()
    for scores, known, times in zip(wider.scores, plain.scores, wider.widened, strict=True):
        middle = known[:, LEVELS == 0.5]
        np.testing.assert_allclose(scores - middle, times * (known - middle), atol=1e-9)
    past = [known for known, _ in last]
    for one, other in zip(plain.predict(past), wider.predict(past), strict=True):
        np.testing.assert_allclose(one.quantile(0.5), other.quantile(0.5))
        inner = np.diff([forecast.quantiles([0.1, 0.9]) for forecast in (one, other)], axis=1)
        assert (inner[1, ..., 0] > 1.1 * inner[0, ..., 0]).all()
        np.testing.assert_allclose(LEAST * inner[0, ..., 1], inner[1, ..., 1])


def test_items_are_compared_at_times_of_one_clock():
    """By date, where they have dates, whenever each began."""
    days = pd.date_range("2024-01-01", periods=6, freq="D")
    whole = pd.DataFrame({"item_id": "a", "timestamp": days, "target": 1.0})
    later = whole.iloc[2:].assign(item_id="b")
    dated = IrregularDataset.from_long_dataframe(pd.concat([whole, later]))
    numbers = {day: number + 7.0 for number, day in enumerate(days)}
    elapsed = pd.concat([whole, later]).assign(
        timestamp=lambda rows: rows["timestamp"].map(numbers)
    )
    regular = [
        {"item_id": "a", "start": pd.Period("2024-01-01", "D"), "target": np.ones(6)},
        {"item_id": "b", "start": pd.Period("2024-01-03", "D"), "target": np.ones(4)},
    ]
    for data in (dated, IrregularDataset.from_long_dataframe(elapsed), regular):
        past = [known for known, _ in split(data, offset=-2)[1].generate_instances(2)]
        first, second = (query_times(known, 2) for known in past)
        np.testing.assert_array_equal(first, second)
        assert first[1] > first[0]
