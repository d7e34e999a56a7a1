import numpy as np
import pandas as pd
import pytest

from deltaflow import (
    ConformalPredictor,
    DataError,
    EnsemblePredictor,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataset,
    LiveForecaster,
    SupportPredictor,
    WideningPredictor,
    load_predictor,
)
from deltaflow.data.series import read_series
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.support import SUPPORTS, Support, supports_of

LEVELS = [0.01, 0.1, 0.5, 0.9, 0.99]


def decays(num_items=8, rows=8, seed=0):
    """Concentrations that fall towards zero, and counts of whole numbers."""
    rng = np.random.default_rng(seed)
    parts = []
    for item in range(num_items):
        times = np.cumsum(rng.uniform(0.5, 1.5, rows))
        parts.append(
            pd.DataFrame(
                {
                    "item_id": f"p{item}",
                    "time": times,
                    "conc": 5 * np.exp(-times) * rng.lognormal(0, 0.3, rows),
                    "events": rng.poisson(1.0, rows).astype(float),
                    "change": rng.normal(size=rows),
                }
            )
        )
    return pd.concat(parts)


def dataset(target=("conc", "events", "change"), **kwargs):
    return IrregularDataset.from_long_dataframe(
        decays(**kwargs), timestamp="time", target=list(target), time_unit="h"
    )


def questions(data, ahead=3):
    """The entries, each asked for three times after its last one."""
    for entry in data:
        times = entry["feat_dynamic_real"][0]
        asked = times[-1] + np.arange(1.0, ahead + 1)
        yield {**entry, "feat_dynamic_real": np.concatenate([times, asked])[None]}


def quick(**options):
    settings = {"max_epochs": 1, "enable_progress_bar": False}
    return GRUFlowEstimator(
        3, num_batches_per_epoch=1, hidden_size=8, seed=0, trainer_kwargs=settings, **options
    )


def series_of(data):
    return read_series(data)[1]


def test_supports_are_recognised_in_the_training_data():
    data = dataset()
    target = ("conc", "events", "change")
    found = supports_of("recognised", series_of(data), target)
    assert found == [SUPPORTS["non-negative"], SUPPORTS["count"], SUPPORTS["real"]]


def test_only_a_channel_from_exactly_0_to_exactly_1_is_recognised_as_a_share():
    for values, high in (([0.0, 0.25, 1.0], 1.0), ([0.0, 0.25, 0.9], np.inf)):
        frame = pd.DataFrame({"item_id": "a", "time": [0.0, 1.0, 2.0], "share": values})
        data = IrregularDataset.from_long_dataframe(
            frame, timestamp="time", target="share", time_unit="h"
        )
        assert supports_of("recognised", series_of(data), ("share",)) == [Support(0.0, high)]


@pytest.mark.parametrize(
    ("distr_output", "folds"),
    [("student_t", 0), ("normal", 0), ("quantile", 0), ("mean_quantile", 0), ("student_t", 2)],
)
def test_nothing_impossible_is_forecast_by_any_head(distr_output, folds, tmp_path):
    data = dataset()
    predictor = quick(distr_output=distr_output, folds=folds).train(data)
    assert isinstance(predictor, SupportPredictor)
    predictor.serialize(tmp_path / "saved")
    for trained in (predictor, load_predictor(tmp_path / "saved")):
        bare = list(trained.predictor.predict(questions(data)))
        moved = False
        for forecast, free in zip(trained.predict(questions(data)), bare, strict=True):
            quantiles = forecast.quantiles(LEVELS)
            assert (quantiles[..., :2] >= 0).all()
            assert (quantiles[..., 1] == np.rint(quantiles[..., 1])).all()
            assert (np.diff(quantiles, axis=0) >= 0).all()
            assert (forecast.mean[:, :2] >= 0).all()
            np.testing.assert_array_equal(quantiles[..., 2], free.quantiles(LEVELS)[..., 2])
            np.testing.assert_array_equal(forecast.mean[:, 2], free.mean[:, 2])
            moved |= (free.quantiles(LEVELS)[..., :2] < 0).any()
        assert moved, "the test shows nothing unless the bare forecast has negative values"
        if "quantile" in distr_output:  # such a network draws no samples
            continue
        for forecast in trained.predict(questions(data), num_samples=50, seed=1):
            samples = forecast.samples
            assert (samples[..., :2] >= 0).all()
            assert (forecast.mean[:, :2] >= 0).all()
            assert (samples[..., 1] == np.rint(samples[..., 1])).all()


