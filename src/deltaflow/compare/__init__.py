"""The comparison of encoders, trained on the same data with the same budget."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from deltaflow.compare import table
from deltaflow.compare.config import Columns, CompareConfig, ComparedData, Split
from deltaflow.compare.report import tests_of, write_report
from deltaflow.compare.run import Run, run_comparison
from deltaflow.tables import as_rich

__all__ = ["Columns", "CompareConfig", "ComparedData", "Run", "Split", "compare", "run_comparison"]


def compare(config: CompareConfig, console: Console | None = None) -> list[Run]:
    """Run a comparison, print its tables, and write its report; see `CompareConfig`.

    Parameters
    ----------
    config
        The comparison.
    console
        The console for progress and tables; None for no output.

    Returns
    -------
    list of Run
        All runs, including failed ones.
    """
    runs = run_comparison(config, console)
    write_report(runs, config)
    if console is not None:
        for test in tests_of(runs):
            console.print(as_rich(table.narrow(table.overview(runs, test)), title=test))
        console.print(Text(f"Report: {config.output / 'index.html'}"), soft_wrap=True)
    return runs
