"""The regression on earlier cycles: what it repeats, what it reads, and that its intervals hold."""

import itertools

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split
from gluonts.model.seasonal_naive import SeasonalNaivePredictor

from deltaflow import (
    ConformalPredictor,
    DataError,
    DeltaflowError,
    HoldPredictor,
    IrregularDataset,
    load_predictor,
)
from deltaflow.data.series import read_series
from deltaflow.data.statistics import Statistics
from deltaflow.forecast import SeasonalPredictor
from deltaflow.forecast.location_scale import Curve
from deltaflow.forecast.seasonal import _inputs, cycles_of

LEVELS = [0.1, 0.5, 0.9]


def hourly(values: np.ndarray, item: str = "a", start: str = "2024-01-01") -> dict:
    return {"start": pd.Period(start, "h"), "target": values.astype(np.float32), "item_id": item}


def week(seed: int = 0) -> np.ndarray:
    """A value for each hour of a week."""
    return np.random.default_rng(seed).normal(size=168)


def test_what_repeats_every_week_is_continued_exactly():
    data = [hourly(np.tile(week(seed), 8), str(seed)) for seed in range(3)]
    predictor = SeasonalPredictor.fit(data, 48)
    for seed, forecast in enumerate(predictor.predict(data)):
        for level in LEVELS:
            np.testing.assert_allclose(forecast.quantile(level), week(seed)[:48], atol=0.02)


def test_what_repeats_is_continued_at_any_time():
    """Between observations at random times, a wave of a day is interpolated."""
    random = np.random.default_rng(0)
    hours = np.sort(random.uniform(0, 24 * 20, 4000))
    frame = pd.DataFrame({"timestamp": pd.Timestamp("2024-01-01") + hours * pd.Timedelta("1h")})
    frame["target"] = np.sin(2 * np.pi * hours / 24)
    data = IrregularDataset.from_long_dataframe(frame, item_id=None)
    entry = dict(data[0])
    asked = hours[-1] + np.sort(random.uniform(0, 48, 30))
    elapsed = entry["feat_dynamic_real"]
    queries = elapsed[0, -1] + asked - hours[-1]
    entry["feat_dynamic_real"] = np.append(elapsed, queries)[None]
    (forecast,) = SeasonalPredictor.fit(data, 30).predict([entry])
    np.testing.assert_allclose(forecast.mean, np.sin(2 * np.pi * asked / 24), atol=0.02)


def test_items_of_unlike_scale_are_forecast_alike():
    """In calibrated intervals, too, an item in millionths of the unit of others is no smaller."""
    large, *others = noisy(6, 5, seed=0)
    small = {**large, "target": (1e-6 * large["target"]).astype(np.float32), "item_id": "small"}
    data = [large, small, *others]
    pairs = list(split(data, offset=-48)[1].generate_instances(24, windows=2))
    plain = SeasonalPredictor.fit(data, 24)
    for predictor in (plain, ConformalPredictor.fit(plain, pairs)):
        forecast, smaller = itertools.islice(predictor.predict(data), 2)
        for level in LEVELS:
            expected = 1e-6 * forecast.quantile(level)
            np.testing.assert_allclose(smaller.quantile(level), expected, rtol=1e-3, atol=1e-9)


def noisy(number: int, weeks: int, seed: int) -> list[dict]:
    """Items with a week of their own, a level that returns to 0, and noise."""
    random = np.random.default_rng(seed)
    items = []
    for item in range(number):
        level = np.zeros(168 * weeks)
        for hour in range(1, len(level)):
            level[hour] = 0.95 * level[hour - 1] + 0.3 * random.normal()
        own = (
            np.tile(2 * random.normal(size=168), weeks)
            + level
            + 0.5 * random.normal(size=level.shape)
        )
        items.append(hourly(10 + 3 * own, str(item)))
    return items


def scores(predictor, pairs) -> tuple[float, float]:
    """Return the quantile loss, and the share within the 80 % interval."""
    found = predictor.predict([known for known, _ in pairs])
    quantiles = np.array([[own.quantile(level) for level in LEVELS] for own in found])
    over = np.array([later["target"] for _, later in pairs])[:, None] - quantiles
    levels = np.array(LEVELS)[:, None]
    loss = np.maximum(levels * over, (levels - 1) * over).mean()
    return loss, ((over[:, 0] >= 0) & (over[:, -1] <= 0)).mean()


def test_intervals_hold_and_naive_forecasts_are_beaten():
    known, template = split(noisy(20, 8, seed=0), offset=-72)
    pairs = list(template.generate_instances(24, windows=3))
    loss, covered = scores(SeasonalPredictor.fit(known, 24), pairs)
    assert covered == pytest.approx(0.8, abs=0.04)
    others = HoldPredictor.fit(known, 24), SeasonalNaivePredictor(24, season_length=168)
    assert loss < 0.75 * min(scores(other, pairs)[0] for other in others)


def test_without_any_cycle_it_is_hardly_worse_than_a_hold():
    random = np.random.default_rng(1)
    walks = [hourly(random.normal(size=168 * 6).cumsum(), str(item)) for item in range(20)]
    known, template = split(walks, offset=-72)
    pairs = list(template.generate_instances(24, windows=3))
    loss, covered = scores(SeasonalPredictor.fit(known, 24), pairs)
    assert covered == pytest.approx(0.8, abs=0.06)
    assert loss < 1.05 * scores(HoldPredictor.fit(known, 24), pairs)[0]


