"""What is said while models are trained: what concerns the user's data, once."""

import logging
import subprocess
import sys
import warnings

import lightning.pytorch as pl
import pytest
import torch

from deltaflow import GRUEstimator
from deltaflow.forecast.gaussian_process.predictor import GaussianProcessPredictor
from deltaflow.process import quiet, threads
from deltaflow.tasks import regular_seasonal

TRAINING = """
import lightning.pytorch as pl
import numpy as np
import pandas as pd

from deltaflow import ForecastLightningModule, GRUEstimator, GRUFlowEstimator, IrregularDataModule
from deltaflow import IrregularDataset

frame = pd.DataFrame({"item_id": np.repeat(["a", "b"], 9), "timestamp": np.tile(np.arange(9.0), 2)})
frame["x"] = np.sin(np.arange(18.0))
frame.loc[frame["item_id"].eq("b") & frame["timestamp"].gt(0), "x"] = np.nan
data = IrregularDataset.from_long_dataframe(frame, target=["x"])
tiny = {"prediction_length": 2, "num_batches_per_epoch": 1, "hidden_size": 4}
for kind in (GRUEstimator, GRUFlowEstimator):
    kind(**tiny, trainer_kwargs={"max_epochs": 1, "enable_progress_bar": False}).train(data)

windows = IrregularDataModule(data, prediction_length=2, context_length=8, num_batches_per_epoch=1)
model = ForecastLightningModule(windows.reader, windows.prediction_length, hidden_size=4)
pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(model, windows)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> str:
    """What two estimators and a trainer of Lightning's say of the same data."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        cwd=tmp_path_factory.mktemp("training"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_what_the_data_lack_is_said_once(said):
    assert said.count("1 of 2 items have no observed target") == 1


@pytest.mark.parametrize("note", ["LeafSpec", "Total length of `list`", "Tip:"])
def test_what_users_can_do_nothing_about_is_not_said(note, said):
    assert "GPU available" in said  # of the trainer that they made themselves
    assert note not in said


def test_quiet_leaves_everything_as_it_was():
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = logger.level, list(warnings.filters)
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert (logger.level, warnings.filters) == before


@pytest.mark.parametrize(("given", "used"), [(None, 1), ("3", 2)])
def test_training_and_forecasts_use_one_thread_unless_told(given, used, monkeypatch):
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, *_):
            seen.append(torch.get_num_threads())

    estimator = GRUEstimator(
        2, hidden_size=4, num_batches_per_epoch=1, folds=0, supports="real",
        trainer_kwargs={"max_epochs": 1, "enable_progress_bar": False, "callbacks": [Watch()]},
    )  # fmt: skip
    data = list(regular_seasonal())[:2]
    with threads(2):
        predictor = estimator.train(data)
        predictor.network.head.register_forward_hook(lambda *_: Watch().on_train_batch_start())
        next(iter(predictor.predict(data)))
        process = GaussianProcessPredictor.fit(data, 2)
        locate = process.locate
        monkeypatch.setattr(
            process, "locate", lambda *args: Watch().on_train_batch_start() or locate(*args)
        )
        list(process.predict(data))
        assert torch.get_num_threads() == 2
    assert seen == [used] * 4
