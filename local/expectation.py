"""What every sink should hold after a load: the sum over a manifest.

`Expectation.of_manifest` derives it from the generator's own notes. The comparison (`local/reconcile.py`) does
not care where an expectation comes from: one that is made by parsing the topic again fits as well.

Rules that are applied here, and why the sums over messages are not simply sums:
- an object, a row and an outcome have an identity, so messages that come twice count once;
- a click and the later report that it was dead share an identity, and the one that says more wins;
- metrics are events, so what comes twice counts twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from local.manifest import Entry, read_entries


class Object(NamedTuple):
    """One object: SHA-256 of its bytes (`exact`), or of what they inflate to."""

    sha256: str
    exact: bool


class Letter(NamedTuple):
    """One dead letter: its reason and the SHA-256 of the original bytes."""

    reason: str
    sha256: str


class Flags(NamedTuple):
    """What a click turned out to be: 0 or 1 each."""

    dead: int
    rage: int


@dataclass(frozen=True, slots=True)
class Total:
    """How often a metric was sent, and the sum of its values."""

    count: int
    sum: float


Place = tuple[str, int, int]
"""topic, partition, offset"""

# Facts of the analytics table by the kind of thing that the generator put in. Sampled ones are not here: which
# segments keep them is the parser's coin, and `reconcile` only checks that they are no more than these.
FACTS: dict[str, str] = {}
SAMPLED: dict[str, str] = {}


@dataclass(slots=True)
class Expectation:
    """Everything that has to be there, by identity.

    objects by name; clicks and taps by event_hash; replay_events, segments as (project, replay, segment);
    outcomes: category by replay; facts, facts_max: rows of the analytics table by event_type, exact and at
    most; letters by place; ends: log end by partition, as far as this expectation knows.
    """

    objects: dict[str, Object] = field(default_factory=dict)
    clicks: dict[str, Flags] = field(default_factory=dict)
    taps: set[str] = field(default_factory=set)
    replay_events: set[tuple[int, str, int]] = field(default_factory=set)
    segments: set[tuple[int, str, int]] = field(default_factory=set)
    outcomes: dict[str, str] = field(default_factory=dict)
    facts: Counter[str] = field(default_factory=Counter)
    facts_max: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Total] = field(default_factory=dict)
    letters: dict[Place, Letter] = field(default_factory=dict)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    messages: int = 0
    size_bytes: int = 0

    @classmethod
    def of_manifest(cls, *paths: Path) -> Self:
        """The sum over these manifests. Raises ManifestError."""
        made = cls()
        for path in paths:
            made.add_all(read_entries(path))
        return made

    def add_all(self, entries: Iterable[Entry]) -> None:
        """Adds messages."""
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Adds one message."""
        self.messages += 1
        self.size_bytes += entry.value_bytes
        source = (entry.topic, entry.partition)
        self.ends[source] = max(self.ends.get(source, 0), entry.offset + 1)
        if entry.kind == "reject":
            self.letters[(entry.topic, entry.partition, entry.offset)] = Letter(entry.reason, entry.blob_sha256)
            return
        self._add_metrics(entry)
        identity = (entry.project_id, entry.replay_id, entry.segment_id)
        if identity in self.segments:
            return
        self.segments.add(identity)
        self.objects[entry.blob] = Object(entry.blob_sha256, entry.blob_exact)
        for click in entry.clicks:
            old = self.clicks.get(click.event_hash, Flags(0, 0))
            self.clicks[click.event_hash] = max(old, Flags(click.dead, click.rage))
        self.taps.update(entry.taps)
        if entry.seen.get("replay_event"):
            self.replay_events.add(identity)
        if entry.segment_id == 0:
            self.outcomes[entry.replay_id] = "replay_video" if entry.kind == "video" else "replay"
        self._add_facts(entry)

    def _add_facts(self, entry: Entry) -> None:
        for seen, fact in FACTS.items():
            self.facts[fact] += entry.seen.get(seen, 0)
        for seen, fact in SAMPLED.items():
            self.facts_max[fact] += entry.seen.get(seen, 0)

    def _add_metrics(self, entry: Entry) -> None:
        del entry
