"""Forecasts live on the real time axis, as tables and as plots."""

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.torch.distributions.studentT import StudentT
from torch.distributions import Laplace

from deltaflow import DataError, GRUFlowEstimator, HoldPredictor, IrregularDataset, TimeSplitter
from deltaflow.compare.baselines import LinearPredictor
from deltaflow.forecast.forecasts import EnsembleForecast, quantiles_of, tabulated

KINDS_OF_FORECAST = {
    "distribution": {},
    "samples": {"num_samples": 30},
    "quantiles": {"distr_output": "quantile"},
    "paths": {"sampling": "path"},
}
any_forecast = pytest.mark.parametrize("kind", KINDS_OF_FORECAST)


@pytest.fixture(scope="module")
def forecasts(multivariate, make_estimator, instances):
    """A function ``kind -> forecasts`` of the multivariate items, made once each."""
    made = {}

    def get(kind: str):
        if kind not in made:
            options = dict(KINDS_OF_FORECAST[kind])
            count = options.pop("num_samples", None)
            predictor = make_estimator(GRUFlowEstimator, **options).train(multivariate)
            entries = instances(multivariate)
            made[kind] = list(predictor.predict(entries, num_samples=count, seed=0))
        return made[kind]

    return get


@any_forecast
def test_timestamps_are_those_of_the_queries(kind, forecasts, multivariate_frame):
    for forecast in forecasts(kind):
        rows = multivariate_frame[multivariate_frame["item_id"] == forecast.item_id]
        assert list(forecast.timestamps) == list(rows["timestamp"].iloc[-4:])


def test_a_table_of_impossible_quantiles_is_refused(forecasts):
    with pytest.raises(DataError, match=r"'quantile_levels': .* not between 0 and 1"):
        forecasts("distribution")[0].to_dataframe(quantile_levels=[2])


@any_forecast
def test_the_table_has_a_row_per_query_and_channel(kind, forecasts):
    forecast = forecasts(kind)[3]
    table = forecast.to_dataframe(quantile_levels=[0.25, 0.75])
    mean = ["mean"] * forecast.has_mean
    expected = ["item_id", "timestamp", "target_name", "predictions", *mean, "0.25", "0.75"]
    assert list(table.columns) == expected
    assert forecast.has_mean == (kind != "quantiles")
    assert list(table["target_name"]) == ["HR", "MAP"] * 4
    assert list(table["timestamp"]) == list(forecast.timestamps.repeat(2))
    assert set(table["item_id"]) == {"p3"}
    np.testing.assert_array_equal(table["predictions"], forecast.quantile(0.5).reshape(-1))
    if mean:
        np.testing.assert_array_equal(table["mean"], forecast.mean.reshape(-1))
    assert (table["0.25"] <= table["predictions"]).all()
    assert (table["predictions"] <= table["0.75"]).all()


@any_forecast
def test_a_channel_can_be_taken_out(kind, forecasts):
    forecast = forecasts(kind)[0]
    channel = forecast.copy_dim(1)
    assert channel.target == ("MAP",)
    assert list(channel.timestamps) == list(forecast.timestamps)
    for level in (0.1, 0.5):
        np.testing.assert_array_equal(channel.quantile(level), forecast.quantile(level)[:, 1])
    assert set(channel.to_dataframe()["target_name"]) == {"MAP"}


@any_forecast
@pytest.mark.parametrize("channel", [1, "MAP"])
def test_the_plot_is_on_the_true_time_axis(kind, channel, forecasts):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    forecast = forecasts(kind)[0]
    figure, ax = plt.subplots()
    forecast.plot(ax=ax, channel=channel, intervals=[0.8], name="median")
    (line,) = ax.lines
    assert list(pd.DatetimeIndex(line.get_xdata())) == list(forecast.timestamps)
    np.testing.assert_array_equal(line.get_ydata(), forecast.quantile(0.5)[:, 1])
    assert len(ax.collections) == 1
    assert [text.get_text() for text in ax.legend().get_texts()] == [
        "median",
        "median, 80% interval",
    ]
    figure.canvas.draw()
    plt.close(figure)


def test_the_plot_goes_to_the_current_axes_in_order_of_time():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    frame = pd.DataFrame({"timestamp": [0.0, 1, 2], "target": [1.0, 2, 3]})
    dataset = IrregularDataset.from_long_dataframe(frame, item_id=None)
    entry = {**dataset[0], "feat_dynamic_real": np.array([[0, 1, 2, 9.0, 4.0, np.nan]])}
    (forecast,) = HoldPredictor.fit(dataset, 3).predict([entry])
    figure = plt.figure()
    forecast.plot()
    assert list(plt.gca().lines[0].get_xdata()) == [4.0, 9.0]
    plt.close(figure)


