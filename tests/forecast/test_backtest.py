"""DataFrames around a forecast: grids of questions, and backtests."""

import numpy as np
import pandas as pd
import pytest

from deltaflow import (
    DataError,
    HoldEstimator,
    HoldPredictor,
    IrregularDataset,
    backtest_df,
    future_df,
    predict_df,
)

START = pd.Timestamp("2024-01-01", tz="Europe/Berlin")


def walk(items: int = 4, rows: int = 48, elapsed: bool = False) -> pd.DataFrame:
    """A value every hour, of items that begin a day after each other."""
    random = np.random.default_rng(0)
    frames = []
    for item in range(items):
        hours = 24.0 * item + np.arange(rows)
        time = hours if elapsed else START + pd.to_timedelta(hours, unit="h")
        values = random.normal(size=(rows, 2)).cumsum(axis=0)
        frames.append(pd.DataFrame({"id": f"i{item}", "t": time, "A": values[:, 0],
                                    "B": values[:, 1]}))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


NAMES = {"item_id": "id", "timestamp": "t"}
ROLES = {"target": ["A", "B"]}


@pytest.mark.parametrize("elapsed", [False, True])
def test_a_grid_goes_on_from_each_items_last_row(elapsed):
    df = walk(2, elapsed=elapsed)
    before = df.copy()
    step, reach = (0.5, 3.0) if elapsed else ("30min", "3h")
    future = future_df(df, horizon=reach, every=step, covariates=["dose"], **NAMES)
    pd.testing.assert_frame_equal(df, before)
    assert list(future) == ["id", "t", "dose"]
    assert future["dose"].isna().all()
    assert future["t"].dtype == df["t"].dtype
    ahead = future["t"] - future["id"].map(df.groupby("id")["t"].max())
    hours = ahead if elapsed else ahead / pd.Timedelta("1h")
    np.testing.assert_allclose(hours, np.tile(np.arange(1, 7) / 2, 2))


def test_a_grid_can_be_asked():
    df = walk()
    predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(df, **NAMES, **ROLES), 6)
    future = future_df(df, horizon="6h", every="2h", **NAMES)
    assert len(predict_df(predictor, df, future, **NAMES)) == 4 * 3 * 2
    single = df[df["id"] == "i0"].drop(columns="id")
    assert list(future_df(single, horizon="2h", every="1h", item_id=None, timestamp="t")) == ["t"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": "1h", "every": "2h"}, "no room"),
        ({"horizon": "1h", "every": "0h"}, "no room"),
        ({"horizon": 3, "every": "1h"}, "not a duration"),
        ({"horizon": "3h", "every": "1h", "covariates": "dose"}, "'dose' is not a list of columns"),
        ({"horizon": "3h", "every": "1h", "covariates": ["t"]}, "field 't': is the column of"),
    ],
)
def test_a_grid_without_points_or_of_other_columns_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        future_df(walk(), **options, **NAMES)


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "timestamp[ns][pyarrow]"])
def test_a_grid_beyond_the_range_of_its_timestamps_is_refused(dtype):
    df = walk()
    df["t"] = df["t"].dt.tz_localize(None).astype(dtype)
    with pytest.raises(DataError, match=r"'t': .* beyond the range of .* datetime64\[us\]"):
        future_df(df, horizon="91250D", every="91250D", **NAMES)


@pytest.mark.parametrize(
    ("elapsed", "horizon", "cutoffs"),
    [
        (False, "12h", 2),
        (True, 12, 2),
        (False, "12h", ["2024-01-03", "2024-01-04"]),
        (False, "12h", ["24h", "36h"]),
        (True, 12.0, [30, 60.0]),
    ],
)
def test_what_came_stands_beside_what_was_forecast(elapsed, horizon, cutoffs):
    df = walk(elapsed=elapsed)
    forecasts, scores = backtest_df(
        HoldEstimator(12), df, horizon=horizon, cutoffs=cutoffs, columns=ROLES, **NAMES
    )
    assert forecasts["cutoff"].nunique() == 2
    tall = df.melt(["id", "t"], var_name="target_name", value_name="value")
    both = forecasts.merge(tall, on=["id", "t", "target_name"], how="left")
    np.testing.assert_array_equal(both["actual"], both["value"])
    assert scores["values"].sum() == len(forecasts)
    assert scores["coverage"].between(0, 1).all()
    if isinstance(cutoffs, int):
        assert forecasts["t"].max() == df["t"].max()


