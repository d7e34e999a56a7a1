"""A series is cut into windows that never look ahead, in float64 until Δt is formed."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from deltaflow import (
    DataError,
    DeltaflowError,
    DeltaflowWarning,
    IrregularDataModule,
    IrregularDataset,
    UnknownNameError,
)
from deltaflow.data.reader import Reader, Window
from deltaflow.data.schema import LARGEST, Schema
from deltaflow.data.series import Series, series_of
from deltaflow.data.statistics import Statistics
from deltaflow.data.windows import Horizon, SlidingWindows, SpreadWindows, TrainingWindows

SCHEMA = Schema(
    target=("HR",), univariate=True, time="elapsed", time_unit="s", feat_static_real=("number",)
)


def numbered_series(number: int, length: int) -> Series:
    """A series whose values count its rows; its static feature is its number."""
    random = np.random.default_rng(number)
    return Series(
        item_id=str(number),
        times=random.exponential(10.0, length).cumsum(),
        values=np.arange(length, dtype=float)[:, None],
        covariates=np.empty((length, 0)),
        static_real=np.array([float(number)]),
        static_cat=np.empty(0, dtype=np.int64),
    )


HORIZON = Horizon(3)


def make_reader(
    data: list[Series], context_length: int = 6, context: float | None = None
) -> Reader:
    return Reader(SCHEMA, Statistics.fit(data, SCHEMA.target), context_length, context)


def every_ten_minutes(length: int) -> Series:
    """A series at 0.1, 0.1 + 1/6, … hours, whose times in seconds are all slightly off."""
    hours = 0.1 + np.arange(length) / 6
    return numbered_series(0, length)._replace(times=hours * 3600)


def number_of(window: Window) -> int:
    """Which series a window comes from."""
    return int(window.series.static_real[0])


def rows_of(window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a numbered series are a window's context and its targets."""
    values = window.series.values[:, 0]
    return values[window.context], values[window.queries]


@pytest.fixture
def data() -> list[Series]:
    return [numbered_series(i, length) for i, length in enumerate([5, 9, 12, 12, 40])]


def test_context_ends_where_the_queries_begin(data):
    windows = TrainingWindows(data, make_reader(data), HORIZON, seed=0)
    for index in range(300):
        context, future = rows_of(windows[index])
        first = int(future[0])
        begin = max(0, first - 6) if len(context) else first  # some windows are blind
        np.testing.assert_array_equal(context, np.arange(begin, first))
        np.testing.assert_array_equal(future, np.arange(first, first + len(future)))


def test_every_possible_origin_is_drawn(data):
    windows = TrainingWindows(data[:1], make_reader(data), HORIZON, seed=0)
    assert {int(rows_of(windows[i])[1][0]) for i in range(200)} == {1, 2, 3, 4}


def test_origins_lie_within_the_times_given(univariate):
    within = IrregularDataModule(
        univariate, prediction_length=1, context_length=500, scaling="last",
        origins_within=["5h", "9h"], batch_size=1, num_batches_per_epoch=300,
    )  # fmt: skip
    gap = within.reader.statistics.typical_gap / 3600
    elapsed = [
        (batch.delta_t.sum() + batch.query_delta_t[0, 0]).item() * gap
        for batch in within.train_dataloader()
        if batch.lengths[0]
    ]
    assert len(elapsed) > 250
    assert 5 - 1e-3 < min(elapsed) < 6
    # The last origin is the first row at or after the end of the range.
    assert 8 < max(elapsed) < 9 + 5


def test_queries_behind_the_observations_do_not_move_the_origins(univariate):
    options = {"prediction_length": 1, "context_length": 9, "origins_within": ["5h", "9h"]}
    asked = [dict(entry) for entry in univariate]
    for entry in asked:
        times = entry["feat_dynamic_real"]
        entry["feat_dynamic_real"] = np.hstack([times, times[:, -1:] + 1, [[np.nan]]])
    modules = [IrregularDataModule(data, **options) for data in (univariate, asked)]
    origins = [module.training_windows.ranges for module in modules]
    np.testing.assert_array_equal(*origins)


