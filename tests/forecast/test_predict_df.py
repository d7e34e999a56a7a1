"""predict_df: a DataFrame in, a DataFrame out, by the conventions of the field."""

import numpy as np
import pandas as pd
import pytest
from gluonts.model.seasonal_naive import SeasonalNaivePredictor

from deltaflow import (
    DataError,
    DeltaflowError,
    EnsemblePredictor,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataset,
    predict_df,
)
from deltaflow.tasks import regular_seasonal


def cut(frame: pd.DataFrame, count: int = 3, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows before the last ``count`` of each item, and those, shuffled across items."""
    last = frame.groupby("item_id", observed=True).cumcount(ascending=False) < count
    return frame[~last], frame[last].sample(frac=1, random_state=seed)


@pytest.fixture
def predictor(trained):
    return trained("GRUFlowEstimator", "multivariate")


@pytest.fixture
def frames(multivariate_frame):
    past, future = cut(multivariate_frame)
    return past, future[["item_id", "timestamp", "dose"]]


def test_the_columns_are_those_of_the_convention(predictor, frames):
    result = predict_df(predictor, *frames, quantile_levels=[0.1, 0.5, 0.95])
    expected = ["item_id", "timestamp", "target_name", "predictions", "mean", "0.1", "0.5", "0.95"]
    assert list(result.columns) == expected
    assert list(result.index) == list(range(len(result)))
    np.testing.assert_array_equal(result["predictions"], result["0.5"])


def test_the_mean_is_told_where_the_model_has_one(make_estimator, multivariate_frame, datasets):
    """Hold's is the last value. Quantiles alone have none, nor has an average of both forecasts."""
    data = datasets["multivariate"]
    hold = HoldPredictor.fit(data, 4)
    quantiles = make_estimator(GRUFlowEstimator, distr_output="quantile").train(data)
    past, future = cut(multivariate_frame)
    told = predict_df(hold, past, future, quantile_levels=[0.9])
    last = past.sort_values("timestamp").groupby("item_id", observed=True)[["HR", "MAP"]].last()
    for row in told.itertuples():
        assert row.mean == last.loc[row.item_id, row.target_name]
    assert (told["mean"] != told["predictions"]).any()
    for predictor in (quantiles, EnsemblePredictor([hold, quantiles])):
        columns = list(predict_df(predictor, past, future, quantile_levels=[0.9]))
        assert columns == ["item_id", "timestamp", "target_name", "predictions", "0.9"]


def test_rows_come_in_the_order_of_the_future(predictor, frames):
    past, future = frames
    result = predict_df(predictor, past, future)
    assert list(result["target_name"]) == ["HR", "MAP"] * len(future)
    for channel in ("HR", "MAP"):
        own = result[result["target_name"] == channel]
        assert list(own["item_id"]) == list(future["item_id"])
        assert list(own["timestamp"]) == list(future["timestamp"])


def test_the_order_of_questions_does_not_change_the_answers(predictor, frames):
    past, future = frames
    ordered = future.sort_values(["item_id", "timestamp"])
    keys = ["item_id", "timestamp", "target_name"]
    left, right = (
        predict_df(predictor, past, rows).sort_values(keys, ignore_index=True)
        for rows in (future, ordered)
    )
    # Only the order of sums in float32 differs.
    pd.testing.assert_frame_equal(left, right, rtol=1e-5)


def test_answers_are_those_of_predict(predictor, frames, multivariate, instances):
    past, future = frames
    result = predict_df(predictor, past, future).set_index(["item_id", "target_name"])
    for forecast in predictor.predict(pad(instances(multivariate, 3))):
        for channel, name in enumerate(("HR", "MAP")):
            own = result.loc[[(forecast.item_id, name)]].sort_values("timestamp")
            np.testing.assert_allclose(own["0.9"], forecast.quantile(0.9)[:3, channel], rtol=1e-5)


def pad(entries: list[dict]) -> list[dict]:
    """Pad three queries to four."""
    return [
        {**e, "feat_dynamic_real": np.pad(e["feat_dynamic_real"], [(0, 0), (0, 1)],
                                          constant_values=np.nan)}
        for e in entries
    ]  # fmt: skip


def test_quantiles_are_ordered_and_finite(predictor, frames):
    levels = [0.05, 0.2, 0.5, 0.8, 0.95]
    result = predict_df(predictor, *frames, quantile_levels=levels)
    values = result[list(map(str, levels))].to_numpy()
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=1) >= 0).all()


