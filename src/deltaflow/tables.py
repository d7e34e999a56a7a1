"""Tables of text, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text


def as_markdown(table: pd.DataFrame) -> str:
    """Return a table of text in Markdown, with its index as the first column.

    >>> print(as_markdown(pd.DataFrame({"MSE": ["1.5"]}, index=["gru"])), end="")
    |  | MSE |
    | --- | ---: |
    | gru | 1.5 |
    """
    lines = [("", *table.columns), *table.itertuples(name=None)]
    cells = [[str(cell).replace("|", r"\|") for cell in line] for line in lines]
    cells.insert(1, ["---", *["---:"] * table.shape[1]])
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def as_rich(
    table: pd.DataFrame, title: str = "", caption: str = "", sections: Collection[str] = ()
) -> Table:
    """Return a table of text for the terminal, with its index as the first column.

    Text is never interpreted as Rich markup: a channel named ``[bili]`` is printed as it is.

    Parameters
    ----------
    table
        The table. Cells and headings may have several lines.
    title, caption
        Text above and below the table.
    sections
        Names of the rows that begin a new section.
    """
    printed = Table(
        title=Text(title) if title else None,
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    words = [word for name in table.index for word in str(name).split()]
    width = max(map(len, words), default=0)  # so that the names do not give way to wide columns
    printed.add_column(Text(str(table.index.name or "")), overflow="fold", min_width=width)
    for heading in table.columns:
        printed.add_column(Text(heading), justify="right", no_wrap=True)
    for name, *row in table.itertuples(name=None):
        if name in sections:
            printed.add_section()
        printed.add_row(Text(str(name)), *map(Text, row))
    return printed