@pytest.mark.parametrize("elapsed", [False, True])
def test_counted_cutoffs_lie_whole_horizons_before_the_last_row(elapsed):
    df = walk(elapsed=elapsed)
    span = 12.0 if elapsed else pd.Timedelta("12h")
    forecasts, _ = backtest_df(
        HoldEstimator(12), df, horizon=12 if elapsed else "12h", cutoffs=3, columns=ROLES, **NAMES
    )
    cutoffs = forecasts["cutoff"].drop_duplicates().tolist()
    assert cutoffs == [df["t"].max() - number * span for number in (3, 2, 1)]
    since = forecasts["t"] - forecasts["cutoff"]
    assert (since > 0 * span).all()
    assert (since <= span).all()


def test_nothing_is_learned_or_read_from_behind_the_cutoff():
    df = walk()

    class Noting(HoldEstimator):
        def train(self, training_data, *args, **kwargs):
            seen.append(max(entry["target"].shape[-1] for entry in training_data))
            return super().train(training_data, *args, **kwargs)

    seen: list[int] = []
    options = {"horizon": "6h", "cutoffs": ["24h", "30h"], "columns": ROLES, **NAMES}
    backtest_df(Noting(6), df, **options)
    assert seen == [24, 30]
    seen.clear()
    once = backtest_df(Noting(6), df, refit=False, **options)
    assert seen == [24]
    early = df.groupby("id").head(24)
    predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(early, **NAMES, **ROLES), 6)
    given = backtest_df(predictor, df, **options)
    pd.testing.assert_frame_equal(once.forecasts, given.forecasts)


def test_scores_are_those_of_their_definitions():
    forecasts, scores = backtest_df(
        HoldEstimator(6), walk(), horizon="6h", cutoffs=["30h"], columns={"target": "A"}, **NAMES
    )
    error = forecasts["actual"] - forecasts["predictions"]
    assert scores["mae"].item() == pytest.approx(error.abs().mean())
    inside = forecasts["actual"].between(forecasts["0.1"], forecasts["0.9"])
    assert scores["coverage"].item() == pytest.approx(inside.mean())


def test_a_cutoff_without_past_or_future_is_refused():
    for cutoff, where in (("2020-01-01", "before"), ("2030-01-01", "after")):
        with pytest.raises(DataError, match=f"nothing lies {where} the cutoff"):
            backtest_df(HoldEstimator(6), walk(), horizon="6h", cutoffs=[cutoff], columns=ROLES,
                        **NAMES)  # fmt: skip


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            lambda t: t.dt.strftime("%Y-%m-%d %H:%M"),
            r"df, item 'i0', field 't', row 0: .*to_datetime",
        ),
        (lambda t: t.dt.tz_localize(None).dt.to_period("h"), "df, field 't': holds period"),
        (
            lambda t: t.where(t.index != 60),
            r"df, item 'i1', field 't', row 60: the time is missing",
        ),
    ],
)
def test_times_that_cannot_be_read_are_refused(grid, times, message):
    df = walk()
    df = df.assign(t=times(df["t"]))
    if grid:
        with pytest.raises(DataError, match=message):
            future_df(df, horizon="6h", every="1h", **NAMES)
    else:
        with pytest.raises(DataError, match=message):
            backtest_df(HoldEstimator(6), df, horizon="6h", columns=ROLES, **NAMES)


