"""Every example runs and prints something."""

import runpy
from pathlib import Path

import pytest

from deltaflow.encoders import ENCODERS

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_runs(script, tmp_path, monkeypatch, capsys):
    if script.stem.startswith("forecast_with_"):
        pytest.importorskip(script.stem.removeprefix("forecast_with_"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("sys.argv", [str(script), "--quick"])
    with monkeypatch.context() as patch:
        patch.setitem(ENCODERS, "rotation", None)  # so that what an example registers is removed
        runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()
