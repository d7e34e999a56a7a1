"""Names of users are shown as they are, whatever they mean in Rich's or Markdown's markup."""

import io

import pandas as pd
from rich.console import Console

from deltaflow.tables import as_markdown, as_rich

NAMES = ["[bili]", "[/red]", ":heart:", "a|b"]


def shown(table, **options) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(as_rich(table, **options))
    return console.file.getvalue()


def test_no_name_is_markup():
    table = pd.DataFrame(dict.fromkeys(NAMES, NAMES), index=NAMES)
    text = shown(table, title="[bili] title", caption="[bili] caption")
    for name in NAMES:
        assert text.count(name) >= 1 + 1 + 4  # heading, row and cells
    assert "[bili] title" in text
    assert "[bili] caption" in text


def test_cells_and_headings_may_have_several_lines():
    table = pd.DataFrame({"quantile\nloss": ["1", "2\n± 1"]}, index=["HR", "mean"])
    lines = shown(table.rename_axis("channel"), sections=["mean"]).splitlines()
    words = [line.split() for line in lines if line.strip("─ ")]
    assert words == [["quantile"], ["channel", "loss"], ["HR", "1"], ["mean", "2"], ["±", "1"]]
    plain = shown(table.rename_axis("channel")).splitlines()
    assert len(lines) == len(plain) + 1  # between the sections


def test_markdown_keeps_its_columns():
    lines = as_markdown(pd.DataFrame({"a|b": ["1"]}, index=["c|d"])).splitlines()
    assert lines == ["|  | a\\|b |", "| --- | ---: |", "| c\\|d | 1 |"]
