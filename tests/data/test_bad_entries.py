"""Entries that a predictor or an estimator cannot use are refused before any tensor is made."""

import pickle

import numpy as np
import pytest
from gluonts.dataset.common import ListDataset, MetaData, TrainDatasets

from deltaflow import DataError, GRUEstimator, HoldPredictor, UnknownNameError


@pytest.fixture(scope="module", params=["GRUEstimator", "HoldPredictor"])
def predictor(request, trained, multivariate):
    """A neural predictor and the naive one: both refuse the same."""
    if request.param == "HoldPredictor":
        return HoldPredictor.fit(multivariate, 4)
    return trained(request.param, "multivariate")


@pytest.fixture
def entry(multivariate, instances) -> dict:
    """An entry with 16 observation times and 4 queries, which may be changed."""
    original = instances(multivariate)[2]
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in original.items()}


def change(field: str, function):
    def apply(entry: dict) -> None:
        entry[field] = function(entry[field])

    return apply


def at(row: int, column: int, value: float):
    """A change of one number."""

    def function(array: np.ndarray) -> np.ndarray:
        array[row, column] = value
        return array

    return function


def told(name: str, value: object):
    """A change of what the entry tells of its time."""
    return change("info", lambda info: {**info, name: value})


def remove(field: str):
    return lambda entry: entry.pop(field)


BAD = {
    # change of the entry, what the message says, field
    "float32 times": (change("feat_dynamic_real", lambda a: a.astype(np.float32)),
                      "float32 merges seconds", "feat_dynamic_real"),
    "no queries": (change("feat_dynamic_real", lambda a: a[:, :-4]),
                   r"has no query times .*\.predict_df", "feat_dynamic_real[0]"),
    "a query in the past": (change("feat_dynamic_real", at(0, 17, 0.0)),
                            "before the last observation", "feat_dynamic_real[0]"),
    "padding before a query": (change("feat_dynamic_real", at(0, 16, np.nan)),
                               "missing query time precedes", "feat_dynamic_real[0]"),
    "unsorted times": (change("feat_dynamic_real", at(0, 5, 0.0)),
                       "not sorted", "feat_dynamic_real[0]"),
    "missing time": (change("feat_dynamic_real", at(0, 5, np.nan)),
                     "time is missing", "feat_dynamic_real[0]"),
    "infinite time": (change("feat_dynamic_real", at(0, 5, np.inf)),
                      "infinite", "feat_dynamic_real"),
    "missing covariate": (change("feat_dynamic_real", at(1, 17, np.nan)),
                          "known in advance is missing", "dose"),
    "no covariate": (change("feat_dynamic_real", lambda a: a[:1]),
                     r"shape \(1, 20\), expected \(2, T\)", "feat_dynamic_real"),
    "no times": (remove("feat_dynamic_real"), "field is missing", "feat_dynamic_real"),
    "too few times": (change("feat_dynamic_real", lambda a: a[:, :10]),
                      "10 times for 16 observations", "feat_dynamic_real[0]"),
    "target of one channel": (change("target", lambda a: a[0]),
                              r"shape \(16,\), expected \(2, T\)", "target"),
    "transposed target": (change("target", np.transpose), r"shape \(16, 2\)", "target"),
    "infinite target": (change("target", at(0, 3, -np.inf)), "infinite", "target"),
    "strings": (change("target", lambda a: a.astype(str).astype(object) + "x"),
                "not an array of numbers", "target"),
    "no past covariate": (remove("past_feat_dynamic_real"),
                          "field is missing", "past_feat_dynamic_real"),
    "short past covariate": (change("past_feat_dynamic_real", lambda a: a[:, 1:]),
                             "15 columns, expected 16", "past_feat_dynamic_real"),
    "static features": (change("feat_static_real", lambda a: np.append(a, 1.0)),
                        r"shape \(2,\), expected \(1,\)", "feat_static_real"),
    "infinite static feature": (change("feat_static_real", lambda a: a + np.inf),
                                "row 0: the value is infinite", "feat_static_real"),
    "huge static feature": (change("feat_static_real", lambda a: a + 1e200),
                            "row 0: the value is larger than 1e\\+100", "feat_static_real"),
    "text as static feature": (change("feat_static_real", lambda a: ["old"]),
                               "not an array of numbers", "feat_static_real"),
    "no category": (remove("feat_static_cat"), "expected", "feat_static_cat"),
    "no start": (remove("start"), "is missing", "start"),
    "a timestamp as start": (change("start", lambda start: start.to_timestamp()),
                             "is a Timestamp, not a pandas Period", "start"),
    "another unit": (told("time_unit", "months"), "unknown time unit 'months'", "time_unit"),
    "no resolution": (told("time_resolution", None), "a time_resolution out of s, ms, us", "info"),
    "a word as origin": (told("time_origin", "today?"), "'today\\?' .* not a timestamp", "info"),
    "a regular entry": (change("info", lambda info: None), "expected an info", "info"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_entry_is_refused_with_its_place(predictor, entry, bad):
    apply, message, field = BAD[bad]
    apply(entry)
    with pytest.raises(DataError, match=message) as caught:
        list(predictor.predict([entry]))
    assert caught.value.item == "p2"
    assert caught.value.field == field


def test_the_entry_that_the_bad_ones_are_made_of_is_good(predictor, entry):
    (forecast,) = predictor.predict([entry])
    assert np.isfinite(forecast.quantile(0.5)).all()


def test_list_dataset_makes_times_float32_which_is_refused(univariate):
    # ListDataset changes the entries that it is given.
    entries = ListDataset([dict(entry) for entry in univariate], freq="h")
    with pytest.raises(DataError, match="ListDataset and FileDataset cast to it"):
        GRUEstimator(prediction_length=2).train(entries)


def test_a_regular_entry_among_irregular_ones_is_refused_before_training(univariate):
    stray = {"item_id": "stray", "start": univariate[0]["start"], "target": np.ones(20)}
    with pytest.raises(DataError, match="item 'stray', field 'info'"):
        GRUEstimator(prediction_length=2).train([*univariate, stray])


def test_values_that_cannot_be_squared_are_refused_before_training(univariate):
    entry = univariate[0]
    entry["target"] = np.where(np.arange(len(entry["target"])) == 3, 1e200, entry["target"])
    regular = {"item_id": "p0", "start": entry["start"], "target": entry["target"]}
    for data in ([entry, *univariate[1:]], [regular]):
        with pytest.raises(DataError, match=r"'p0', field 'target', row 3: .* larger than 1e\+100"):
            GRUEstimator(prediction_length=2).train(data)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target", 1.0, r"shape \(\), expected \(T,\) or \(D, T\)"),
        ("target", [[1.0, 2.0], [3.0]], "not an array of numbers"),
        ("feat_dynamic_real", np.ones(20), r"shape \(20,\), expected \(K, T\)"),
        ("feat_static_real", 40.0, r"shape \(\), expected \(K,\)"),
        ("feat_static_cat", 1, r"shape \(\), expected \(K,\)"),
        ("feat_static_cat", [0.5], "code of a category is not a whole number"),
    ],
)
def test_a_regular_entry_of_the_wrong_shape_is_refused_with_its_place(
    field, value, message, univariate
):
    entry = {"item_id": "a", "start": univariate[0]["start"], "target": np.arange(20.0)}
    with pytest.raises(DataError, match=f"item 'a', field '{field}'.*{message}"):
        GRUEstimator(prediction_length=2).train([{**entry, field: value}])


