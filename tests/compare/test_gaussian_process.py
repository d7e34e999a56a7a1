"""Gaussian processes with shared hyperparameters, and the defaults, as rows of the comparison."""

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from deltaflow import IrregularDataset, TimeSplitter
from deltaflow.compare import run_comparison
from deltaflow.forecast.gaussian_process.likelihood import Likelihood, common_period
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.forecast.gaussian_process.processes import PROCESSES, predictive
from deltaflow.forecast.location_scale import Curve
from deltaflow.tasks import Task, unseen_items
from deltaflow.tasks.small import small_task
from deltaflow.tasks.task import known_before
from deltaflow.training import plan


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


@pytest.mark.parametrize("process", PROCESSES)
def test_lines_go_on_and_noise_stays_where_it_is(process):
    task = lines(24, missing=0.2)
    predictor = GaussianProcessPredictor.fit(
        known_before(task), task.prediction_length, process=process
    )
    (test,) = task.tests.values()
    labels = np.array([label["target"] for label in test.label])  # (N, D, Q)
    found = np.array([f.quantiles([0.1, 0.5, 0.9]) for f in predictor.predict(test.input)])
    low, median, high = found.transpose(1, 0, 3, 2)
    error = np.sqrt(np.nanmean((median - labels) ** 2, axis=(0, 2)))
    assert error[0] < 0.5  # of values up to 48 away from where they were
    assert error[1] == pytest.approx(2.0, rel=0.3)
    inside = ((low <= labels) & (labels <= high))[np.isfinite(labels)]
    assert inside.mean() == pytest.approx(0.8, abs=0.12)


