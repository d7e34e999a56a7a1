"""A DataFrame with one row per measurement becomes the same entries as a long one."""

import warnings

import numpy as np
import pandas as pd
import pytest

from deltaflow import DataError, IrregularDataset, UnknownNameError


def read(dataframe: pd.DataFrame, **options) -> IrregularDataset:
    return IrregularDataset.from_tidy_dataframe(dataframe, **options)


@pytest.fixture
def tidy(multivariate_frame) -> pd.DataFrame:
    """The measurements of the multivariate frame, without those that are missing."""
    keys = ["item_id", "timestamp"]
    melted = multivariate_frame[[*keys, "HR", "MAP"]].melt(keys)
    return melted.dropna().sort_values(keys, kind="stable").reset_index(drop=True)


def assert_same(left: IrregularDataset, right: IrregularDataset) -> None:
    assert [entry["item_id"] for entry in left] == [entry["item_id"] for entry in right]
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one["target"], other["target"])
        np.testing.assert_array_equal(one["feat_dynamic_real"], other["feat_dynamic_real"])


def test_tidy_rows_are_the_long_frame(tidy, multivariate_frame):
    long = IrregularDataset.from_long_dataframe(multivariate_frame, target=["HR", "MAP"])
    assert_same(read(tidy), long)


def test_the_order_of_tidy_rows_does_not_matter_within_an_item(tidy):
    shuffled = tidy.sample(frac=1, random_state=0)
    shuffled = shuffled.sort_values("item_id", kind="stable")
    assert_same(read(shuffled), read(tidy))


def test_items_keep_their_order_of_appearance():
    frame = pd.DataFrame(
        {"item_id": ["z", "a", "z", "m"], "timestamp": [3, 1, 0, 1], "variable": "HR"}
    ).assign(value=[1.0, 2.0, 3.0, 4.0])
    dataset = read(frame)
    assert [entry["item_id"] for entry in dataset] == ["z", "a", "m"]
    np.testing.assert_array_equal(dataset[0]["target"], [[3.0, 1.0]])


def test_the_callers_frame_is_not_changed(tidy):
    before = tidy.copy(deep=True)
    read(tidy, duplicates="mean")
    pd.testing.assert_frame_equal(tidy, before)


def test_all_variables_are_targets_in_alphabetical_order_by_default(tidy):
    assert read(tidy).schema.target == ("HR", "MAP")
    assert read(tidy, past_feat_dynamic_real=["HR"]).schema.target == ("MAP",)
    assert read(tidy, target=["MAP", "HR"]).schema.target == ("MAP", "HR")


def test_times_of_unnamed_variables_stay_as_empty_rows():
    frame = pd.DataFrame(
        {"item_id": "a", "timestamp": [0, 1, 2], "variable": ["HR", "Temp", "HR"], "value": 1.0}
    )
    (entry,) = read(frame, target=["HR"])
    np.testing.assert_array_equal(entry["target"], [[1, np.nan, 1]])
    np.testing.assert_array_equal(entry["feat_dynamic_real"], [[0, 1, 2]])


def test_an_item_with_only_unnamed_variables_stays():
    frame = pd.DataFrame(
        {"item_id": ["b", "a"], "timestamp": 0, "variable": ["Temp", "HR"], "value": 1.0}
    )
    dataset = read(frame, target=["HR"])
    assert [entry["item_id"] for entry in dataset] == ["b", "a"]
    assert np.isnan(dataset[0]["target"]).all()


def test_two_values_at_one_time_are_an_error_that_names_them(tidy):
    twice = pd.concat([tidy, tidy.iloc[[5]]])
    with pytest.raises(DataError, match=r"two values at .*duplicates='mean'") as caught:
        read(twice)
    assert caught.value.item == tidy.loc[5, "item_id"]
    assert caught.value.field == tidy.loc[5, "variable"]


