"""The search for options: it ends in time, at Ctrl-C too, and returns a blend and a leaderboard."""

import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from gluonts.core import serde

from deltaflow import DeltaflowError, IrregularDataset, UnknownNameError, load_predictor
from deltaflow.cli import main
from deltaflow.training import auto, plan
from deltaflow.training.auto import AutoEstimator
from deltaflow.training.blend import compared_loss
from deltaflow.training.estimator import IrregularEstimator

pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(plan, "EPOCHS", 1)
    monkeypatch.setitem(plan.SMALL, "num_batches_per_epoch", 2)


def waves(number: int = 8) -> IrregularDataset:
    random = np.random.default_rng(0)
    frames = []
    for item in range(number):
        times = random.exponential(1.0, 12).cumsum()
        values = np.sin(times) + 0.1 * random.normal(size=12)
        frames.append(pd.DataFrame({"item_id": f"i{item}", "timestamp": times, "target": values}))
    return IrregularDataset.from_long_dataframe(pd.concat(frames))


def asked(data, ahead=2):
    for entry in data:
        times = entry["feat_dynamic_real"]
        more = times[0, -1] + np.arange(1.0, ahead + 1)
        yield {**entry, "feat_dynamic_real": np.concatenate([times, more[None]], axis=1)}


def test_a_search_ends_in_time():
    begun = time.monotonic()
    AutoEstimator(2, time_limit=6.0, presets="fast", seed=0, verbose=False).train(waves())
    assert time.monotonic() - begun < 1.1 * 6.0 + 10


