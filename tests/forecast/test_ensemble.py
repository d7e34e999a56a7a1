"""The average of several predictors, whatever kind of forecast they give."""

import json

import numpy as np
import pytest
from gluonts.ev.metrics import MSE, MeanWeightedSumQuantileLoss
from gluonts.model import evaluate_model
from gluonts.model.predictor import Predictor

from deltaflow import (
    DeltaflowError,
    EnsemblePredictor,
    GRUFlowEstimator,
    HoldPredictor,
    TimeSplitter,
    load_predictor,
    predict_df,
)
from deltaflow.forecast import predictor
from deltaflow.forecast.forecasts import EnsembleForecast, QuantileForecast, even_levels
from deltaflow.randomness import derived_seed
from deltaflow.saving import FORMAT

KINDS = {
    "distribution": {},
    "quantiles": {"distr_output": "quantile"},
    "paths": {"sampling": "path", "num_parallel_samples": 50},
}


@pytest.fixture(scope="module")
def members(datasets, make_estimator):
    """A function ``(kind of forecast, kind of data) -> three predictors``, trained once each."""
    made = {}

    def get(kind: str, data: str = "multivariate") -> list:
        if (kind, data) not in made:
            made[kind, data] = [
                make_estimator(GRUFlowEstimator, **KINDS[kind], seed=seed).train(datasets[data])
                for seed in range(3)
            ]
        return made[kind, data]

    return get


@pytest.mark.parametrize("data", ["univariate", "multivariate"])
@pytest.mark.parametrize("kind", KINDS)
def test_means_and_quantiles_are_averaged(kind, data, members, datasets, instances):
    entries = instances(datasets[data])
    own = members(kind, data)
    forecasts = list(EnsemblePredictor(own).predict(entries, seed=5))
    parts = [
        list(member.predict(entries, seed=derived_seed(5, number)))
        for number, member in enumerate(own)
    ]
    assert len(forecasts) == len(entries)
    for forecast, *others in zip(forecasts, *parts, strict=True):
        np.testing.assert_allclose(forecast.mean, np.mean([o.mean for o in others], axis=0))
        assert not np.allclose(forecast.mean, others[0].mean)
        for level in (0.025, 0.1, 0.5, "0.75"):
            expected = np.mean([other.quantile(level) for other in others], axis=0)
            np.testing.assert_allclose(forecast.quantile(level), expected)
        assert list(forecast.timestamps) == list(others[0].timestamps)
        assert forecast.item_id == others[0].item_id
        assert forecast.target == others[0].target
        assert forecast.dim() == others[0].dim()


def test_entries_are_read_once_for_all_members_that_read_alike(
    members, multivariate, make_estimator, instances, monkeypatch
):
    items = []
    read = predictor.matched_series

    def counted(entry, *arguments):
        items.append(entry["item_id"])
        return read(entry, *arguments)

    monkeypatch.setattr(predictor, "matched_series", counted)
    entries = instances(multivariate)
    alike = members("distribution")
    list(EnsemblePredictor(alike).predict(entries))
    assert items == [entry["item_id"] for entry in entries]
    other = make_estimator(GRUFlowEstimator, context_length=3, seed=0).train(multivariate)
    items.clear()
    forecasts = list(EnsemblePredictor([alike[0], other]).predict(entries))
    assert len(items) == 2 * len(entries)
    for forecast, one, two in zip(
        forecasts, alike[0].predict(entries), other.predict(entries), strict=True
    ):
        np.testing.assert_allclose(forecast.mean, (one.mean + two.mean) / 2)


def test_means_of_quantile_forecasts_are_used_where_they_are_stored():
    forecasts = []
    for mean in (1.0, 4.0):
        arrays = np.array([[0.0] * 4, [2.0] * 4, [mean] * 4])
        keys = ["0.1", "0.9", "mean"]
        forecast = QuantileForecast(arrays, keys)
        forecasts.append(forecast.labelled(np.arange(4.0), ("HR",)))
    np.testing.assert_allclose(EnsembleForecast(forecasts).mean, 2.5)
    np.testing.assert_allclose(EnsembleForecast(forecasts).quantile(0.5), 1.0)


def test_table_plot_and_channels_are_those_of_any_forecast(members, multivariate, instances):
    (forecast, *_) = EnsemblePredictor(members("distribution")).predict(instances(multivariate))
    table = forecast.to_dataframe([0.1])
    np.testing.assert_array_equal(table["predictions"], forecast.quantile(0.5).reshape(-1))
    channel = forecast.copy_dim(1)
    assert channel.target == ("MAP",)
    np.testing.assert_allclose(channel.quantile(0.9), forecast.quantile(0.9)[:, 1])


def test_gluonts_evaluates_it(members, multivariate):
    splitter = TimeSplitter(after="20h")
    length = splitter.prediction_length(multivariate)
    predictor = EnsemblePredictor([HoldPredictor.fit(multivariate, length)] * 2)
    test = splitter.split(multivariate)[1].generate_instances(length)
    metrics = [MSE(), MeanWeightedSumQuantileLoss([0.1, 0.9])]
    own, hold = (
        evaluate_model(model, test_data=test, metrics=metrics)
        for model in (predictor, predictor.predictors[0])
    )
    np.testing.assert_allclose(own, hold)


