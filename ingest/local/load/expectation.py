"""The expected contents of every sink after a load.

`Expectation.from_manifest` computes these contents from the generator's manifest. Without a manifest,
`add_outcome` computes them from messages that are read and parsed again. In both cases the comparison
(`ingest/local/compare/`) is the same.

Because of duplicates, these totals differ from plain sums over messages:
- an object, a row and an outcome have an identity, so duplicate messages count once;
- a click and the later report that it was dead share an identity, and the row with more flags wins;
- metrics are events, so duplicates count twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self
from zlib import crc32

import msgspec

from ingest.core.model import Outcome, Reject, Row, Segment, TopicPartition
from ingest.local.load.manifest import Entry, read_entries
from ingest.settings import Settings


class Object(NamedTuple):
    """One object.

    The SHA-256 is that of the object's bytes if `exact` is true, otherwise that of its inflated bytes.
    """

    sha256: str
    exact: bool


class Letter(NamedTuple):
    """One dead letter, with its reason and the SHA-256 of the original bytes."""

    reason: str
    sha256: str


class Flags(NamedTuple):
    """The flags of a click, each 0 or 1."""

    dead: int
    rage: int


@dataclass(frozen=True, slots=True)
class Total:
    """The number of times a metric was sent, and the sum of its values, or None if it is unknown in advance."""

    count: int
    sum: float | None


Named = tuple[int, str]
"""(project, name). Browsers choose replay ids, so the same event_hash or replay id may occur in several
projects.
"""

LetterPosition = tuple[str, int, int]
"""topic, partition, offset"""

# The analytics table's event type for each kind of event that the generator adds.
FACTS: dict[str, str] = {
    "ui.click": "ui.click",
    "ui.slowClickDetected:dead": "ui.deadClick",
    "ui.slowClickDetected:rage": "ui.rageClick",
    "ui.slowClickDetected:slow": "ui.slowClickDetected",
    "negative_click": "negative-click-node-id",
    "replay.hydrate-error": "hydration_error",
    "span:navigation.navigate": "navigation.span",
    "vital:largest-contentful-paint": "web-vital.largest-contentful-paint",
    "vital:first-contentful-paint": "web-vital.first-contentful-paint",
    "vital:cumulative-layout-shift": "web-vital.cumulative-layout-shift",
    "vital:interaction-to-next-paint": "web-vital.interaction-to-next-paint",
    "span:memory": "memory",
    "span:resource.fetch": "resource.fetch",
    "span:resource.xhr": "resource.xhr",
    "span:resource.script": "resource.script",
    "span:resource.img": "resource.img",
    "span:resource.css": "resource.css",
    "video": "mobile_event",
    **{
        name: name
        for name in (
            "ui.tap",
            "ui.blur",
            "ui.focus",
            "ui.scroll",
            "ui.swipe",
            "navigation",
            "console",
            "viewport",
            "sentry.feedback",
            "device.battery",
            "device.orientation",
            "device.connectivity",
            "app.background",
            "app.foreground",
        )
    },
}
# The kinds of events that are sampled per segment.
SAMPLED_BY_SEGMENT = {"canvas": "canvas_size", "options": "sdk_options", "replay.mutations": "mutations"}

_decode = msgspec.json.Decoder(dict[str, Any]).decode

SIZES = "replays.usecases.ingest."
VIDEO = "replays.recording_consumer.replay_video_"


def is_in_sample(entry: Entry, salt: str, share: float) -> bool:
    """Returns the sampling decision defined in docs/rows.md: true if the CRC-32 of project, replay, segment and
    salt is below `share` times 2**32, the number of possible values.
    """
    return crc32(f"{entry.project_id}/{entry.replay_id}/{entry.segment_id}/{salt}".encode()) < share * 2**32


@dataclass(slots=True)
class Expectation:
    """The expected contents of all sinks, by identity.

    `objects` are keyed by name, `clicks` and `taps` by (project, event_hash), and `letters` by position.
    `segments` are keys (project, replay, segment); each segment has one row for its replay event. `outcomes` maps
    (project, replay) to the category, `facts` maps an event_type to its number of rows in the analytics table, and
    `ends` maps a partition to its known log end. The sampling rates are those of the parser.
    """

    sample_segment_rate: float = 1 / 500
    sample_event_rate: float = 0.002
    objects: dict[str, Object] = field(default_factory=dict)
    clicks: dict[Named, Flags] = field(default_factory=dict)
    taps: set[Named] = field(default_factory=set)
    segments: set[tuple[int, str, int]] = field(default_factory=set)
    outcomes: dict[Named, str] = field(default_factory=dict)
    facts: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Total] = field(default_factory=dict)
    letters: dict[LetterPosition, Letter] = field(default_factory=dict)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    messages: int = 0
    size_bytes: int = 0

    @classmethod
    def from_manifest(cls, *paths: Path, settings: Settings | None = None) -> Self:
        """Returns the expectation for all messages in these manifests, with the sample rates of `settings`. Raises
        ManifestError."""
        expectation = cls()
        if settings is not None:
            expectation.sample_segment_rate = settings.sample_segment_rate
            expectation.sample_event_rate = settings.sample_event_rate
        for path in paths:
            expectation.add_all(read_entries(path))
        return expectation

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
            named = (entry.project_id, click.event_hash)
            self.clicks[named] = max(self.clicks.get(named, Flags(0, 0)), Flags(click.dead, click.rage))
        self.taps.update((entry.project_id, tap) for tap in entry.taps)
        if entry.segment_id == 0:
            category = "replay_video" if entry.kind == "video" else "replay"
            self.outcomes[(entry.project_id, entry.replay_id)] = category
        self._add_facts(entry)

    def add_outcome(self, source: TopicPartition, offset: int, outcome: Outcome) -> None:
        """Adds a message that was read again and parsed.

        The expectation then depends on the parser, so it reveals lost data but not parser errors.
        """
        self.messages += 1
        place = (source.topic, source.partition)
        self.ends[place] = max(self.ends.get(place, 0), offset + 1)
        if isinstance(outcome, Reject):
            digest = hashlib.sha256(outcome.value).hexdigest()
            self.letters[(*place, outcome.offset)] = Letter(outcome.reason, digest)
        if not isinstance(outcome, Segment):
            return
        for metric in outcome.metrics:
            self._sum(metric.name, 1, metric.value)
        identity = (outcome.project_id, outcome.replay_id, outcome.segment_id)
        if identity in self.segments:
            return
        self.segments.add(identity)
        for blob in outcome.blobs:
            self.objects[blob.name] = Object(hashlib.sha256(blob.content).hexdigest(), True)
        for row in outcome.facts:
            self.facts[_decode(row.json)["event_type"]] += 1
        for row in outcome.clickhouse:
            self._add_row(row)

    def _add_row(self, row: Row) -> None:
        fields = _decode(row.json)
        named = (fields["project_id"], row.id)
        if row.table == "replay_outcomes":
            self.outcomes[named] = fields["category"]
        elif "click_tag" in fields:
            flags = Flags(fields["click_is_dead"], fields["click_is_rage"])
            self.clicks[named] = max(self.clicks.get(named, Flags(0, 0)), flags)
        elif "tap_view_id" in fields:
            self.taps.add(named)

    def _add_facts(self, entry: Entry) -> None:
        if entry.flaw == "body_not_json":
            return
        self.facts["rrweb_event_count"] += 1
        for seen, fact in FACTS.items():
            if seen in entry.seen:
                self.facts[fact] += entry.seen[seen]
        if is_in_sample(entry, "segment", self.sample_segment_rate):
            for seen, fact in SAMPLED_BY_SEGMENT.items():
                if seen in entry.seen:
                    self.facts[fact] += entry.seen[seen]
        for fact, places in entry.coins.items():
            sampled = sum(is_in_sample(entry, f"{place}", self.sample_event_rate) for place in places)
            if sampled:
                self.facts[fact] += sampled

    def _add_metrics(self, entry: Entry) -> None:
        seen, sums = entry.seen, entry.sums
        # The pipeline compresses these bytes itself, so their compressed size is not known here.
        self._sum(SIZES + "size_compressed", 1, sums["stored"] if entry.blob_exact else None)
        self._sum(SIZES + "size_uncompressed", 1, sums["raw"])
        for side in ("request", "response"):
            if f"{side}_size" in seen:
                self._sum(f"{SIZES}{side}_body_size", seen[f"{side}_size"], sums[f"{side}_size"])
        if entry.kind == "video":
            self._sum(VIDEO + "count", 1, 1)
            self._sum(VIDEO + "size", 1, sums["video"])
            self._sum(VIDEO + "event_size", 1, sums["raw"])
        for name, kind in (
            ("replay.rage_click_detected", "ui.slowClickDetected:rage"),
            ("replay.hydration_error_breadcrumb", "replay.hydrate-error"),
        ):
            if kind in seen:
                self._sum(name, 1, seen[kind])
        if not seen["replay_event"]:
            self._sum("sentry.replays.consumer.recording.missing-replay-event", 1, 1)

    def _sum(self, name: str, count: int, total: float | None) -> None:
        old = self.metrics.get(name, Total(0, 0.0))
        unknown = old.sum is None or total is None
        self.metrics[name] = Total(old.count + count, None if unknown else (old.sum or 0.0) + (total or 0.0))
