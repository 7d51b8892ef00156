"""Small helpers for tests of the parser. Messages come from `ingest.testing.messages`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ingest.core.model import Message, Reject, Row, Segment, TopicPartition
from ingest.core.parse import ParseRules, parse
from ingest.testing.messages import RECEIVED, recording

SOURCE = TopicPartition("ingest-replay-recordings", 3)
OFFSET = 41
ALL = ParseRules(sample_segment_rate=1.0, sample_event_rate=1.0)
NO_SAMPLING = ParseRules(sample_segment_rate=0.0, sample_event_rate=0.0)


def message(value: bytes, timestamp_ms: int = RECEIVED * 1000) -> Message:
    """Returns a Kafka record with the given value."""
    return Message(SOURCE, epoch=1, offset=OFFSET, value=value, timestamp_ms=timestamp_ms)


def parsed(value: bytes, rules: ParseRules = ALL, timestamp_ms: int = RECEIVED * 1000) -> Segment:
    """Parses the value, and returns the segment."""
    outcome = parse(message(value, timestamp_ms), rules)
    assert isinstance(outcome, Segment), outcome
    return outcome


def rejected(value: bytes, rules: ParseRules = ALL) -> Reject:
    """Parses a value that must be rejected, and returns the reject."""
    outcome = parse(message(value), rules)
    assert isinstance(outcome, Reject), outcome
    return outcome


def events_parsed(events: Sequence[Any], rules: ParseRules = ALL) -> Segment:
    """Returns a segment with the given rrweb events."""
    return parsed(recording(events), rules)


def table(segment: Segment, name: str) -> list[dict[str, Any]]:
    """Returns the segment's rows for one ClickHouse table."""
    return [json.loads(row.json) for row in segment.clickhouse if row.table == name]


def clicks(segment: Segment) -> list[dict[str, Any]]:
    """Returns the click rows."""
    return [row for row in table(segment, "replays") if "click_tag" in row]


def taps(segment: Segment) -> list[dict[str, Any]]:
    """Returns the tap rows."""
    return [row for row in table(segment, "replays") if "tap_message" in row]


def session(segment: Segment) -> dict[str, Any]:
    """Returns the session row, which has the fields of the replay_event."""
    (row,) = [row for row in table(segment, "replays") if "click_tag" not in row and "tap_message" not in row]
    return row


def fact_seconds(row: Row) -> float:
    """Returns the time of an analytics row in Unix seconds."""
    return datetime.fromisoformat(json.loads(row.json)["timestamp"]).timestamp()


def facts(segment: Segment) -> list[tuple[str, dict[str, Any]]]:
    """Returns (event_type, attributes) for each analytics row except the event-count row."""
    rows = [json.loads(row.json) for row in segment.bigquery]
    made = [(row["event_type"], json.loads(row["attributes"])) for row in rows]
    return [fact for fact in made if fact[0] != "rrweb_event_count"]


def kinds(segment: Segment) -> list[str]:
    """Returns the event type of each analytics row except the event-count row."""
    return [kind for kind, _ in facts(segment)]


def metric(segment: Segment, name: str) -> list[float]:
    """Returns all values of one metric."""
    return [metric.value for metric in segment.metrics if metric.name == name]


def body_sizes(segment: Segment) -> tuple[list[float], list[float]]:
    """Returns the request and response sizes in bytes."""
    prefix = "replays.usecases.ingest."
    return metric(segment, f"{prefix}request_body_size"), metric(segment, f"{prefix}response_body_size")
