"""A DataFrame with one row per observation time becomes entries that keep real time."""

import datetime
import importlib.util
import warnings
from datetime import timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from dateutil.tz import tzoffset, tzutc
from gluonts.dataset.split import split
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaflow import DataError, DeltaflowWarning, HoldPredictor, IrregularDataset
from deltaflow.data.schema import TIME_UNITS, unit_seconds

has_pyarrow = importlib.util.find_spec("pyarrow") is not None
needs_pyarrow = pytest.mark.skipif(not has_pyarrow, reason="pyarrow is not installed")
any_unit = pytest.mark.parametrize("time_unit", TIME_UNITS)

STAMPS = ["2024-02-28 23:59:58", "2024-02-29 12:00:00", "2024-03-01 00:00:07"]


def read(dataframe: pd.DataFrame, **options) -> IrregularDataset:
    return IrregularDataset.from_long_dataframe(dataframe, **{"target": "HR", **options})


def two_items(times, values=(80.0, 82.0, np.nan)) -> pd.DataFrame:
    """The same three rows for two items, interleaved."""
    frame = pd.DataFrame({"timestamp": times, "HR": values})
    frame = pd.concat([frame.assign(item_id="b"), frame.assign(item_id="a")])
    return frame.sort_index(kind="stable").reset_index(drop=True)


def times_back(dataset: IrregularDataset, count: int = 2) -> list[pd.Index]:
    """The timestamps that forecasts of the last ``count`` rows carry."""
    _, template = split(dataset, offset=-count)
    predictor = HoldPredictor.fit(dataset, count)
    return [f.timestamps for f in predictor.predict(template.generate_instances(count).input)]


def test_a_univariate_target_is_a_vector_with_the_times_in_row_0():
    (entry,) = read(pd.DataFrame({"timestamp": [0.0, 0.5, 4.0], "HR": [1, None, 3]}), item_id=None)
    np.testing.assert_array_equal(entry["target"], [1, np.nan, 3])
    np.testing.assert_array_equal(entry["feat_dynamic_real"], [[0, 0.5, 4]])
    assert entry["target"].dtype == entry["feat_dynamic_real"].dtype == np.float64


def test_a_list_of_one_target_is_a_matrix():
    frame = pd.DataFrame({"timestamp": [0, 1], "HR": [1.0, 2.0]})
    assert read(frame, item_id=None, target=["HR"])[0]["target"].shape == (1, 2)


def test_entries_follow_the_contract(multivariate, multivariate_frame):
    frame = multivariate_frame
    assert [entry["item_id"] for entry in multivariate] == list(frame["item_id"].unique())
    for entry, (_, rows) in zip(multivariate, frame.groupby("item_id"), strict=True):
        hours = (rows["timestamp"] - rows["timestamp"].iloc[0]) / pd.Timedelta("1h")
        np.testing.assert_array_equal(entry["target"], rows[["HR", "MAP"]].T)
        np.testing.assert_allclose(entry["feat_dynamic_real"][0], hours, rtol=1e-15)
        np.testing.assert_array_equal(entry["feat_dynamic_real"][1], rows["dose"])
        np.testing.assert_array_equal(entry["past_feat_dynamic_real"], [rows["lab"]])
        np.testing.assert_array_equal(entry["feat_static_real"], [rows["age"].iloc[0]])
        levels = entry["info"]["schema"]["feat_static_cat"]["ward"]
        assert levels[entry["feat_static_cat"][0]] == rows["ward"].iloc[0]
        assert entry["feat_dynamic_real"].dtype == np.float64
        assert isinstance(entry["start"], pd.Period)
        assert entry["start"].freqstr == "h"
        assert pd.Timestamp(entry["info"]["time_origin"]) == rows["timestamp"].iloc[0]
        assert entry["info"]["time_unit"] == "h"
        assert entry["info"]["time_resolution"] == "s"
        assert entry["info"]["schema"]["target"] == ["HR", "MAP"]


