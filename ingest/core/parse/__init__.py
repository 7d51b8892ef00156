"""Parses a message into a segment or a reject: `parse(message, rules)`, a pure function.

envelope.py    the msgpack map
recording.py   header line, bounded decompression, stored bytes
budget.py      work budget beyond decompression
scan.py        selects the events of the array to decode; with pieces.py, elements.py, surrogates.py, odd.py
events.py      the shapes of events; with shapes.py and values.py
undecoded.py   every event as sent, for viewing recordings
rrweb.py       interprets each event
gather.py      limits the number and size of rows
document.py    reads the replay_event
rows.py        rows for each sink
rules.py       limits, and names of rejects and warnings
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from ingest.core.model import Blob, Message, Reject, Row, Segment
from ingest.core.parse import rows
from ingest.core.parse.budget import Budget, BudgetSpent, units_of
from ingest.core.parse.document import EMPTY, Document, UnreadableDocument, open_document, without_lists
from ingest.core.parse.envelope import Envelope, open_envelope, project_of
from ingest.core.parse.gather import GatheredRows
from ingest.core.parse.recording import inflate, split, stored
from ingest.core.parse.rules import REASONS, WARNINGS, MessageRejected, ParseRules, UsualLimits
from ingest.core.parse.scan import Scan

__all__ = [
    "REASONS",
    "WARNINGS",
    "ParseRules",
    "RebuiltRows",
    "UsualLimits",
    "parse",
    "parse_usual_message",
    "rows_of_recording",
]

ERROR_CHARACTERS_MAX = 500
VIEW_BYTES_MAX = 64 * 1024


def parse(message: Message, rules: ParseRules) -> Segment | Reject:
    """Returns the items of one Kafka message for each sink, or a reject. Never raises.

    Costs at most a few times as much as decompressing and scanning the message; docs/cost.md states the limit.
    """
    return _parse(message, rules, rules.inflated_bytes_max, units_of(rules))


def parse_usual_message(message: Message, rules: ParseRules, usual: UsualLimits) -> Segment | Reject | None:
    """Like `parse`, for messages that are cheap to parse. Returns None for other messages, which are detected
    early."""
    inflated_bytes_max = min(usual.inflated_bytes_max, rules.inflated_bytes_max)
    try:
        outcome = _parse(message, rules, inflated_bytes_max, usual.units_max, spent=_UnusualMessage)
    except _UnusualMessage:
        return None
    if inflated_bytes_max < rules.inflated_bytes_max and isinstance(outcome, Reject):
        return None if outcome.reason == "body_too_large" else outcome
    return outcome


class RebuiltRows(msgspec.Struct, frozen=True, gc=False):
    """Rows and facts that the events of one recording produce, independent of its message."""

    clickhouse: tuple[Row, ...]
    bigquery: tuple[Row, ...]
    warnings: tuple[str, ...]


def rows_of_recording(
    raw: bytes, identity: rows.Identity, environment: str | None, rules: ParseRules
) -> RebuiltRows:
    """Returns the click rows and facts that `parse` produces for this recording (the JSON) in a message with this
    identity.

    The size of the session's row is not counted, because that size is unknown here.
    """
    as_json = replace(rules, bigquery_write="insert_all")
    gathered = _gathered(rows.Writer(identity, environment), raw, as_json, 0, Budget(units_of(rules)), None)
    return RebuiltRows(tuple(gathered.clickhouse), tuple(gathered.facts), tuple(gathered.warnings))


class _UnusualMessage(Exception):
    """Raised if a message is not cheap to parse."""


def _parse(
    message: Message,
    rules: ParseRules,
    inflated_bytes_max: int,
    units: float,
    spent: type[_UnusualMessage] | None = None,
) -> Segment | Reject:
    """Parses within the given size limit and budget. Raises `spent`, if given, when the budget is exhausted."""
    try:
        if len(message.value) > rules.message_bytes_max:
            raise MessageRejected(
                "message_too_large", f"{len(message.value)} bytes, the limit is {rules.message_bytes_max}"
            )
        envelope = open_envelope(message.value)
        segment_id, body = split(envelope.payload)
        raw = inflate(body, inflated_bytes_max)
    except MessageRejected as rejected:
        return _reject(message, rejected)
    return _segment(message, envelope, segment_id, body, raw, rules, units, spent)


def _reject(message: Message, rejected: MessageRejected) -> Reject:
    error = str(rejected)[:ERROR_CHARACTERS_MAX]
    return Reject.of(message, rejected.reason, error, project_of(message.value))


def _segment(
    message: Message,
    envelope: Envelope,
    segment_id: int,
    body: memoryview,
    raw: bytes | bytearray,
    rules: ParseRules,
    units: float,
    spent: type[_UnusualMessage] | None,
) -> Segment:
    warnings: list[str] = []
    identity = _identity(message, envelope, segment_id, warnings)
    document = _document(envelope, warnings)
    writer = rows.Writer(identity, document.environment)
    # The row is written regardless of relay_snuba_publish_disabled. Current versions of Relay always set this
    # flag, which means that Relay did not publish the event. An event that Relay publishes is stored in another
    # table, so this row cannot duplicate it.
    replay = _replay_row(writer, document, rules, warnings)
    gathered = _gathered(writer, raw, rules, len(replay.json), Budget(units), spent)
    warnings += gathered.warnings

    video = envelope.replay_video if envelope.replay_video else None
    name = f"{identity.retention_days}/{envelope.project_id}/{envelope.replay_id}/{segment_id}"
    blob = Blob(name, _kept(stored(body, raw, video), message), message.offset)
    size_stored, size_video = len(blob.content), len(video) if video else 0
    clickhouse = [writer.segment(name, size_stored, len(raw), size_video), replay]
    if segment_id == 0:
        clickhouse.append(writer.outcome(video is not None))
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
        warnings.append("oversized_segment")
    own_bytes = 0
    for row in clickhouse:
        own_bytes += rows.size_bytes(row)
    is_proto = gathered.is_proto
    # Arguments are passed by position, in struct order, which is four times as fast as by name.
    return Segment(
        envelope.org_id,
        envelope.project_id,
        envelope.replay_id,
        segment_id,
        identity.retention_days,
        envelope.received,
        (blob,),
        (*clickhouse, *gathered.clickhouse),
        () if is_proto else tuple(gathered.facts),
        metrics,
        tuple(warnings),
        size_stored + own_bytes + gathered.size_bytes + rows.METRIC_BYTES * len(metrics),
        b"".join(gathered.facts) if is_proto else b"",
        len(gathered.facts) if is_proto else 0,
    )


def _kept(content: bytes | memoryview, message: Message) -> bytes | memoryview:
    """Copies a small part of a long message, because a view would keep the whole message in memory."""
    whole_bytes = len(message.value)
    if whole_bytes > VIEW_BYTES_MAX and 2 * len(content) < whole_bytes:
        return bytes(content)
    return content


def _identity(message: Message, envelope: Envelope, segment_id: int, warnings: list[str]) -> rows.Identity:
    retention_days = rows.clamped_days(envelope.retention_days)
    if retention_days != envelope.retention_days:
        warnings.append("retention_clamped")
    return rows.Identity(
        envelope.org_id,
        envelope.project_id,
        envelope.replay_id,
        segment_id,
        retention_days,
        envelope.key_id,
        rows.plausible_time(envelope.received, message.timestamp_ms),
        message.source.partition,
        message.offset,
    )


def _document(envelope: Envelope, warnings: list[str]) -> Document:
    if envelope.replay_event is None:
        warnings.append("replay_event_missing")
        return EMPTY
    try:
        return open_document(envelope.replay_event)
    except UnreadableDocument as unread:
        warnings.append(unread.warning)
        return EMPTY


def _replay_row(writer: rows.Writer, document: Document, rules: ParseRules, warnings: list[str]) -> Row:
    """Returns the row of the session, without its lists if they would use most of the row limit."""
    row = writer.replay(document)
    if 2 * len(row.json) <= rules.rows_bytes_max:
        return row
    warnings.append("rows_over_limit")
    return writer.replay(without_lists(document))


def _gathered(
    writer: rows.Writer,
    raw: bytes | bytearray,
    rules: ParseRules,
    taken_bytes: int,
    budget: Budget,
    spent: type[_UnusualMessage] | None,
) -> GatheredRows:
    """Returns the content of the recording; empty, with a warning, if it is not a JSON array."""
    gathered = GatheredRows(writer, rules, budget, taken_bytes)
    scan = Scan(raw, gathered.is_sampled, budget)
    try:
        gathered.take(scan)
    except msgspec.DecodeError:
        gathered = GatheredRows(writer, rules, budget, taken_bytes)
        gathered.warnings.append("recording_not_json")
        return gathered
    except BudgetSpent:
        if spent is not None:
            raise spent from None
        gathered.warnings.append("cost_over_limit")
    gathered.close(scan)
    return gathered
