"""The result of a reconciliation: items checked, missing and repaired, per sink."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ingest.operate.reconcile.problem import Problem
from ingest.operate.reconcile.topic import Span

EXAMPLES_MAX = 1000


class ReconcileFailed(Exception):
    """Raised if the topic, the dead letters or a sink could not be read. The message states what could not be
    read, and why."""


@dataclass(frozen=True, slots=True)
class MissingItem:
    """One missing or different item, with the position of its message."""

    sink: str
    item: str
    problem: Problem
    partition: int
    offset: int
    segment: str
    """project/replay/segment; empty for a dead letter."""


@dataclass(slots=True)
class Tally:
    """Counts for one sink: items checked, absent and repaired."""

    checked: int = 0
    missing: int = 0
    differs: int = 0
    repaired: int = 0

    @property
    def absent(self) -> int:
        """Items absent at the first check."""
        return self.missing + self.differs

    @property
    def left(self) -> int:
        """Items still missing."""
        return self.absent - self.repaired

    def count(self, problem: Problem) -> None:
        """Counts an absent item."""
        if problem is Problem.MISSING:
            self.missing += 1
        else:
            self.differs += 1


@dataclass(slots=True)
class Account:
    """The result of a reconciliation. `examples` has at most EXAMPLES_MAX missing items per sink. `unrepaired` has
    at most EXAMPLES_MAX items per sink that are still missing after a repair.
    """

    topic: str
    spans: list[Span]
    repairing: bool = False
    messages: int = 0
    segments: int = 0
    rejects: int = 0
    given_up: int = 0
    """Number of segments and items that are dead letters."""
    shed: int = 0
    erased: int = 0
    expired: int = 0
    sinks: dict[str, Tally] = field(default_factory=dict)
    examples: list[MissingItem] = field(default_factory=list)
    unrepaired: list[MissingItem] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if nothing is missing, or everything was repaired."""
        return not self.failures and all(tally.left == 0 for tally in self.sinks.values())

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        found = asdict(self)
        for name, tally in self.sinks.items():
            found["sinks"][name]["left"] = tally.left
        return {"ok": self.ok, **found}