def test_interleaved_items_are_gathered_in_their_order_of_appearance():
    dataset = read(two_items(pd.to_datetime(STAMPS)))
    assert [entry["item_id"] for entry in dataset] == ["b", "a"]
    for entry in dataset:
        np.testing.assert_array_equal(entry["target"], [80, 82, np.nan])


def test_the_callers_frame_is_not_changed(multivariate_frame, roles):
    before = multivariate_frame.copy(deep=True)
    dataset = IrregularDataset.from_long_dataframe(multivariate_frame, **roles)
    dataset[0]["target"][:] = -1.0
    dataset[0]["feat_dynamic_real"][:] = -1.0
    pd.testing.assert_frame_equal(multivariate_frame, before)


def test_the_index_of_the_frame_does_not_matter(univariate_frame, univariate):
    shifted = univariate_frame.set_index(np.zeros(len(univariate_frame), dtype=int))
    for entry, expected in zip(read(shifted), univariate, strict=True):
        np.testing.assert_array_equal(entry["target"], expected["target"])
        np.testing.assert_array_equal(entry["feat_dynamic_real"], expected["feat_dynamic_real"])


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "America/St_Johns", "+05:30"])
@any_unit
def test_timestamps_come_back_exactly(time_unit, zone):
    times = pd.Series(pd.to_datetime(STAMPS)).dt.tz_localize(zone)
    for back in times_back(read(two_items(times), time_unit=time_unit)):
        assert list(back) == list(times[1:])
        assert str(back.tz) == str(times.dt.tz)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@any_unit
def test_timestamps_of_any_resolution_come_back_exactly(unit, time_unit):
    step = {"s": 1, "ms": 10**-3, "us": 10**-6, "ns": 10**-9}[unit]
    ticks = np.array([0, 1, 86_399]) / step
    times = pd.Series(ticks.round().astype(np.int64).astype(f"datetime64[{unit}]"))
    if unit == "ns":
        times += np.array([0, 1, 3], dtype="timedelta64[ns]")
    for back in times_back(read(two_items(times), time_unit=time_unit)):
        assert list(back) == list(times[1:])


@pytest.mark.parametrize(
    "times",
    [
        ["1969-12-31 23:59:59", "1970-01-01 00:00:00", "1970-01-01 00:00:01"],
        ["1905-06-30 11:22:33.000001", "1950-01-01", "1969-07-20 20:17:40"],
    ],
)
def test_times_before_1970_come_back_exactly(times):
    times = pd.Series(pd.to_datetime(times, format="ISO8601"))
    for back in times_back(read(two_items(times))):
        assert list(back) == list(times[1:])


@pytest.mark.parametrize(
    ("zone", "name"),
    [
        (timezone(timedelta(hours=5, minutes=30), "IST"), "UTC+05:30"),
        (tzoffset("somewhere", -3600), "UTC-01:00"),
        (tzutc(), "UTC"),
        (ZoneInfo("Etc/GMT+5"), "Etc/GMT+5"),
    ],
)
def test_time_zones_are_known_by_a_name_that_pandas_finds(zone, name):
    stamps = pd.DatetimeIndex(STAMPS).tz_localize(zone)
    dataset = read(pd.DataFrame({"timestamp": stamps, "HR": 1.0}), item_id=None)
    assert dataset.schema.time_zone == name
    (times,) = times_back(dataset)
    assert (times == stamps[1:]).all()


def test_times_across_a_change_of_the_clock_keep_their_real_distance():
    # At 01:00 UTC the clock in Berlin goes back from 03:00 to 02:00.
    times = pd.to_datetime(["2024-10-27 00:30", "2024-10-27 01:30", "2024-10-27 02:00"], utc=True)
    times = pd.Series(times.tz_convert("Europe/Berlin"))
    dataset = read(two_items(times))
    np.testing.assert_array_equal(dataset[0]["feat_dynamic_real"], [[0, 1, 1.5]])
    assert list(times_back(dataset)[0]) == list(times[1:])


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(-(10**15), 10**15),
    gaps=st.lists(st.integers(1, 10**14), min_size=2, max_size=6),
    time_unit=st.sampled_from(TIME_UNITS),
)
def test_microseconds_over_two_decades_come_back_exactly(start, gaps, time_unit):
    # Four roundings of float64 move 6e14 microseconds by less than 0.3 of one.
    ticks = start + np.concatenate([[0], np.cumsum(gaps)])
    times = pd.Series(ticks.astype("datetime64[us]"))
    frame = pd.DataFrame({"timestamp": times, "HR": 1.0})
    (back,) = times_back(read(frame, item_id=None, time_unit=time_unit), len(gaps))
    assert list(back) == list(times[1:])


