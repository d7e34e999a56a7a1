"""The naive baseline: the last value, with quantiles of the change by elapsed time."""

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.split import split
from gluonts.model.predictor import Predictor

from deltaflow import HoldPredictor, IrregularDataset, load_predictor, predict_df
from deltaflow.forecast.hold import HoldEstimator
from deltaflow.tasks import regular_seasonal


def read(times, time_unit="h", **channels) -> IrregularDataset:
    frame = pd.DataFrame({"timestamp": times, **channels})
    target = list(channels) if len(channels) > 1 else next(iter(channels))
    return IrregularDataset.from_long_dataframe(
        frame, item_id=None, target=target, time_unit=time_unit
    )


def ask(dataset: IrregularDataset, *queries: float) -> dict:
    entry = dict(dataset[0])
    elapsed = entry["feat_dynamic_real"][0]
    entry["feat_dynamic_real"] = np.append(elapsed, queries)[None]
    return entry


def test_each_channel_holds_its_own_last_value():
    dataset = read([0.0, 1, 2, 3], HR=[80, 81, np.nan, 83], MAP=[60, np.nan, 62, np.nan])
    (forecast,) = HoldPredictor.fit(dataset, 2).predict([ask(dataset, 4.0, 9.0)])
    np.testing.assert_array_equal(forecast.mean, [[83, 62]] * 2)


def test_without_width_every_quantile_is_the_last_value_or_the_mean_of_what_was_never_observed():
    dataset = read([0.0, 1, 2, 3], HR=[80, 81, np.nan, 83], MAP=[60, np.nan, 62, np.nan])
    last = HoldPredictor.fit(dataset, 1).without_width()
    unseen = {**ask(dataset, 4.0), "target": dataset[0]["target"] * [[1], [np.nan]]}
    seen, partly = last.predict([ask(dataset, 4.0), unseen])
    for level in (0.1, 0.5, 0.9):
        np.testing.assert_array_equal(seen.quantile(level), [[83, 62]])
        np.testing.assert_allclose(partly.quantile(level), [[83, 61]])


def test_time_counts_since_the_channel_was_seen():
    """HR was seen an hour before the first query; MAP, which moves alike, two hours before."""
    times = np.arange(400.0)
    walk = np.random.default_rng(0).normal(size=400).cumsum()
    dataset = read(times, HR=walk, MAP=np.where(times < 399, walk, np.nan))
    (forecast,) = HoldPredictor.fit(dataset, 1).predict([ask(dataset, 400.0)])
    narrow, wide = np.diff([forecast.quantile(0.1)[0], forecast.quantile(0.9)[0]], axis=0)[0]
    assert wide == pytest.approx(np.sqrt(2) * narrow, rel=0.15)


def items_of(make, number: int, seed: int) -> IrregularDataset:
    """Items of values ``make(times, random)`` at random times."""
    random = np.random.default_rng(seed)
    frames = []
    for item in range(number):
        times = random.exponential(1.0, 12).cumsum()
        frames.append(
            pd.DataFrame({"item_id": item, "timestamp": times, "target": make(times, random)})
        )
    return IrregularDataset.from_long_dataframe(pd.concat(frames))


PROCESSES = {
    "walk": lambda t, random: (np.sqrt(np.diff(t, prepend=0)) * random.normal(size=12)).cumsum(),
    "noise around a level": lambda t, random: 5 * random.normal() + random.normal(size=12),
    "growth": lambda t, random: random.uniform(1, 2) * t + random.normal(size=12),
    "skewed steps": lambda t, random: random.gamma(np.diff(t, prepend=0)).cumsum(),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_intervals_cover_what_they_say(process):
    """600 items × 4 values, of which those of an item depend on each other: 3 standard errors."""
    make = PROCESSES[process]
    _, template = split(items_of(make, 600, seed=1), offset=-4)
    instances = template.generate_instances(4)
    predictor = HoldPredictor.fit(items_of(make, 600, seed=0), 4)
    labels = np.array([label["target"] for label in instances.label])
    forecasts = list(predictor.predict(instances.input))
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        below = labels <= np.array([forecast.quantile(level) for forecast in forecasts])
        assert below.mean() == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 600))