def test_the_callers_frames_are_not_changed(predictor, frames):
    before = [frame.copy(deep=True) for frame in frames]
    predict_df(predictor, *frames)
    for frame, original in zip(frames, before, strict=True):
        pd.testing.assert_frame_equal(frame, original)


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_the_callers_timestamps_come_back_untouched(zone, unit, univariate_frame):
    times = univariate_frame["timestamp"].dt.as_unit(unit).dt.tz_localize(zone)
    frame = univariate_frame.assign(timestamp=times)
    past, future = cut(frame)
    dataset = IrregularDataset.from_long_dataframe(past, target="HR")
    result = predict_df(HoldPredictor.fit(dataset, 3), past, future)
    pd.testing.assert_series_equal(result["timestamp"], future["timestamp"].reset_index(drop=True))


@pytest.mark.parametrize("zones", [("Europe/Berlin", "UTC"), ("UTC", "Asia/Kathmandu")])
@pytest.mark.parametrize("units", [("s", "ns"), ("ns", "ms"), ("us", "us")])
def test_the_same_moments_in_other_zones_and_units_are_the_same(zones, units, univariate_frame):
    # From one summer time to the next: clocks are not what counts.
    stretched = pd.Timestamp("2024-03-01") + 90 * (
        univariate_frame["timestamp"] - pd.Timestamp("2024-03-01")
    )
    frame = univariate_frame.assign(timestamp=stretched.dt.tz_localize("UTC"))
    past, future = cut(frame)
    predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(past, target="HR"), 3)
    expected = predict_df(predictor, past, future)
    past, future = (
        part.assign(timestamp=part["timestamp"].dt.tz_convert(zone).dt.as_unit(unit))
        for part, zone, unit in zip((past, future), zones, units, strict=True)
    )
    result = predict_df(predictor, past, future)
    numbers = ["predictions", "0.1", "0.5", "0.9"]
    pd.testing.assert_frame_equal(result[numbers], expected[numbers], rtol=1e-12)
    pd.testing.assert_series_equal(result["timestamp"], future["timestamp"].reset_index(drop=True))


IDENTIFIERS = {
    "whole numbers": lambda n: n.astype("int64"),
    "whole floats": lambda n: n.astype("float64"),
    "nullable": lambda n: n.astype("Int64"),
    "text": lambda n: n.astype(str),
    "strings": lambda n: n.astype("string"),
    "categories": lambda n: n.astype(str).astype("category"),
    "objects": lambda n: n.astype(object),
}


@pytest.mark.parametrize("past_type", IDENTIFIERS)
@pytest.mark.parametrize("future_type", IDENTIFIERS)
def test_items_are_the_same_if_they_read_the_same(past_type, future_type, univariate_frame):
    past, future = cut(univariate_frame[univariate_frame["item_id"] < "p4"])
    numbers = past["item_id"].str[1:].astype(int)
    predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(past, target="HR"), 3)
    expected = predict_df(predictor, past, future)
    past = past.assign(item_id=IDENTIFIERS[past_type](numbers))
    asked = IDENTIFIERS[future_type](future["item_id"].str[1:].astype(int))
    result = predict_df(predictor, past, future.assign(item_id=asked))
    pd.testing.assert_frame_equal(result.iloc[:, 1:], expected.iloc[:, 1:])
    pd.testing.assert_series_equal(result["item_id"], asked.reset_index(drop=True))