@any_unit
def test_elapsed_time_is_counted_in_the_unit(time_unit):
    times = pd.Series(pd.to_datetime(STAMPS))
    elapsed = read(two_items(times), time_unit=time_unit)[0]["feat_dynamic_real"][0]
    expected = (times - times[0]).dt.total_seconds() / unit_seconds(time_unit)
    np.testing.assert_allclose(elapsed, expected, rtol=1e-15)


@pytest.mark.parametrize("dtype", ["int64", "int16", "float64", "float32", "Int64", "Float64"])
def test_elapsed_numbers_come_back_as_numbers(dtype):
    times = pd.Series([-3, 0, 12]).astype(dtype)
    dataset = read(two_items(times))
    np.testing.assert_array_equal(dataset[0]["feat_dynamic_real"], [[-3, 0, 12]])
    assert dataset[0]["info"]["time_origin"] is None
    for back in times_back(dataset):
        assert list(back) == [0, 12]


@pytest.mark.parametrize(
    "times",
    [
        [pd.Timestamp(stamp) for stamp in STAMPS],
        [pd.Timestamp(stamp, tz="Europe/Paris") for stamp in STAMPS],
        [datetime.datetime.fromisoformat(stamp) for stamp in STAMPS],
        [np.datetime64(stamp) for stamp in STAMPS],
        [0, 1.5, np.float32(7)],
    ],
    ids=["pandas", "zoned", "datetime", "numpy", "numbers"],
)
def test_times_may_be_python_objects(times):
    column = pd.Series(times, dtype=object)
    back = times_back(read(two_items(column)))[0]
    assert list(back) == [pd.Timestamp(t) if isinstance(t, np.datetime64) else t for t in times[1:]]


MISSING = {
    "float64": pd.Series([80.0, 82.0, np.nan]),
    "float32": pd.Series([80, 82, np.nan], dtype="float32"),
    "Int64": pd.Series([80, 82, pd.NA], dtype="Int64"),
    "Float64": pd.Series([80, 82, pd.NA], dtype="Float64"),
    "object with None": pd.Series([80, np.int8(82), None], dtype=object),
    "object with NA": pd.Series([80.0, 82, pd.NA], dtype=object),
}
MISSING["decimals"] = pd.Series([Decimal(80), Decimal("82.0"), Decimal("NaN")], dtype=object)
if has_pyarrow:
    MISSING["int64[pyarrow]"] = pd.Series([80, 82, None], dtype="int64[pyarrow]")
    MISSING["double[pyarrow]"] = pd.Series([80, 82, None], dtype="double[pyarrow]")


@pytest.mark.parametrize("values", MISSING.values(), ids=MISSING)
def test_missing_values_of_any_type_become_nan(values):
    for entry in read(two_items([0, 1, 2], values)):
        np.testing.assert_array_equal(entry["target"], [80, 82, np.nan])


BOOLEANS = {
    "bool": pd.Series([True, False, True]),
    "boolean": pd.Series([True, False, None], dtype="boolean"),
    "object": pd.Series([True, False, None], dtype=object),
}
if has_pyarrow:
    BOOLEANS["bool[pyarrow]"] = pd.Series([True, False, None], dtype="bool[pyarrow]")


@pytest.mark.parametrize("values", BOOLEANS.values(), ids=BOOLEANS)
def test_booleans_are_numbers(values):
    expected = [1, 0, 1 if values.notna()[2] else np.nan]
    np.testing.assert_array_equal(read(two_items([0, 1, 2], values))[0]["target"], expected)