def test_samples_follow_a_seed_and_leave_the_global_random_state():
    dataset = read([0.0, 1, 2, 3], HR=[80, 81, 82, 83])
    predictor = HoldPredictor.fit(dataset, 2)
    before = torch.get_rng_state()
    one, other, another = (
        np.stack([f.samples for f in predictor.predict([ask(dataset, 4.0, 9.0)] * 2, 5, seed)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(one, other)
    assert len(np.unique([one, another])) == 2 * one.size


def test_beyond_the_times_that_were_fitted_it_is_a_random_walk():
    dataset = items_of(PROCESSES["walk"], 100, seed=0)
    predictor = HoldPredictor.fit(dataset, 2)
    entry = dict(dataset[0])
    end = entry["feat_dynamic_real"][0, -1]
    longest = predictor.leads[0][-1] / 3600
    asked = [[end + longest, end + 4 * longest]]
    entry["feat_dynamic_real"] = np.append(entry["feat_dynamic_real"], asked, axis=1)
    (forecast,) = predictor.predict([entry])
    widths = forecast.quantile(0.9) - forecast.quantile(0.1)
    assert widths[1] == pytest.approx(2 * widths[0], rel=1e-9)


def test_items_of_one_row_are_as_uncertain_as_items_differ():
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta([0, 0, 0], unit="h")
    frame = pd.DataFrame({"item_id": list("abc"), "timestamp": times, "target": [1.0, 2.0, 3.0]})
    predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(frame), 2)
    later = frame[["item_id"]].assign(timestamp=times + pd.Timedelta("24h"))
    answer = predict_df(predictor, frame, later, quantile_levels=[0.1, 0.9])
    widths = answer["0.9"] - answer["0.1"]
    assert widths.between(1.0, 4.0).all()
    np.testing.assert_allclose(answer["predictions"], frame["target"])


def test_the_forecast_does_not_depend_on_the_unit_of_time(univariate_frame):
    quantiles = []
    for unit in ("h", "min", "s", "D"):
        dataset = IrregularDataset.from_long_dataframe(
            univariate_frame, target="HR", time_unit=unit
        )
        _, template = split(dataset, offset=-3)
        predictor = HoldPredictor.fit(dataset, 3)
        forecasts = predictor.predict(template.generate_instances(3).input)
        quantiles.append([forecast.quantile(0.9) for forecast in forecasts])
    np.testing.assert_allclose(quantiles[1:], [quantiles[0]] * 3, rtol=1e-12)


def test_a_channel_never_seen_has_the_statistics_of_the_training_set():
    dataset = read([0.0, 1, 2], HR=[1.0, 3, 8])
    entry = {**ask(dataset, 4.0), "target": np.full(3, np.nan)}
    nothing = {**entry, "target": np.empty(0), "feat_dynamic_real": np.array([[4.0]])}
    for forecast in HoldPredictor.fit(dataset, 1).predict([entry, nothing]):
        np.testing.assert_allclose(forecast.mean, [4.0])
        np.testing.assert_allclose(forecast.quantile(0.5), [3.0])
        np.testing.assert_allclose(forecast.quantile(0.25), [1.0])


def test_a_query_at_the_last_observation_and_padding_are_finite():
    dataset = read([0.0, 1, 2], HR=[1.0, 3, 8])
    predictor = HoldPredictor.fit(dataset, 3)
    for queries in ([2.0, 5.0, np.nan], [np.nan] * 3):
        (forecast,) = predictor.predict([ask(dataset, *queries)])
        quantiles = np.stack([forecast.quantile(level) for level in (0.1, 0.5, 0.9)])
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles, axis=0) >= 0).all()
    (forecast,) = predictor.predict([ask(dataset, 2.0, 5.0, np.nan)])
    assert forecast.quantile(0.9)[1] == forecast.quantile(0.9)[2]


def test_the_mean_includes_drift_if_asked_for(tmp_path):
    noise = np.random.default_rng(0).normal(scale=0.1, size=200)
    dataset = read(np.arange(200.0), HR=2 * np.arange(200) + noise, MAP=noise)
    hold = HoldPredictor.fit(dataset, 2).with_drift()
    hold.serialize(tmp_path / "hold")
    for predictor in (hold, load_predictor(tmp_path / "hold")):
        (forecast,) = predictor.predict([ask(dataset, 200.0, 209.0)])
        change = forecast.mean - dataset[0]["target"][:, -1]
        np.testing.assert_allclose(change, [[2, 0], [20, 0]], atol=0.2)


def test_constant_series_have_some_spread():
    dataset = read([0.0, 1, 2], HR=[5.0] * 3)
    (forecast,) = HoldPredictor.fit(dataset, 1).predict([ask(dataset, 3.0)])
    assert forecast.quantile(0.9) > forecast.quantile(0.5)


def test_samples_are_drawn_when_asked_for():
    dataset = read([0.0, 1, 2], HR=[1.0, 3, 8])
    (forecast,) = HoldPredictor.fit(dataset, 2).predict([ask(dataset, 3.0, 4.0)], num_samples=7)
    assert forecast.samples.shape == (7, 2)


@pytest.mark.parametrize("load", [load_predictor, Predictor.deserialize], ids=["ours", "gluonts"])
def test_it_survives_serialisation(load, univariate, instances, tmp_path):
    predictor = HoldPredictor.fit(univariate, 4)
    predictor.serialize(tmp_path / "new" / "directory")
    loaded = load(tmp_path / "new" / "directory")
    assert isinstance(loaded, HoldPredictor)
    entries = instances(univariate)
    for one, other in zip(predictor.predict(entries), loaded.predict(entries), strict=True):
        np.testing.assert_array_equal(one.quantile(0.9), other.quantile(0.9))


def test_it_forecasts_regular_series():
    data = regular_seasonal(num_series=3, length=48)
    for entry, forecast in zip(
        data, HoldEstimator(prediction_length=5).train(data).predict(data), strict=True
    ):
        np.testing.assert_allclose(forecast.mean, entry["target"][-1], rtol=1e-6)
        assert (forecast.quantile(0.9) > forecast.quantile(0.1)).all()
