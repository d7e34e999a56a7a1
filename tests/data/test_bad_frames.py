"""Every bad DataFrame is refused by an error that names the item, the field and the remedy."""

import datetime

import numpy as np
import pandas as pd
import pytest

from deltaflow import DataError, DeltaflowError, IrregularDataset


@pytest.fixture
def frame() -> pd.DataFrame:
    """Two items of three rows, with row labels that are not positions."""
    return pd.DataFrame(
        {
            "item_id": ["a", "a", "a", "b", "b", "b"],
            "timestamp": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-05"] * 2),
            "target": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "dose": 1.0,
            "age": [50.0] * 3 + [60.0] * 3,
            "ward": ["er"] * 3 + ["icu"] * 3,
        },
        index=[10, 11, 12, 13, 14, 15],
    )


def put(column: str, value: object, row: int = 14):
    """A change that puts a value of any type into one row."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        if not isinstance(value, float):
            frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame

    return change


def column(**values):
    """A change that replaces whole columns."""
    return lambda frame: frame.assign(**values)


def mixed_zones(frame: pd.DataFrame) -> pd.DataFrame:
    stamps = [stamp.tz_localize("UTC") for stamp in frame["timestamp"]]
    stamps[4] = stamps[4].tz_convert("Asia/Tokyo")
    return frame.assign(timestamp=pd.Series(stamps, index=frame.index, dtype=object))


def one_naive(frame: pd.DataFrame) -> pd.DataFrame:
    stamps = [stamp.tz_localize("UTC") for stamp in frame["timestamp"]]
    stamps[4] = stamps[4].tz_localize(None)
    return frame.assign(timestamp=pd.Series(stamps, index=frame.index, dtype=object))


def seconds(*days: str):
    """A change of the days of both items, in a unit that holds them all."""
    return column(timestamp=np.array(days * 2, dtype="datetime64[s]"))


def lists_of_arrow(frame: pd.DataFrame) -> pd.DataFrame:
    pa = pytest.importorskip("pyarrow")
    return frame.assign(item_id=pd.array([[1]] * 6, dtype=pd.ArrowDtype(pa.list_(pa.int64()))))


DAY = pd.Timestamp("2024-01-01")
SOLAR = datetime.timezone(datetime.timedelta(minutes=53, seconds=28))
BAD = {
    # change, what the message says, what it tells to do, item, field, row
    "unsorted": (put("timestamp", pd.Timestamp("2023-12-01")),
                 "not sorted", "sort the rows", "b", "timestamp", 14),
    "duplicate time": (put("timestamp", DAY), "duplicate", "merge", "b", "timestamp", 14),
    "unsorted numbers": (column(timestamp=[0, 1, 2, 5, 4, 6]),
                         "not sorted", "sort the rows", "b", "timestamp", 14),
    "NaT": (put("timestamp", pd.NaT), "missing", "drop the row", "b", "timestamp", 14),
    "missing number": (column(timestamp=pd.array([0, 1, 2, 0, None, 2], dtype="Int64")),
                       "missing", "drop the row", "b", "timestamp", 14),
    "infinite time": (column(timestamp=[0.0, 1, 2, 0, np.inf, 2]),
                      "infinite", "drop the row", "b", "timestamp", 14),
    "mixed time zones": (mixed_zones, "time zones are mixed", "utc=True", "b", "timestamp", 14),
    "one naive time": (one_naive, "time zones are mixed", "utc=True", "b", "timestamp", 14),
    "string time": (put("timestamp", "2024-01-02"),
                    "string", "pd.to_datetime", "b", "timestamp", 14),
    "all string times": (column(timestamp="2024-01-02"),
                         "string", "pd.to_datetime", "a", "timestamp", 10),
    "dates": (column(timestamp=datetime.date(2024, 1, 2)),
              "neither a timestamp nor a number", "pd.to_datetime", None, "timestamp", None),
    "time deltas": (lambda f: f.assign(timestamp=f["timestamp"] - DAY),
                    "timedelta64", "division by pd.Timedelta", None, "timestamp", None),
    "periods": (lambda f: f.assign(timestamp=f["timestamp"].dt.to_period("D")),
                "period", "to_timestamp", None, "timestamp", None),
    "complex times": (column(timestamp=1j), "complex128, which is neither", "pd.to_datetime",
                      None, "timestamp", None),
    "the year 0": (seconds("0000-12-31", "2024-01-02", "2024-01-05"),
                   "outside of the years 1 to 9999", "elapsed numbers", "a", "timestamp", 10),
    "the year 10000": (seconds("2024-01-01", "2024-01-02", "10000-01-01"),
                       "outside of the years 1 to 9999", "elapsed numbers", "a", "timestamp", 12),
    "a time zone without a name": (
        lambda f: f.assign(timestamp=f["timestamp"].dt.tz_localize(SOLAR)),
        "has no name known to pandas",
        "Series.dt.tz_convert", None, "timestamp", None),
    "boolean times": (column(timestamp=True), "booleans", "timestamps or numbers",
                      None, "timestamp", None),
    "string target": (put("target", "high"), "a str, not a number", "pd.to_numeric",
                      "b", "target", 14),
    "numeric string": (put("target", "3.5"), "a str, not a number", "pd.to_numeric",
                       "b", "target", 14),
    "string dtype": (lambda f: f.assign(target=f["target"].astype("string")),
                     "string, not numbers", "pd.to_numeric", None, "target", None),
    "complex target": (column(target=1j), "complex", "pd.to_numeric", None, "target", None),
    "list in target": (column(target=[[1.0]] * 6), "a list, not a number", "pd.to_numeric",
                       "a", "target", 10),
    "+inf": (put("target", np.inf), "infinite", "NaN", "b", "target", 14),
    "-inf": (put("target", -np.inf), "infinite", "NaN", "b", "target", 14),
    "overflowing integer": (put("target", 10**400), "infinite", "NaN", "b", "target", 14),
    "infinite covariate": (put("dose", np.inf), "infinite", "NaN", "b", "dose", 14),
    "missing covariate": (put("dose", np.nan), "known in advance is missing",
                          "past_feat_dynamic_real", "b", "dose", 14),
    "changing static number": (put("age", 61.0), "changes within the item",
                               "feat_dynamic_real", "b", "age", None),
    "changing static level": (put("ward", "er"), "changes within the item",
                              "feat_dynamic_real", "b", "ward", None),
    "text as a static number": (put("age", "old"), "a str, not a number", "pd.to_numeric",
                                "b", "age", 14),
    "target missing everywhere": (column(target=np.nan), "missing everywhere", "remove",
                                  None, "target", None),
    "no item": (put("item_id", None), "identifier is missing", "drop the row",
                None, "item_id", 14),
    "lists as items": (lists_of_arrow, "cannot tell items apart", "text or numbers",
                       None, "item_id", None),
    "ambiguous items": (column(item_id=[1, 1, 1, "1", "1", "1"]), "read the same as text",
                        "one type", "1", "item_id", None),
    "missing column": (lambda f: f.drop(columns="dose"), "no such column", "its columns are",
                       None, "dose", None),
    "duplicate column": (lambda f: pd.concat([f, f[["dose"]]], axis=1), "2 columns of this name",
                         "rename", None, "dose", None),
    "empty frame": (lambda f: f.iloc[:0], "no rows", "at least one", None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_frame_is_refused_with_its_place_and_remedy(frame, bad):
    change, problem, remedy, item, field, row = BAD[bad]
    with pytest.raises(DataError) as caught:
        IrregularDataset.from_long_dataframe(
            change(frame), feat_dynamic_real=["dose"], feat_static_real=["age"],
            feat_static_cat=["ward"],
        )  # fmt: skip
    error, message = caught.value, str(caught.value)
    assert problem in message
    assert remedy in message
    assert (error.item, error.field, error.position) == (item, field, row)
    for place in (item, field, row):
        assert place is None or repr(place) in message


def test_the_frame_that_the_bad_ones_are_made_of_is_good(frame):
    assert len(IrregularDataset.from_long_dataframe(frame, feat_dynamic_real=["dose"])) == 2


def test_times_closer_than_float64_can_hold_are_refused():
    # A nanosecond after three years: 1e17 of them, and float64 has 53 bits.
    times = pd.Series(pd.to_datetime(["2021-01-01", "2024-01-01", "2024-01-01"]))
    times += np.array([0, 0, 1], dtype="timedelta64[ns]")
    frame = pd.DataFrame({"timestamp": times, "target": 1.0})
    with pytest.raises(DataError, match=r"too close .* to be distinguished in float64") as caught:
        IrregularDataset.from_long_dataframe(frame, item_id=None)
    assert caught.value.position == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_unit": "fortnight"}, "unknown time unit 'fortnight'; choose one of W, D, h, min"),
        ({"time_unit": "M"}, "unknown time unit 'M'"),
        ({"target": []}, "no target is named"),
        ({"target": None}, "'target': None is not a list of columns"),
        (
            {"feat_static_real": "age"},
            "'feat_static_real': 'age' is not a list of columns; name them",
        ),
        ({"timestamp": []}, "is a list, not text"),
        ({"target": ["target", "target"]}, "named as target and again as target"),
        ({"past_feat_dynamic_real": ["target"]}, "named as target and again as past_feat"),
        ({"target": "timestamp"}, "named as timestamp and again as target"),
        ({"item_id": "patient"}, "'patient': the DataFrame has no such column"),
        ({"timestamp": "time"}, "'time': the DataFrame has no such column"),
        ({"target": [0]}, "'0': the name of a column is a int, not text; rename"),
        ({"feat_static_cat": [("ward", "")]}, "is a tuple, not text"),
    ],
)
def test_bad_arguments_are_refused(frame, options, message):
    with pytest.raises(DataError, match=message):
        IrregularDataset.from_long_dataframe(frame, **options)


@pytest.mark.parametrize("not_a_frame", [None, [1, 2], {"target": [1.0]}, np.zeros((3, 3))])
def test_what_is_not_a_frame_is_refused(not_a_frame):
    with pytest.raises(DataError, match=r"not a pandas DataFrame; .* to_pandas\(\)"):
        IrregularDataset.from_long_dataframe(not_a_frame)


def test_a_data_error_is_a_value_error_and_one_of_ours():
    assert issubclass(DataError, ValueError)
    assert issubclass(DataError, DeltaflowError)