@needs_pyarrow
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_timestamps_of_pyarrow_are_timestamps(zone):
    import pyarrow

    times = pd.Series(pd.to_datetime(STAMPS)).dt.tz_localize(zone)
    column = times.astype(pd.ArrowDtype(pyarrow.timestamp("us", zone)))
    frame = two_items(column)
    frame["item_id"] = frame["item_id"].astype("string[pyarrow]")
    dataset = read(frame)
    assert [entry["item_id"] for entry in dataset] == ["b", "a"]
    assert list(times_back(dataset)[0]) == list(times[1:])


def test_python_datetimes_may_lie_beyond_the_reach_of_nanoseconds():
    times = [datetime.datetime(2999, 1, day) for day in (1, 2, 3)]
    dataset = read(two_items(pd.Series(times, dtype=object)))
    assert list(times_back(dataset)[0]) == times[1:]


@pytest.mark.parametrize("dtype", ["int64", "category", "string", "float64"])
def test_item_identifiers_may_be_of_any_type(dtype):
    frame = two_items([0, 1, 2])
    frame["item_id"] = frame["item_id"].map({"b": 7, "a": 3}).astype(dtype)
    assert [entry["item_id"] for entry in read(frame)] == ["7", "3"]


@needs_pyarrow
def test_entries_of_a_dictionary_without_rows_are_no_items():
    """Such as those of the rows that a filter has left out."""
    import pyarrow

    frame = two_items([0, 1, 2])
    dtype = pd.ArrowDtype(pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    frame["item_id"] = frame["item_id"].astype(dtype)
    for rows, items in ((frame.iloc[1:], ["a", "b"]), (frame.iloc[1::2], ["a"])):
        assert [entry["item_id"] for entry in read(rows)] == items


@needs_pyarrow
def test_names_of_columns_may_be_of_any_type():
    frame = two_items([0, 1, 2])
    expected = [entry["target"] for entry in read(frame)]
    for dtype in ("string", "string[pyarrow]", "category"):
        other = frame.set_axis(pd.Index(frame.columns, dtype=dtype), axis="columns")
        np.testing.assert_equal([entry["target"] for entry in read(other)], expected)
        with pytest.raises(DataError, match="field 'MAP': the DataFrame has no such column"):
            read(other, target="MAP")


def test_static_features_may_be_missing():
    frame = two_items([0, 1, 2]).assign(age=[None, 5, None, 5, None, 5], ward=["x", None] * 3)
    dataset = read(frame, feat_static_real=["age"], feat_static_cat=["ward"])
    np.testing.assert_array_equal([e["feat_static_real"][0] for e in dataset], [np.nan, 5])
    assert [e["feat_static_cat"][0] for e in dataset] == [0, -1]


def test_slices_and_selections_are_data_sets(univariate):
    assert isinstance(univariate[1:3], IrregularDataset)
    assert [entry["item_id"] for entry in univariate[1:3]] == ["p1", "p2"]
    assert [entry["item_id"] for entry in univariate.select([4, 0])] == ["p4", "p0"]
    mask = [entry["item_id"] in ("p1", "p3") for entry in univariate]
    for chosen in (mask, np.array(mask)):
        assert [entry["item_id"] for entry in univariate.select(chosen)] == ["p1", "p3"]
    assert len(univariate.select([])) == 0
    assert univariate[1:3].schema == univariate.schema
    assert "8 items" in repr(univariate)
    assert "160 observation times" in repr(univariate)


@pytest.mark.parametrize(("factor", "unit"), [(1, "s"), (10**3, "ms")])
def test_unix_time_that_would_count_as_hours_gives_a_warning(factor, unit):
    frame = two_items([1_732_733_100 * factor, 1_732_733_160 * factor, 1_732_736_000 * factor])
    with pytest.warns(DeltaflowWarning, match=f"Unix time in {unit}, .*time_unit='{unit}'"):
        read(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(frame, time_unit=unit).schema.time_unit == unit
        read(two_items([1e5, 2e5, 3e5]))