@pytest.mark.parametrize("number", [0, 5])
def test_a_whole_number_that_never_changes_has_no_interval(number):
    df = decays().assign(events=number)
    data = IrregularDataset.from_long_dataframe(df, timestamp="time", target="events")
    predictor = quick(folds=2).train(data)
    assert "calibrated_on_items" in str(predictor.summary())
    for forecast in predictor.predict(questions(data)):
        assert (forecast.quantiles([0.05, 0.1, 0.5, 0.9, 0.95]) == number).all()


def test_no_value_is_minus_zero():
    for support in SUPPORTS.values():
        nearest = support.nearest(np.array([-0.4, -0.0, 0.0, 0.4]))
        assert not np.signbit(nearest[nearest == 0]).any()


def test_the_mean_of_a_distribution_is_that_of_its_values_moved_to_the_bound():
    data = dataset(target=["conc"])
    bare = GaussianProcessPredictor.fit(list(data), 3)
    bounded = SupportPredictor(bare, [[0.0, None, False]])
    asked = list(questions(data))
    drawn = bounded.predict(asked, num_samples=20_000, seed=0)
    moved = False
    for forecast, sampled in zip(bounded.predict(asked), drawn, strict=True):
        quantiles = forecast.forecast.quantiles((np.arange(200) + 0.5) / 200)
        added = np.maximum(-quantiles, 0).mean(axis=0)
        moved |= (added > 0.01 * quantiles.std()).any()
        np.testing.assert_allclose(forecast.mean, forecast.forecast.mean + added, rtol=1e-9)
        np.testing.assert_allclose(sampled.mean, forecast.mean, atol=0.05 * quantiles.std())
    assert moved, "the test shows nothing unless the bare forecast has negative values"


def test_a_mean_that_was_learned_stays_where_it_is_possible():
    data = dataset()
    asked = list(questions(data))
    network = quick(distr_output="mean_quantile", supports="real", folds=0).train(data)
    average = EnsemblePredictor([network, HoldPredictor.fit(data, 3)], [0.75, 0.25])
    for bare in (network, average, WideningPredictor(average, 1.0, [1.0] * 3)):
        bounded = SupportPredictor(
            bare, [[0.0, None, False], [0.0, None, True], [None, None, False]]
        )
        kept = 0
        for forecast in bounded.predict(asked):
            free = forecast.forecast
            assert (free.quantiles([0.01])[..., :2] < 0).any(), "nothing is shown without a bound"
            possible = free.mean > 0
            np.testing.assert_array_equal(forecast.mean[possible], free.mean[possible])
            assert (forecast.mean[..., :2] >= 0).all()
            kept += possible[..., :2].sum()
        assert kept


def test_supports_are_declared_and_turned_off():
    data = dataset(target=["conc", "change"])
    assert not isinstance(quick(folds=0, supports="real").train(data), SupportPredictor)
    free = quick(folds=0, supports={"conc": "real"}).train(data)
    assert not isinstance(free, SupportPredictor)
    bounded = quick(folds=0, supports={"conc": (0, 2), "change": "real"})
    with pytest.raises(DataError, match=r"field .conc.*not in the support declared"):
        bounded.train(data)
    declared = quick(folds=0, supports={"change": (-10, 10)}).train(data)
    assert declared.summary()["supports"] == {"conc": "non-negative", "change": "from -10 to 10"}
    with pytest.raises(DataError, match="no channel 'conk'"):
        quick(folds=0, supports={"conk": "real"}).train(data)
    with pytest.raises(DataError, match="not a support"):
        quick(folds=0, supports="positive").train(data)


def test_calibrated_forecasts_keep_within_the_support():
    data = dataset(target=["conc"], num_items=10)
    predictor = quick(folds=2).train(data)
    assert isinstance(predictor.predictor, ConformalPredictor)
    for forecast in predictor.predict(questions(data)):
        assert (forecast.quantiles(LEVELS) >= 0).all()


def test_training_goes_on_from_a_predictor_within_supports():
    data = dataset(target=["conc"])
    predictor = quick(folds=0).train(data)
    again = quick(folds=0).train_from(predictor, data)
    assert isinstance(again, SupportPredictor)


def test_live_forecasts_keep_within_the_support():
    frame = decays()
    times = {"timestamp": "time", "target": ["conc", "events", "change"], "time_unit": "h"}
    data = IrregularDataset.from_long_dataframe(frame, **times)
    predictor = quick(folds=2).train(data)  # blended and calibrated
    live = LiveForecaster(predictor, timestamp="time")
    live.update(frame)
    last = frame.groupby("item_id", as_index=False)["time"].max()
    answers = live.forecast(last.assign(time=last["time"] + 1.0), quantile_levels=[0.01])
    bounded = answers[answers["target_name"] != "change"]
    assert (bounded["0.01"] >= 0).all()
    assert (answers.loc[answers["target_name"] == "change", "0.01"] < 0).any()
