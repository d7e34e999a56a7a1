"""The regressions without a network find what is to be found, and no more."""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.common import MetaData, TrainDatasets
from gluonts.dataset.jsonl import JsonLinesWriter
from gluonts.model.predictor import Predictor

from deltaflow import IrregularDataset, TimeSplitter
from deltaflow.compare import run_comparison
from deltaflow.compare.baselines import (
    SUMMARY,
    LinearPredictor,
    fit_boosted_trees,
    fit_item_mean,
    fit_item_trend,
    fit_least_squares,
    fit_training_mean,
    summarise,
)
from deltaflow.data.series import schema_of, series_of
from deltaflow.errors import DeltaflowError
from deltaflow.tasks import Task, regular_seasonal, unseen_items

LINES = {
    "training_mean": fit_training_mean,
    "item_mean": fit_item_mean,
    "least_squares": fit_least_squares,
}


def untold(what: str, share: float) -> None:
    """Nobody watches."""


def items(num_items: int, future, missing: float = 0.0, seed: int = 0) -> IrregularDataset:
    """Random values of two channels before hour 24, and behind it ``future(hours, past)``."""
    rng = np.random.default_rng(seed)
    parts = []
    for item in range(num_items):
        hours = np.sort(rng.uniform(0, 48, size=30))
        values = 50 + rng.normal(size=2) + rng.normal(size=(30, 2))
        values[rng.random(values.shape) < missing] = np.nan
        late = hours >= 24
        values[late] = future(hours[late], values[~late])
        parts.append(pd.DataFrame({"item_id": str(item), "timestamp": hours, "A": values[:, 0],
                                   "B": values[:, 1]}))  # fmt: skip
    return IrregularDataset.from_long_dataframe(pd.concat(parts), target=["A", "B"])


def noisy_line(hours, past):
    """A depends on its last value and mean, B on neither."""
    noise = np.random.default_rng(len(hours)).normal(scale=0.01, size=len(hours))
    line = 0.3 * past[-1, 0] + 0.5 * past[:, 0].mean() + 7
    return np.stack([line + noise, np.full(len(hours), 3.0)], axis=1)


@pytest.fixture(scope="module")
def task() -> Task:
    return unseen_items("line", items(60, noisy_line), TimeSplitter(after="24h"))


def means(predictor, test) -> np.ndarray:
    return np.stack([forecast.mean for forecast in predictor.predict(test.input)])  # (N, Q, D)


def error(predictor, test) -> np.ndarray:
    """Return the mean squared error of each channel."""
    labels = np.stack([label["target"].T for label in test.label])
    return np.nanmean((means(predictor, test) - labels) ** 2, axis=(0, 1))


def test_means_are_those_of_the_training_set_and_of_the_item(task):
    values = np.concatenate([entry["target"] for entry in task.training], axis=1)
    test = task.tests["line"]
    np.testing.assert_allclose(
        means(fit_training_mean(task), test)[0, 0], values.mean(axis=1), rtol=1e-12
    )
    for forecast, past in zip(means(fit_item_mean(task), test), test.input, strict=True):
        expected = past["target"].mean(axis=1)
        np.testing.assert_allclose(forecast, np.tile(expected, (len(forecast), 1)), rtol=1e-12)


def test_a_trend_goes_on_as_the_line_through_the_item(task):
    predictor = fit_item_trend(task)
    test = task.tests["line"]
    for forecast, past, asked in zip(
        means(predictor, test), test.input, predictor.predict(test.input), strict=True
    ):
        known = past["target"].shape[-1]
        times = past["feat_dynamic_real"][0, :known]
        for channel, values in enumerate(past["target"]):
            expected = np.polyval(np.polyfit(times, values, 1), asked.query_times)
            known = np.isfinite(expected)  # the other queries only pad
            np.testing.assert_allclose(forecast[known, channel], expected[known], rtol=1e-6)
    errors = [
        np.abs(forecast.mean - label["target"].T)
        for forecast, label in zip(
            predictor.predict(task.validation.input), task.validation.label, strict=True
        )
    ]
    np.testing.assert_allclose(predictor.scale, np.nanmean(np.concatenate(errors), axis=0))
    nothing = {**past, "target": past["target"] * np.nan}
    (unknown,) = predictor.predict([nothing])
    np.testing.assert_allclose(unknown.mean[0], predictor.center)


def test_least_squares_finds_the_line(task):
    predictor = fit_least_squares(task)
    # The noise of 0.01 and some hundred labels leave the weights uncertain by less than 0.01.
    np.testing.assert_allclose(predictor.weights[0, :2], [0.3, 0.5], atol=0.01)
    np.testing.assert_allclose(error(predictor, task.tests["line"]), [1e-4, 0], atol=5e-5)


