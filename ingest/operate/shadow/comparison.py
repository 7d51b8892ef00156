"""The result of a comparison: complete counts by sink, and the first differences with their messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from rich.console import Group
from rich.table import Table

from ingest.operate.reconcile.account import Account
from ingest.operate.reconcile.topic import Span

EXPLAINED = ("given_up", "shed", "erased", "expired")


class Kind(StrEnum):
    """Kind of difference between the stored data and what this release would write."""

    MISSING = "missing"
    DIFFERS = "differs"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference, with its message. `what`: the columns that differ, or a description.

    `project_id` and `segment_id` are None, and `replay_id` is empty, for a dead letter.
    """

    kind: Kind
    sink: str
    item: str
    what: str
    topic: str
    partition: int
    offset: int
    project_id: int | None = None
    replay_id: str = ""
    segment_id: int | None = None


@dataclass(slots=True)
class Tally:
    """Counts for one sink. `superseded`: rows that another message of the same replay has replaced."""

    compared: int = 0
    missing: int = 0
    differs: int = 0
    unexpected: int = 0
    superseded: int = 0

    def count(self, kind: Kind) -> None:
        """Counts a difference."""
        match kind:
            case Kind.MISSING:
                self.missing += 1
            case Kind.DIFFERS:
                self.differs += 1
            case Kind.UNEXPECTED:
                self.unexpected += 1

    @property
    def differences(self) -> int:
        """Total number of differences of all kinds."""
        return self.missing + self.differs + self.unexpected


@dataclass(slots=True)
class Comparison:
    """The result of a comparison. Counts are complete; `differences` holds the first `differences_max` per sink.

    `explained`: number of messages and items that are not expected to be stored, by reason (dead letters, disabled
    projects, erasures, expired retention).
    """

    topic: str
    release: str
    spans: list[Span]
    messages: int = 0
    segments: int = 0
    rejects: int = 0
    explained: dict[str, int] = field(default_factory=dict)
    sinks: dict[str, Tally] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if messages were compared, and this release would write exactly the stored data."""
        return self.messages > 0 and not any(tally.differences for tally in self.sinks.values())

    def add(self, account: Account) -> None:
        """Adds the messages of another round, and keeps one span per partition."""
        self.messages += account.messages
        self.segments += account.segments
        self.rejects += account.rejects
        for name in EXPLAINED:
            self.explained[name] = self.explained.get(name, 0) + getattr(account, name)
        for span in account.spans:
            previous = next((other for other in self.spans if other.partition == span.partition), None)
            if previous is None:
                self.spans.append(span)
            else:
                previous.stop, previous.gone, previous.open = span.stop, previous.gone + span.gone, span.open
                previous.unreadable += span.unreadable

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {"ok": self.ok, **asdict(self)}


def render(found: Comparison) -> Group:
    """Formats the result for a terminal."""
    summary = [
        f"{found.topic}, partition {span.partition}: [{span.start}, {span.stop}){span.unread_offsets_text()}"
        for span in found.spans
    ]
    explained = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found.explained.items() if count)
    summary.append(
        f"release {found.release}, {found.messages} messages: {found.segments} segments, {found.rejects} rejects"
        + (f"; not compared: {explained}" if explained else "")
    )
    table = Table("sink", "compared", "missing", "differs", "unexpected", "superseded", "")
    for name, tally in found.sinks.items():
        numbers = (tally.compared, tally.missing, tally.differs, tally.unexpected, tally.superseded)
        table.add_row(name, *(f"{number:,}" for number in numbers), "DIFFERENT" if tally.differences else "equal")
    return Group(*summary, table, *_lines(found), *found.notes)


def _lines(found: Comparison) -> Iterator[str]:
    for difference in found.differences:
        owner = f"project {difference.project_id}, replay {difference.replay_id}, segment {difference.segment_id}"
        where = f"{difference.topic} partition {difference.partition} offset {difference.offset}"
        owned_by = f"{owner}; " if difference.replay_id else ""
        yield f"{difference.kind}: {difference.sink} {difference.item}: {difference.what} ({owned_by}{where})"
