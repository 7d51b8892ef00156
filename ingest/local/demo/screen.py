"""Progress output of the demo: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_LINE_SECONDS = 2.0
PLAIN_WIDTH = 140  # width of tables in a log file


class Screen:
    """Progress output: bars on a terminal, lines elsewhere, and nothing with --json."""

    def __init__(self, quiet: bool) -> None:
        self.console = Console(quiet=quiet, highlight=False)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed_at: dict[str, float] = {}

    def line(self, text: str) -> None:
        """Prints one line immediately."""
        self.console.print(text, soft_wrap=True, markup=False)
        if not self.console.is_terminal:
            self.console.file.flush()

    @contextmanager
    def bars(self) -> Iterator[None]:
        """Shows progress bars on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=False) as self._bars:
            yield
        self._bars = None

    def advance(self, name: str, done: int, total: int) -> None:
        """Updates one bar, or prints an occasional line if the output is not a terminal."""
        if self._bars is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total)
            self._bars.update(self._tasks[name], completed=done, total=total)
            return
        now = time.monotonic()
        if done == total or now - self._printed_at.get(name, 0.0) >= PLAIN_LINE_SECONDS:
            self._printed_at[name] = now
            self.line(f"{name:<10} {done} of {total}")