def test_identifiers_that_read_the_same_within_a_frame_are_refused(predictor, frames):
    past, future = frames
    both = pd.concat([past.assign(item_id=1), past.assign(item_id="1")])
    with pytest.raises(DataError, match=r"^past_df, item '1', field 'item_id': two different iden"):
        predict_df(predictor, both, future.assign(item_id=1))
    mixed = pd.Series([1.0, "1"] * (len(future) // 2), index=future.index, dtype=object)
    with pytest.raises(DataError, match=r"^future_df, item '1', field 'item_id': two different id"):
        predict_df(predictor, past.assign(item_id=1), future.assign(item_id=mixed))


def emptied(frame: pd.DataFrame, rows: pd.Index) -> pd.DataFrame:
    """The frame with nothing observed in some rows."""
    return frame.assign(**{name: frame[name].drop(rows) for name in ("HR", "MAP", "lab")})


def test_the_past_may_hold_the_future_with_empty_targets(predictor, frames, multivariate_frame):
    past, future = frames
    expected = predict_df(predictor, past, future)
    whole = emptied(multivariate_frame, future.index)
    pd.testing.assert_frame_equal(predict_df(predictor, whole, future), expected)
    # They are not observations either where other times are asked for.
    last = past.groupby("item_id")["timestamp"].max().reindex(future["item_id"]).array
    for share in (0.5, 2.0):
        moved = future.assign(timestamp=last + share * (future["timestamp"] - last))
        wanted = predict_df(predictor, past, moved)
        pd.testing.assert_frame_equal(predict_df(predictor, whole, moved), wanted)


def test_empty_rows_at_the_end_are_the_questions_if_there_is_no_future(
    predictor, frames, multivariate_frame
):
    past, future = frames
    whole = emptied(multivariate_frame, future.index)
    result = predict_df(predictor, whole, quantile_levels=[0.1])
    asked = whole.loc[future.index.sort_values(), ["item_id", "timestamp"]]
    assert list(result["item_id"][::2]) == list(asked["item_id"])
    assert list(result["timestamp"][::2]) == list(asked["timestamp"])
    expected = predict_df(predictor, past, future.sort_index(), quantile_levels=[0.1])
    pd.testing.assert_frame_equal(result, expected)


def test_items_without_empty_rows_at_their_end_are_not_asked(predictor, multivariate_frame):
    rows = multivariate_frame.index[[5, 39, 40, 99]]  # in the middle of items, and at two ends
    result = predict_df(predictor, emptied(multivariate_frame, rows))
    assert result["item_id"].tolist() == ["p1"] * 2 + ["p4"] * 2


def test_a_past_only_covariate_makes_an_observation(predictor, multivariate_frame):
    own = multivariate_frame[multivariate_frame["item_id"] == "p1"].reset_index(drop=True)
    frame = emptied(own, pd.Index([17, 18, 19]))
    frame.loc[17, "lab"] = 1.0
    result = predict_df(predictor, frame)
    assert result["timestamp"].tolist() == own["timestamp"][[18, 18, 19, 19]].tolist()
    other = predict_df(predictor, frame.assign(lab=frame["lab"].where(frame.index != 17, 5.0)))
    assert not np.allclose(result["0.9"], other["0.9"])
    message = "^future_df, .*: the query lies before the last observation, in row 17 of past_df"
    early = own.loc[[16], ["item_id", "timestamp", "dose"]]
    with pytest.raises(DataError, match=message):
        predict_df(predictor, frame, early)


def test_a_past_frame_without_questions_is_refused(predictor, multivariate_frame):
    with pytest.raises(DataError, match=r"^past_df: has no rows to forecast; give future_df"):
        predict_df(predictor, multivariate_frame)
    rows = multivariate_frame.index[multivariate_frame["item_id"] == "p2"]
    with pytest.raises(DataError, match=r"^past_df, item 'p2': nothing was observed"):
        predict_df(predictor, emptied(multivariate_frame, rows))


def test_items_of_which_nothing_was_observed_are_forecast_from_their_first_row(
    predictor, frames, multivariate_frame
):
    _, future = frames
    future = future[future["item_id"] == "p2"]
    item = multivariate_frame[multivariate_frame["item_id"] == "p2"]
    item = emptied(item, item.index)
    expected = predict_df(predictor, item.iloc[:1], future)
    pd.testing.assert_frame_equal(predict_df(predictor, item, future), expected)
    assert np.isfinite(expected["0.9"]).all()


def test_future_times_need_not_be_on_the_ticks_of_the_past(univariate_frame):
    # The past is at whole seconds; half a second more is not rounded away. Values that grow by one
    # a second are forecast to do so, far beyond all gaps of the past.
    start = univariate_frame.groupby("item_id")["timestamp"].transform("min")
    seconds = (univariate_frame["timestamp"] - start).dt.total_seconds()
    past, future = cut(univariate_frame.assign(HR=seconds))
    predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(past, target="HR"), 3)
    future["timestamp"] += pd.Timedelta("365D")
    later = future.assign(timestamp=future["timestamp"] + pd.Timedelta("500ms"))
    one, other = (predict_df(predictor, past, rows)["predictions"] for rows in (future, later))
    assert (other > one).all()


@pytest.mark.parametrize("dtype", ["int64", "Int64", "category", "string"])
def test_item_identifiers_keep_their_type(dtype, univariate_frame):
    numbers = univariate_frame["item_id"].str[1:].astype(int).astype(dtype)
    past, future = cut(univariate_frame.assign(item_id=numbers))
    dataset = IrregularDataset.from_long_dataframe(past, target="HR")
    result = predict_df(HoldPredictor.fit(dataset, 3), past, future)
    pd.testing.assert_series_equal(result["item_id"], future["item_id"].reset_index(drop=True))


@pytest.mark.parametrize("levels", ["numbers", "booleans", "text", "category"])
def test_categories_of_any_type_are_recognised(levels, multivariate_frame, roles, make_estimator):
    ward = multivariate_frame["ward"]
    frame = multivariate_frame.assign(
        ward={
            "numbers": ward.eq("icu").astype(int) + 3,
            "booleans": ward.eq("icu"),
            "text": ward,
            "category": ward.astype("category"),
        }[levels]
    )
    dataset = IrregularDataset.from_long_dataframe(frame, **roles)
    predictor = make_estimator(GRUFlowEstimator).train(dataset)
    past, future = cut(frame)
    by_frame = predict_df(predictor, past, future).sort_values("timestamp")
    entries = pad([dict(entry) for entry in IrregularDataset.from_long_dataframe(past, **roles)])
    for entry in entries:
        rows = future[future["item_id"] == entry["item_id"]].sort_values("timestamp")
        hours = rows["timestamp"] - pd.Timestamp(entry["info"]["time_origin"])
        queries = np.stack([hours / pd.Timedelta("1h"), rows["dose"]])
        given = entry["feat_dynamic_real"][:, :-1]
        padding = np.full((2, 1), np.nan)
        entry["feat_dynamic_real"] = np.hstack([given, queries, padding])
    for forecast in predictor.predict(entries):
        own = by_frame[(by_frame["item_id"] == forecast.item_id)]
        own = own[own["target_name"] == "HR"]
        np.testing.assert_allclose(own["0.9"], forecast.quantile(0.9)[:3, 0], rtol=1e-5)


def test_elapsed_numbers_come_back_as_they_are():
    past = pd.DataFrame({"hour": [0, 2, 3], "HR": [82.0, 81, 82]})
    future = pd.DataFrame({"hour": [7, 5]})
    dataset = IrregularDataset.from_long_dataframe(
        past, item_id=None, timestamp="hour", target="HR"
    )
    predictor = HoldPredictor.fit(dataset, 4)
    result = predict_df(predictor, past, future, item_id=None, timestamp="hour")
    assert list(result.columns) == [
        "hour",
        "target_name",
        "predictions",
        "mean",
        "0.1",
        "0.5",
        "0.9",
    ]
    assert list(result["hour"]) == [7, 5]
    assert result["hour"].dtype == np.int64
    assert (result["predictions"] == 82).all()


def test_items_may_be_asked_a_different_number_of_questions(predictor, frames):
    past, future = frames
    fewer = future.groupby("item_id", group_keys=False).head(2).iloc[:-1]
    result = predict_df(predictor, past, fewer)
    assert len(result) == 2 * len(fewer)
    full = predict_df(predictor, past, future)
    keys = ["item_id", "timestamp", "target_name"]
    merged = result.merge(full, on=keys, suffixes=("", "_full"))
    np.testing.assert_allclose(merged["0.9"], merged["0.9_full"], rtol=1e-5)


KINDS = {
    "distribution": {},
    "quantiles": {"distr_output": "quantile"},
    "samples": {"distr_output": "negative_binomial"},
    "paths": {"sampling": "path"},
    "hold": {},
    "ensemble": {},
}


@pytest.fixture(scope="module")
def predictors(make_frame, roles, make_estimator):
    """A function ``kind -> predictor`` of data with counts for channels, made once each."""
    frame = make_frame(("HR", "MAP"))
    frame[["HR", "MAP"]] = frame[["HR", "MAP"]].round()
    data = IrregularDataset.from_long_dataframe(frame, **roles)
    made = {}

    def get(kind: str):
        if kind not in made:
            hold = HoldPredictor.fit(data, 4)
            network = hold
            if kind != "hold":
                network = make_estimator(GRUFlowEstimator, **KINDS[kind]).train(data)
            made[kind] = EnsemblePredictor([network, hold]) if kind == "ensemble" else network
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_questions_is_answered(kind, predictors, frames):
    past, future = frames
    predictor = predictors(kind)
    many = pd.concat([future] * 50)  # 150 of each item
    count = 500 if kind == "paths" else 5000  # 20 times a piece; paths are drawn one by one
    one = future[future["item_id"] == "p3"].iloc[[0] * count]
    few = future.groupby("item_id").head(1)
    questions = pd.concat([many, one, few]).sort_values("timestamp")
    result = predict_df(predictor, past, questions, seed=1)
    assert len(result) == 2 * len(questions)
    values = result[["0.1", "0.5", "0.9"]].to_numpy()
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=1) >= 0).all()
    if kind in ("samples", "paths"):
        return  # which are drawn anew for each question
    alone = predict_df(predictor, past, future)
    keys = ["item_id", "timestamp", "target_name"]
    merged = result.merge(alone, on=keys, suffixes=("", "_alone"))
    assert len(merged) == len(result)
    # Sums in float32, of other shapes.
    np.testing.assert_allclose(merged["0.9"], merged["0.9_alone"], rtol=1e-5)