def test_forecasts_follow_the_units_of_the_data():
    """Those of a + b · y are a + b times those of y."""
    data = noisy(3, 5, seed=2)
    changed = [{**entry, "target": 1000 - 50 * entry["target"]} for entry in data]
    one, other = (list(SeasonalPredictor.fit(own, 24).predict(own)) for own in (data, changed))
    for forecast, its in zip(one, other, strict=True):
        for level in LEVELS:
            expected = 1000 - 50 * forecast.quantile(round(1 - level, 1))
            np.testing.assert_allclose(its.quantile(level), expected, rtol=1e-3, atol=3)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_after_the_origin_is_read(seed):
    random = np.random.default_rng(seed)
    times = np.sort(random.uniform(0, 60, 200))
    curve = Curve(times, random.normal(size=200))
    origin = int(random.integers(100, 190))
    asked = times[origin] + random.uniform(0, 20, 50)
    later = np.arange(200) > origin
    other = Curve(times, np.where(later, 1e6, curve.values))
    cut = Curve(*(part[: origin + 1] for part in curve))
    origins, periods = np.full(50, origin), np.array([7.0, 12.5])
    inputs = _inputs(curve, origins, asked, periods)
    np.testing.assert_array_equal(inputs, _inputs(other, origins, asked, periods))
    np.testing.assert_array_equal(inputs, _inputs(cut, origins, asked, periods))
    assert np.isfinite(inputs).all()


def test_a_short_item_and_an_unseen_channel_have_forecasts():
    frame = pd.DataFrame({"timestamp": pd.date_range("2024-01-01", periods=24 * 12, freq="h")})
    wave = np.sin(2 * np.pi * np.arange(len(frame)) / 24)
    frame["x"], frame["y"] = wave, 5 + wave
    short = frame.iloc[:3].assign(y=np.nan, item_id="b")
    data = IrregularDataset.from_long_dataframe(
        pd.concat([frame.assign(item_id="a"), short]), target=["x", "y"]
    )
    predictor = SeasonalPredictor.fit([data[0]], 2)
    entry = dict(data[1])
    elapsed = entry["feat_dynamic_real"]
    entry["feat_dynamic_real"] = np.append(elapsed, elapsed[0, -1] + [1.0, 2.0])[None]
    (forecast,) = predictor.predict([entry])
    np.testing.assert_allclose(forecast.mean, [[wave[2], 5]] * 2, atol=0.01)
    assert (forecast.quantile(0.9)[:, 1] > 5.8).all()  # a deviation of the channel


def test_few_values_of_a_channel_are_not_fitted_to():
    """Six inputs could explain them, but nothing else."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"timestamp": pd.date_range("2024-01-01", periods=24 * 22, freq="h")})
    frame["x"] = random.normal(size=len(frame))
    frame["y"] = np.where(frame.index % 24 == 0, random.normal(size=len(frame)), np.nan)
    data = IrregularDataset.from_long_dataframe(frame, item_id=None, target=["x", "y"])
    usual, seldom = SeasonalPredictor.fit(data, 12).coefficients
    assert usual.any()
    assert not seldom.any()


@pytest.mark.parametrize(
    ("freq", "length", "cycles"),
    [
        ("h", 72, [24]),
        ("h", 71, []),
        ("h", 24 * 21, [24, 168]),
        ("30min", 48 * 21, [48, 336]),
        ("D", 60, [7]),
        ("D", 1200, [7, 365.2425]),
        ("M", 36, [12]),
        ("Q", 12, [4]),
        ("Y", 50, []),
        ("min", 1440 * 21, [1440]),
    ],
)
def test_cycles_are_those_that_items_resolve_and_repeat(freq, length, cycles):
    entry = {"start": pd.Period("2000-01-01", freq), "target": np.arange(length + 1.0)}
    schema, data = read_series([entry])
    assert cycles_of(schema, Statistics.fit(data, schema.target)) == pytest.approx(cycles)


def test_without_a_calendar_there_is_no_cycle():
    frame = pd.DataFrame({"timestamp": np.arange(1000.0), "target": np.arange(1000.0)})
    data = IrregularDataset.from_long_dataframe(frame, item_id=None)
    with pytest.raises(DataError, match=r"shorter than 3 cycles.*HoldPredictor"):
        SeasonalPredictor.fit(data, 4)


def test_a_stored_predictor_forecasts_the_same(tmp_path):
    data = noisy(2, 4, seed=3)
    predictor = SeasonalPredictor.fit(data, 24)
    predictor.serialize(tmp_path)
    stored = load_predictor(tmp_path)
    for one, other in zip(predictor.predict(data), stored.predict(data), strict=True):
        np.testing.assert_array_equal(one.quantiles(LEVELS), other.quantiles(LEVELS))


def test_stored_numbers_are_checked():
    predictor = SeasonalPredictor.fit(noisy(1, 4, seed=4), 24)
    arguments = predictor._arguments()
    for change in (
        {"periods": [0.0, 168.0]},
        {"leads": [own[::-1] for own in arguments["leads"]]},
        {"coefficients": [[[np.nan] * 6] * len(arguments["leads"][0])]},
        {"residuals": [[[0.0]]]},
        {"center": []},
        {"levels": arguments["levels"][::-1]},
        {"residuals": [[own[::-1] for own in rows] for rows in arguments["residuals"]]},
        {"context": 0},
    ):
        with pytest.raises(
            (ValueError, DeltaflowError),
            match=r"periods|coefficients|residuals|center|levels|quant|context",
        ):
            SeasonalPredictor(**{**arguments, **change})