@pytest.mark.parametrize(
    ("within", "message"),
    [
        (["9h", "5h"], "lies before"),
        (["5h"], "is not a range"),
        ("5h", "is not a range"),
        (5, "is not a range"),
        (["5h", "never"], "is not a duration"),
        (["900h", "999h"], "within the times given"),
    ],
)
def test_a_range_of_origins_that_makes_no_sense_is_refused(within, message, univariate):
    with pytest.raises(DataError, match=message):
        IrregularDataModule(
            univariate, prediction_length=1, context_length=9, origins_within=within
        )


def test_validation_windows_may_slide(univariate):
    options = {"prediction_length": 1, "context_length": 9, "validation_origins": "sliding"}
    data = IrregularDataModule(univariate[:4], univariate[4:], **options)
    expected = sum(entry["target"].shape[-1] - 1 for entry in univariate[4:])
    assert len(data.validation_windows) == expected
    assert sum(batch.target_observed.sum() for batch in data.val_dataloader()) == expected


def test_sliding_windows_have_no_range_of_origins(univariate):
    options = {"prediction_length": 1, "context_length": 9, "origins": "sliding"}
    with pytest.raises(DataError, match="'origins_within': sliding windows begin at every origin"):
        IrregularDataModule(univariate, origins_within=["5h", "9h"], **options)


def test_the_future_has_no_influence_on_the_inputs(data):
    reader = make_reader(data)
    changed = data[4]._replace(values=data[4].values.copy())
    changed.values[10:] = -1e6
    before, after = (
        reader.collate([HORIZON.window(reader, series, 10)]) for series in (data[4], changed)
    )
    for field in before._fields:
        assert torch.equal(getattr(before, field), getattr(after, field)) == (field != "target")


def test_a_window_depends_on_seed_and_index_alone(data):
    reader = make_reader(data)
    forwards = TrainingWindows(data, reader, HORIZON, seed=3)
    backwards = TrainingWindows(data, reader, HORIZON, seed=3)
    order = list(range(40))
    first = {i: forwards[i] for i in order}
    second = {i: backwards[i] for i in reversed(order)}
    for i in order:
        assert first[i].series is second[i].series
        assert first[i][1:] == second[i][1:]
    other_seed = TrainingWindows(data, reader, HORIZON, seed=4)
    assert any(first[i][1:] != other_seed[i][1:] for i in order)


def test_every_pass_covers_every_item_once(data):
    reader = make_reader(data)
    windows = TrainingWindows(data, reader, HORIZON, seed=0)
    orders = [[number_of(windows[5 * turn + i]) for i in range(5)] for turn in range(30)]
    assert all(Counter(order) == Counter(range(5)) for order in orders)
    assert len({tuple(order) for order in orders}) > 10


def test_some_windows_are_blind(data):
    reader = make_reader(data)
    windows = TrainingWindows(data, reader, HORIZON, seed=0)
    blind = [window for window in (windows[i] for i in range(2000)) if not len(rows_of(window)[0])]
    # 2000 draws with probability 0.02: four standard deviations are 25.
    assert 15 <= len(blind) <= 65
    batch = reader.collate(blind)
    assert (batch.loc == reader.statistics.center[0]).all()
    assert (batch.scale == reader.statistics.spread[0]).all()


def test_a_window_begins_after_the_first_observation_and_ends_with_an_observed_target():
    series = numbered_series(0, 10)
    series.values[:4] = np.nan
    series.values[8:] = np.nan
    windows = TrainingWindows([series], make_reader([series], 10), Horizon(1), seed=0)
    origins = {windows[i].queries.start for i in range(100)}
    assert origins == {5, 6, 7}


def test_items_with_nothing_to_learn_from_are_passed_over_with_one_warning(data):
    lonely = numbered_series(7, 1)
    unseen = data[0]._replace(values=np.full((5, 1), np.nan))
    everything = [*data, lonely, unseen]
    with pytest.warns(DeltaflowWarning, match="2 of 7 items") as caught:
        windows = TrainingWindows(everything, make_reader(everything), HORIZON, seed=0)
    assert len(caught) == 1
    assert len(windows) == 5


