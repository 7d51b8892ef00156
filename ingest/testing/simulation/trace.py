"""The history of a world, as readable lines.

The history is not recorded while many seeds are tried. A failing seed is run again to record the history of its
world.
"""

from __future__ import annotations

from collections import Counter
from typing import Any


class Violation(BaseException):
    """Raised if an invariant is violated. `checker` is the stable name of the invariant.

    The class is not derived from Exception, because the loop ignores every Exception that an observer raises, and
    checkers are observers.
    """

    def __init__(self, checker: str, text: str) -> None:
        super().__init__(f"{checker}: {text}")
        self.checker = checker
        self.text = text


class Trace:
    """The lines of a history, in order of simulated time, and counts of the situations that the run reached
    (marks).
    """

    def __init__(self, *, recording: bool) -> None:
        self.recording = recording
        self.lines: list[str] = []
        self.marks: Counter[str] = Counter()

    def add(self, now: float, who: str, what: Any) -> None:
        """Adds one line, if the history is recorded."""
        if self.recording:
            self.lines.append(f"{now:8.3f}  {who:<10} {what}")

    def mark(self, name: str) -> None:
        """Counts a situation."""
        self.marks[name] += 1