def test_padded_queries_have_no_time_and_no_row(univariate):
    _, template = TimeSplitter(after="20h", horizon="4h").split(univariate)
    predictor = HoldPredictor.fit(univariate, 10)
    for forecast, label in zip(
        predictor.predict(template.generate_instances(10).input),
        template.generate_instances(10).label,
        strict=True,
    ):
        known = np.isfinite(label["target"])
        np.testing.assert_array_equal(forecast.timestamps.notna(), known)
        assert len(forecast.to_dataframe()) == known.sum()
        assert forecast.to_dataframe()["timestamp"].notna().all()


def test_a_channel_of_a_distribution_is_that_distribution(forecasts):
    joint = forecasts("distribution")[0]
    channel = joint.copy_dim(1)
    assert (channel.dim(), channel.copy_dim(0)) == (1, channel)
    np.testing.assert_array_equal(channel.mean, joint.mean[:, 1])
    drawn = channel.to_sample_forecast(2000).samples
    assert drawn.shape == (2000, 4)
    below = (drawn < joint.quantile(0.9)[:, 1]).mean(axis=0)
    np.testing.assert_allclose(below, 0.9, atol=0.05)


def test_samples_of_a_distribution_keep_real_time(forecasts):
    forecast = forecasts("distribution")[0]
    samples = forecast.to_sample_forecast(20)
    assert samples.samples.shape == (20, 4, 2)
    assert list(samples.timestamps) == list(forecast.timestamps)
    assert samples.target == forecast.target


@pytest.mark.parametrize("kind", ["distribution", "quantiles", "ensemble"])
def test_samples_have_the_quantiles_of_their_forecast(kind, forecasts):
    if kind == "ensemble":
        forecast = EnsembleForecast([forecasts(own)[0] for own in ("distribution", "quantiles")])
    else:
        forecast = forecasts(kind)[0]
    samples = forecast.to_sample_forecast(2000)
    assert (samples.target, list(samples.timestamps)) == (("HR", "MAP"), list(forecast.timestamps))
    below = (samples.samples < forecast.quantile(0.8)).mean(axis=0)
    np.testing.assert_allclose(below, 0.8, atol=0.05)
    # Each query is drawn on its own.
    assert abs(np.corrcoef(samples.samples[:, 0, 0], samples.samples[:, 1, 0])[0, 1]) < 0.1


def test_samples_of_samples_are_these(forecasts):
    forecast = forecasts("paths")[0]
    assert forecast.to_sample_forecast() is forecast


def test_the_aggregate_of_channels_keeps_real_time(forecasts):
    forecast = forecasts("samples")[0]
    total = forecast.copy_aggregate(np.sum)
    np.testing.assert_allclose(total.samples, forecast.samples.sum(axis=-1))
    assert list(total.timestamps) == list(forecast.timestamps)


def test_quantiles_are_asked_for_by_number_or_by_name(forecasts):
    for kind in KINDS_OF_FORECAST:
        forecast = forecasts(kind)[0]
        np.testing.assert_array_equal(forecast.quantile(0.9), forecast.quantile("0.9"))
        np.testing.assert_array_equal(forecast.quantile(0.9), forecast.quantile("p90"))
        np.testing.assert_array_equal(forecast.quantile(0.9), forecast.quantile(np.float32(0.9)))


@any_forecast
def test_the_ends_of_the_levels_are_the_ends_of_the_values(kind, forecasts):
    forecast = forecasts(kind)[0]
    low, median, high = (forecast.quantile(level) for level in (0, 0.5, 1))
    assert (low < median).all()
    assert (median < high).all()
    for level in (-0.1, 1.5, "p110", float("nan")):
        with pytest.raises(ValueError, match=r"ensure this value is (less|greater) than or equal"):
            forecast.quantile(level)


@any_forecast
def test_a_forecast_becomes_one_of_quantiles(kind, forecasts):
    forecast = forecasts(kind)[0]
    quantiles = forecast.to_quantile_forecast(["p10", 0.9, "mean"])
    assert quantiles.forecast_keys == ["0.1", "0.9", "mean"]
    np.testing.assert_array_equal(quantiles.quantile(0.9), forecast.quantile(0.9))
    np.testing.assert_array_equal(quantiles.mean, forecast.mean)
    assert list(quantiles.timestamps) == list(forecast.timestamps)
    series = forecast.copy_dim(0).mean_ts
    np.testing.assert_array_equal(series, forecast.mean[:, 0])
    assert list(series.index) == list(forecast.index)


@any_forecast
def test_several_quantiles_are_those_of_each_level(kind, forecasts):
    forecast = forecasts(kind)[2]
    levels = [0.9, 0.123, 0.5]
    expected = np.stack([forecast.quantile(level) for level in levels])
    np.testing.assert_array_equal(forecast.quantiles(levels), expected)
    cells = np.array([[True, False], [False, False], [True, True], [False, True]])
    np.testing.assert_allclose(forecast.quantiles(levels, cells), expected[:, cells], rtol=1e-12)
    assert forecast.quantiles(levels, np.zeros((4, 2), dtype=bool)).shape == (3, 0)
    channel = forecast.copy_dim(1)
    np.testing.assert_array_equal(
        channel.quantiles(levels, cells[:, 1]), expected[:, cells[:, 1], 1]
    )


