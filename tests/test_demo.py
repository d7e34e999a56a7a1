"""The demo runs from its settings to its table and figure."""

import inspect
from contextlib import redirect_stdout

import pandas as pd
import pytest

from deltaflow import GRUFlowEstimator, demo, load_predictor
from deltaflow.tasks import VITALS


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    with (output / "printed.txt").open("w") as printed, redirect_stdout(printed):
        demo.main(["--quick", "--output", str(output)])
    return output


def test_names_of_the_channels_are_printed_in_80_columns(output):
    printed = (output / "printed.txt").read_text()
    for name in [*VITALS, demo.POOLED, demo.AVERAGE]:
        assert f"\n{name} " in printed.replace("\n ", "\n")
    assert "…" not in printed


def test_settings_are_arguments_of_the_estimator():
    arguments = inspect.signature(GRUFlowEstimator).parameters
    config = demo.read_config()
    assert {*config["data"], *config["model"], *config["optimizer"]} <= set(arguments)


def test_table_compares_both_models_on_every_channel(output):
    scores = pd.read_csv(output / "table.csv", index_col=["model", "channel"])
    rows = [*VITALS, demo.AVERAGE, demo.POOLED]
    assert list(scores.index) == [(model, row) for model in ("GRU flow", "hold") for row in rows]
    assert list(scores.columns) == list(demo.COLUMNS)
    assert (scores["mean_weighted_quantile_loss"] > 0).all()
    assert scores["coverage_80"].between(0, 1).all()


def test_mean_of_channels_counts_every_channel_alike(output):
    loss = pd.read_csv(output / "table.csv").query("model == 'hold'").set_index("channel")
    loss = loss["mean_weighted_quantile_loss"]
    assert loss[demo.AVERAGE] == pytest.approx(loss[list(VITALS)].mean())


def test_markdown_has_a_line_per_row(output):
    lines = (output / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(VITALS) + 2
    assert {line.count("|") for line in lines} == {8}


def test_figure_is_a_png(output):
    assert (output / "forecasts.png").read_bytes().startswith(b"\x89PNG")


def test_output_that_cannot_be_a_folder_is_an_error_without_traceback(tmp_path, capsys):
    (tmp_path / "demo").write_text("kept")
    with pytest.raises(SystemExit) as exit_:
        demo.main(["--output", str(tmp_path / "demo")])
    assert exit_.value.code == 2
    assert str(tmp_path / "demo") in capsys.readouterr().err


def test_predictor_can_be_loaded(output):
    assert load_predictor(output / "predictor").prediction_length > 1
