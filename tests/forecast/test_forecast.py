"""Forecasts live on the real time axis, as tables and as plots."""

import numpy as np
import pandas as pd
import pytest

from deltaflow import (
    DataError,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataset,
    TimeSplitter,
)

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
    expected = ["item_id", "timestamp", "target_name", "predictions", "0.25", "0.75"]
    assert list(table.columns) == expected
    assert list(table["target_name"]) == ["HR", "MAP"] * 4
    assert list(table["timestamp"]) == list(forecast.timestamps.repeat(2))
    assert set(table["item_id"]) == {"p3"}
    np.testing.assert_array_equal(table["predictions"], forecast.quantile(0.5).reshape(-1))
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