def test_a_channel_of_a_few_items_is_fitted_to_them():
    """Of 200 items, 64 would be chosen at random, which may be others."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"item_id": np.arange(200).repeat(4), "timestamp": np.tile(range(4), 200)})
    frame["usual"] = random.normal(size=800)
    for item in (0, 50, 100, 150):
        frame["rare"] = np.where(frame["item_id"] == item, random.normal(size=800), np.nan)
        data = IrregularDataset.from_long_dataframe(frame, target=["usual", "rare"])
        assert np.isfinite(GaussianProcessPredictor.fit(data, 2).theta).all()


def last_rows(data, count: int, process: str) -> tuple[GaussianProcessPredictor, float, float]:
    """Fit a process to all but the last rows, and forecast these.

    Return the predictor, its mean absolute error, and the coverage of its intervals of 80 %.
    """
    known, template = split(data, offset=-count)
    pairs = list(template.generate_instances(count))
    labels = np.array([label["target"] for _, label in pairs])
    predictor = GaussianProcessPredictor.fit(known, count, process=process)
    found = predictor.predict([past for past, _ in pairs])
    low, median, high = np.array([f.quantiles([0.1, 0.5, 0.9]) for f in found]).swapaxes(0, 1)
    inside = (low <= labels) & (labels <= high)
    return predictor, float(np.abs(median - labels).mean()), float(inside.mean())


def test_a_local_trend_follows_a_slope_that_drifts():
    """Its forecast is better, and an interval of 80 % covers what it says, wherever an item begins
    and however long it is."""
    random = np.random.default_rng(0)
    times, pushes = np.arange(24.0), random.normal(size=(16, 24))
    frames = [
        pd.DataFrame({"item_id": f"i{item}", "timestamp": 1e4 + times, "target": own})
        for item, own in enumerate(pushes.cumsum(axis=1).cumsum(axis=1))
    ]
    data = IrregularDataset.from_long_dataframe(pd.concat(frames))
    scores = {process: last_rows(data, 3, process) for process in PROCESSES}
    assert scores["trend"][1] < 0.9 * scores["matern"][1]
    assert scores["trend"][2] == pytest.approx(0.8, abs=0.12)


@pytest.mark.parametrize(("process", "counts"), [("matern", True), ("trend", False)])
def test_a_line_counts_from_the_first_row_and_a_local_trend_from_the_first_value(process, counts):
    """Where a line lies depends on the age of the item; where a local trend goes does not."""
    predictor = GaussianProcessPredictor.fit(known_before(lines(12)), 2, process=process)
    times, values, asked = np.arange(5.0), np.arange(5.0), np.array([6.0, 9.0])
    young, old = (
        predictor.locate_from([Curve(times + age, values)] * 2, asked + age)[0]
        for age in (0.0, 1e3)
    )
    assert np.allclose(young, old) != counts


@pytest.mark.parametrize("gap", [0.0, 1e2, 1e5])
@pytest.mark.parametrize(
    ("process", "shape"), [("matern", [-1]), ("cycle", [-1, 0, 0, -2, 3]), ("trend", [])]
)
def test_a_long_gap_and_little_noise_leave_a_forecast(process, shape, gap):
    theta = np.array([9, 9, 9 if process == "trend" else 0, *shape, -14], dtype=float)
    times = np.concatenate([np.linspace(0, 1, 150), 1.01 + gap + np.linspace(0, 1, 150)])
    values = np.sin(times)
    asked = times[-1] + np.array([1e-3, 1.0, 1e3])
    mean, deviation = predictive(theta, times, values, asked, process)
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()
    assert abs(mean[0] - values[-1]) < 0.1


def waves(amplitude: float) -> pd.DataFrame:
    """Waves of a day with phases of their own, beside deviations that last for six hours."""
    random = np.random.default_rng(0)
    frames = []
    for item in range(12):
        hours = np.cumsum(random.exponential(1.0, 84))
        pull, pushes = np.exp(-np.diff(hours, prepend=0.0) / 6), random.normal(size=84)
        apart = [random.normal()]
        for kept, push in zip(pull[1:], pushes[1:], strict=True):
            apart.append(kept * apart[-1] + np.sqrt(1 - kept**2) * push)
        phase = 2 * np.pi * (hours / 24 + random.uniform())
        values = 20 + amplitude * (np.sin(phase) + 0.3 * np.sin(2 * phase)) + apart
        frames.append(pd.DataFrame({"item_id": f"i{item}", "hours": hours, "target": values}))
    return pd.concat(frames)


def test_a_wave_goes_on_and_keeps_its_period():
    frame = waves(amplitude=3.0)
    data = IrregularDataset.from_long_dataframe(frame, timestamp="hours", time_unit="h")
    scores = {process: last_rows(data, 12, process) for process in ("matern", "cycle")}
    predictor, error, coverage = scores["cycle"]
    assert error < 0.6 * scores["matern"][1]
    assert coverage == pytest.approx(0.8, abs=0.1)
    assert predictor.periods == pytest.approx([24 * 3600], rel=0.03)


def test_where_nothing_repeats_itself_a_cycle_is_a_matern_process():
    data = IrregularDataset.from_long_dataframe(waves(0.0), timestamp="hours", time_unit="h")
    plain, cycle = (
        GaussianProcessPredictor.fit(data, 12, process=process) for process in ("matern", "cycle")
    )
    assert cycle.periods == [None]
    past = list(split(data, offset=-12)[1].generate_instances(12).input)
    for one, other in zip(plain.predict(past), cycle.predict(past), strict=True):
        np.testing.assert_allclose(one.quantiles([0.1, 0.9]), other.quantiles([0.1, 0.9]))


def test_a_period_is_found_in_bursts_of_values():
    """However close values are, the number of periods that are tried follows from theirs."""
    random = np.random.default_rng(0)
    starts = np.repeat(np.sort(random.uniform(0, 200, (6, 20)), axis=1), 4, axis=1)
    times = starts + np.tile(1e-6 * np.arange(4), 20)
    curves = [Curve(own, np.sin(2 * np.pi * own / 24 + number)) for number, own in enumerate(times)]
    period, _ = common_period(curves)
    assert period == pytest.approx(24, rel=0.03)


@pytest.mark.parametrize(("rows", "noise"), [(36, 0.3), (204, 0.35)])
def test_the_cycle_of_a_single_series_is_found(rows, noise):
    """Of months, for three years; or for many, of which a process without waves makes noise."""
    random = np.random.default_rng(1)
    values = 10 + np.sin(2 * np.pi * np.arange(rows) / 12) + noise * random.normal(size=rows)
    entry = {"start": pd.Period("1920-01", "M"), "target": values, "item_id": "temperature"}
    predictor = GaussianProcessPredictor.fit([entry], 12, process="cycle")
    assert predictor.periods == pytest.approx([12], rel=0.05)


def test_an_unknown_process_is_refused():
    with pytest.raises(ValueError, match=r"unknown process 'walk': .*'cycle', 'matern', 'trend'"):
        GaussianProcessPredictor.fit(known_before(lines(4)), 2, process="walk")


def test_an_item_of_which_nothing_is_known_has_the_prior():
    task = lines(10)
    predictor = GaussianProcessPredictor.fit(known_before(task), task.prediction_length)
    (test,) = task.tests.values()
    past = next(iter(test.input))
    (forecast,) = predictor.predict([{**past, "target": past["target"] * np.nan}])
    np.testing.assert_allclose(forecast.mean[:, 1], predictor.center[1])


class IntegratedWalk(kernels.Kernel):
    """The integral of a random walk, as a kernel of scikit-learn without parameters."""

    def __init__(self):
        pass

    def __call__(self, X, Y=None, eval_gradient=False):
        other = (X if Y is None else Y).T
        first, last = np.minimum(X, other), np.maximum(X, other)
        covariance = first**2 * (last - first / 3) / 2
        return (covariance, np.empty((*covariance.shape, 0))) if eval_gradient else covariance

    def diag(self, X):
        return X[:, 0] ** 3 / 3

    def is_stationary(self):
        return False


def in_scikit_learn(process: str) -> kernels.Kernel:
    walk, wave = kernels.Matern(nu=1.5), kernels.ExpSineSquared() * kernels.Matern(nu=1.5)
    shape = {
        "matern": walk, "cycle": walk + kernels.ConstantKernel() * wave, "trend": IntegratedWalk()
    }[process]  # fmt: skip
    line = kernels.ConstantKernel() * kernels.DotProduct()
    return line + kernels.ConstantKernel() * shape + kernels.WhiteKernel()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("count", [0, 1, 20])
def test_forecasts_are_those_of_scikit_learn(count, process):
    rng = np.random.default_rng(count)
    kernel = in_scikit_learn(process)
    theta = rng.uniform([*[-1] * (kernel.n_dims - 1), -3], 1)
    times, values, asked = np.sort(rng.uniform(0, 5, count)), rng.normal(size=count), np.arange(9.0)
    regressor = GaussianProcessRegressor(kernel.clone_with_theta(theta), optimizer=None)
    if count:
        regressor.fit(times[:, None], values)
    expected = regressor.predict(asked[:, None], return_std=True)
    found = predictive(theta, times, values, asked, process)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_likelihood_of_curves_of_any_length_is_that_of_scikit_learn(process):
    rng = np.random.default_rng(0)
    kernel = in_scikit_learn(process)
    theta = rng.uniform(-1, 1, kernel.n_dims)
    curves = [
        Curve(np.sort(rng.uniform(0, 5, count)), rng.normal(size=count)) for count in (1, 20, 7)
    ]
    likelihood = Likelihood(curves, process)
    expected, slopes = 0.0, np.zeros_like(theta)
    for times, values in curves:
        one = GaussianProcessRegressor(kernel, optimizer=None).fit(times[:, None], values)
        value, slope = one.log_marginal_likelihood(theta, eval_gradient=True)
        expected, slopes = expected + value, slopes + slope
    value, slope = likelihood.with_slope(theta)
    assert value == pytest.approx(expected, rel=1e-9)
    assert likelihood.at(theta) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(slope, slopes, rtol=1e-7)


def test_it_is_a_row_and_so_are_the_defaults(tiny, monkeypatch):
    monkeypatch.setattr(plan, "EPOCHS", 1)
    monkeypatch.setitem(plan.SMALL, "num_batches_per_epoch", 2)
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


def test_growth_by_shares_is_forecast_and_does_not_go_on_for_ever():
    """A process of logarithms follows it; millions of lengths later it has come to an end."""
    random, times = np.random.default_rng(0), np.arange(24.0)
    frames = [
        pd.DataFrame({"item_id": f"i{item}", "timestamp": times, "target": np.exp(log)})
        for item, log in enumerate(0.2 * times + random.normal(0, 0.1, (16, 24)))
    ]
    data = IrregularDataset.from_long_dataframe(pd.concat(frames))
    known, template = split(data, offset=-4)
    pairs = list(template.generate_instances(4))
    later = np.array([label["target"] for _, label in pairs])
    errors = []
    for powers in ([1.0], [0.0]):
        predictor = GaussianProcessPredictor.fit(known, 4, powers)
        found = predictor.predict([past for past, _ in pairs])
        low, median, high = np.array([f.quantiles([0.1, 0.5, 0.9]) for f in found]).swapaxes(0, 1)
        errors.append(np.abs(median - later).mean())
    assert errors[1] < 0.5 * errors[0]
    assert ((low <= later) & (later <= high)).mean() == pytest.approx(0.8, abs=0.12)
    (far,) = predictor.predict(
        [{**pairs[0][0], "feat_dynamic_real": np.append(times[:20], 10.0 ** np.arange(4, 8))[None]}]
    )
    low, high = far.quantiles([0.1, 0.9])
    assert (high < 1e6 * later.max()).all()
    assert (high > 10 * low).all()
    assert (far.mean < 1e9 * later.max()).all()
