"""Splits by real time, and by item."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.common import ListDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaflow import (
    DataError,
    DeltaflowError,
    IrregularDataset,
    TimeSplitter,
    split_items,
    split_items_by,
)
from deltaflow.data.schema import TIME_UNITS
from deltaflow.tasks import regular_seasonal


def read(times, time_unit: str = "h", **columns) -> IrregularDataset:
    """One item, whose values number its rows."""
    frame = pd.DataFrame({"timestamp": times, "target": np.arange(len(times)), **columns})
    return IrregularDataset.from_long_dataframe(frame, item_id=None, time_unit=time_unit)


def numbers(entry) -> list[int]:
    """Which rows an entry holds."""
    return [int(value) for value in entry["target"] if np.isfinite(value)]


HOURS = [1.0, 20.0, 24.0, 40.0, 70.0]
STAMPS = pd.Timestamp("2024-01-01") + pd.to_timedelta([0, 19, 23, 39, 69], unit="h")


@pytest.mark.parametrize("after", ["24h", "1D", "1440min", pd.Timedelta("24h")])
def test_elapsed_numbers_are_split_after_a_duration_since_zero(after):
    train, template = TimeSplitter(after=after).split(read(HOURS))
    ((past, label),) = template.generate_instances(3)
    assert [numbers(entry) for entry in train] == [[0, 1]]
    assert (numbers(past), numbers(label)) == ([0, 1], [2, 3, 4])


def test_timestamps_are_split_after_a_duration_since_the_first():
    train, _ = TimeSplitter(after="23h").split(read(STAMPS))
    assert [numbers(entry) for entry in train] == [[0, 1]]


@pytest.mark.parametrize("date", ["2024-01-01 23:00", pd.Timestamp("2024-01-01 23:00")])
def test_timestamps_are_split_at_a_date(date):
    train, template = TimeSplitter(date=date).split(read(STAMPS))
    ((past, label),) = template.generate_instances(3)
    assert [numbers(entry) for entry in train] == [[0, 1]]
    assert (numbers(past), numbers(label)) == ([0, 1], [2, 3, 4])


def test_a_date_has_a_time_zone_of_its_own():
    dataset = read(STAMPS.tz_localize("Europe/Berlin"))
    for date in ("2024-01-01 23:00+01:00", "2024-01-02 07:00+09:00"):
        train, _ = TimeSplitter(date=date).split(dataset)
        assert [numbers(entry) for entry in train] == [[0, 1]]


@pytest.mark.parametrize(
    ("zone", "date", "message"),
    [
        ("UTC", "2024-01-02", "the date has no time zone"),
        (None, "2024-01-02 00:00+00:00", "the date has a time zone"),
    ],
)
def test_a_date_is_given_as_the_data_are(zone, date, message):
    splitter = TimeSplitter(date=date)
    with pytest.raises(DataError, match=f"'date': {message}"):
        list(splitter.split(read(STAMPS.tz_localize(zone)))[0])


def test_the_horizon_is_a_duration_with_a_varying_number_of_queries():
    frame = pd.concat(
        pd.DataFrame({"item_id": item, "timestamp": times, "target": 1.0})
        for item, times in {"a": [0, 24, 25, 47.9, 48], "b": [0, 30], "c": [0, 60]}.items()
    )
    dataset = IrregularDataset.from_long_dataframe(frame)
    splitter = TimeSplitter(after="24h", horizon="24h")
    length = splitter.prediction_length(dataset)
    assert length == 3
    _, template = splitter.split(dataset)
    pairs = list(template.generate_instances(length))
    assert [len(numbers(label)) for _, label in pairs] == [3, 1, 0]
    for past, label in pairs:
        # Padded queries have neither a time nor a label.
        times = past["feat_dynamic_real"][0, past["target"].shape[-1] :]
        assert times.shape == label["target"].shape == (3,)
        np.testing.assert_array_equal(np.isnan(times), np.isnan(label["target"]))


def test_several_windows_move_on_by_the_horizon_or_the_distance():
    dataset = read(np.arange(0.0, 10.0))
    _, template = TimeSplitter(after="4h", horizon="2h").split(dataset)
    by_horizon = [numbers(label) for _, label in template.generate_instances(2, windows=3)]
    assert by_horizon == [[4, 5], [6, 7], [8, 9]]
    moved = template.generate_instances(2, windows=3, distance="1h")
    assert [numbers(label) for _, label in moved] == [[4, 5], [5, 6], [6, 7]]


def test_several_windows_need_a_duration():
    for splitter, distance in ((TimeSplitter(after="4h"), None), (TimeSplitter(after="4h"), 2)):
        _, template = splitter.split(read(np.arange(10.0)))
        with pytest.raises(DataError, match=r"'distance': .*give one such as '6h'"):
            list(template.generate_instances(9, windows=2, distance=distance))
    with pytest.raises(DataError, match="'distance': 'soon' is not a duration"):
        list(template.generate_instances(9, windows=2, distance="soon"))


def test_max_history_keeps_the_latest_observations_and_all_queries():
    _, template = TimeSplitter(after="24h").split(read(HOURS))
    for history, kept in ((1, [1]), (2, [0, 1]), (50, [0, 1])):
        ((past, _),) = template.generate_instances(3, max_history=history)
        assert numbers(past) == kept
        times = [HOURS[i] for i in [*kept, 2, 3, 4]]
        np.testing.assert_array_equal(past["feat_dynamic_real"], [times])


def test_items_with_nothing_before_or_after_the_split_stay():
    for after, before in (("30min", []), ("100h", [0, 1, 2, 3, 4])):
        train, template = TimeSplitter(after=after).split(read(HOURS))
        ((past, label),) = template.generate_instances(5)
        assert [numbers(entry) for entry in train] == [before]
        assert numbers(past) == before
        assert numbers(label) == [i for i in range(5) if i not in before]


def test_more_queries_than_prediction_length_are_an_error_with_the_remedy():
    _, template = TimeSplitter(after="24h").split(read(HOURS))
    with pytest.raises(DataError, match=r"item '0', .*has 3 .*is 2.*prediction_length\(dataset\)"):
        list(template.generate_instances(2))


def test_every_field_is_cut_along(multivariate):
    splitter = TimeSplitter(after="10h", horizon="5h")
    length = splitter.prediction_length(multivariate)
    _, template = splitter.split(multivariate)
    for entry, (past, label) in zip(multivariate, template.generate_instances(length), strict=True):
        times = entry["feat_dynamic_real"][0]
        low, high = int((times < 10).sum()), int((times < 15).sum())
        np.testing.assert_array_equal(past["target"], entry["target"][:, :low])
        np.testing.assert_array_equal(
            past["past_feat_dynamic_real"], entry["past_feat_dynamic_real"][:, :low]
        )
        np.testing.assert_array_equal(
            past["feat_dynamic_real"][:, :high], entry["feat_dynamic_real"][:, :high]
        )
        assert past["feat_dynamic_real"].shape == (2, low + length)
        np.testing.assert_array_equal(
            label["target"][:, : high - low], entry["target"][:, low:high]
        )
        for field in ("feat_static_real", "feat_static_cat", "item_id", "info"):
            np.testing.assert_equal(past[field], entry[field])


@settings(max_examples=100, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 5 * 10**9), min_size=1, max_size=30),
    time_unit=st.sampled_from(["W", "D", "h", "min", "s", "ms"]),
    data=st.data(),
)
def test_a_split_partitions_the_rows_exactly(gaps, time_unit, data):
    # Times, split and horizon are whole microseconds, so integers say what belongs where. The
    # split is often at an observation itself, which belongs to the horizon.
    ticks = np.cumsum([0, *gaps])
    moment = st.sampled_from(ticks.tolist()) | st.integers(0, int(ticks[-1]) + 1)
    split, end = sorted([data.draw(moment), data.draw(moment)])
    end = max(end, split + 1)
    dataset = read(pd.Timestamp("2024-01-01") + pd.to_timedelta(ticks, unit="us"), time_unit)
    splitter = TimeSplitter(
        after=pd.Timedelta(split, unit="us"), horizon=pd.Timedelta(end - split, unit="us")
    )
    train, template = splitter.split(dataset)
    ((past, label),) = template.generate_instances(len(ticks))
    assert numbers(next(iter(train))) == numbers(past) == np.flatnonzero(ticks < split).tolist()
    assert numbers(label) == np.flatnonzero((ticks >= split) & (ticks < end)).tolist()

    at_date = TimeSplitter(date=pd.Timestamp("2024-01-01") + pd.Timedelta(split, unit="us"))
    assert numbers(next(iter(at_date.split(dataset)[0]))) == numbers(past)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    time_unit=st.sampled_from(TIME_UNITS),
    zone=st.sampled_from([None, "Asia/Kathmandu"]),
)
def test_an_observation_at_the_split_belongs_to_the_horizon_years_after_the_origin(
    seed, time_unit, zone
):
    # Nanoseconds, of which float64 holds each one for 104 days only.
    random = np.random.default_rng(seed)
    ticks = np.array([0, *sorted(random.integers(10**9, 3 * 365 * 86400 * 10**9, 20))])
    stamps = pd.DatetimeIndex(np.datetime64("2020-01-01", "ns") + ticks.astype("timedelta64[ns]"))
    stamps = stamps.tz_localize(zone)
    dataset = read(stamps, time_unit)
    for row in range(len(ticks) - 1):
        for splitter in (
            TimeSplitter(date=stamps[row]),
            TimeSplitter(after=pd.Timedelta(ticks[row], unit="ns")),
        ):
            assert len(splitter.training_entry(dataset[0])["target"]) == row
        horizon = pd.Timedelta(ticks[-1] - ticks[row], unit="ns")
        _, template = TimeSplitter(date=stamps[row], horizon=horizon).split(dataset)
        ((_, label),) = template.generate_instances(len(ticks))
        assert numbers(label) == list(range(row, len(ticks) - 1))


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(0, 10**6),
    time_unit=st.sampled_from(["D", "h", "min", "s", "ms"]),
    offset=st.sampled_from(["s", "ms", "us", "ns"]),
)
def test_an_elapsed_number_at_the_split_belongs_to_the_horizon(count, time_unit, offset):
    after = pd.Timedelta(count, unit=offset)
    # The number that a caller would write.
    moment = float(Fraction(after.value, pd.Timedelta(1, unit=time_unit).value))
    dataset = read([-1.0, moment, moment + 1.0], time_unit)
    assert numbers(TimeSplitter(after=after).training_entry(dataset[0])) == [0]


def test_a_split_between_two_ticks_of_the_timestamps_is_exact():
    dataset = read(pd.Timestamp("2024-01-01") + pd.to_timedelta([0, 5, 10], unit="s"))
    for date, rows in (("00:00:05", 1), ("00:00:05.000000001", 2), ("00:00:04.999999999", 1)):
        splitter = TimeSplitter(date=f"2024-01-01 {date}")
        assert len(splitter.training_entry(dataset[0])["target"]) == rows


def test_the_prediction_length_is_that_of_all_windows():
    dataset = read([0.0, 1, 2, 3, 4.1, 4.2, 5, 6.1, 6.2, 6.3, 6.4])
    splitter = TimeSplitter(after="2h", horizon="2h")
    for options, expected in (
        ({}, 2),
        ({"windows": 2}, 3),
        ({"windows": 3}, 4),
        ({"windows": 3, "distance": "1h"}, 3),
    ):
        length = splitter.prediction_length(dataset, **options)
        template = splitter.split(dataset)[1]
        labels = template.generate_instances(length, **options).label
        assert length == expected == max(len(numbers(label)) for label in labels)
        with pytest.raises(DataError, match="with the same windows and distance"):
            list(template.generate_instances(length - 1, **options))
    with pytest.raises(DataError, match="several windows need a horizon"):
        TimeSplitter(after="2h").prediction_length(dataset, windows=2)
    with pytest.raises(DeltaflowError, match="windows must be at least 1"):
        splitter.prediction_length(dataset, windows=0)


def test_regular_data_are_not_split_by_time():
    with pytest.raises(DataError, match=r"split a regular data set with gluonts.dataset.split"):
        list(TimeSplitter(after="5h").split(regular_seasonal(num_series=1))[0])


def test_elapsed_numbers_have_no_dates():
    with pytest.raises(DataError, match="split with after="):
        list(TimeSplitter(date="2024-01-02").split(read(HOURS))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either after or date"),
        ({"after": "1h", "date": "2024-01-01"}, "either after or date"),
        ({"after": "-1h"}, "'after': '-1h' is not a duration"),
        ({"after": "1h", "horizon": "-2h"}, "'horizon': '-2h' is not a duration"),
        ({"after": "1h", "horizon": "0h"}, "'horizon': '0h' contains no observation"),
        ({"after": "24"}, "'after': '24' is not a duration"),  # of nanoseconds, to pandas
        ({"after": 24.0}, "'after': 24.0 is not a duration"),
        ({"date": "24h"}, "'date': '24h' is not a date"),
        ({"date": pd.NaT}, "'date': NaT is not a date"),
        ({"date": 2024}, "'date': 2024 is not a date"),
    ],
)
def test_bad_splits_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        TimeSplitter(**options)


def test_splits_reach_over_millennia():
    days = np.array(["0001-01-01", "1000-01-01", "2024-01-01", "9999-01-01"], dtype="datetime64[s]")
    dataset = read(days)
    for options, queries in (
        ({"date": "2000-01-01"}, [[2, 3]]),
        ({"date": "2000-01-01 00:00:00.000000001", "horizon": "100000 days"}, [[2]]),
        ({"after": "100000 days", "horizon": "100000 days"}, [[]]),
    ):
        _, template = TimeSplitter(**options).split(dataset)
        labels = template.generate_instances(2).label
        assert [numbers(label) for label in labels] == queries
    pairs = TimeSplitter(after="100000 days", horizon="100000 days").split(dataset)[1]
    labels = pairs.generate_instances(2, windows=8).label
    assert [np.isfinite(label["target"]).sum() for label in labels] == [0, 0, 1, 0, 0, 0, 1, 0]


def test_items_are_split_without_overlap_and_by_the_seed_alone(univariate):
    everything = {entry["item_id"] for entry in univariate}
    splits = []
    for seed in (0, 0, 1):
        parts = split_items(univariate, test_share=0.25, seed=seed)
        train, test = ([entry["item_id"] for entry in part] for part in parts)
        assert (len(train), len(test)) == (6, 2)
        assert set(train) | set(test) == everything
        splits.append(test)
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_both_parts_of_the_items_get_at_least_one(univariate):
    assert [len(part) for part in split_items(univariate, test_share=0.001)] == [7, 1]
    assert [len(part) for part in split_items(univariate, test_share=0.999)] == [1, 7]


@pytest.mark.parametrize("share", [0, 1, -0.5, 2])
def test_a_share_outside_of_0_and_1_is_refused(univariate, share):
    with pytest.raises(DataError, match="'test_share'"):
        split_items(univariate, test_share=share)


def test_items_are_split_by_a_static_feature(multivariate):
    parts = split_items_by(multivariate, "ward")
    assert [entry["item_id"] for entry in parts["er"]] == ["p0", "p2", "p4", "p6"]
    assert [entry["item_id"] for entry in parts["icu"]] == ["p1", "p3", "p5", "p7"]


@pytest.mark.parametrize("kind", [dict, pd.Series])
def test_items_are_split_by_a_mapping(univariate, kind):
    levels = {f"p{i}": "test" if i > 5 else "train" for i in range(8)}
    parts = split_items_by(univariate, kind(levels))
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "test": 2}


def test_a_split_of_items_by_what_is_not_there_is_refused(multivariate):
    with pytest.raises(DataError, match=r"'site': is not a static .*\['ward'\]"):
        split_items_by(multivariate, "site")
    with pytest.raises(DataError, match="item 'p1': the item has no level"):
        split_items_by(multivariate, {"p0": "train"})


def test_a_frame_is_no_data_set_to_split(univariate_frame):
    splitter = TimeSplitter(after="20h", horizon="10h")
    training, template = splitter.split(univariate_frame)
    for use in (
        lambda: splitter.prediction_length(univariate_frame),
        lambda: list(training),
        lambda: list(template.generate_instances(3)),
    ):
        with pytest.raises(DataError, match="a DataFrame is not a data set"):
            use()


def test_items_of_a_gluonts_data_set_are_split_into_lists():
    entries = [{"start": "2024-01-01", "target": [1.0, 2.0], "item_id": i} for i in range(8)]
    dataset = ListDataset(entries, freq="h")
    train, test = split_items(dataset, test_share=0.25)
    assert sorted(entry["item_id"] for entry in train + test) == list(range(8))
    assert len(test) == 2
    parts = split_items_by(dataset, {i: "odd" if i % 2 else "even" for i in range(8)})
    assert [entry["item_id"] for entry in parts["odd"]] == [1, 3, 5, 7]
    with pytest.raises(DataError, match=r"'ward': .* give a mapping from item to level"):
        split_items_by(dataset, "ward")
    with pytest.raises(DataError, match="a DataFrame is not a data set"):
        split_items(pd.DataFrame({"target": [1.0]}))


def test_entries_of_one_item_stay_together():
    rows = [{"item_id": f"item {number % 5}", "start": "2024-01-01", "target": np.arange(4.0)}
            for number in range(15)]  # fmt: skip
    rest, test = split_items(list(ListDataset(rows, freq="D")), test_share=0.4)
    names = [{entry["item_id"] for entry in part} for part in (rest, test)]
    assert list(map(len, names)) == [3, 2]
    assert list(map(len, (rest, test))) == [9, 6]
    with pytest.raises(DataError, match="of 1 items"):
        split_items(list(ListDataset(rows[:1] * 3, freq="D")))