@pytest.mark.parametrize("dtype", ["datetime64[s]", "timestamp[us][pyarrow]", "object"])
def test_times_of_any_type_are_read(dtype):
    df = walk()
    other = df.assign(t=df["t"].dt.tz_localize(None).astype(dtype))
    if dtype == "datetime64[s]":  # where nanoseconds do not reach
        other["t"] -= np.timedelta64(400 * 365, "D")
    future = future_df(other, horizon="6h", every="2h", **NAMES)
    assert len(future) == 4 * 3
    options = {"horizon": "6h", "cutoffs": np.int64(2), "columns": ROLES, **NAMES}
    scores = backtest_df(HoldEstimator(6), other, **options).scores
    expected = backtest_df(HoldEstimator(6), df, **options).scores
    pd.testing.assert_frame_equal(scores.drop(columns="cutoff"), expected.drop(columns="cutoff"))


def test_dates_without_hours_are_read():
    df = walk()
    daily = df.groupby(["id", df["t"].dt.tz_localize(None).dt.normalize()])[["A", "B"]].mean()
    daily = daily.reset_index()
    dates = daily.assign(t=daily["t"].astype("date32[pyarrow]"))
    grid = future_df(dates, horizon="3D", every="36h", **NAMES)
    assert grid["t"].tolist() == future_df(daily, horizon="3D", every="36h", **NAMES)["t"].tolist()
    options = {"horizon": "1D", "cutoffs": 1, "columns": ROLES, **NAMES}
    scores = backtest_df(HoldEstimator(2), dates, **options).scores
    pd.testing.assert_frame_equal(scores, backtest_df(HoldEstimator(2), daily, **options).scores)


def test_values_of_any_type_are_scored():
    df = walk()
    df.loc[::3, "A"] = np.nan
    objects = df["A"].astype(object)
    options = {"horizon": "6h", "cutoffs": 2, "columns": ROLES, **NAMES}
    expected = backtest_df(HoldEstimator(6), df, **options)
    for values in (objects.where(df["A"].notna(), pd.NA), df["A"].astype("Float64")):
        result = backtest_df(HoldEstimator(6), df.assign(A=values), **options)
        pd.testing.assert_frame_equal(result.scores, expected.scores)
        pd.testing.assert_frame_equal(result.forecasts, expected.forecasts)


def test_a_single_cutoff_need_not_be_in_a_list():
    options = {"horizon": "6h", "columns": ROLES, **NAMES}
    for cutoff in ("2024-01-03", "24h", pd.Timestamp("2024-01-03", tz="Europe/Berlin")):
        one, listed = (backtest_df(HoldEstimator(6), walk(), cutoffs=given, **options).scores
                       for given in (cutoff, [cutoff]))  # fmt: skip
        pd.testing.assert_frame_equal(one, listed)


@pytest.mark.parametrize(
    ("elapsed", "cutoffs"),
    [
        (True, ["24h"]),
        (False, ["yesterday?"]),
        (False, ["24h", "2024-01-03"]),
        (False, [2024]),  # not nanoseconds since 1970
        (False, [None]),
        (False, 10**6),  # a million times six hours: 684 years
        (True, 0),
        (True, []),
    ],
)
def test_cutoffs_that_are_none_are_refused(elapsed, cutoffs):
    horizon = 6.0 if elapsed else "6h"
    with pytest.raises(DataError, match=r"'cutoffs': .* are not cutoffs of the times in 't'"):
        backtest_df(HoldEstimator(6), walk(elapsed=elapsed), horizon=horizon, cutoffs=cutoffs,
                    columns=ROLES, **NAMES)  # fmt: skip


def test_a_cutoff_in_a_time_zone_of_data_without_one_is_refused():
    df = walk()
    df["t"] = df["t"].dt.tz_localize(None)
    with pytest.raises(DataError, match="have a time zone, and the data none"):
        backtest_df(HoldEstimator(6), df, horizon="6h", cutoffs=START, columns=ROLES, **NAMES)


def test_columns_in_the_index_are_named():
    for frame in (walk().set_index("t"), walk().set_index(["id", "t"])):
        with pytest.raises(DataError, match=r"in the index: call reset_index\(\)"):
            IrregularDataset.from_long_dataframe(frame, **NAMES, **ROLES)