def test_paths_do_not_depend_on_the_number_of_questions_to_others(predictors, frames):
    past, future = frames
    future = future.sort_values(["item_id", "timestamp"], ascending=[True, False])
    only = future[future["item_id"] == "p0"].iloc[1:]  # backwards in time, and fewer
    many = future[future["item_id"] == "p1"].iloc[[0, 1, 2, 2, 2, 2]]
    answers = [
        predict_df(predictors("paths"), past, pd.concat([only, others]), seed=3)
        for others in (many.iloc[:2], many)
    ]
    one, other = (answer[answer["item_id"] == "p0"] for answer in answers)
    pd.testing.assert_frame_equal(one, other)


def test_past_items_without_questions_are_left_out(predictor, frames):
    past, future = frames
    result = predict_df(predictor, past, future[future["item_id"] == "p3"])
    assert set(result["item_id"]) == {"p3"}
    assert len(result) == 6


def test_other_columns_and_their_order_do_not_matter(predictor, frames):
    past, future = frames
    result = predict_df(predictor, past, future)
    changed = predict_df(
        predictor,
        past[past.columns[::-1]].assign(note="x"),
        future[["dose", "timestamp", "item_id"]],
    )
    pd.testing.assert_frame_equal(changed, result)


def test_what_pandas_carries_along_does_not_matter(predictor, frames):
    expected = predict_df(predictor, *frames)
    for frame in frames:
        frame.attrs["source"] = np.arange(2)
    flagged = [frame.set_flags(allows_duplicate_labels=False) for frame in frames]
    pd.testing.assert_frame_equal(predict_df(predictor, *flagged), expected)


