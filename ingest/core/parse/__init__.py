"""Bytes in, a segment or a reject out: `parse(message, rules)`, a pure function.

envelope.py   the msgpack map
recording.py  header line, bounded inflate, what is stored
scan.py       which events of the array are worth a look
rrweb.py      what each of them means
document.py   what the replay_event says
rows.py       what each sink gets
rules.py      bounds, and the stable names of everything that can be wrong
"""

from __future__ import annotations

import msgspec

from ingest.core.model import Blob, Message, Reject, Row, Segment
from ingest.core.parse import rows
from ingest.core.parse.document import EMPTY, Document, open_document
from ingest.core.parse.envelope import Envelope, open_envelope
from ingest.core.parse.recording import inflate, split, stored
from ingest.core.parse.rrweb import Click, Count, Fact, Malformed, Meaning, Size, meanings
from ingest.core.parse.rules import REASONS, WARNINGS, ParseRules, Rejected
from ingest.core.parse.scan import scan

__all__ = ["REASONS", "WARNINGS", "ParseRules", "parse"]

ERROR_CHARACTERS_MAX = 500
SAME_WARNINGS_MAX = 1000


def parse(message: Message, rules: ParseRules) -> Segment | Reject:
    """What each sink gets of one Kafka message, or why it will never parse. Never raises, whatever the bytes."""
    try:
        if len(message.value) > rules.message_bytes_max:
            raise Rejected(
                "message_too_large", f"{len(message.value)} bytes, the limit is {rules.message_bytes_max}"
            )
        envelope = open_envelope(message.value)
        segment_id, body = split(envelope.payload)
        raw = inflate(body, rules.inflated_bytes_max)
    except Rejected as rejected:
        return _reject(message, rejected)
    return _segment(message, envelope, segment_id, body, raw, rules)


def _reject(message: Message, rejected: Rejected) -> Reject:
    error = str(rejected)[:ERROR_CHARACTERS_MAX]
    return Reject.of(message, rejected.reason, error)


def _segment(
    message: Message,
    envelope: Envelope,
    segment_id: int,
    body: memoryview,
    raw: bytes | bytearray,
    rules: ParseRules,
) -> Segment:
    identity = rows.Identity(
        envelope.org_id,
        envelope.project_id,
        envelope.replay_id,
        segment_id,
        envelope.retention_days,
        envelope.key_id,
        rows.believable(envelope.received, message.timestamp_ms),
        message.source.partition,
        message.offset,
    )
    video = envelope.replay_video if envelope.replay_video else None
    name = f"{envelope.retention_days}/{envelope.project_id}/{envelope.replay_id}/{segment_id}"
    blob = Blob(name, stored(body, raw, video), message.offset)
    size_stored, size_video = len(blob.content), len(video) if video else 0

    gathered = _Gathered(identity, rules)
    writer, clickhouse = gathered.writer, gathered.clickhouse
    document = _document(envelope, gathered.warnings)
    clickhouse.append(writer.segment(name, size_stored, len(raw), size_video))
    # Whatever relay_snuba_publish_disabled says: true, which Relay always writes by now, asks us for this row, and
    # where Relay has published the event itself, it went to another table than ours.
    clickhouse.append(writer.replay(document))
    if segment_id == 0:
        clickhouse.append(writer.outcome(video is not None))
    gathered.take_recording(raw)
    metrics = rows.metrics(
        size_stored,
        len(raw),
        size_video,
        gathered.sizes,
        gathered.rage,
        gathered.hydration,
        envelope.replay_event is None,
    )
    if len(raw) > rows.OVERSIZED_BYTES:
        gathered.warnings.append("oversized_segment")
    return Segment(
        org_id=envelope.org_id,
        project_id=envelope.project_id,
        replay_id=envelope.replay_id,
        segment_id=segment_id,
        retention_days=envelope.retention_days,
        received=envelope.received,
        blobs=(blob,),
        clickhouse=tuple(clickhouse),
        bigquery=tuple(gathered.facts),
        metrics=metrics,
        warnings=tuple(gathered.warnings),
        size_bytes=size_stored + _rows_bytes(clickhouse) + _rows_bytes(gathered.facts) + 64 * len(metrics),
    )


def _rows_bytes(made: list[Row]) -> int:
    """About what they take in Redis and in the reader's memory."""
    return sum([len(row.json) + len(row.id) for row in made]) + 32 * len(made)


def _document(envelope: Envelope, warnings: list[str]) -> Document:
    if envelope.replay_event is None:
        warnings.append("replay_event_missing")
        return EMPTY
    document = open_document(envelope.replay_event)
    if document is None:
        warnings.append("replay_event_not_json")
        return EMPTY
    return document


class _Gathered:
    """What the events of one recording say, within the bounds of the rules."""

    def __init__(self, identity: rows.Identity, rules: ParseRules) -> None:
        self.writer = rows.Writer(identity)
        self.clickhouse: list[Row] = []
        self.facts: list[Row] = []
        self.sizes: list[Size] = []
        self.warnings: list[str] = []
        self.rage = 0
        self.hydration = 0
        self._identity = identity
        self._rules = rules
        self._clicks = 0
        self._taps = 0
        self._over_limit = False
        self._sampled = rows.coin(identity, "segment", rules.sample_segment_rate)

    def take_recording(self, raw: bytes | bytearray) -> None:
        """All events of the array; without one that is readable there are none, and a warning says so."""
        try:
            scanned = scan(raw, canvas=self._sampled)
        except msgspec.DecodeError:
            self.warnings.append("recording_not_json")
            return
        self._fact(Fact("rrweb_event_count", self._identity.at, Count(scanned.count)), -1)
        malformed = scanned.malformed
        for index, event in scanned.events:
            try:
                for meaning in meanings(event):
                    self._take(meaning, index)
            except Malformed:
                malformed += 1
        self.warnings += ["event_malformed"] * min(malformed, SAME_WARNINGS_MAX)
        self.warnings += ["event_too_deep"] * min(scanned.too_deep, SAME_WARNINGS_MAX)
        if scanned.cut or self._over_limit:
            self.warnings.append("events_over_limit")

    def _take(self, meaning: Meaning, index: int) -> None:
        if isinstance(meaning, Fact):
            self._fact(meaning, index)
        elif isinstance(meaning, Size):
            if len(self.sizes) < self._rules.facts_per_segment_max:
                self.sizes.append(meaning)
        elif isinstance(meaning, Click):
            self.rage += meaning.is_rage
            if self._clicks < self._rules.clicks_per_segment_max:
                self._clicks += 1
                self.clickhouse.append(self.writer.click(meaning))
        elif self._taps < self._rules.taps_per_segment_max:
            self._taps += 1
            self.clickhouse.append(self.writer.tap(meaning))

    def _fact(self, fact: Fact, index: int) -> None:
        if fact.kind == "hydration_error":
            self.hydration += 1
        elif fact.kind == "negative-click-node-id":
            self.warnings.append("negative_click_node_id")
        if fact.sampled == "segment" and not self._sampled:
            return
        if fact.sampled == "event" and not rows.coin(self._identity, f"{index}", self._rules.sample_event_rate):
            return
        if len(self.facts) < self._rules.facts_per_segment_max:
            self.facts.append(self.writer.fact(fact, index))
        else:
            self._over_limit = True