def test_data_frames_are_forecast(members, multivariate_frame, roles):
    past, future = multivariate_frame[:-2], multivariate_frame[-2:]
    ensemble = EnsemblePredictor(members("distribution"))
    answer = predict_df(ensemble, past, future, quantile_levels=[0.1])
    parts = [predict_df(m, past, future, quantile_levels=[0.1]) for m in ensemble.predictors]
    np.testing.assert_allclose(answer["0.1"], np.mean([part["0.1"] for part in parts], axis=0))


@pytest.mark.parametrize("load", [load_predictor, Predictor.deserialize], ids=["ours", "gluonts"])
@pytest.mark.parametrize("kind", ["distribution", "quantiles"])
def test_it_survives_serialisation(kind, load, members, multivariate, instances, tmp_path):
    EnsemblePredictor(members(kind)).serialize(tmp_path / "new" / "directory")
    # Written over by a smaller one, of which one part is an ensemble itself.
    hold = HoldPredictor.fit(multivariate, 4)
    predictor = EnsemblePredictor([EnsemblePredictor(members(kind)), hold])
    predictor.serialize(tmp_path / "new" / "directory")
    loaded = load(tmp_path / "new" / "directory")
    assert isinstance(loaded, EnsemblePredictor)
    assert len(loaded.predictors) == 2
    entries = instances(multivariate)
    for one, other in zip(predictor.predict(entries), loaded.predict(entries), strict=True):
        np.testing.assert_array_equal(one.quantile(0.9), other.quantile(0.9))


def test_a_foreign_part_is_refused(members, tmp_path):
    EnsemblePredictor(members("distribution")).serialize(tmp_path)
    config = tmp_path / "1" / "gluonts-config.json"
    config.write_text(json.dumps({"type": "os.system"}))
    with pytest.raises(DeltaflowError, match="not a predictor of deltaflow"):
        load_predictor(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "predictor.json is missing, damaged"),
        ({"predictors": [{"__predictor__": "../other"}]}, "names no subfolder"),
        ({"predictors": [{"__predictor__": 7}]}, "7 holds no predictor"),
        ({"predictors": ["text"]}, "made of predictors of deltaflow, got str"),
    ],
)
def test_parts_that_are_not_described_are_refused(arguments, message, members, tmp_path):
    EnsemblePredictor(members("distribution")).serialize(tmp_path)
    description = {"format": FORMAT, "class": "deltaflow.EnsemblePredictor", "kwargs": arguments}
    (tmp_path / "predictor.json").write_text(json.dumps(description))
    with pytest.raises(DeltaflowError, match=message):
        load_predictor(tmp_path)


def test_samples_of_averaged_paths_are_paths(members, multivariate, instances):
    predictor = EnsemblePredictor(members("paths"))
    assert predictor.draws_paths
    for forecast in predictor.predict(instances(multivariate), seed=0):
        paths, samples = forecast.paths(), forecast.to_sample_forecast().samples
        assert paths.shape == samples.shape == (50, 4, 2)
        own = {path.tobytes() for member in forecast.members for path in member.samples}
        assert {path.tobytes() for path in paths} <= own
        np.testing.assert_array_equal(samples.argsort(axis=0), paths.argsort(axis=0))
        levels = even_levels(len(samples))
        np.testing.assert_array_equal(np.sort(samples, axis=0), forecast.quantiles(levels))
    distributions = EnsemblePredictor(members("distribution"))
    assert not distributions.draws_paths
    for forecast in distributions.predict(instances(multivariate)):
        assert forecast.paths() is None
        assert forecast.to_sample_forecast(30).samples.shape == (30, 4, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_samples_are_drawn_as_asked(kind, members, multivariate, instances):
    """From the average, for every kind of forecast, as GluonTS's evaluation asks for them."""
    entries = instances(multivariate)
    predictor = EnsemblePredictor(members(kind))
    drawn = list(predictor.predict(entries, num_samples=600, seed=1))
    again = list(predictor.predict(entries, num_samples=600, seed=1))
    averages = predictor.predict(entries, seed=1)
    for forecast, same, average in zip(drawn, again, averages, strict=True):
        assert forecast.samples.shape == (600, 4, 2)
        np.testing.assert_array_equal(forecast.samples, same.samples)
        assert (forecast.paths() is None) == (kind != "paths")
        low, median, high = average.quantiles([0.2, 0.5, 0.8])
        assert (np.abs(forecast.quantile(0.5) - median) < 0.3 * (high - low)).all()


def test_members_draw_samples_that_no_other_seed_draws(members, multivariate, instances):
    entries = instances(multivariate)[:1]
    predictor = members("paths")[0]
    (forecast,) = EnsemblePredictor([predictor] * 3).predict(entries, seed=0)
    alone = [next(predictor.predict(entries, seed=seed)) for seed in range(4)]
    drawn = [part.samples.tobytes() for part in (*forecast.members, *alone)]
    assert len(set(drawn)) == 7
    (again,) = EnsemblePredictor([predictor] * 3).predict(entries, seed=0)
    np.testing.assert_array_equal(again.quantile(0.3), forecast.quantile(0.3))


def test_predictors_that_do_not_fit_together_are_refused(univariate, multivariate):
    hold = HoldPredictor.fit(univariate, 4)
    with pytest.raises(DeltaflowError, match=r"predictor 1 .* prediction_length 5, the first 4"):
        EnsemblePredictor([hold, HoldPredictor.fit(univariate, 5)])
    with pytest.raises(DeltaflowError, match="other channels"):
        EnsemblePredictor([hold, HoldPredictor.fit(multivariate, 4)])
    for wrong in ([], [hold, "gru"]):
        with pytest.raises(DeltaflowError, match="made of predictors"):
            EnsemblePredictor(wrong)