def test_categories_of_a_regular_data_set_that_are_no_codes_are_refused(univariate):
    entry = {"item_id": "a", "start": univariate[0]["start"], "target": np.arange(20.0)}
    for codes, message in ((["icu"], "not an array of numbers"), ([0, 1], r"shape \(2,\)")):
        with pytest.raises(DataError, match=f"item 'b', field 'feat_static_cat'.*{message}"):
            GRUEstimator(prediction_length=2).train(
                [{**entry, "feat_static_cat": [0]},
                 {**entry, "item_id": "b", "feat_static_cat": codes}]
            )  # fmt: skip


def test_entries_without_a_schema_are_refused(univariate):
    for schema in (None, {}, {**univariate.schema.to_dict(), "target": "HR"}):
        entry = univariate[0]
        entry["info"] = {**entry["info"], "schema": schema}
        with pytest.raises(DataError, match="item 'p0', field 'info': the info holds no schema"):
            HoldPredictor.fit([entry], 4)


def test_several_data_sets_are_refused(univariate):
    several = TrainDatasets(MetaData(freq="h"), univariate, univariate)
    with pytest.raises(DataError, match=r"give its \.train"):
        GRUEstimator(prediction_length=2).train(several)


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="data set is empty"):
        GRUEstimator(prediction_length=2).train([])


def test_a_target_missing_everywhere_is_refused(univariate):
    entries = [{**entry, "target": np.full(20, np.nan)} for entry in univariate]
    with pytest.raises(DataError, match="'HR': the target is missing everywhere"):
        GRUEstimator(prediction_length=2).train(entries)


def test_items_of_a_single_row_have_nothing_to_learn_from(univariate):
    entries = [
        {**e, "target": e["target"][:1], "feat_dynamic_real": e["feat_dynamic_real"][:, :1]}
        for e in univariate
    ]
    with pytest.raises(DataError, match="give longer series"):
        GRUEstimator(prediction_length=2).train(entries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "gru_flo"}, "unknown encoder 'gru_flo': did you mean 'gru_flow'"),
        ({"distr_output": "student"}, "unknown head 'student': did you mean 'student_t'"),
        ({"sampling": "paths"}, "unknown sampling 'paths': did you mean 'path'"),
    ],
)
def test_unknown_names_are_refused_with_the_registered_ones(options, message):
    with pytest.raises(UnknownNameError, match=message) as caught:
        GRUEstimator(prediction_length=2, **options)
    assert "Registered: " in str(caught.value)


def test_errors_pass_between_processes(univariate):
    for error in (
        DataError("is bad", "mend it", item="a", field="HR", position=3),
        UnknownNameError("encoder", "gru_flo", ["gru_flow"]),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))
        assert vars(copy) == vars(error)