def test_validation_takes_the_last_window_of_every_item(data):
    reader = make_reader(data)
    windows = SpreadWindows(data, reader, HORIZON, most=1)
    assert len(windows) == 5
    for series, window in zip(data, (windows[i] for i in range(5)), strict=True):
        length = series.length
        np.testing.assert_array_equal(rows_of(window)[1], np.arange(length - 3, length))
    with pytest.raises(DataError, match="no validation item"):
        SpreadWindows([numbered_series(0, 1)], reader, HORIZON, most=1)


@pytest.mark.parametrize(("most", "each"), [(2000, 8), (20, 4), (5, 2)])
def test_with_many_items_fewer_windows_of_each_are_validated(most, each, data, monkeypatch):
    monkeypatch.setattr("deltaflow.data.windows.MOST_WINDOWS", most)
    data = [numbered_series(i, 40) for i in range(5)]
    windows = SpreadWindows(data, make_reader(data), HORIZON)
    assert np.bincount(windows.items).tolist() == [each] * 5
    assert set(windows.origins[:each]) >= {1, 37}


def test_sliding_windows_take_every_origin_once(data):
    reader = make_reader(data)
    for stride in (1, 3, 100):
        windows = SlidingWindows(data, reader, HORIZON, stride=stride)
        found = [
            (number_of(window), int(rows_of(window)[1][0]))
            for window in (windows[i] for i in range(len(windows)))
        ]
        lengths = [series.length for series in data]
        assert found == [
            (i, o) for i, length in enumerate(lengths) for o in range(1, length, stride)
        ]


