"""`deltaflow fit` that is interrupted, or runs out of disk, keeps a checkpoint that goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from deltaflow import load_predictor
from deltaflow.cli import main

pytest.importorskip("jsonargparse")

CONFIG = {
    "trainer": {
        "max_epochs": 1000,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    },
    "model": {"hidden_size": 4},
    "data": {
        "dataset": "sine",
        "dataset_kwargs": {"num_series": 15, "length": 30},
        "batch_size": 4,
        "num_batches_per_epoch": 5,
    },
}
HEEDING_CTRL_C = """
import signal, sys

from deltaflow.cli import main

# What runs in the background of a shell ignores Ctrl-C, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def options(tmp_path) -> list[str]:
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(CONFIG))
    return ["--config", str(tmp_path / "fit.yaml"), f"--trainer.default_root_dir={tmp_path}"]


def step(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def goes_on(checkpoint: Path, options: list[str]) -> None:
    load_predictor(checkpoint)
    done = step(checkpoint)
    assert done > 0
    epochs = f"--trainer.max_epochs={done // 5 + 2}"
    assert main(["fit", *options, epochs, "--ckpt_path=last"]) == 0
    assert step(checkpoint) == 5 * (done // 5 + 2)


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(options, tmp_path):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING_CTRL_C, "fit", *options],
        env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("*unfinished*"))
    goes_on(checkpoint, options)


def test_a_full_disk_leaves_the_checkpoint_before(
    options, tmp_path, little_room, monkeypatch, capsys
):
    save = ModelCheckpoint._save_checkpoint

    def full_in_the_second_epoch(self, trainer, path):
        room = Path(path).stat().st_size // 2 if trainer.current_epoch == 1 else 2**30
        with little_room(room):
            save(self, trainer, path)

    with monkeypatch.context() as patched:
        patched.setattr(ModelCheckpoint, "_save_checkpoint", full_in_the_second_epoch)
        assert main(["fit", *options]) == 2
    printed = capsys.readouterr().err
    assert "deltaflow fit: [Errno 27]" in printed
    assert "Traceback" not in printed
    for name in ("best", "last"):
        assert step(tmp_path / "checkpoints" / f"{name}.ckpt") in (5, 10)
    assert not list(tmp_path.rglob("*unfinished*"))
    goes_on(tmp_path / "checkpoints" / "last.ckpt", options)
