"""A predictor that cannot be saved leaves the one that was there, and no half of another."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deltaflow import DeltaflowError, EnsemblePredictor, HoldPredictor, load_predictor
from deltaflow.saving import MARKER, replacing, replacing_file

KINDS = ("hold", "network", "ensemble")


@pytest.fixture
def make(trained, univariate):
    """A function ``(kind, number of another one) -> predictor``."""

    def get(kind: str, other: int = 0):
        hold = HoldPredictor.fit(univariate[other:], 4)
        network = trained("GRUFlowEstimator" if other else "GRUEstimator")
        parts = [network, hold, hold] if other else [hold, network]
        return {"hold": hold, "network": network, "ensemble": EnsemblePredictor(parts)}[kind]

    return get


def forecasts(predictor, entries) -> np.ndarray:
    return np.stack([forecast.quantile(0.9) for forecast in predictor.predict(entries)])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_the_previous_predictor(
    kind, make, univariate, instances, little_room, tmp_path
):
    entries = instances(univariate)
    make(kind).serialize(tmp_path / "model")
    before = files(tmp_path / "model")
    room = {"hold": 100, "network": 6000, "ensemble": 6000}[kind]  # in the middle of its last file
    other = make(kind, 3)
    with little_room(room), pytest.raises(OSError, match="File too large"):
        other.serialize(tmp_path / "model")
    assert files(tmp_path / "model") == before
    loaded = load_predictor(tmp_path / "model")
    np.testing.assert_array_equal(forecasts(loaded, entries), forecasts(make(kind), entries))


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_predictor_takes_the_place_of_another(
    kind, make, univariate, instances, tmp_path
):
    (tmp_path / "notes.txt").write_text("kept")
    for first in KINDS:
        make(first, 3).serialize(tmp_path)
        make(kind).serialize(tmp_path)
        entries = instances(univariate)
        loaded = load_predictor(tmp_path)
        np.testing.assert_array_equal(forecasts(loaded, entries), forecasts(make(kind), entries))
    assert not [name for name in files(tmp_path) if "unfinished" in name]
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_a_path_that_cannot_be_a_directory_is_an_error_of_the_system(make, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="file"):
        make("hold").serialize(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_table_that_cannot_be_written_leaves_the_previous_one(tmp_path):
    (tmp_path / "forecasts.csv").write_text("old")

    def fail_half_way() -> None:
        with replacing_file(tmp_path / "forecasts.csv") as unfinished:
            unfinished.write_text("new")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail_half_way()
    assert files(tmp_path) == ["forecasts.csv"]
    assert (tmp_path / "forecasts.csv").read_text() == "old"


def test_a_full_disk_is_an_error_that_names_the_file(little_room, tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")

    def write() -> None:
        with replacing_file(file) as unfinished:
            unfinished.write_bytes(bytes(11))

    with little_room(10), pytest.raises(OSError, match=f"'{re.escape(str(file))}'"):
        write()
    assert files(tmp_path) == ["table.csv"]
    assert file.read_text() == "old"


def test_nothing_changes_before_all_is_written(tmp_path):
    (tmp_path / MARKER).write_text("old")

    def fail_half_way() -> None:
        with replacing(tmp_path) as folder:
            (folder / MARKER).write_text("new")
            assert (tmp_path / MARKER).read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert files(tmp_path) == [MARKER]
    assert (tmp_path / MARKER).read_text() == "old"


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "new" / "table.csv"

    def fail_half_way() -> None:
        with replacing_file(file) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    with replacing_file(file) as one, replacing_file(file) as other:
        one.write_text("one")
        other.write_text("other")  # of another process, at the same time
    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert files(tmp_path / "new") == ["table.csv"]
    assert file.read_text() == "one"


KILLED_AMID_RENAMING = """
import os, signal, sys
from pathlib import Path
from deltaflow import load_predictor

predictor = load_predictor(sys.argv[1])
rename, renamed = Path.replace, []

def replace(self, target):
    renamed.append(target)
    if len(renamed) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.replace = replace
predictor.serialize(sys.argv[2])
"""


def test_a_process_killed_amid_renaming_leaves_no_mixture(make, tmp_path):
    make("network").serialize(tmp_path / "model")
    make("network", 3).serialize(tmp_path / "other")
    command = [sys.executable, "-c", KILLED_AMID_RENAMING, str(tmp_path / "other")]
    done = subprocess.run([*command, str(tmp_path / "model")], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(DeltaflowError, match="holds no predictor"):
        load_predictor(tmp_path / "model")
    make("network", 3).serialize(tmp_path / "model")
    load_predictor(tmp_path / "model")
