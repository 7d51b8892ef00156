"""The result of a backfill: complete counts, and the first examples of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table

from ingest.operate.reconcile.problem import Problem

LISTED_NAMES_MAX = 1000
SHOWN_MAX = 20


@dataclass(slots=True)
class Tally:
    """Counts for one sink: rows rebuilt, rows missing or different before the writes, and rows still missing or
    different afterwards.
    """

    rebuilt: int = 0
    missing: int = 0
    differs: int = 0
    written: int = 0
    left: int = 0

    def count(self, problem: Problem) -> None:
        """Counts a row that is missing or differs from its stored form."""
        if problem is Problem.MISSING:
            self.missing += 1
        else:
            self.differs += 1


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that is missing or differs from its stored form. `what`: columns that differ, or a description."""

    problem: Problem
    sink: str
    item: str
    what: str
    project_id: int
    replay_id: str
    segment_id: int


@dataclass(slots=True)
class Outcome:
    """The result of a backfill. Counts are complete; lists of names hold at most LISTED_NAMES_MAX names, and
    `differences` at most `differences_max`.

    `without_rows`: recordings in the bucket, and requested replay ids, for which ClickHouse has no row to copy
    values from. `gone`: segments whose recording is not in the bucket. `unreadable`: recordings that cannot be
    decompressed. `erased`: segments that were erased.
    """

    dry_run: bool
    recordings: int = 0
    without_rows: int = 0
    gone: int = 0
    unreadable: int = 0
    erased: int = 0
    sinks: dict[str, Tally] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if every recording was rebuilt, and every written row is stored."""
        incomplete = self.without_rows or self.gone or self.unreadable or self.failures
        return not incomplete and not any(tally.left for tally in self.sinks.values())

    def note(self, kind: str, name: str) -> None:
        """Counts a recording that could not be rebuilt: `without_rows`, `gone` or `unreadable`."""
        setattr(self, kind, getattr(self, kind) + 1)
        names = self.names.setdefault(kind, [])
        if len(names) < LISTED_NAMES_MAX:
            names.append(name)

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {"ok": self.ok, **asdict(self)}


def render(found: Outcome) -> Group:
    """Formats the result for a terminal."""
    summary = (
        f"{found.recordings:,} recordings rebuilt{', nothing written' if found.dry_run else ''}; "
        f"{found.without_rows:,} without rows, {found.gone:,} gone from the bucket, "
        f"{found.unreadable:,} unreadable, {found.erased:,} erased"
    )
    table = Table("sink", "rows rebuilt", "missing", "differs", "written", "left", "")
    for name, tally in found.sinks.items():
        numbers = (tally.rebuilt, tally.missing, tally.differs, tally.written, tally.left)
        state = "NOT OK" if tally.left else "ok"
        if found.dry_run:
            state = "would write" if tally.missing + tally.differs else "equal"
        table.add_row(name, *(f"{number:,}" for number in numbers), state)
    return Group(summary, table, *_lines(found), *found.notes, *(f"failed: {text}" for text in found.failures))


def _lines(found: Outcome) -> Iterator[str]:
    """Yields lines for the first SHOWN_MAX names of each kind and the first SHOWN_MAX differences of each sink."""
    for kind, names in found.names.items():
        for name in names[:SHOWN_MAX]:
            yield f"{kind.replace('_', ' ')}: {name}"
    shown: Counter[str] = Counter()
    for difference in found.differences:
        shown[difference.sink] += 1
        if shown[difference.sink] <= SHOWN_MAX:
            where = (
                f"project {difference.project_id}, replay {difference.replay_id}, segment {difference.segment_id}"
            )
            yield f"{difference.problem}: {difference.sink} {difference.item}: {difference.what} ({where})"