def test_a_search_ends_with_a_blend_and_a_leaderboard(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(auto._Search, "_has_time", lambda search: len(search.trials) < 8)
    predictor = AutoEstimator(2, time_limit=600.0, presets="fast", seed=0).train(waves())
    board = predictor.leaderboard
    assert board["loss"].is_monotonic_increasing
    defaults = board[(board["lr"] == 3e-3) & (board["weight_decay"] == 0.01)]
    assert sorted(defaults["fold"]) == [0, 1, 2, 3, 4]
    assert defaults["chosen"].all()
    bound = defaults.set_index("fold")["loss"]
    others = board.drop(defaults.index)
    alike = others[others["loss"] <= auto.ALIKE * others["fold"].map(bound)]
    chosen = others.query("chosen")
    assert set(chosen.index) == set(alike.groupby("fold")["loss"].idxmin())
    assert {"encoder", "dropout", "lr", "seconds"} <= set(board)
    assert "hold's quantile loss" in capsys.readouterr().err
    predictor.serialize(tmp_path)
    loaded = load_predictor(tmp_path)
    pd.testing.assert_frame_equal(loaded.leaderboard, board)
    for first, second in zip(
        predictor.predict(asked(waves())), loaded.predict(asked(waves())), strict=True
    ):
        np.testing.assert_array_equal(first.quantile(0.9), second.quantile(0.9))
        assert np.isfinite(first.quantile(0.9)).all()


def test_supports_may_be_given(monkeypatch):
    monkeypatch.setattr(auto._Search, "_has_time", lambda search: search.rehearsed is None)
    given = {"target": [-3.0, 0.5]}
    estimator = AutoEstimator(2, time_limit=600.0, supports=given, seed=0, verbose=False)
    estimator = serde.load_json(serde.dump_json(estimator))
    data = IrregularDataset(
        [{**entry, "target": np.minimum(entry["target"], 0.5)} for entry in waves()],
        waves().schema,
    )
    for forecast in estimator.train(data).predict(asked(data)):
        assert forecast.quantile(0.999).max() <= 0.5


def test_a_search_without_time_for_more_is_the_default_estimator(monkeypatch):
    """It trains the same networks, rehearses, blends and calibrates in the same way."""
    monkeypatch.setattr(auto._Search, "_has_time", lambda search: search.rehearsed is None)
    found = AutoEstimator(2, time_limit=600.0, seed=0, verbose=False).train(waves())
    assert len(found.leaderboard) == 5
    default = IrregularEstimator(2, seed=0, trainer_kwargs={"enable_progress_bar": False})
    pairs = [predictor.predict(asked(waves())) for predictor in (found, default.train(waves()))]
    for one, other in zip(*pairs, strict=True):
        levels = [0.1, 0.5, 0.9]
        np.testing.assert_allclose(one.quantiles(levels), other.quantiles(levels), rtol=1e-6)


@pytest.mark.slow
def test_networks_trained_at_the_same_time_are_those_trained_one_after_the_other(monkeypatch):
    found = []
    for processes in (1, 2):
        monkeypatch.setattr(auto, "processes_for", lambda runs, count=processes: count)
        monkeypatch.setattr(auto._Search, "_has_time", lambda search: len(search.trials) < 5)
        search = AutoEstimator(2, time_limit=600.0, presets="fast", seed=0, verbose=False)
        found.append(search.train(waves()))
    boards = [one.leaderboard.drop(columns="seconds") for one in found]
    assert len(boards[0]) == 5
    pd.testing.assert_frame_equal(*boards)
    for one, other in zip(*(own.predict(asked(waves())) for own in found), strict=True):
        np.testing.assert_array_equal(one.quantiles([0.1, 0.9]), other.quantiles([0.1, 0.9]))


def test_ctrl_c_ends_a_search_with_the_best_so_far(monkeypatch):
    """The key is pressed half a second after the first network is there."""
    before = signal.getsignal(signal.SIGINT)
    judged = threading.Event()

    def judge(*args):
        loss = compared_loss(*args)
        judged.set()
        return loss

    def press():
        judged.wait(60)
        time.sleep(0.5)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(auto, "compared_loss", judge)
    threading.Thread(target=press).start()
    begun = time.monotonic()
    predictor = AutoEstimator(2, time_limit=600.0, presets="fast", verbose=False).train(waves())
    assert time.monotonic() - begun < 60
    assert len(predictor.leaderboard) >= 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_ends_a_search_wherever_it_is_pressed(monkeypatch):
    def judge(*args):
        with suppress(KeyboardInterrupt):  # as in a destructor
            signal.raise_signal(signal.SIGINT)
        return compared_loss(*args)

    monkeypatch.setattr(auto, "compared_loss", judge)
    predictor = AutoEstimator(2, time_limit=600.0, presets="fast", verbose=False).train(waves())
    assert len(predictor.leaderboard) == 1


def test_ctrl_c_while_a_second_fold_is_judged_keeps_the_first(monkeypatch):
    calls = iter(range(9))

    def judge(*args):
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return compared_loss(*args)

    monkeypatch.setattr(auto, "compared_loss", judge)
    predictor = AutoEstimator(2, time_limit=600.0, presets="fast", verbose=False).train(waves())
    assert len(predictor.leaderboard) == 1


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(UnknownNameError, match="preset"):
        AutoEstimator(2, presets="excellent")
    with pytest.raises(DeltaflowError, match="time_limit must be a positive number"):
        AutoEstimator(2, time_limit=0)
    with pytest.raises(DeltaflowError, match="fewer than two"):
        AutoEstimator(2, time_limit=1, verbose=False).train(waves(1))


def test_the_command_saves_what_it_finds_in_a_file(tmp_path, capsys):
    random = np.random.default_rng(0)
    weeks = pd.date_range("2024-01-01", periods=8, freq="W")  # of which CSV makes text
    frame = pd.DataFrame({"item_id": np.repeat(list("abcdef"), 8), "week": np.tile(weeks, 6)})
    frame["sales"] = random.poisson(3.0, len(frame))
    frame.to_csv(tmp_path / "sales.csv", index=False)
    options = ["--prediction_length", "2", "--time-limit", "4", "--presets", "fast"]
    columns = ["--timestamp", "week", "--target", "sales", "--time-unit", "W"]
    saved = tmp_path / "found"
    given = ["auto", str(tmp_path / "sales.csv"), *options, *columns, "--output", str(saved)]
    assert main(given) == 0
    assert "encoder" in capsys.readouterr().out
    assert load_predictor(saved).summary()["target"] == ["sales"]
    assert main(["auto", "sales.txt", *options]) == 2
    assert "sales.txt is not a .csv, .gz, .parquet file" in capsys.readouterr().err
