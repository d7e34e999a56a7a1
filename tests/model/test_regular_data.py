"""Ordinary regular GluonTS data sets train and predict too."""

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.common import ListDataset
from gluonts.dataset.pandas import PandasDataset
from gluonts.dataset.split import split
from gluonts.ev.metrics import MSE, MeanWeightedSumQuantileLoss
from gluonts.model.evaluation import evaluate_model

from deltaflow import (
    ConformalPredictor,
    CouplingFlowEstimator,
    DataError,
    DeltaflowWarning,
    GRUEstimator,
    GRUFlowEstimator,
    ResNetFlowEstimator,
)
from deltaflow.tasks import regular_seasonal

ESTIMATORS = [GRUFlowEstimator, CouplingFlowEstimator, ResNetFlowEstimator, GRUEstimator]


@pytest.fixture(scope="module")
def seasonal() -> list[dict]:
    return regular_seasonal(num_series=6, length=72)


@pytest.mark.parametrize("cls", ESTIMATORS)
@pytest.mark.parametrize("sampling", ["marginal", "path"])
def test_hourly_series_train_and_are_evaluated(cls, sampling, seasonal, make_estimator):
    train, template = split(seasonal, offset=-8)
    estimator = make_estimator(cls, sampling=sampling, num_parallel_samples=20)
    table = evaluate_model(
        estimator.train(train),
        test_data=template.generate_instances(4, windows=2),
        metrics=[MSE(), MeanWeightedSumQuantileLoss([0.1, 0.5, 0.9])],
    )
    assert np.isfinite(table.to_numpy()).all()


def test_forecasts_go_on_where_the_series_end(seasonal, make_estimator):
    predictor = make_estimator(GRUFlowEstimator).train(seasonal)
    for entry, forecast in zip(seasonal, predictor.predict(seasonal), strict=True):
        end = entry["start"] + len(entry["target"])
        expected = pd.period_range(end, periods=4, freq="h")
        assert list(forecast.index) == list(expected)
        assert list(forecast.timestamps) == list(expected.to_timestamp())
        assert forecast.item_id == entry["item_id"]
        assert len(forecast.to_dataframe()) == 4


def test_a_list_dataset_in_float32_with_missing_values_is_read(make_estimator):
    target = np.sin(np.arange(48) / 4)
    target[5:9] = np.nan
    dataset = ListDataset([{"start": "2024-01-01", "target": target}] * 3, freq="D")
    for forecast in make_estimator(GRUFlowEstimator).train(dataset).predict(dataset):
        assert forecast.index.freqstr == "D"
        assert np.isfinite(forecast.quantile(0.9)).all()


