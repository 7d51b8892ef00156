"""Bytes in, a segment or a reject out: `parse(message, rules)`, a pure function.

envelope.py   the msgpack map
recording.py  header line, bounded inflate, what is stored
rrweb.py      what each event means
rows.py       what each sink gets
rules.py      bounds, and the stable names of everything that can be wrong
"""

from __future__ import annotations

from typing import Any

import msgspec

from ingest.core.model import Blob, DeadLetter, Message, Metric, Reject, Row, Segment
from ingest.core.parse import rows
from ingest.core.parse.envelope import Envelope, open_envelope
from ingest.core.parse.recording import inflate, split, stored
from ingest.core.parse.rrweb import Click, Fact, Malformed, Size, Tap, meanings, scan
from ingest.core.parse.rules import REASONS, WARNINGS, ParseRules, Rejected

__all__ = ["REASONS", "WARNINGS", "ParseRules", "parse"]

_decode_json = msgspec.json.Decoder().decode
CLICK_KINDS = frozenset(("ui.click", "ui.deadClick", "ui.rageClick", "ui.slowClickDetected"))


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
    error = str(rejected)[:500]
    letter = DeadLetter(
        key=message.key,
        value=message.value,
        headers=message.headers,
        reason=rejected.reason,
        error=error,
        offset=message.offset,
        first_seen_ms=message.timestamp_ms,
    )
    return Reject(rejected.reason, error, letter)


def _segment(
    message: Message, envelope: Envelope, segment_id: int, body: memoryview, raw: bytes, rules: ParseRules
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
    gathered = _Gathered(identity, rules)
    document = _document(envelope, gathered.warnings)
    gathered.take_recording(raw)
    size_stored, size_video = len(blob.content), len(video) if video else 0

    clickhouse = gathered.clickhouse
    clickhouse.append(rows.segment_row(identity, name, size_stored, len(raw), size_video))
    if envelope.relay_snuba_publish_disabled is not True:
        clickhouse.append(rows.replay_row(identity, document))
    if segment_id == 0:
        clickhouse.append(rows.outcome_row(identity, video is not None))
    metrics = rows.metrics(
        size_stored,
        len(raw),
        size_video,
        gathered.sizes,
        gathered.rage,
        gathered.hydration,
        "replay_event_missing" in gathered.warnings,
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
        size_bytes=_staged_bytes(blob, clickhouse, gathered.facts, metrics),
    )


def _staged_bytes(blob: Blob, clickhouse: list[Row], facts: list[Row], metrics: tuple[Metric, ...]) -> int:
    """About what the segment takes in Redis and in the reader's memory."""
    rows_bytes = sum(len(row.json) + len(row.id) + 32 for row in (*clickhouse, *facts))
    return len(blob.content) + rows_bytes + 64 * len(metrics)


def _document(envelope: Envelope, warnings: list[str]) -> dict[str, Any]:
    if envelope.replay_event is None:
        warnings.append("replay_event_missing")
        return {}
    try:
        document = _decode_json(envelope.replay_event)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        warnings.append("replay_event_not_json")
        return {}
    return document


class _Gathered:
    """What the events of one recording say, within the bounds of the rules."""

    def __init__(self, identity: rows.Identity, rules: ParseRules) -> None:
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
        self._sampled = rows.coin(identity, "segment", rules.sample_segment_rate)

    def take_recording(self, raw: bytes) -> None:
        """All events of the array; without one that is readable there are none, and a warning says so."""
        try:
            events, count, malformed = scan(raw, canvas=self._sampled)
        except RecursionError:
            self.warnings.append("recording_too_deep")
            return
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.warnings.append("recording_not_json")
            return
        self.warnings.extend(["event_malformed"] * malformed)
        for event in events:
            try:
                for meaning in meanings(event):
                    self._take(meaning, event.index)
            except Malformed:
                self.warnings.append("event_malformed")
        self._fact(Fact("rrweb_event_count", self._identity.at, {"count": count}), -1)

    def _take(self, meaning: Click | Tap | Fact | Size, index: int) -> None:
        if isinstance(meaning, Fact):
            self._fact(meaning, index)
        elif isinstance(meaning, Size):
            self.sizes.append(meaning)
        elif isinstance(meaning, Click):
            self.rage += meaning.is_rage
            if self._clicks < self._rules.clicks_per_segment_max:
                self._clicks += 1
                self.clickhouse.append(rows.click_row(self._identity, meaning))
        elif self._taps < self._rules.taps_per_segment_max:
            self._taps += 1
            self.clickhouse.append(rows.tap_row(self._identity, meaning))

    def _fact(self, fact: Fact, index: int) -> None:
        if fact.kind == "negative-click-node-id":
            self.warnings.append("negative_click_node_id")
        elif fact.kind == "hydration_error":
            self.hydration += 1
        if fact.sampled == "segment" and not self._sampled:
            return
        if fact.sampled == "event" and not rows.coin(self._identity, f"{index}", self._rules.sample_event_rate):
            return
        self.facts.append(rows.fact_row(self._identity, fact, index))
