"""Findings of `check`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.text import Text

from tasks.printed import printable, without_secrets


class Severity(StrEnum):
    """WARNING: the dependency works but needs attention. BAD: the dependency does not work."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


SEVERITY_LABELS = {
    Severity.OK: ("ok     ", "green"),
    Severity.WARNING: ("warning", "yellow"),
    Severity.BAD: ("BAD    ", "red"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `advice` states what to do, unless the level is OK."""

    name: str
    level: Severity
    said: str
    advice: str = ""

    @property
    def is_bad(self) -> bool:
        return self.level is Severity.BAD

    def as_dict(self) -> dict[str, str]:
        return asdict(self)

    def line(self) -> Text:
        """Returns the finding as a line for a terminal."""
        advice = f"\n        → {printable(self.advice)}" if self.advice else ""
        return Text.assemble(
            SEVERITY_LABELS[self.level], f" {printable(self.name)}: {printable(self.said)}{advice}"
        )

    def redacted(self, secrets: Iterable[str]) -> Finding:
        """Returns a copy in which these values, and any text that looks like a secret, are hidden."""
        name, said, advice = (without_secrets(text, secrets) for text in (self.name, self.said, self.advice))
        return Finding(name, self.level, said, advice)
