"""Training several networks in processes of their own."""

import multiprocessing
import subprocess
import sys

import joblib
import pytest
import torch
from lightning.pytorch.callbacks import Timer

from deltaflow import DeltaflowError, GRUEstimator
from deltaflow.tasks import regular_seasonal
from deltaflow.training import folds, runs

# A script as users write it: without a guard, with an encoder of their own.
SCRIPT = """
import numpy as np
from deltaflow import IrregularEstimator
from deltaflow.encoders import ENCODERS, RecurrentEncoder
from deltaflow.encoders.evolution import Evolution
from deltaflow.tasks import regular_seasonal


class Still(Evolution):
    def prepare(self):
        return lambda hidden, delta_t: hidden + 0 * delta_t.unsqueeze(-1)


ENCODERS["still"] = lambda *sizes: RecurrentEncoder(*sizes, Still())
data = regular_seasonal()
forecasts = []
for processes in (1, 2):
    estimator = IrregularEstimator(
        4, encoder="still", folds=2, blend=False, num_batches_per_epoch=2, dropout=0.5, seed=0,
        processes=processes, trainer_kwargs={"max_epochs": 3},
    )
    predictor = estimator.train(data)
    forecasts.append(np.array([one.quantiles([0.1, 0.9]) for one in predictor.predict(data)]))
np.testing.assert_array_equal(*forecasts)
print("the same")
"""


def test_other_processes_train_the_same_networks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "the same", done.stderr
    assert "Training 2 networks in 2 processes" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_in_another_process_is_raised_here():
    estimator = GRUEstimator(4, folds=2, lr=1e30, processes=2)
    with pytest.raises(DeltaflowError, match="loss"):
        estimator.with_settings(num_batches_per_epoch=2).train(regular_seasonal())


PARENT = '''
import subprocess, sys

code = """
import time
from deltaflow.training import runs
runs._end_with_parent()
print("ready", flush=True)
time.sleep(90)
"""
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
'''


@pytest.mark.skipif(sys.platform == "win32", reason="processes keep the number of their parent")
def test_processes_end_with_their_parent():
    # The child keeps the pipe of its standard error open.
    subprocess.run([sys.executable, "-c", PARENT], stderr=subprocess.PIPE, timeout=60, check=True)


@pytest.fixture
def prepared(monkeypatch):
    """Prepares three networks on a machine with four cores, with these options."""
    monkeypatch.setattr(joblib, "cpu_count", lambda **_: 4)

    def prepare(**options) -> list[runs.Run]:
        estimator = GRUEstimator(4, **{"num_batches_per_epoch": 25, "folds": 3, **options})
        parts = folds.Folds(estimator, regular_seasonal(), seed=0)
        return [parts.prepare(number, parts.estimator, number) for number in range(3)]

    return prepare


@pytest.mark.parametrize(
    "trainer_kwargs",
    [{}, {"logger": False, "enable_checkpointing": False, "devices": "auto", "precision": 32}],
)
def test_by_default_each_core_trains_a_network(trainer_kwargs, prepared):
    assert runs.processes_for(prepared(trainer_kwargs=trainer_kwargs)) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"num_batches_per_epoch": 10},
        {"trainer_kwargs": {"max_epochs": 3}},
        {"trainer_kwargs": {"max_epochs": None, "max_steps": 3}},
        {"trainer_kwargs": {"callbacks": [Timer()]}},
        {"trainer_kwargs": {"logger": True}},
        {"trainer_kwargs": {"enable_checkpointing": True}},
        {"trainer_kwargs": {"devices": 2}},
    ],
)
def test_short_or_watched_training_stays_in_its_process(options, prepared):
    assert runs.processes_for(prepared(**options)) == 1


def test_networks_on_an_accelerator_are_trained_in_one_process(prepared, monkeypatch):
    default, on_cpu = prepared(), prepared(trainer_kwargs={"accelerator": "cpu"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (runs.processes_for(default), runs.processes_for(on_cpu)) == (1, 4)


def test_a_child_process_starts_no_further_ones(prepared, monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    assert runs.processes_for(prepared()) == 1
