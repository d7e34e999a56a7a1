"""The naive baseline: the last value, with the spread of a random walk in real time."""

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.model.predictor import Predictor

from deltaflow import HoldPredictor, IrregularDataset, load_predictor
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
    np.testing.assert_allclose(forecast.quantile(0.5), [[83, 62]] * 2)


def test_the_variance_grows_with_the_time_since_the_channel_was_seen():
    dataset = read([0.0, 1, 2, 3], HR=[80, 81, np.nan, 83], MAP=[60, np.nan, 62, np.nan])
    (forecast,) = HoldPredictor.fit(dataset, 2).predict([ask(dataset, 4.0, 9.0)])
    # Increments of HR: 1 in 1 h and 2 in 2 h; of MAP: 2 in 2 h. Ages at 4 and 9 h follow.
    rate = np.array([(1 + 4) / 3, 4 / 2])
    ages = np.array([[4 - 3, 4 - 2], [9 - 3, 9 - 2]])
    np.testing.assert_allclose(forecast.distribution.variance, rate * ages, rtol=1e-12)


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


def test_the_walk_is_found_again():
    random = np.random.default_rng(0)
    gaps = random.exponential(2.0, 20_000)
    values = (3.0 * np.sqrt(gaps) * random.normal(size=20_000)).cumsum()
    dataset = read(gaps.cumsum(), HR=values)
    predictor = HoldPredictor.fit(dataset, 1)
    # The deviation of a variance estimated from 20 000 numbers is 1 %; the rate is per second.
    assert predictor.rate[0] * 3600 == pytest.approx(9.0, rel=0.04)


def test_the_forecast_does_not_depend_on_the_unit_of_time(univariate_frame):
    quantiles = []
    for unit in ("h", "min", "s", "D"):
        dataset = IrregularDataset.from_long_dataframe(
            univariate_frame, target="HR", time_unit=unit
        )
        from gluonts.dataset.split import split

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
        np.testing.assert_allclose(forecast.distribution.stddev, [np.std([1, 3, 8])])


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
        assert (np.diff(forecast.quantile(0.9)) > 0).all()
