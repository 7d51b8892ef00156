"""What happened in a world, as lines for a person.

Telling is off while seeds are tried in bulk; a seed that fails is run again with it on.
"""

from __future__ import annotations

from collections import Counter
from typing import Any


class Violation(BaseException):
    """An invariant does not hold. `checker` is its stable name.

    No Exception: checkers look on as observers of the loop, whose exceptions the loop survives.
    """

    def __init__(self, checker: str, text: str) -> None:
        super().__init__(f"{checker}: {text}")
        self.checker = checker
        self.text = text


class Story:
    """Lines in order of simulated time, and counts of the situations that a run reached (marks)."""

    def __init__(self, *, telling: bool) -> None:
        self.telling = telling
        self.lines: list[str] = []
        self.marks: Counter[str] = Counter()

    def tell(self, now: float, who: str, what: Any) -> None:
        """One line, if anybody listens."""
        if self.telling:
            self.lines.append(f"{now:8.3f}  {who:<10} {what}")

    def mark(self, name: str) -> None:
        """This situation was reached."""
        self.marks[name] += 1
