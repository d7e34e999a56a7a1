"""Who watches a comparison sees how far it is, on a terminal, in a file and in the log."""

import io
import re

import pytest
from rich.console import Console

from deltaflow.compare import run_comparison
from deltaflow.compare.progress import Progress, TimeLeft

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def printed_to_file() -> Console:
    return Console(file=io.StringIO(), width=40)


def test_file_gets_a_line_for_each_epoch_and_run_as_it_ends(tiny):
    console = printed_to_file()
    broken = {"[red]bad": {"model": {"encoder": "gru", "encoder_kwargs": {"depth": 3}}}}
    config = tiny(encoders=["gru", "[red]bad"], variants=broken, trainer={"max_epochs": 2})
    run_comparison(config, console)
    lines = console.file.getvalue().strip().splitlines()
    expected = [
        r"\[1/3\] sine · hold · seed 0 · finished",
        r"\[2/3\] sine · gru · seed 0 · epoch 1 of 2, validation loss [\d.]+ · about .+ left",
        r"\[2/3\] sine · gru · seed 0 · epoch 2 of 2, validation loss [\d.]+ · about .+ left",
        r"\[2/3\] sine · gru · seed 0 · finished · about .+ left",
        r"\[3/3\] sine · \[red\]bad · seed 0 · failed: .*depth.*",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(f"{TIME} {pattern}", line), line
    assert (config.output / "log.txt").read_text(encoding="utf-8").splitlines() == lines


def test_log_grows_and_is_kept_where_nobody_watches(tiny):
    config = tiny(trainer={"max_epochs": 1})
    run_comparison(config)
    first = (config.output / "log.txt").read_text(encoding="utf-8")
    assert "epoch 1 of 1" in first
    run_comparison(config)
    both = (config.output / "log.txt").read_text(encoding="utf-8")
    assert both.startswith(first)
    assert "epoch" not in both.removeprefix(first)


def test_lines_come_while_the_run_goes_on(tmp_path):
    console = printed_to_file()
    with Progress(["gru"], console, tmp_path / "log.txt") as progress:
        progress.begin("sine · gru · seed 0")
        assert console.file.getvalue() == ""
        progress.tell("epoch 1 of 4", 0.25)
        assert "epoch 1 of 4" in console.file.getvalue()


def test_terminal_shows_a_bar_and_keeps_what_failed(tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with Progress(["gru", "gru"], console, tmp_path / "log.txt") as progress:
        progress.begin("sine · [b]gru")
        progress.tell("epoch 1 of 4", 0.25)
        progress.end("no luck")
        progress.begin("sine · [b]gru_d")
        progress.end()
    shown = console.file.getvalue()
    assert "sine · [b]gru failed: no luck\n" in shown
    assert "2/2" in shown
    assert "[1/2]" not in shown


def test_time_left_is_that_of_runs_of_the_same_row():
    left = TimeLeft(["hold", "gru", "gru", None, "gru_d", "gru_d"])
    assert left.of() is None
    left.finish(0.5)
    assert left.of() is None  # hold says nothing of a training
    assert left.of(10.0, share=0.5) == 10 + 20 + 2 * 20
    left.finish(16.0)  # stopped early
    assert left.of() == 16 + 2 * 16
    left.finish(18.0)
    left.finish(1.0)
    assert left.of(4.0, share=0.1) == 36 + 40
    left.finish(40.0)
    assert left.of(50.0, share=0.9) == 0.0
    left.finish(60.0)
    assert left.of() == 0.0


@pytest.mark.parametrize(("rows", "count"), [([None], 1), ([], 0)])
def test_nothing_is_estimated_where_nothing_is_trained(rows, count):
    left = TimeLeft(rows)
    for _ in range(count):
        left.finish(1.0)
    assert left.of() is None
