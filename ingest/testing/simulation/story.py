"""History of a world, as readable lines.

It is off while seeds are tried in bulk; a failing seed is run again with it on.
"""

from __future__ import annotations

from collections import Counter
from typing import Any


class Violation(BaseException):
    """An invariant is violated. `checker` is its stable name.

    It is not derived from Exception, because checkers are observers of the loop, which survives their exceptions.
    """

    def __init__(self, checker: str, text: str) -> None:
        super().__init__(f"{checker}: {text}")
        self.checker = checker
        self.text = text


class Story:
    """Lines in order of simulated time, and counts of situations that a run reached (marks)."""

    def __init__(self, *, telling: bool) -> None:
        self.telling = telling
        self.lines: list[str] = []
        self.marks: Counter[str] = Counter()

    def tell(self, now: float, who: str, what: Any) -> None:
        """Adds one line, if the history is on."""
        if self.telling:
            self.lines.append(f"{now:8.3f}  {who:<10} {what}")

    def mark(self, name: str) -> None:
        """Counts a situation."""
        self.marks[name] += 1
