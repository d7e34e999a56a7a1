"""Figures of forecasts show the past, the median, the intervals and the actual values."""

import numpy as np
import pandas as pd
import pytest

from deltaflow import (
    DataError,
    HoldPredictor,
    IrregularDataset,
    TimeSplitter,
    plot_forecasts,
    predict_df,
)

pytest.importorskip("matplotlib").use("Agg")
from matplotlib.figure import Figure  # noqa: E402

START = pd.Timestamp("2024-01-01")


@pytest.fixture
def frame():
    hours = pd.to_timedelta(np.arange(12.0), unit="h")
    parts = [
        pd.DataFrame({"item_id": item, "timestamp": START + hours, "HR": 80.0 + n, "T": 37.0})
        for n, item in enumerate("abcd")
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame.loc[frame["timestamp"] == START + hours[9], "HR"] = np.nan
    return frame


@pytest.fixture
def forecasts(frame):
    dataset = IrregularDataset.from_long_dataframe(frame, target=["HR", "T"])
    predictor = HoldPredictor.fit(dataset, 6)
    early = frame["timestamp"] < START + pd.Timedelta("8h")
    later = frame.loc[~early, ["item_id", "timestamp"]].iloc[::-1]
    levels = [0.05, 0.1, 0.9, 0.95, 0.99]
    return predict_df(predictor, frame[early], later, quantile_levels=levels)


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_figure_has_a_column_per_item_and_a_row_per_channel(frame, forecasts):
    figure = plot_forecasts(forecasts, frame, items=["c", "a"])
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[:2]] == ["c", "a"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["HR", "T"]
    assert set(labels(figure)) == {"median", "80% interval", "90% interval", "past", "actual"}
    figure.canvas.draw()


@pytest.mark.parametrize("dtype", ["int64", "float64", "category", "str"])
def test_the_items_of_the_history_may_have_another_type(dtype, frame, forecasts):
    number = {"a": 0, "b": 1, "c": 2, "d": 3}
    frame["item_id"] = frame["item_id"].map(number).astype(dtype)
    forecasts["item_id"] = forecasts["item_id"].map(number)
    figure = plot_forecasts(forecasts, frame, items=[1], channels=["HR"])
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["past"].get_ydata().tolist() == [81.0] * 8


def test_past_median_and_actual_values_lie_on_their_times(frame, forecasts):
    figure = plot_forecasts(forecasts, frame, items=["b"], channels=["HR"], past="3h")
    lines = {line.get_label(): line for line in figure.axes[0].lines}

    def times(label):
        return [(time - START) / pd.Timedelta("1h") for time in
                pd.DatetimeIndex(lines[label].get_xdata())]  # fmt: skip

    assert times("past") == [5, 6, 7]
    assert times("median") == [8, 9, 10, 11]
    assert times("actual") == [8, 10, 11]  # the ninth hour was not observed
    own = forecasts[(forecasts["item_id"] == "b") & (forecasts["target_name"] == "HR")]
    np.testing.assert_array_equal(
        lines["median"].get_ydata(), own.sort_values("timestamp")["predictions"]
    )


def test_without_a_history_the_forecast_stands_alone(forecasts):
    figure = plot_forecasts(forecasts, items=2)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["d", "c"]
    assert set(labels(figure)) == {"median", "80% interval", "90% interval"}


@pytest.mark.parametrize("dtype", [float, int])
def test_elapsed_numbers_are_a_time_axis_too(dtype):
    frame = pd.DataFrame({"item_id": 1, "timestamp": [0, 1, 2, 3], "target": [1.0, 2, 1, 2]})
    frame = frame.astype({"timestamp": dtype})
    predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(frame), 4)
    asked = pd.DataFrame({"item_id": 1, "timestamp": [4.5, 3.5]})
    figure = plot_forecasts(predict_df(predictor, frame, asked), frame, past=np.float32(1.6))
    lines = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].lines}
    assert lines == {"median": [3.5, 4.5], "past": [2.0, 3.0]}


def test_a_single_series_needs_no_item(frame, forecasts):
    own = forecasts[forecasts["item_id"] == "a"].drop(columns="item_id")
    history = frame[frame["item_id"] == "a"].drop(columns="item_id")
    figure = plot_forecasts(own, history, item_id=None)
    of_item = plot_forecasts(forecasts, frame, items=["a"])
    assert "item_id" not in history
    assert figure.axes[0].get_title() == ""
    for axes, expected in zip(figure.axes, of_item.axes, strict=True):
        for line, other in zip(axes.lines, expected.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())


def test_what_cannot_be_drawn_is_named(frame, forecasts):
    with pytest.raises(DataError, match=r"no forecast of 'z'; there are \['d', 'c', 'b', 'a'\]"):
        plot_forecasts(forecasts, items=["z"])
    with pytest.raises(DataError, match="field 'HR': history has no such column"):
        plot_forecasts(forecasts, frame.drop(columns="HR"))
    with pytest.raises(DataError, match="field 'predictions': forecasts has no such column"):
        plot_forecasts(frame.assign(target_name="HR"))
    with pytest.raises(DataError, match="field 'past': 5 is not a duration"):
        plot_forecasts(forecasts, frame, past=5)
    for nothing in ({"items": []}, {"items": 0}, {"channels": []}):
        with pytest.raises(DataError, match="nothing to draw"):
            plot_forecasts(forecasts, **nothing)


def test_a_single_item_or_channel_need_not_be_in_a_list(forecasts):
    figure = plot_forecasts(forecasts, items="b", channels="HR")
    assert [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes] == [("b", "HR")]


def test_a_forecast_draws_its_own_history(frame):
    from matplotlib import pyplot as plt

    dataset = IrregularDataset.from_long_dataframe(frame, target=["HR", "T"])
    splitter = TimeSplitter(after="8h", horizon="4h")
    instances = splitter.split(dataset)[1].generate_instances(6)
    forecast = next(iter(HoldPredictor.fit(dataset, 6).predict(instances.input)))
    figure, axes = plt.subplots()
    own = frame[frame["item_id"] == "a"]
    forecast.plot(ax=axes, channel="HR", history=own)
    lines = {line.get_label(): len(line.get_xdata()) for line in axes.lines}
    assert lines == {"median": 4, "past": 8, "actual": 3}
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(ticks) == len(set(ticks)) <= 7
    plt.close(figure)


def test_a_forecast_without_queries_draws_nothing(frame):
    dataset = IrregularDataset.from_long_dataframe(frame, target=["HR", "T"])
    instances = TimeSplitter(after="20h").split(dataset)[1].generate_instances(6)
    forecast = next(iter(HoldPredictor.fit(dataset, 6).predict(instances.input)))
    assert forecast.timestamps.isna().all()
    axes = Figure().subplots()
    forecast.plot(ax=axes, channel="HR", history=frame[frame["item_id"] == "a"])
    assert [len(line.get_xdata()) for line in axes.lines] == [0]


def test_a_forecast_names_the_channels_that_it_could_draw(frame):
    dataset = IrregularDataset.from_long_dataframe(frame, target=["HR", "T"])
    instances = TimeSplitter(after="8h").split(dataset)[1].generate_instances(6)
    forecast = next(iter(HoldPredictor.fit(dataset, 6).predict(instances.input)))
    with pytest.raises(DataError, match=r"no channel 'temperature'.*\['HR', 'T'\]"):
        forecast.plot(ax=Figure().subplots(), channel="temperature")