@pytest.mark.parametrize("fit", LINES.values(), ids=LINES)
def test_forecasts_are_symmetric_and_as_wide_as_the_validation_errors(fit, task):
    predictor = fit(task)
    errors = [
        np.abs(forecast.mean - label["target"].T)
        for forecast, label in zip(
            predictor.predict(task.validation.input), task.validation.label, strict=True
        )
    ]
    expected = np.nanmean(np.concatenate(errors), axis=0)
    np.testing.assert_allclose(predictor.scale[0], expected[0], rtol=1e-9)
    for forecast in predictor.predict(task.tests["line"].input):
        np.testing.assert_allclose(forecast.quantile(0.5), forecast.mean, rtol=1e-12)
        # 80 % of a Laplace distribution lie within log(5) scales of its centre.
        width = (forecast.quantile(0.9) - forecast.mean)[:, 0]
        np.testing.assert_allclose(width, predictor.scale[0] * np.log(5), rtol=1e-6)


def test_channels_and_items_without_values_fall_back_on_the_training_mean(task):
    (past, *_) = task.tests["line"].input
    unseen = {**past, "target": np.full_like(past["target"], np.nan)}
    queries = past["feat_dynamic_real"][:, past["target"].shape[1] :]
    nothing = {**past, "target": np.empty((2, 0)), "feat_dynamic_real": queries}
    pytest.importorskip("lightgbm")
    for predictor in (fit_item_mean(task), fit_boosted_trees(task, 0, 1, untold)[0]):
        first, second = (forecast.mean for forecast in predictor.predict([unseen, nothing]))
        assert np.isfinite(first).all()
        assert np.isfinite(second).all()
        if isinstance(predictor, LinearPredictor):
            np.testing.assert_allclose(first[0], predictor.center)
            np.testing.assert_allclose(second, first)


def test_summary_is_that_of_pandas():
    hours = np.array([0.0, 1, 4, 9, 10])
    values = [np.nan, 3.0, 5.0, 1.0, np.nan]
    frame = pd.DataFrame({"timestamp": hours, "A": values, "B": 2.0, "C": np.nan})
    frame.loc[3:, "C"] = [7.0, np.nan]
    data = IrregularDataset.from_long_dataframe(frame, item_id=None, target=["A", "B", "C"])
    series = series_of(data[0], schema_of(data))
    summary = summarise(series, 3, recent=6 * 3600.0)
    known = pd.Series(values).dropna()
    weights = np.exp((hours[1:4] - 10) / 6)
    expected = {
        "last": 1.0,
        "previous": 5.0,
        "first": 3.0,
        "mean": known.mean(),
        "minimum": 1.0,
        "maximum": 5.0,
        "deviation": known.std(ddof=0),
        "count": 3.0,
        "time of the last": 9 * 3600.0,
        "recent mean": 3.0,
        "decaying mean": np.average(known, weights=weights),
    }
    assert list(expected) == list(SUMMARY)
    np.testing.assert_allclose(summary[0], list(expected.values()), rtol=1e-12)
    assert summary[1].tolist()[:6] == [2.0] * 6
    assert np.isnan(summary[2][SUMMARY.index("previous")])
    empty = series._replace(times=series.times[:0], values=series.values[:0])
    nothing = summarise(empty, 3, recent=1.0)
    assert np.isnan(np.delete(nothing, SUMMARY.index("count"), axis=1)).all()


def other_channel_and_time(hours, past):
    """A follows the last value of B and the time; B the mean of A."""
    shape = hours.shape
    return np.stack(
        [past[-1, 1] + 0.2 * (hours - 24), np.full(shape, np.nanmean(past[:, 0]))], axis=1
    )


@pytest.fixture(scope="module")
def crossed() -> Task:
    return unseen_items("crossed", items(250, other_channel_and_time), TimeSplitter(after="24h"))


@pytest.fixture(scope="module")
def trees(crossed):
    pytest.importorskip("lightgbm")
    told = []
    predictor, num_leaves = fit_boosted_trees(
        crossed, seed=0, num_threads=1, tell=lambda *state: told.append(state)
    )
    assert told == [("channel 1 of 2", 0.25), ("channel 2 of 2", 0.75)]
    assert num_leaves > 100
    return predictor


def test_trees_find_what_no_line_of_one_channel_can(crossed, trees):
    test = crossed.tests["crossed"]
    # Of A, a line of its own past knows neither the level of B nor the time.
    assert (error(trees, test) < 0.3 * error(fit_least_squares(crossed), test))[0]


