import runpy
import sys

import pandas as pd
import pytest
import yaml

import deltaflow
from deltaflow import parsers
from deltaflow.cli import COMMANDS, main

pytest.importorskip("jsonargparse")

CONFIG = {
    "data": {
        "dataset": "sine",
        "dataset_kwargs": {"num_series": 15, "length": 30},
        "num_batches_per_epoch": 2,
        "batch_size": 4,
    },
    "encoders": ["gru", "gru_d"],
    "seeds": [0],
    "model": {"hidden_size": 4},
    "trainer": {"max_epochs": 2},
}


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


def test_options_override_the_configuration_and_what_is_stored_repeats_it(config, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--config", config, "--output", str(output), "--encoders", "[gru]", "--seeds=[3]"]
    assert main(["compare", *options, "--trainer.max_epochs", "1"]) == 0
    results = pd.read_csv(output / "results.csv")
    assert set(results["encoder"]) == {"hold", "gru"}
    assert set(results["seed"]) == {3}
    stored = yaml.safe_load((output / "config.yaml").read_text())
    assert (stored["trainer"]["max_epochs"], stored["model"]["hidden_size"]) == (1, 4)
    printed = capsys.readouterr().out
    assert "sine_beyond" in printed
    assert "index.html" in printed

    run = output / "runs" / "sine-gru-seed3.json"
    before = run.stat().st_mtime_ns
    assert main(["compare", "--config", str(output / "config.yaml")]) == 0
    assert run.stat().st_mtime_ns == before


def test_data_set_may_be_given_without_the_name_of_its_group(config, tmp_path):
    output = tmp_path / "out"
    options = ["--config", config, "--output", str(output), "--encoders", "[]", "--dataset=square"]
    assert main(["compare", *options, "--dataset_kwargs.num_series", "10"]) == 0
    stored = yaml.safe_load((output / "config.yaml").read_text())["data"]
    assert stored["dataset"] == "square"
    assert stored["dataset_kwargs"] == {"num_series": 10, "length": 30}


def test_failed_run_shows_in_the_status(config, tmp_path, capsys):
    variants = '{"bad": {"model": {"encoder": "gru", "encoder_kwargs": {"depth": 3}}}}'
    options = ["--config", config, "--output", str(tmp_path / "out"), "--variants", variants]
    assert main(["compare", *options, "--encoders", "[bad]"]) == 1
    assert "depth" in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "out" / "results.csv")["encoder"]) == {"hold"}


def test_unknown_names_are_refused(config, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("of an earlier comparison")
    options = ["--config", config, "--output", str(tmp_path / "out")]
    for option, hint in (("--encoders=[gru_dd]", "gru_d"), ("--data.dataset=sinne", "sine")):
        assert main(["compare", *options, option]) == 2
        assert f"did you mean '{hint}'" in capsys.readouterr().err
    assert (tmp_path / "out" / "config.yaml").read_text() == "of an earlier comparison"


@pytest.mark.parametrize("command", ["compare", "benchmark"])
def test_output_that_cannot_be_a_folder_is_an_error_without_traceback(
    command, config, tmp_path, capsys
):
    (tmp_path / "out").write_text("kept")
    options = ["--config", config] if command == "compare" else []
    assert main([command, *options, "--output", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()  # torch may warn of a missing GPU
    (error,) = [line for line in lines if line.startswith(f"deltaflow {command}: ")]
    assert str(tmp_path / "out") in error
    assert "Traceback (most recent call last):" not in lines
    assert (tmp_path / "out").read_text() == "kept"


def test_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deltaflow", "--version"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("deltaflow", run_name="__main__")
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == f"deltaflow {deltaflow.__version__}"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "compare"])
def test_missing_package_is_named_with_its_remedy(command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main([command]) == 2
    error = capsys.readouterr().err
    assert "jsonargparse is needed here: pip install 'deltaflow[cli" in error


def test_benchmark_without_matplotlib_names_its_remedy(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "deltaflow.benchmark", raising=False)
    for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["benchmark", "--quick"]) == 2
    assert "is needed here: pip install 'deltaflow[plot]'" in capsys.readouterr().err


def test_configuration_of_the_package_is_found(monkeypatch, tmp_path):
    shipped = tmp_path / "package" / "configs" / "fit"
    shipped.mkdir(parents=True)
    (shipped / "base.yaml").touch()
    monkeypatch.setattr(parsers.resources, "files", lambda package: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    options = ["--config", "configs/fit/base.yaml", "configs/other.yaml"]
    assert parsers.expanded(options) == [
        "--config",
        str(shipped / "base.yaml"),
        "configs/other.yaml",
    ]


def test_command_without_name_or_with_a_wrong_one_explains_itself(capsys):
    for arguments in ([], ["compere"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        assert "usage: deltaflow" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--epoks", "3"], ["--trainer.max_epochs", "many"], ["--seeds", "0"]]
)
def test_options_of_a_comparison_are_refused_in_one_line(options, config, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["compare", "--config", config, *options])
    assert exit_.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("deltaflow compare: ")
    assert options[0].removeprefix("--") in error


@pytest.mark.parametrize("device", ["abacus", "meta", ""])
def test_benchmark_on_a_device_that_is_not_there_says_so(device, tmp_path, capsys):
    assert main(["benchmark", "--quick", f"--device={device}", "--output", str(tmp_path)]) == 2
    assert f"there is no device {device!r} on this machine" in capsys.readouterr().err


def test_errors_of_the_code_keep_their_traceback(monkeypatch):
    def fail(options):
        raise ValueError("a mistake of ours")

    monkeypatch.setitem(COMMANDS, "compare", ("", fail))
    with pytest.raises(ValueError, match="a mistake of ours"):
        main(["compare"])
