"""Gaussian processes with shared hyperparameters, and the defaults, as rows of the comparison."""

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from deltaflow import IrregularDataset, TimeSplitter
from deltaflow.compare import run_comparison
from deltaflow.forecast.gaussian_process import GaussianProcessPredictor, predictive
from deltaflow.tasks import Task, unseen_items
from deltaflow.tasks.small import small_task
from deltaflow.tasks.task import known_before
from deltaflow.training import folds


def lines(number: int, missing: float = 0.0) -> Task:
    """Straight lines of a slope of their own with noise of 0.1; and a channel of noise alone."""
    random = np.random.default_rng(0)
    frames = []
    for item in range(number):
        times = np.sort(random.uniform(0, 48, 16))
        frame = pd.DataFrame({"item_id": f"i{item}", "timestamp": times})
        frame["line"] = random.normal() * times + 0.1 * random.normal(size=16)
        frame["noise"] = 5 + 2 * random.normal(size=16)
        frame.loc[random.random(16) < missing, "line"] = np.nan
        frames.append(frame)
    data = IrregularDataset.from_long_dataframe(pd.concat(frames), target=["line", "noise"])
    return unseen_items("lines", data, TimeSplitter(after="24h"), test_share=0.5)


def test_lines_go_on_and_noise_stays_where_it_is():
    task = lines(24, missing=0.2)
    predictor = GaussianProcessPredictor.fit(known_before(task), task.prediction_length)
    (test,) = task.tests.values()
    labels = np.array([label["target"] for label in test.label])  # (N, D, Q)
    found = np.array([f.quantiles([0.1, 0.5, 0.9]) for f in predictor.predict(test.input)])
    low, median, high = found.transpose(1, 0, 3, 2)
    error = np.sqrt(np.nanmean((median - labels) ** 2, axis=(0, 2)))
    assert error[0] < 0.5  # of values up to 48 away from where they were
    assert error[1] == pytest.approx(2.0, rel=0.3)
    inside = ((low <= labels) & (labels <= high))[np.isfinite(labels)]
    assert inside.mean() == pytest.approx(0.8, abs=0.12)


def test_an_item_of_which_nothing_is_known_has_the_prior():
    task = lines(10)
    predictor = GaussianProcessPredictor.fit(known_before(task), task.prediction_length)
    (test,) = task.tests.values()
    past = next(iter(test.input))
    (forecast,) = predictor.predict([{**past, "target": past["target"] * np.nan}])
    np.testing.assert_allclose(forecast.mean[:, 1], predictor.center[1])


@pytest.mark.parametrize("count", [0, 1, 20])
def test_forecasts_are_those_of_scikit_learn(count):
    rng = np.random.default_rng(count)
    kernel = kernels.ConstantKernel() * kernels.DotProduct()
    kernel += kernels.ConstantKernel() * kernels.Matern(nu=1.5) + kernels.WhiteKernel()
    theta = rng.uniform([-1, -1, -1, -1, -3], 1)
    times, values, asked = np.sort(rng.uniform(0, 5, count)), rng.normal(size=count), np.arange(9.0)
    process = GaussianProcessRegressor(kernel.clone_with_theta(theta), optimizer=None)
    if count:
        process.fit(times[:, None], values)
    expected = process.predict(asked[:, None], return_std=True)
    np.testing.assert_allclose(predictive(theta, times, values, asked), expected, rtol=1e-7)


def test_it_is_a_row_and_so_are_the_defaults(tiny, monkeypatch):
    monkeypatch.setattr(folds, "EPOCHS", 1)
    monkeypatch.setitem(folds.SMALL, "num_batches_per_epoch", 2)
    runs = run_comparison(tiny(encoders=["gaussian_process", "defaults"]))
    assert [run["encoder"] for run in runs] == ["hold", "gaussian_process", "defaults"]
    assert [run["errors"] for run in runs] == [{}] * 3
    for run in runs[1:]:
        assert run["scores"]["sine"]["parameters"] > 0


def test_all_that_is_known_before_a_test_is_learned_from(tmp_path):
    rows = pd.DataFrame({"item_id": ["a"] * 17 + ["b"] * 3, "time": [*range(17), *range(3)]})
    rows.assign(protein=rows["time"], Diet="d").to_csv(tmp_path / "milk.csv", index=False)
    task = small_task("milk", tmp_path)
    known = {entry["item_id"]: len(entry["target"]) for entry in known_before(task)}
    assert known == {"a": 13, "b": 3}
    assert sum(len(entry["target"]) for entry in task.training) == 9 + 3