def test_items_may_be_dictionaries_of_arrow(predictor, frames):
    pa = pytest.importorskip("pyarrow")
    expected = predict_df(predictor, *frames)
    dtype = pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))
    coded = [frame.assign(item_id=frame["item_id"].astype(dtype)) for frame in frames]
    answer = predict_df(predictor, *coded)
    pd.testing.assert_frame_equal(answer.drop(columns="item_id"), expected.drop(columns="item_id"))
    assert answer["item_id"].tolist() == expected["item_id"].tolist()


def test_a_column_has_one_role(predictor, frames):
    past, future = frames
    with pytest.raises(DataError, match="'timestamp': is named as item_id and again as timestamp"):
        predict_df(predictor, past, future, item_id="timestamp")
    with pytest.raises(DataError, match="'HR': is named as item_id and again as target"):
        predict_df(predictor, past, future.assign(HR=1.0), item_id="HR")


@pytest.mark.parametrize("levels", [0.5, "0.1", ["p10"], [None], None])
def test_levels_that_are_no_numbers_are_refused(levels, predictor, frames):
    with pytest.raises(DataError, match=r"'quantile_levels': .* is not a list of numbers"):
        predict_df(predictor, *frames, quantile_levels=levels)


def test_paths_are_reproduced_by_the_seed(multivariate, make_estimator, frames):
    estimator = make_estimator(GRUFlowEstimator, sampling="path", num_parallel_samples=20)
    predictor = estimator.train(multivariate)
    first, second, other = (predict_df(predictor, *frames, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, second)
    assert not np.allclose(first["0.9"], other["0.9"])


BAD = {
    "a query before the last observation": (
        lambda p, f: (p, f.assign(timestamp=pd.Timestamp("2020-01-01"))),
        "^future_df, .* row .*: the query lies before the last observation, in row .* of past_df",
        "timestamp"),
    "an item without a past": (
        lambda p, f: (p[p["item_id"] != "p2"], f),
        "^future_df, item 'p.', row .*: has a query, but no past rows", None),
    "no past at all": (
        lambda p, f: (p.iloc[:0], f),
        "^future_df, item 'p.', row .*: has a query, but no past rows", None),
    "no covariate in the future": (
        lambda p, f: (p, f.drop(columns="dose")), "future_df has no such column", "dose"),
    "no channel in the past": (
        lambda p, f: (p.drop(columns="MAP"), f), "past_df has no such column", "MAP"),
    "a missing covariate": (
        lambda p, f: (p, f.assign(dose=np.nan)),
        "^future_df, item .* row .* known in advance is missing", "dose"),
    "a past of another kind of time": (
        lambda p, f: (p.assign(timestamp=p.groupby("item_id").cumcount()), f),
        "^past_df, .* given as elapsed numbers, in the training data as timestamps", "timestamp"),
    "queries of another kind of time": (
        lambda p, f: (p, f.assign(timestamp=99)),
        "^future_df, .* given as elapsed numbers, in the training data as timestamps", "timestamp"),
    "mixed time zones": (
        lambda p, f: (p, f.assign(timestamp=f["timestamp"].dt.tz_localize("UTC"))),
        "^future_df, .* those of the training data have none", "timestamp"),
    "a past without a time zone": (
        lambda p, f: (p.assign(timestamp=p["timestamp"].dt.tz_localize("UTC")), f),
        "^past_df, .* those of the training data have none", "timestamp"),
    "a time is missing in the past": (
        lambda p, f: (p.assign(timestamp=p["timestamp"].where(p.index != 3)), f),
        "^past_df, item 'p0', field 'timestamp', row 3: the time is missing", "timestamp"),
    "a time is missing in the future": (
        lambda p, f: (p, f.assign(timestamp=f["timestamp"].where(f.index != 18))),
        "^future_df, item 'p0', field 'timestamp', row 18: the time is missing", "timestamp"),
    "an item is missing in the past": (
        lambda p, f: (p.assign(item_id=p["item_id"].where(p.index != 3)), f),
        "^past_df, field 'item_id', row 3: the item identifier is missing", "item_id"),
    "an item is missing in the future": (
        lambda p, f: (p, f.assign(item_id=f["item_id"].where(f.index != 18))),
        "^future_df, field 'item_id', row 18: the item identifier is missing", "item_id"),
    "unsorted past": (
        lambda p, f: (p.iloc[::-1], f), "^past_df, .* not sorted", "timestamp"),
    "strings": (
        lambda p, f: (p.assign(HR="high"), f), "^past_df, .* row .* holds a str", "HR"),
    "no rows": (
        lambda p, f: (p, f.iloc[:0]), "future_df has no rows", None),
    "no frame": (
        lambda p, f: (p, f.to_dict()), "future_df is a dict", None),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_frames_are_refused(bad, predictor, frames):
    change, message, field = BAD[bad]
    with pytest.raises(DataError, match=message) as caught:
        predict_df(predictor, *change(*frames))
    assert caught.value.field == field


@pytest.mark.parametrize("level", [0, 1, -0.1, 50])
def test_levels_outside_of_0_and_1_are_refused(level, predictor, frames):
    with pytest.raises(DataError, match="'quantile_levels'"):
        predict_df(predictor, *frames, quantile_levels=[0.5, level])


def test_a_predictor_of_regular_data_is_refused(frames, make_estimator):
    predictor = make_estimator(GRUFlowEstimator).train(regular_seasonal(num_series=2))
    with pytest.raises(DataError, match="train it on an IrregularDataset"):
        predict_df(predictor, *frames)


def test_a_predictor_of_another_package_is_refused(frames):
    predictor = SeasonalNaivePredictor(prediction_length=4, season_length=2)
    with pytest.raises(DeltaflowError, match="SeasonalNaivePredictor does not know the schema"):
        predict_df(predictor, *frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": -1}, "seed must lie between 0 and"), ({"num_samples": 0}, "num_samples must be at")],
)
def test_impossible_options_of_a_forecast_are_refused(options, message, predictor):
    with pytest.raises(DeltaflowError, match=message):
        next(predictor.predict([], **options))


def test_names_that_the_answer_needs_are_refused(predictor, frames):
    past, future = (frame.rename(columns={"item_id": "predictions"}) for frame in frames)
    with pytest.raises(DataError, match="'predictions': is also the name of a column"):
        predict_df(predictor, past, future, item_id="predictions")


def test_timestamps_in_another_zone_than_those_of_the_training_are_refused(predictor, frames):
    past, future = (
        frame.assign(timestamp=frame["timestamp"].dt.tz_localize("UTC")) for frame in frames
    )
    with pytest.raises(DataError, match=r"'timestamp': .* those of the training data have none"):
        predict_df(predictor, past, future)


def test_times_that_fit_into_no_common_unit_are_refused(predictor, frames):
    past, future = frames
    millennia = pd.Series(["9024-03-03"] * len(future), index=future.index, dtype="datetime64[s]")
    future = future.assign(timestamp=millennia)
    assert np.isfinite(predict_df(predictor, past, future)["0.9"]).all()
    past = past.assign(timestamp=past["timestamp"] + pd.Timedelta("1ns"))
    with pytest.raises(DataError, match="'timestamp': timestamps are given in s and in ns, whose"):
        predict_df(predictor, past, future)


def test_a_gap_that_no_training_has_seen_the_like_of_is_refused(frames, make_estimator):
    past, future = (
        frame.assign(timestamp=frame["timestamp"].astype("int64") / 1e60) for frame in frames
    )
    data = IrregularDataset.from_long_dataframe(past, target="HR")
    predictor = make_estimator(GRUFlowEstimator).train(data)
    with pytest.raises(DataError, match=r"longer than 1e\+30 typical gaps"):
        predict_df(predictor, past, future.assign(timestamp=future["timestamp"] + 1.0))