def test_lists_and_tensors_are_read_as_arrays(seasonal, make_estimator):
    lists = [{**entry, "target": [None, *entry["target"][1:].tolist()]} for entry in seasonal]
    estimator = make_estimator(GRUEstimator, folds=2)
    answers = [
        [forecast.mean for forecast in estimator.train(data).predict(data)]
        for data in (
            lists,
            [{**e, "target": np.array(e["target"], dtype=np.float64)} for e in lists],
            [{**e, "target": torch.tensor(e["target"][1:])} for e in lists],
        )
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert np.isfinite(answers[2]).all()


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16"])
def test_whole_numbers_of_any_type_are_read_as_floats(dtype, make_estimator):
    random = np.random.default_rng(0)
    low, high = (0, 2) if dtype == "bool" else (0, 120)
    values = [random.integers(low, high, size=60) for _ in range(12)]
    signs = [1 if dtype != "int8" else random.choice([-1, 1], 60) for _ in values]
    start = pd.Period("2024-01-01", freq="D")
    answers = []
    for kind in (dtype, "float64"):
        data = [
            {"start": start, "item_id": str(number), "target": (own * sign).astype(kind)}
            for number, (own, sign) in enumerate(zip(values, signs, strict=True))
        ]
        predictor = make_estimator(GRUEstimator, folds=2, blend=True).train(data)
        answers.append([forecast.quantile(0.8) for forecast in predictor.predict(data)])
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.fixture(scope="module")
def featured() -> list[dict]:
    """Two channels with features of every kind, in ten daily series."""
    random = np.random.default_rng(0)
    return [
        {
            "item_id": str(i),
            "start": pd.Period("2024-01-01", freq="D"),
            "target": random.normal(size=(2, 40)).cumsum(axis=1),
            "feat_dynamic_real": random.normal(size=(3, 44)),
            "past_feat_dynamic_real": random.normal(size=(1, 40)),
            "feat_static_real": random.normal(size=2),
            "feat_static_cat": np.array([i % 3, i % 2]),
        }
        for i in range(10)
    ]


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_features_of_every_kind_are_read(cls, featured, make_estimator):
    train = [{**e, "feat_dynamic_real": e["feat_dynamic_real"][:, :40]} for e in featured]
    predictor = make_estimator(cls).train(train)
    forecasts = list(predictor.predict(featured))
    for forecast in forecasts:
        assert forecast.quantile(0.5).shape == (4, 2)
        assert np.isfinite(forecast.quantile(0.9)).all()
    for field in ("feat_dynamic_real", "past_feat_dynamic_real", "feat_static_real"):
        changed = [{**entry, field: entry[field] + 1.0} for entry in featured]
        (answer, *_) = predictor.predict(changed)
        assert not np.allclose(answer.quantile(0.5), forecasts[0].quantile(0.5)), field
    other = [{**entry, "feat_static_cat": 1 - entry["feat_static_cat"] % 2} for entry in featured]
    answers = [f.quantile(0.5) for f in predictor.predict(other)]
    assert not np.allclose(answers, [f.quantile(0.5) for f in forecasts])


def test_unknown_categories_are_all_answered_the_same(featured, make_estimator):
    train = [{**e, "feat_dynamic_real": e["feat_dynamic_real"][:, :40]} for e in featured]
    predictor = make_estimator(GRUEstimator).train(train)
    entries = [{**featured[0], "feat_static_cat": np.array([code, 0])} for code in (-1, 3, 99, 0)]
    *unknown, known = (forecast.mean for forecast in predictor.predict(entries))
    assert np.isfinite(unknown[0]).all()
    for answer in unknown[1:]:
        np.testing.assert_allclose(answer, unknown[0], rtol=1e-5)
    assert not np.allclose(known, unknown[0])


def test_a_category_without_a_code_is_unknown(seasonal, make_estimator):
    codes = [0, 1, np.nan, 0, 1, -1]
    data = [{**e, "feat_static_cat": np.array([c])} for e, c in zip(seasonal, codes, strict=True)]
    predictor = make_estimator(GRUEstimator).train(data)
    assert predictor.schema.feat_static_cat == {"feat_static_cat_0": ("0", "1")}
    known, unknown, missing = (
        next(predictor.predict([{**seasonal[0], "feat_static_cat": [code]}])).mean
        for code in (0, -1, np.nan)
    )
    np.testing.assert_array_equal(missing, unknown)
    assert (known != unknown).all()


def test_fields_that_are_not_read_are_named(seasonal, make_estimator):
    data = [{**e, "feat_dynamic_cat": np.zeros((1, 72), dtype=int)} for e in seasonal]
    with pytest.warns(DeltaflowWarning, match="not read.*: feat_dynamic_cat"):
        make_estimator(GRUEstimator).train(data)


def test_too_few_covariates_for_the_forecast_are_refused(featured, make_estimator):
    train = [{**e, "feat_dynamic_real": e["feat_dynamic_real"][:, :40]} for e in featured]
    predictor = make_estimator(GRUEstimator).train(train)
    with pytest.raises(DataError, match=r"item '0', field 'feat_dynamic_real': has 40 columns"):
        list(predictor.predict(train))


def test_items_shorter_than_two_horizons_train_with_covariates(seasonal, make_estimator):
    """The targets of held-out items then end before the last query, and so do covariates."""
    short = [
        {**entry, "target": entry["target"][:10], "feat_dynamic_real": np.ones((1, 10))}
        for entry in seasonal
    ]
    estimator = make_estimator(GRUEstimator, prediction_length=6, folds=2)
    predictor = estimator.train(short)
    entries = [{**entry, "feat_dynamic_real": np.ones((1, 16))} for entry in short]
    for forecast in predictor.predict(entries):
        assert np.isfinite(forecast.quantiles([0.1, 0.5, 0.9])).all()
    with pytest.raises(DataError, match=r"expected 16; .* also need"):
        list(predictor.predict(short))
    asked = [({**entry, "target": entry["target"][:5]}, entry) for entry in short]
    few = [({**past, "feat_dynamic_real": np.ones((1, 5))}, label) for past, label in asked]
    with pytest.raises(DataError, match="has 5 columns, expected 11"):
        ConformalPredictor.fit(predictor, few)


def test_an_irregular_entry_is_refused_by_a_predictor_of_regular_data(
    seasonal, univariate, make_estimator, instances
):
    predictor = make_estimator(GRUEstimator).train(seasonal)
    with pytest.raises(DataError, match="expected a regular series"):
        list(predictor.predict(instances(univariate)))


@pytest.mark.parametrize("freq", ["15min", "D", "W", "M", "Q"])
def test_any_frequency_is_read(freq, make_estimator):
    index = pd.period_range("2020-01-01", periods=40, freq=freq)
    frame = pd.DataFrame({"target": np.arange(40.0)}, index=index)
    dataset = PandasDataset({"a": frame}, target="target")
    (forecast,) = make_estimator(GRUFlowEstimator).train(dataset).predict(dataset)
    assert forecast.start_date == index[-1] + 1
    assert np.isfinite(forecast.mean).all()


@pytest.mark.parametrize(("freq", "length"), [("M", 3100), ("W", 13_400)])
def test_series_may_reach_beyond_the_range_of_nanoseconds(freq, length, make_estimator):
    """As the yearly series of the M4 competition, which GluonTS dates from 1750 on."""
    values = np.sin(np.arange(length))
    series = [{"start": pd.Period("2010-01", freq), "target": values}] * 2
    forecast = next(make_estimator(GRUEstimator).train(series).predict(series))
    first = forecast.timestamps[0]
    assert first.year == (series[0]["start"] + length).year > 2262
    assert forecast.to_dataframe()["timestamp"][0] == first
