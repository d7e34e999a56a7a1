"""Observations in as they arrive, forecasts out: nothing is lost, and nothing is half done."""

import os
import signal
import threading
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.core.component import validated
from gluonts.torch.distributions import GammaOutput, PoissonOutput

from deltaflow import (
    ConformalPredictor,
    DataError,
    DeltaflowError,
    IrregularDataModule,
    IrregularDataset,
    IrregularPredictor,
    LiveForecaster,
    predict_df,
)
from deltaflow.forecast.conformal import LEVELS
from deltaflow.forecast.live import item_table
from deltaflow.forecast.location_scale import LocationScalePredictor
from deltaflow.process import threads

START = pd.Timestamp("2024-03-01")


def predictor_of(data, encoder="gru_flow", hidden_size=8, distr_output="student_t", **options):
    reader = IrregularDataModule(data, prediction_length=4, context_length=12).reader
    return IrregularPredictor(
        reader=reader.to_dict(),
        prediction_length=4,
        network={"encoder": encoder, "network": "joint", "hidden_size": hidden_size, **options},
        distr_output=distr_output,
    )


@pytest.fixture(scope="module")
def single(univariate):
    """A predictor of one channel without features."""
    return predictor_of(univariate)


@pytest.fixture(scope="module")
def rich(multivariate):
    """A predictor of two channels, with covariates and static features."""
    return predictor_of(multivariate)


def rows(items, hours, values=80.0):
    """Observations of a heart rate."""
    times = START + pd.to_timedelta(np.asarray(hours) * 3600.0, unit="s")
    return pd.DataFrame({"item_id": items, "timestamp": times, "HR": values})


def answers(live, *items, hours=(100.0, 130.0)):
    """What is forecast of items: equal answers mean equal states."""
    future = pd.concat([rows(item, hours).drop(columns="HR") for item in items])
    return live.forecast(future)


def test_a_forecast_has_a_row_per_question_and_channel_in_the_callers_order(rich, make_frame):
    frame = make_frame(("HR", "MAP"))
    live = LiveForecaster(rich)
    live.update(frame)
    assert len(live) == 8
    assert "p3" in live
    assert "p9" not in live
    later = frame["timestamp"].max() + pd.to_timedelta([3, 1, 2], unit="h")
    future = pd.DataFrame({"item_id": ["p1", "p0", "p1"], "timestamp": later, "dose": [1.0, 2, 3]})
    told = live.forecast(future, quantile_levels=[0.25])
    assert list(told.columns)[2:] == ["target_name", "predictions", "mean", "0.25"]
    assert told["target_name"].tolist() == ["HR", "MAP"] * 3
    assert told["item_id"].tolist() == ["p1", "p1", "p0", "p0", "p1", "p1"]
    assert (told["timestamp"].to_numpy()[::2] == later.to_numpy()).all()
    pd.testing.assert_frame_equal(
        told,
        predict_df(live.predictor, frame, future, quantile_levels=[0.25]),
        atol=1e-4,
    )


def test_items_are_the_same_if_they_read_the_same(single):
    live = LiveForecaster(single)
    live.update(rows([1, 2], [0.0, 0.0]))
    live.update(rows([1.0, 2.0], [1.0, 1.0]))
    live.update(rows(["1"], [2.0]))
    assert len(live) == 2
    assert 1 in live
    assert live.item("1")["num_observations"] == 3


