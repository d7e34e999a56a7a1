"""Every example runs and prints something."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from deltaflow.encoders import ENCODERS
from deltaflow.heads import HEADS

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def registries():
    """What an example registers is removed again."""
    kept = [(registry, dict(registry)) for registry in (ENCODERS, HEADS)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_runs(script, registries, tmp_path, monkeypatch, capsys):
    _, is_with, library = script.stem.partition("_with_")
    if is_with:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("sys.argv", [str(script), "--quick"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_command_line_runs(tmp_path):
    pytest.importorskip("jsonargparse")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    quick = ["--trainer.max_epochs=1", "--data.num_batches_per_epoch=2"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    finished = subprocess.run(
        ["sh", str(ROOT / "examples" / "command_line.sh"), *quick],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "test_mean_weighted_quantile_loss" in finished.stdout
    assert "item_id,timestamp,target_name,predictions,mean,0.1,0.9" in finished.stdout
