"""The progress of a comparison: a bar on a terminal or lines elsewhere, and a log."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

Tell = Callable[[str, float], None]
"""Called with the progress in words, such as ``epoch 3 of 50``, and the finished share of the
training run, above 0 and up to 1. A run that stops early ends below 1; one without epochs never
calls it."""


class Progress(Bars):
    """Shows the current run, its progress, and the estimated time left.

    On a terminal it shows a bar, elsewhere a line for each epoch and run. The lines are also
    appended to a log, which several commands may share.

    Parameters
    ----------
    rows
        The row of each run, in their order, see `TimeLeft`.
    console
        The console to show it on.
    log
        The file of the lines.
    """

    def __init__(self, rows: Sequence[Hashable], console: Console, log: Path) -> None:
        super().__init__(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._time_left, self._log = TimeLeft(rows), log
        self._count, self._number, self._label = len(rows), 0, ""
        self._began = 0.0
        self._bar = self.add_task("", total=len(rows))

    def begin(self, label: str) -> None:
        """Show the next run, with this label."""
        self._label, self._number, self._began = label, self._number + 1, time.monotonic()
        self.update(self._bar, description=label)

    def tell(self, what: str, share: float) -> None:
        """Show the progress of the run, see `Tell`."""
        self._say(what, self._time_left.of(time.monotonic() - self._began, share))

    def end(self, failure: str | None = None) -> None:
        """Show that the run has finished, or why it failed."""
        self._time_left.finish(time.monotonic() - self._began)
        self._say(f"failed: {failure}" if failure else "finished", self._time_left.of())
        if failure and self.console.is_terminal:
            self.console.print(Text(f"{self._label} failed: {failure}", style="red"))
        self.advance(self._bar)

    def _say(self, what: str, left: float | None) -> None:
        text = f"{self._label} · {what}" + (f" · about {in_words(left)} left" if left else "")
        self.update(self._bar, description=text)
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{self._number}/{self._count}] {text}"
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        if not self.console.is_terminal:
            self.console.print(Text(line), soft_wrap=True)


class TimeLeft:
    """Estimates the time left from the finished epochs and runs.

    A run is expected to take as long as the finished runs of its row, or, if there are none, as
    those of the other rows and the current run. Rows that take almost no time do not count.

    Parameters
    ----------
    rows
        The row of each run, in order; None for rows that take almost no time.

    Examples
    --------
    >>> left = TimeLeft(["hold", "gru", "gru_d"])
    >>> left.finish(0.1)
    >>> left.of(10.0, 0.25)  # a quarter of gru: 30 s for the rest of it, and 40 s for gru_d
    70.0
    >>> left.finish(32.0)  # it stopped early
    >>> left.of()
    32.0
    """

    def __init__(self, rows: Sequence[Hashable]) -> None:
        self._rows = list(rows)
        self._spent: dict[Hashable, list[float]] = defaultdict(list)
        self._share = 0.0

    def of(self, seconds: float = 0.0, share: float = 0.0) -> float | None:
        """Return the seconds left, or None before there is anything to estimate them from.

        Parameters
        ----------
        seconds, share
            The time that the current run has taken so far, and its progress, see `Tell`.
        """
        self._share = share
        spent = {row: mean(all_) for row, all_ in self._spent.items()}
        if share:
            spent.setdefault(self._rows[0], seconds / share)
        if not spent:
            return None
        typical = mean(spent.values())
        rows = [row for row in self._rows if row is not None]
        return max(0.0, sum(spent.get(row, typical) for row in rows) - seconds)

    def finish(self, seconds: float) -> None:
        """Record that the current run took this many seconds, and move on to the next one."""
        row = self._rows.pop(0)
        if self._share:
            self._spent[row].append(seconds)
        self._share = 0.0


def in_words(seconds: float) -> str:
    """Return a duration, rounded.

    >>> in_words(75), in_words(75 * 60), in_words(100 * 60)
    ('75 s', '75 min', '1.7 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