def test_a_cutoff_at_which_the_clocks_change_is_refused():
    df = walk()
    df["t"] += pd.Timedelta("89D")  # the last Sunday in March comes after three days
    options = {"horizon": "6h", "columns": ROLES, **NAMES}
    with pytest.raises(DataError, match=r"clocks of Europe/Berlin change.*'2024-03-31 02:30"):
        backtest_df(HoldEstimator(6), df, cutoffs="2024-03-31 02:30", **options)
    for moment in ("2024-03-31 03:30", "2024-03-31 01:30+00:00"):
        scores = backtest_df(HoldEstimator(6), df, cutoffs=moment, **options).scores
        assert (scores["cutoff"] == pd.Timestamp("2024-03-31 01:30", tz="UTC")).all()


def test_items_may_be_a_dictionary_with_entries_of_no_row():
    pa = pytest.importorskip("pyarrow")
    df = walk()
    coded = df["id"].astype(pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())))
    df, coded = df[df["id"] != "i1"], df.assign(id=coded)[df["id"] != "i1"]
    expected = future_df(df, horizon="6h", every="2h", **NAMES)
    future = future_df(coded, horizon="6h", every="2h", **NAMES)
    assert future["id"].dtype == coded["id"].dtype
    pd.testing.assert_frame_equal(future.astype({"id": str}), expected)
    for cutoffs in (2, "24h", "2024-01-04"):
        options = {"horizon": "6h", "cutoffs": cutoffs, "columns": ROLES, **NAMES}
        one, other = (backtest_df(HoldEstimator(6), frame, **options) for frame in (df, coded))
        pd.testing.assert_frame_equal(one.scores, other.scores)


@pytest.mark.parametrize("column", ["actual", "cutoff", "target_name", "predictions", "0.9"])
def test_columns_of_the_result_are_no_keys(column):
    for key, name in NAMES.items():
        df, names = walk().rename(columns={name: column}), {**NAMES, key: column}
        with pytest.raises(DataError, match=f"field '{column}': is also the name of a column"):
            backtest_df(HoldEstimator(6), df, horizon="6h", columns=ROLES, **names)


def test_a_cutoff_that_is_given_twice_is_scored_once():
    given = {"horizon": "6h", "columns": ROLES, **NAMES}
    once, twice = (
        backtest_df(HoldEstimator(6), walk(), cutoffs=["30h"] * count, **given) for count in (1, 2)
    )
    pd.testing.assert_frame_equal(twice.forecasts, once.forecasts)
    pd.testing.assert_frame_equal(twice.scores, once.scores)


def test_without_actual_values_there_is_an_empty_table_of_scores():
    df = walk()
    predictor = HoldPredictor.fit(IrregularDataset.from_long_dataframe(df, **NAMES, **ROLES), 6)
    late = df["t"] >= df.groupby("id")["t"].transform("min") + pd.Timedelta("30h")
    hidden = df.assign(A=df["A"].mask(late), B=df["B"].mask(late))
    forecasts, scores = backtest_df(predictor, hidden, horizon="6h", cutoffs=["30h"], **NAMES)
    assert len(forecasts) == 4 * 6 * 2
    assert len(scores) == 0
    assert scores["mae"].empty


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_lengths_of_time_may_be_numbers_of_numpy(kind):
    df = walk(elapsed=True)
    given = {"columns": ROLES, **NAMES}
    expected = backtest_df(HoldEstimator(6), df, horizon=6, cutoffs=2, **given).scores
    scores = backtest_df(HoldEstimator(6), df, horizon=kind(6), cutoffs=2, **given).scores
    pd.testing.assert_frame_equal(scores, expected)


def test_scores_need_levels():
    with pytest.raises(DataError, match="'quantile_levels': there are none"):
        backtest_df(HoldEstimator(6), walk(), horizon="6h", columns=ROLES, quantile_levels=[],
                    **NAMES)  # fmt: skip