def test_trees_do_not_depend_on_the_other_queries(crossed, trees):
    (past, *_) = crossed.tests["crossed"].input
    length = past["target"].shape[1]
    (whole,) = trees.predict([past])
    turned = past["feat_dynamic_real"].copy()
    turned[0, length + 1 :] = np.nan
    (alone,) = trees.predict([{**past, "feat_dynamic_real": turned}])
    np.testing.assert_array_equal(whole.mean[0], alone.mean[0])
    assert np.isfinite(alone.mean).all()


def test_they_survive_serialisation(crossed, trees, tmp_path):
    entries = list(crossed.tests["crossed"].input)[:3]
    for name, predictor in {"trees": trees, "line": fit_least_squares(crossed)}.items():
        predictor.serialize(tmp_path / name)
        loaded = Predictor.deserialize(tmp_path / name)
        for one, other in zip(predictor.predict(entries), loaded.predict(entries), strict=True):
            np.testing.assert_array_equal(one.quantile(0.9), other.quantile(0.9))


def test_channel_without_labels_is_held(crossed):
    pytest.importorskip("lightgbm")

    def never(hours, past):
        return np.stack([np.full(hours.shape, 1.0), np.full(hours.shape, np.nan)], axis=1)

    task = unseen_items("never", items(20, never, missing=0.2), TimeSplitter(after="24h"))
    predictor, _ = fit_boosted_trees(task, 0, 1, untold)
    assert predictor.boosters[1] is None
    for forecast, past in zip(
        predictor.predict(task.tests["never"].input), task.tests["never"].input, strict=True
    ):
        values = past["target"][1]
        assert forecast.mean[0, 1] == values[np.isfinite(values)][-1]
        assert (forecast.quantile(0.9) > forecast.quantile(0.1)).all()


def test_trees_are_fitted_to_items_most_of_which_are_observed_once():
    pytest.importorskip("lightgbm")

    def thinned(item: int) -> pd.DataFrame:
        hours = [0.0, 5.0, 20.0, 30.0, 40.0] if item % 4 == 0 else [20.0, 30.0, 40.0]
        values = np.random.default_rng(item).normal(size=len(hours))
        return pd.DataFrame({"item_id": str(item), "timestamp": hours, "target": values})

    data = IrregularDataset.from_long_dataframe(pd.concat(map(thinned, range(40))))
    task = unseen_items("once", data, TimeSplitter(after="24h"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        predictor, _ = fit_boosted_trees(task, 0, 1, untold)
    assert predictor.recent > 0


def test_missing_lightgbm_is_named_with_its_remedy(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(DeltaflowError, match=r"pip install 'deltaflow\[trees\]'"):
        fit_boosted_trees(task, 0, 1, untold)


def test_they_are_rows_of_univariate_and_of_regular_tasks(tiny, tmp_path):
    pytest.importorskip("lightgbm")
    rows = [*LINES, "boosted_trees"]
    runs = run_comparison(tiny(encoders=rows))
    series = regular_seasonal(num_series=6, length=72)
    shorter = [{**entry, "target": entry["target"][:-6]} for entry in series]
    stored = TrainDatasets(MetaData(freq="h", prediction_length=6), shorter, series)
    stored.save(str(tmp_path / "hourly"), JsonLinesWriter())
    runs += run_comparison(tiny(data={"dataset": str(tmp_path / "hourly")}, encoders=rows))
    assert [run["encoder"] for run in runs] == ["hold", *rows] * 2
    assert {run["status"] for run in runs} == {"finished"}
    for run in runs:
        for scores in run["scores"].values():
            assert {"balanced_mse", "coverage_95"} <= set(scores)
            assert ("balanced_nll" in scores) == (run["encoder"] != "hold")  # of quantiles alone
            assert np.isfinite(list(scores.values())).all()


@pytest.mark.parametrize("name", LINES)
def test_lines_are_fitted_by_name(name, task):
    """Forecasts to fit to, and to be made, may have their channels in another order."""
    swapped = replace(
        task,
        training_forecasts=replace(
            task.training_forecasts, dataset=[in_other_order(e) for e in task.training]
        ),
    )
    one, other = LINES[name](task), LINES[name](swapped)
    np.testing.assert_allclose(one.weights, other.weights)
    (past, _), *_ = task.tests["line"]
    (forecast,), (asked,) = one.predict([past]), one.predict([in_other_order(past)])
    assert asked.target == ("B", "A")
    np.testing.assert_array_equal(forecast.quantile(0.9), asked.quantile(0.9)[:, ::-1])


def in_other_order(entry: dict) -> dict:
    schema = {**entry["info"]["schema"], "target": ["B", "A"]}
    info = {**entry["info"], "schema": schema}
    return {**entry, "target": entry["target"][::-1], "info": info}