def test_a_shuffled_pass_of_sliding_windows_is_a_permutation(data):
    reader = make_reader(data)
    windows = SlidingWindows(data, reader, HORIZON, seed=0)
    size = len(windows)
    passes = [
        [
            (number_of(w), int(rows_of(w)[1][0]))
            for w in (windows[t * size + i] for i in range(size))
        ]
        for t in range(3)
    ]
    assert all(len(set(one)) == size and set(one) == set(passes[0]) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    again = SlidingWindows(data, reader, HORIZON, seed=0)
    assert number_of(again[2 * size]) == passes[2][0][0]


@pytest.mark.parametrize("windows", [TrainingWindows, SlidingWindows])
def test_another_seed_is_another_order_at_once(windows, data):
    reader = make_reader(data)
    fresh, changed = windows(data, reader, HORIZON, seed=1), windows(data, reader, HORIZON, seed=0)
    order = [number_of(changed[i]) for i in range(5)]
    changed.seed = 1
    assert (
        [number_of(changed[i]) for i in range(5)]
        == [number_of(fresh[i]) for i in range(5)]
        != order
    )


@pytest.mark.parametrize(("stride", "problem"), [(0, "at least 1"), (1.5, "a whole number")])
def test_a_stride_that_is_no_number_of_rows_is_refused(stride, problem, data):
    with pytest.raises(DeltaflowError, match=f"stride must be {problem}"):
        SlidingWindows(data, make_reader(data), HORIZON, stride=stride)


def test_a_horizon_asks_for_what_was_observed_within_it(data):
    reader, horizon = make_reader(data), Horizon(30, duration=25.0)
    counts = set()
    for origin in range(1, 40):
        queries = len(rows_of(horizon.window(reader, data[4], origin))[1])
        times = data[4].times[origin:]
        assert queries == (times < times[0] + 25.0).sum()
        counts.add(queries)
    assert len(counts) > 3


def test_a_context_reaches_back_from_the_last_observation(data):
    reader = make_reader(data, context_length=30, context=25.0)
    for origin in range(1, 40):
        times = data[4].times[:origin]
        context, _ = rows_of(reader.window(data[4], origin))
        assert len(context) == (times >= times[-1] - 25.0).sum()
    assert make_reader(data, 2, context=1e9).context_of(data[4], 20) == slice(18, 20)


@pytest.mark.parametrize("length", [13, 200])
def test_durations_that_end_at_an_observation_are_exact(length):
    # One hour has six observations ahead, and reaches back to the sixth before the last.
    series = every_ten_minutes(length)
    reader, horizon = make_reader([series], 100, 3600.0), Horizon(6, 3600.0)
    for origin in range(1, length):
        context, future = rows_of(horizon.window(reader, series, origin))
        assert len(future) == min(6, length - origin)
        assert len(context) == min(7, origin)


def test_the_queries_have_no_influence_on_a_context_given_as_a_duration(data):
    reader = make_reader(data, context_length=30, context=25.0)
    asked = [
        np.append(data[4].times, data[4].times[-1] + late) for late in ([1.0, 2, 3], [500.0] * 3)
    ]
    windows = [
        reader.window(data[4]._replace(times=times, covariates=np.empty((43, 0))), 40)
        for times in asked
    ]
    batch = reader.collate(windows)
    assert torch.equal(batch.values[0], batch.values[1])
    assert batch.query_delta_t.shape == (2, 3)


def test_a_horizon_with_more_observations_than_queries_is_refused(data):
    for windows in (TrainingWindows, SlidingWindows):
        with pytest.raises(DataError, match=r"item '\d', row \d+: \d observations .* is 3"):
            windows(data, make_reader(data), Horizon(3, 60.0), seed=0)
    with pytest.raises(DataError, match="prediction_length"):
        SpreadWindows(data, make_reader(data), Horizon(3, 60.0), most=1)


def test_the_last_window_ends_with_the_series_when_its_horizon_is_a_duration(data):
    windows = SpreadWindows(data[4:], make_reader(data), Horizon(10, 40.0), most=1)
    first = int(rows_of(windows[0])[1][0])
    times = data[4].times
    assert times[first] + 40 > times[-1] >= times[first - 1] + 40


def test_a_data_module_cuts_by_durations(univariate):
    lengths = {"prediction_length": 30, "context_length": 30}
    data = IrregularDataModule(univariate, **lengths, horizon="6h", context="0.5D")
    assert (data.horizon.duration, data.reader.context) == (21600, 43200)
    for field, value in (("horizon", "soon"), ("context", "-1h"), ("horizon", "0h")):
        with pytest.raises(DataError, match=field):
            IrregularDataModule(univariate, **lengths, **{field: value})
    regular = [{"start": pd.Period("2024", "D"), "target": np.arange(20.0)}]
    for durations in ({"horizon": "6h"}, {"context": "6h"}, {"origins_within": ("1h", "6h")}):
        with pytest.raises(DataError, match=f"{next(iter(durations))}.*counts periods"):
            IrregularDataModule(regular, **lengths, **durations)


def test_seconds_are_kept_over_decades():
    # In float32 a second is lost after half a year: these gaps would be 0 or 64 seconds.
    times = pd.Timestamp("1990-01-01") + pd.to_timedelta([0, *range(10**9, 10**9 + 20)], unit="s")
    frame = pd.DataFrame({"timestamp": times, "HR": np.arange(21.0)})
    for time_unit in ("s", "h", "W"):
        dataset = IrregularDataset.from_long_dataframe(
            frame, item_id=None, target="HR", time_unit=time_unit
        )
        reader = IrregularDataModule(dataset, prediction_length=4, context_length=10).reader
        assert reader.statistics.typical_gap == pytest.approx(1.0, abs=1e-6)
        batch = reader.collate([Horizon(4).window(reader, reader.read(dataset[0]), 15)])
        # 1e9 s in float64 has steps of 1.2e-7 s; a few roundings of them.
        torch.testing.assert_close(batch.delta_t[0, 1:], torch.ones(9), atol=1e-6, rtol=0)
        expected = torch.arange(1.0, 5.0)
        torch.testing.assert_close(batch.query_delta_t[0], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [1e300, 1e-300, 1.0, 0.0])
def test_windows_of_values_of_any_size_are_finite(size):
    values = size * np.array([1.0, -1, 0.5, np.nan, 1, 0.9, -0.3, 1])
    series = numbered_series(0, 8)._replace(values=values[:, None])
    reader = make_reader([series])
    batch = reader.collate([HORIZON.window(reader, series, 5)])
    for field, part in batch._asdict().items():
        assert torch.isfinite(part.double()).all(), field
    assert batch.values.abs().max() <= 10


def test_an_outlier_does_not_blind_the_network():
    ordinary = numbered_series(0, 30)
    series = ordinary._replace(values=ordinary.values.copy())
    series.values[25] = LARGEST
    reader = make_reader([ordinary], 29)
    batch = reader.collate([HORIZON.window(reader, series, 29)])
    assert batch.values.abs().max() <= 10
    assert torch.isfinite(batch.static_real).all()


def test_padding_of_a_batch_is_unobserved_and_at_the_end(data):
    reader = make_reader(data)
    windows = [
        HORIZON.window(reader, data[0], 2),
        HORIZON.window(reader, data[4], 30),
        HORIZON.window(reader, data[1], 8, blind=True),
    ]
    batch = reader.collate(windows)
    assert batch.lengths.tolist() == [2, 6, 0]
    assert batch.values.shape == (3, 6, 1)
    steps = torch.arange(6)
    outside = steps >= batch.lengths[:, None]
    assert not batch.observed[outside].any()
    assert (batch.values[outside] == 0).all()
    assert (batch.delta_t[outside] == 0).all()
    assert batch.target_observed[..., 0].tolist() == [[True] * 3, [True] * 3, [True, False, False]]


def test_padded_queries_repeat_the_last_known_one(data):
    reader = make_reader(data)
    times = np.append(data[0].times, [data[0].times[-1] + 5, np.nan, np.nan])
    series = data[0]._replace(times=times, covariates=np.empty((8, 0)))
    nothing = series._replace(times=np.append(data[0].times, [np.nan] * 3))
    batch = reader.collate([reader.window(series, 5), reader.window(nothing, 5)])
    late = 5 / reader.statistics.typical_gap
    assert batch.query_delta_t.tolist() == [[pytest.approx(late)] * 3, [0.0] * 3]


def test_a_reader_survives_json(multivariate):
    import json

    reader = IrregularDataModule(multivariate, prediction_length=3, context_length=5).reader
    assert Reader.from_dict(json.loads(json.dumps(reader.to_dict()))) == reader


@pytest.mark.parametrize("year", ["2024", "0001", "9999"])
def test_calendar_phases_follow_real_time(year):
    times = [f"{year}-01-01 06:00", f"{year}-01-01 12:00", f"{year}-01-02 06:00"]
    times = np.array(times, dtype="datetime64[s]")
    frame = pd.DataFrame({"timestamp": times, "HR": 1.0})
    dataset = IrregularDataset.from_long_dataframe(frame, item_id=None, target="HR")
    series = series_of(dataset[0], dataset.schema, ["day"])
    # Sine and cosine at a quarter and at a half of a day.
    np.testing.assert_allclose(series.covariates[:, 0], [1, 0, 1], atol=1e-9)
    np.testing.assert_allclose(series.covariates[:, 1], [0, -1, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("times", "seasonality", "error", "message"),
    [
        ([0, 1, 2], "day", DataError, "elapsed times have no calendar"),
        (pd.to_datetime(["2024", "2025", "2026"]), "month", UnknownNameError, "cycle 'month'"),
    ],
)
def test_a_calendar_that_is_not_there_is_refused(times, seasonality, error, message):
    frame = pd.DataFrame({"timestamp": times, "HR": 1.0})
    dataset = IrregularDataset.from_long_dataframe(frame, item_id=None, target="HR")
    with pytest.raises(error, match=message):
        IrregularDataModule(
            dataset, prediction_length=1, context_length=2, seasonality=[seasonality]
        )