@any_forecast
def test_a_density_is_that_of_the_distribution_if_there_is_one(kind, forecasts):
    forecast = forecasts(kind)[2]
    values = forecast.mean + np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, -3.0], [np.nan, 9.0]])
    density = forecast.log_prob(values)
    if kind != "distribution":
        assert density is None
        return
    filled = torch.from_numpy(np.where(np.isfinite(values), values, 0.0))
    expected = forecast.distribution.log_prob(filled).numpy()
    np.testing.assert_allclose(density, np.where(np.isfinite(values), expected, np.nan))
    np.testing.assert_allclose(pickle.loads(pickle.dumps(forecast)).log_prob(values), density)
    np.testing.assert_array_equal(
        forecast.log_prob(np.full((4, 2), np.nan)), np.full((4, 2), np.nan)
    )
    own = forecast.copy_dim(1).log_prob(values[:, 1])
    np.testing.assert_allclose(own, density[:, 1])


@any_forecast
def test_forecasts_can_be_pickled_one_by_one(kind, forecasts):
    forecast, other = forecasts(kind)[2], forecasts(kind)[3]
    copied = pickle.loads(pickle.dumps(forecast))
    pd.testing.assert_frame_equal(copied.to_dataframe(), forecast.to_dataframe())
    np.testing.assert_array_equal(copied.mean, forecast.mean)
    np.testing.assert_array_equal(copied.copy_dim(1).mean, forecast.mean[:, 1])
    assert len(pickle.dumps(forecast)) < 1.7 * len(pickle.dumps(other))


def test_forecasts_hold_no_tensors_which_other_processes_would_open_as_files(forecasts):
    sent = ForkingPickler.dumps(forecasts("distribution")[0])
    assert b"torch.multiprocessing" not in bytes(sent)


def test_callers_may_change_what_they_are_given(forecasts):
    forecast = forecasts("distribution")[0]
    before = forecast.to_dataframe()
    forecast.quantile(0.5)[:] = 0
    forecast.mean[:] = 0
    pd.testing.assert_frame_equal(forecast.to_dataframe(), before)


@pytest.mark.parametrize("kind", ["network", "line"])
def test_quantiles_of_many_forecasts_are_computed_together(
    kind, multivariate, make_estimator, instances, monkeypatch
):
    channels = len(multivariate.schema.target)
    line = {"weights": np.zeros((channels, 3)).tolist(), "center": [0.0] * channels}
    schema, family = multivariate.schema.to_dict(), Laplace
    predictor = LinearPredictor(4, schema, **line, scale=[1.0] * channels)
    if kind == "network":
        predictor = make_estimator(GRUFlowEstimator, batch_size=64).train(multivariate)
        family = StudentT
    inverse, calls = family.icdf, []
    monkeypatch.setattr(family, "icdf", lambda *args: calls.append(args) or inverse(*args))
    entries = instances(multivariate)
    tables = [forecast.to_dataframe() for forecast in predictor.predict(entries * 8)]
    assert len(tables) == 64
    assert len(calls) <= 3
    for table, forecast in zip(tables, predictor.predict(entries), strict=False):
        alone = quantiles_of(forecast.distribution, [0.9])[0]
        np.testing.assert_allclose(table["0.9"], alone.reshape(-1), rtol=1e-5)


def test_a_table_of_many_forecasts_is_their_tables_one_after_the_other(forecasts):
    own = forecasts("distribution")
    made = [own[0], own[1].copy_dim(1), *own[2:]]  # of different channels
    parts = [one.to_dataframe([0.2]) for one in made]
    expected = pd.concat(parts, keys=range(len(parts))).droplevel(1)
    pd.testing.assert_frame_equal(tabulated(made, [0.2]), expected)


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_a_table_of_forecasts_with_times_of_different_kinds(zone, univariate_frame):
    made = []
    for resolution, unit in (("s", "h"), ("ms", "D")):
        times = univariate_frame["timestamp"] + pd.Timedelta(1, unit=resolution)
        frame = univariate_frame.assign(timestamp=times.dt.tz_localize(zone))
        data = IrregularDataset.from_long_dataframe(frame, target="HR", time_unit=unit)
        test = TimeSplitter(after="20h", horizon="4h").split(data)[1]
        made += HoldPredictor.fit(data, 10).predict(test.generate_instances(10).input)
    table = tabulated(made, [0.1, 0.9])
    expected = pd.concat([one.to_dataframe([0.1, 0.9]) for one in made])
    assert table["timestamp"].tolist() == expected["timestamp"].tolist()
    np.testing.assert_array_equal(table["0.9"], expected["0.9"])