def test_updates_and_forecasts_use_one_thread(single, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    live, used = LiveForecaster(single), []
    (member,) = live.states.members
    for method in ("read", "forecast"):
        own = getattr(member, method)
        monkeypatch.setattr(
            member,
            method,
            lambda *args, own=own: used.append(torch.get_num_threads()) or own(*args),
        )
    with threads(2):
        live.update(rows("a", [1.0, 2.0]))
        answers(live, "a")
        assert torch.get_num_threads() == 2
    assert used == [1, 1]


def test_a_single_series_needs_no_item(univariate, single):
    live = LiveForecaster(single, item_id=None, timestamp="when")
    frame = rows("a", [0.0, 1.0]).rename(columns={"timestamp": "when"}).drop(columns="item_id")
    live.update(frame)
    told = live.forecast(frame[["when"]].tail(1))
    assert list(told.columns[:2]) == ["when", "target_name"]


def test_an_item_tells_what_was_seen_of_it(rich, make_frame):
    frame = make_frame(("HR", "MAP"), num_items=1)
    frame["MAP"] = np.nan
    live = LiveForecaster(rich)
    live.update(frame)
    seen = live.item("p0")
    assert seen["num_observations"] == 20
    assert (seen["first"], seen["last"]) == tuple(frame["timestamp"].iloc[[0, -1]])
    assert seen["observed"]["MAP"] is None
    newest = frame[frame["lab"].notna()]["timestamp"].iloc[-1]
    assert seen["observed"]["lab"] == newest


def test_elapsed_numbers_are_times_too(make_frame):
    frame = make_frame()
    frame["timestamp"] = (frame["timestamp"] - START) / pd.Timedelta("1min")
    data = IrregularDataset.from_long_dataframe(frame, target="HR", time_unit="min")
    live = LiveForecaster(predictor_of(data))
    for _, row in frame.groupby(frame.index % 20):
        live.update(row)
    future = frame.groupby("item_id").tail(1).assign(timestamp=lambda f: f["timestamp"] + 60.5)
    once = predict_df(live.predictor, frame, future)
    pd.testing.assert_frame_equal(live.forecast(future), once, atol=1e-4)
    assert live.item("p0")["last"] == frame[frame["item_id"] == "p0"]["timestamp"].iloc[-1]


def test_times_in_other_units_and_zones_are_the_same_moments(make_frame):
    frame = make_frame().assign(timestamp=lambda f: f["timestamp"].dt.tz_localize("UTC"))
    data = IrregularDataset.from_long_dataframe(frame, target="HR")
    live, same = LiveForecaster(predictor_of(data)), LiveForecaster(predictor_of(data))
    same.update(frame)
    first, second = frame[frame.index % 20 < 9], frame[frame.index % 20 >= 9]
    live.update(first.assign(timestamp=first["timestamp"].dt.as_unit("s")))
    live.update(second.assign(timestamp=second["timestamp"].dt.tz_convert("Asia/Tokyo")))
    future = frame.groupby("item_id").tail(1).copy()
    # A question in nanoseconds, behind observations in seconds.
    future["timestamp"] += pd.Timedelta("1h") + pd.Timedelta(1, unit="ns")
    pd.testing.assert_frame_equal(live.forecast(future), same.forecast(future), rtol=1e-9)


def test_seconds_count_after_decades(single):
    """Observations a second apart are told apart, and read as such, 60 years after the first."""
    hours = [-60 * 365 * 24.0, *(np.arange(10) / 3600)]
    live = LiveForecaster(single)
    for hour in hours:
        live.update(rows("a", [hour], 80.0 + hour % 7))
    told = answers(live, "a", hours=[11 / 3600])
    history = rows("a", hours, 80.0 + np.array(hours) % 7)
    once = predict_df(live.predictor, history, rows("a", [11 / 3600]))
    pd.testing.assert_frame_equal(told, once, atol=1e-4)
    assert live.item("a")["last"] == START + pd.Timedelta("9s")


# What is wrong with a batch of otherwise good rows, and what its error says.
BAD_BATCHES = {
    "early": (rows(["a", "b"], [5.0, 0.5]), "item 'b'.*01 00:30:00 lies before.*01:00.*forget"),
    "again": (rows(["a", "b"], [5.0, 1.0]), "item 'b'.*01:00:00 is that of the last.*drop the row"),
    "unsorted": (rows(["a", "c", "c"], [5.0, 3.0, 2.0]), "item 'c'.*not sorted.*sort"),
    "twice": (rows(["a", "c", "c"], [5.0, 3.0, 3.0]), "item 'c'.*duplicate.*merge"),
    "infinite": (rows(["a", "c"], [5.0, 5.0], [1.0, np.inf]), "item 'c', field 'HR'.*infinite"),
    "huge": (rows(["a", "c"], [5.0, 5.0], [1.0, 1e101]), "item 'c', field 'HR'.*larger"),
    "text": (rows(["a", "c"], [5.0, 5.0], [1.0, "x"]), "item 'c', field 'HR'.*not a number"),
    "no time": (rows(["a", "c"], [5.0, np.nan]), "item 'c'.*time is missing"),
    "no item": (rows(["a", None], [5.0, 5.0]), "item identifier is missing"),
    "no column": (rows(["a"], [5.0]).drop(columns="HR"), "field 'HR'.*no such column"),
    "numbers": (rows(["a"], [5.0]).assign(timestamp=5.0), "in the training data as timestamps"),
    "zone": (
        rows(["a"], [5.0]).assign(timestamp=lambda f: f["timestamp"].dt.tz_localize("UTC")),
        "those of the training data have none",
    ),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_a_bad_row_leaves_all_items_as_they_were(kind, single):
    live = LiveForecaster(single)
    live.update(rows(["a", "a", "b"], [0.0, 1.0, 1.0], [80.0, 90.0, 60.0]))
    before = answers(live, "a", "b")
    batch, message = BAD_BATCHES[kind]
    with pytest.raises(DataError, match=message):
        live.update(batch)
    assert len(live) == 2
    pd.testing.assert_frame_equal(answers(live, "a", "b"), before, check_exact=True)
    live.update(rows(["a", "c"], [5.0, 5.0]))  # as if nothing had happened


def test_static_features_come_with_the_first_rows_and_stay(rich, make_frame):
    frame = make_frame(("HR", "MAP"), num_items=2)
    plain = frame.drop(columns=["age", "ward"])
    begun, more = frame.index % 20 < 3, frame.index % 20 >= 3
    live = LiveForecaster(rich)
    with pytest.raises(DataError, match=r"item 'p0', field 'age'.*new.*static feature is missing"):
        live.update(plain[begun])
    live.update(frame[begun])
    for changed, name in ((frame.assign(age=1.0), "age"), (frame.assign(ward="er"), "ward")):
        with pytest.raises(DataError, match=f"item 'p.', field '{name}'.*not what it was"):
            live.update(changed[more])
    live.update(plain[more])
    future = frame.groupby("item_id").tail(1)
    once = predict_df(live.predictor, frame, future)
    pd.testing.assert_frame_equal(live.forecast(future), once, atol=1e-4)


def test_missing_static_features_are_unknown_ones(rich, make_frame):
    frame = make_frame(("HR", "MAP"), num_items=3)
    frame.loc[frame["item_id"] == "p0", ["age", "ward"]] = None
    frame.loc[frame["item_id"] == "p1", "ward"] = "another"
    live = LiveForecaster(rich)
    live.update(frame)
    future = frame.groupby("item_id").tail(1)
    once = predict_df(live.predictor, frame, future)
    pd.testing.assert_frame_equal(live.forecast(future), once, atol=1e-4)
    with pytest.raises(DataError, match=r"item 'p0', field 'ward'.*not what it was"):
        live.update(future.assign(timestamp=future["timestamp"] + pd.Timedelta("1h"), ward="icu"))


def test_no_rows_are_no_news(single):
    live = LiveForecaster(single)
    live.update(rows("a", [0.0]))
    live.update(rows("a", [1.0]).iloc[:0])
    assert live.item("a")["num_observations"] == 1


def test_bad_questions_are_refused_by_name(single):
    live = LiveForecaster(single)
    live.update(rows("a", [0.0, 1.0]))
    with pytest.raises(DataError, match=r"future_df, item 'b'.* not known.*update"):
        answers(live, "a", "b")
    with pytest.raises(DataError, match=r"future_df, item 'a'.*before the last.*01:00.*later"):
        answers(live, "a", hours=[2.0, 0.9])
    with pytest.raises(DataError, match="no rows"):
        live.forecast(rows([], []))
    with pytest.raises(DataError, match="quantile_levels"):
        live.forecast(rows("a", [2.0]), quantile_levels=[2])


def test_a_gap_beyond_float32_is_refused(make_frame):
    frame = make_frame()
    frame["timestamp"] = np.arange(len(frame)) * 1e-22
    data = IrregularDataset.from_long_dataframe(frame, target="HR", time_unit="s")
    live = LiveForecaster(predictor_of(data))
    first = pd.DataFrame({"item_id": ["a"], "timestamp": [0.0], "HR": [80.0]})
    live.update(first)
    with pytest.raises(DataError, match=r"item 'a'.*gap is longer"):
        live.update(first.assign(timestamp=1e12))
    with pytest.raises(DataError, match=r"item 'a'.*gap is longer"):
        live.forecast(first.assign(timestamp=1e12))


def test_a_state_that_is_not_finite_is_not_kept(univariate):
    live = LiveForecaster(predictor_of(univariate, "resnet_flow"))
    live.update(rows("a", [0.0]))
    with torch.no_grad():
        live.predictor.network.encoder.input_projection.bias.fill_(torch.nan)
    with pytest.raises(DeltaflowError, match="not a number: train again"):
        live.update(rows(["a", "b"], [1.0, 1.0]))
    assert live.item("a")["num_observations"] == 1
    assert "b" not in live


def test_what_keeps_no_state_is_refused_by_name(univariate, single):
    class Plain(LocationScalePredictor):
        @validated()
        def __init__(self, prediction_length: int, data_schema: dict) -> None:
            super().__init__(prediction_length, data_schema)

    plain = Plain(4, univariate.schema.to_dict())
    with pytest.raises(DeltaflowError, match=r"a Plain keeps no state.*predict_df.*HoldPredictor"):
        LiveForecaster(plain)
    with pytest.raises(DeltaflowError, match="a Plain keeps no state"):
        LiveForecaster(
            ConformalPredictor(plain, [[3600.0]], [[[0.0] * len(LEVELS)] * 2], [1.0], [5])
        )
    hermite = predictor_of(univariate, "neural_cde", encoder_kwargs={"interpolation": "hermite"})
    with pytest.raises(DeltaflowError, match=r"'neural_cde' cannot read one observation.*hermite"):
        LiveForecaster(hermite)
    path = IrregularPredictor(**{**single._arguments(), "sampling": "path"})
    with pytest.raises(DeltaflowError, match="sampling='path' draws paths"):
        LiveForecaster(path)
    with pytest.raises(DeltaflowError, match="a str does not know the schema"):
        LiveForecaster("model")
    with pytest.raises(DataError, match="field 'HR'"):
        LiveForecaster(single, item_id="HR")


@pytest.mark.parametrize("output", ["negative_binomial", GammaOutput()])
def test_samples_stand_for_a_distribution_without_quantiles(make_frame, output):
    frame = make_frame().assign(HR=lambda f: f["HR"].round())
    data = IrregularDataset.from_long_dataframe(frame, target="HR")
    live = LiveForecaster(predictor_of(data, distr_output=output))
    live.update(frame)
    future = frame.groupby("item_id").tail(1)
    state = torch.random.get_rng_state()
    first, second = (live.forecast(future, seed=1) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert (torch.random.get_rng_state() == state).all()


@pytest.mark.parametrize("output", [PoissonOutput(), GammaOutput()])
def test_the_samples_of_an_item_do_not_depend_on_other_items(make_frame, output):
    frame = make_frame().assign(HR=lambda f: f["HR"].round())
    data = IrregularDataset.from_long_dataframe(frame, target="HR")
    live = LiveForecaster(predictor_of(data, distr_output=output))
    live.update(pd.concat([frame, frame.assign(item_id="twin of " + frame["item_id"])]))
    options = {"seed": 1, "quantile_levels": np.arange(1, 20) / 20}
    future = frame.assign(timestamp=frame["timestamp"] + pd.Timedelta("90d"))
    together = live.forecast(future, **options)
    for item, own in future.groupby("item_id"):
        expected = together[together["item_id"] == item].reset_index(drop=True)
        pd.testing.assert_frame_equal(live.forecast(own, **options), expected)
    twins = live.forecast(future.assign(item_id="twin of " + future["item_id"]), **options)
    assert not twins.iloc[:, 3:].equals(together.iloc[:, 3:])


def test_forgotten_items_may_begin_anew(single):
    live = LiveForecaster(single)
    live.update(rows(["a", "b", "c"], [10.0] * 3, [80.0, 90.0, 100.0]))
    with pytest.raises(DataError, match="item 'x'"):
        live.forget(["a", "x"])
    assert len(live) == 3
    before = answers(live, "a", "c")
    live.forget(["b"])
    assert len(live) == 2
    # Their places are taken by others, and nothing of them is left.
    live.update(rows(["d", "b"], [0.0, 0.0], [20.0, 30.0]))
    pd.testing.assert_frame_equal(answers(live, "a", "c"), before, check_exact=True)
    fresh = LiveForecaster(single)
    fresh.update(rows(["d", "b"], [0.0, 0.0], [20.0, 30.0]))
    pd.testing.assert_frame_equal(answers(live, "d", "b"), answers(fresh, "d", "b"))


def test_states_have_a_fixed_size(single):
    live = LiveForecaster(single)
    live.update(rows("a", [0.0]))
    size = live.bytes_per_item
    live.update(rows("a", np.arange(1.0, 50)))
    assert live.bytes_per_item == size < 150
    assert f"{size} bytes" in repr(live)


def test_a_snapshot_goes_on_as_if_nothing_had_happened(rich, make_frame, tmp_path):
    frame = make_frame(("HR", "MAP"))
    live = LiveForecaster(rich)
    live.update(frame[frame.index % 20 < 10])
    live.forget(["p2"])
    live.save(tmp_path / "state")
    again = LiveForecaster.load(tmp_path / "state")
    assert len(again) == 7
    rest = frame[(frame.index % 20 >= 10) & (frame["item_id"] != "p2")]
    for one in (live, again):
        one.update(rest)
    future = rest.groupby("item_id").tail(1)
    pd.testing.assert_frame_equal(live.forecast(future), again.forecast(future), check_exact=True)
    assert live.item("p1") == again.item("p1")


def test_a_snapshot_is_of_one_moment(single, monkeypatch):
    monkeypatch.setattr(item_table, "AT_ONCE", 2)
    live = LiveForecaster(single)
    names = [f"item{number}" for number in range(5)]
    live.update(rows(names, np.arange(5.0)))
    with live.states.frozen() as (_, table):
        before = torch.cat(list(table.pieces()))
    with live.states.frozen() as (clock, table):
        pieces = table.pieces()
        first = next(pieces)
        for hour in (5.0, 6.0):
            live.update(rows(names[:4], np.full(4, hour)))
        live.forget(names[1:3])
        live.update(rows([f"new{number}" for number in range(20)], np.arange(20.0)))
        finer = rows("item4", [7.0])
        finer["timestamp"] += pd.Timedelta("1ms")
        live.update(finer)
        written = torch.cat([first, *pieces])
    assert table.names == names
    assert (clock.resolution, live.states.clock.resolution) == ("s", "ms")
    assert torch.equal(before, written)


def test_any_name_survives_a_snapshot(single, tmp_path):
    names = ["", "ä", "a\nb", "0", "\ud800", "x" * 1000]
    live = LiveForecaster(single)
    live.save(tmp_path / "empty")
    assert len(LiveForecaster.load(tmp_path / "empty")) == 0
    live.update(rows(names, [0.0] * len(names)))
    live.save(tmp_path / "state")
    again = LiveForecaster.load(tmp_path / "state")
    assert all(name in again for name in names)


def rewritten(path, member, content):
    """Replace a member of a snapshot."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in kept.items():
            archive.writestr(name, content(old) if name == member else old)


def test_a_damaged_snapshot_is_refused_by_name(single, tmp_path, make_frame):
    path = tmp_path / "state"
    live = LiveForecaster(single)
    live.update(rows(["a", "b"], [0.0, 0.0]))

    def check(message):
        with pytest.raises(DeltaflowError, match=f"state.*{message}"):
            LiveForecaster.load(path)

    check("missing")
    live.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    check("damaged")
    path.write_bytes(whole[:2000] + b"x" + whole[2001:])
    check("damaged")
    for member, content, message in (
        ("live.json", lambda old: old.replace(b'"format": 2', b'"format": 0'), "format 0"),
        ("live.json", lambda old: old.replace(b"LiveForecaster", b"os.system"), "not a snapshot"),
        ("live.json", lambda old: old.replace(b'"resolution": "s"', b'"resolution": "x"'), "ticks"),
        ("records.npy", lambda old: old[:-8], "damaged"),
        ("names.npy", lambda old: old.replace(b"ab", b"aa"), "twice"),
    ):
        path.write_bytes(whole)
        rewritten(path, member, content)
        check(message)


def test_a_full_disk_leaves_the_former_snapshot(single, tmp_path, little_room):
    live = LiveForecaster(single)
    live.update(rows("a", [0.0]))
    live.save(tmp_path / "state")
    live.update(rows("a", [1.0]))
    with little_room(2000), pytest.raises(OSError, match="state"):
        live.save(tmp_path / "state")
    assert LiveForecaster.load(tmp_path / "state").item("a")["num_observations"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_while_saving_leaves_a_snapshot(single, tmp_path):
    live = LiveForecaster(single)
    live.update(rows(["a", "b"], [0.0, 0.0]))
    live.save(tmp_path / "state")
    for delay in np.random.default_rng(0).uniform(0, 0.1, 5):
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            for hour in range(1, 10**6):
                live.update(rows(["a", "b"], [hour, hour]))
                live.save(tmp_path / "state")
                os.write(writing, b".")
        os.close(writing)
        with open(reading, "rb", buffering=0) as saved:
            count = len(saved.read(3))
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            count += len(saved.readall())
        again = LiveForecaster.load(tmp_path / "state")
        # Every snapshot that was acknowledged, and perhaps one more.
        assert again.item("a")["num_observations"] - 1 in (count, count + 1)
        assert again.item("b") == {**again.item("a"), "item_id": "b"}
        live.save(tmp_path / "state")


def test_threads_may_share_it(single, tmp_path):
    live, failures = LiveForecaster(single), []
    hours = np.arange(20.0)

    def write(item):
        for hour in hours:
            live.update(rows([item, f"{item}'"], [hour, hour], 80.0 + hour % 7))

    def ask():
        while not done.is_set():
            known = [item for item in items if f"{item}'" in live]
            for item in known:
                told = answers(live, item, f"{item}'")
                # Both got the same rows in the same updates, so their states are never apart.
                if not np.array_equal(told["0.9"][:2], told["0.9"][2:]):
                    failures.append(item)
            live.save(tmp_path / "state")

    items = [f"item{number}" for number in range(4)]
    done = threading.Event()
    reader = threading.Thread(target=ask)
    writers = [threading.Thread(target=write, args=(item,)) for item in items]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not failures
    alone = LiveForecaster(single)
    alone.update(rows("item0", hours, 80.0 + hours % 7))
    for item in items:
        told = answers(live, item, f"{item}'")["predictions"].to_numpy().reshape(2, -1)
        once = answers(alone, "item0")["predictions"].to_numpy()
        np.testing.assert_allclose(told, [once, once], rtol=1e-6)
