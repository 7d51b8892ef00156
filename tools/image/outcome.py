"""Reports which steps of a test of the image succeeded, which steps this machine could not run, and which failed.

`StepNotRun` means that the machine has a limitation, such as a missing engine or network; it does not fail CI.
`ImageDefect` means that the image has a defect.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


class StepNotRun(Exception):
    """Raised if this machine cannot run a step. The message is the reason, in one line."""


class ImageDefect(Exception):
    """Raised if the image was built but does not work correctly. The message describes the problem."""


@dataclass(slots=True)
class Clock:
    """The remaining time. `now`: seconds on a monotonic clock."""

    seconds: float
    now: Callable[[], float] = time.monotonic
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.now()

    def seconds_for_step(self, at_most: float) -> float:
        """Returns the seconds available for the next step: `at_most` or the remaining time, whichever is less, but
        at least 1.
        """
        return max(1.0, min(at_most, self._began + self.seconds - self.now()))

    @property
    def is_over(self) -> bool:
        return self.now() - self._began >= self.seconds


@dataclass(slots=True)
class Lines:
    """Prints one line per result. `code` is the resulting exit code."""

    write: Callable[[str], None]
    failures: int = 0

    def report_done(self, text: str) -> None:
        self.write(f"image: ok        {text}")

    def report_unfinished(self, what: str, reason: str) -> None:
        self.write(f"image: NOT DONE  {what}: {reason}")

    def report_failure(self, reason: str) -> None:
        self.failures += 1
        self.write(f"image: FAILED    {reason}")

    @property
    def code(self) -> int:
        return 1 if self.failures else 0


def last_line(text: str) -> str:
    """Returns the last non-empty line of an output, which is used as the reason for a failure."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