def test_two_values_at_one_time_can_be_averaged():
    frame = pd.DataFrame(
        {"item_id": 1, "timestamp": [0, 0, 1], "variable": "HR", "value": [80.0, 90.0, 70.0]}
    )
    np.testing.assert_array_equal(read(frame, duplicates="mean")[0]["target"], [[85.0, 70.0]])


def test_categorical_columns_are_read_without_a_warning(tidy):
    plain = read(tidy)
    levels = [*reversed(tidy["item_id"].unique()), "nobody"]
    tidy["item_id"] = pd.Categorical(tidy["item_id"], categories=levels)
    tidy["variable"] = tidy["variable"].astype("category")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(read(tidy), plain)


@pytest.mark.parametrize("column", ["item_id", "variable"])
def test_categories_do_not_reorder_the_items(column):
    frame = pd.DataFrame(
        {"item_id": ["b", "a"], "timestamp": 0.0, "variable": "HR", "value": [1.0, 2.0]}
    )
    dataset = read(frame.assign(**{column: frame[column].astype("category")}))
    assert [entry["item_id"] for entry in dataset] == ["b", "a"]


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.assign(value=f["value"].round().astype("float16")),
        lambda f: f.assign(timestamp=f["timestamp"].astype(object)),
        lambda f: f.set_index("item_id", drop=False),
        lambda f: f.set_index(["timestamp", "variable"], drop=False),
    ],
    ids=["float16", "objects as times", "a column as index", "columns as index"],
)
def test_dtypes_and_index_do_not_matter(tidy, change):
    tidy["value"] = tidy["value"].round()
    assert_same(read(change(tidy)), read(tidy))


def test_time_zones_are_kept(tidy):
    tidy["timestamp"] = tidy["timestamp"].dt.tz_localize("Asia/Tokyo")
    assert read(tidy).schema.time_zone == "Asia/Tokyo"


@pytest.mark.parametrize(
    ("change", "message", "field"),
    [
        (lambda f: f.assign(value="high"), "holds a str, not a number", "value"),
        (lambda f: f.assign(value=np.inf), "infinite", "value"),
        (lambda f: f.assign(timestamp=pd.NaT), "missing", "timestamp"),
        (lambda f: f.assign(timestamp="today"), "string, not a timestamp", "timestamp"),
        (lambda f: f.assign(item_id=None), "identifier is missing", "item_id"),
        (lambda f: f.drop(columns="variable"), "no such column", "variable"),
        (lambda f: f.assign(variable=f["variable"].where(f.index != 3)), "is missing", "variable"),
        (lambda f: f.assign(variable=[["HR"]] * len(f)), "two values at", "['HR']"),
        (lambda f: f.iloc[:0], "no rows", None),
    ],
)
def test_bad_tidy_rows_are_refused(tidy, change, message, field):
    with pytest.raises(DataError, match=message) as caught:
        read(change(tidy))
    if field is not None:
        assert caught.value.field == field


def test_a_row_without_variable_and_value_is_a_time_at_which_nothing_was_measured(tidy):
    nothing = tidy.iloc[[0]].assign(variable=None, value=np.nan)
    nothing["timestamp"] = tidy["timestamp"].max() + (
        tidy["timestamp"].max() - tidy["timestamp"].min()
    )
    before, after = read(tidy), read(pd.concat([tidy, nothing], ignore_index=True))
    counts = [[entry["target"].shape[-1] for entry in data] for data in (before, after)]
    assert sum(counts[1]) == sum(counts[0]) + 1


def test_a_named_variable_without_rows_is_refused(tidy):
    with pytest.raises(DataError, match=r"no row has this variable.*\['HR', 'MAP'\]") as caught:
        read(tidy, target=["HR", "Temp"])
    assert caught.value.field == "Temp"


def test_an_unknown_way_to_treat_duplicates_is_refused(tidy):
    with pytest.raises(UnknownNameError, match="unknown duplicates 'first'"):
        read(tidy, duplicates="first")
