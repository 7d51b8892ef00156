"""Limits and sampling rates for parsing, and the names of reject reasons and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.units import MiB


@dataclass(frozen=True, slots=True)
class ParseRules:
    """Limits in bytes, and shares from 0 to 1. Names and defaults are those of `ingest.settings`."""

    message_bytes_max: int = 16 * MiB
    inflated_bytes_max: int = 100 * MiB
    clicks_per_segment_max: int = 20
    taps_per_segment_max: int = 20
    facts_per_segment_max: int = 2000
    rows_bytes_max: int = 4 * MiB
    sample_segment_rate: float = 1 / 500
    sample_event_rate: float = 0.002
    bigquery_write: Literal["insert_all", "storage"] = "insert_all"
    """With "storage", facts are encoded as protobuf instead of JSON."""


@dataclass(frozen=True, slots=True)
class UsualLimits:
    """Limits for parsing in the reader process: decompressed bytes, and the parse budget in cost units."""

    inflated_bytes_max: int = 8 * MiB
    units_max: float = 5_000.0


REASONS: Mapping[str, str] = {
    "message_too_large": "The Kafka value exceeds message_bytes_max.",
    "not_msgpack": "The value is not a single msgpack document, or is truncated.",
    "schema": "The document is not a replay_recording_not_chunked message: a field is missing or has the wrong "
    "type.",
    "no_header": "The payload has no header line (no newline).",
    "bad_header": "The header line is not a JSON object with an integer segment_id of 0 or more.",
    "body_not_zlib": "The body is neither a zlib stream nor a JSON array.",
    "body_truncated": "The body's zlib stream is truncated.",
    "body_too_large": "The decompressed body exceeds inflated_bytes_max.",
    "parser_failed": "Parsing exceeded a limit of the child process (the error names the limit), or crashed the "
    "child process twice.",
}

WARNINGS: Mapping[str, str] = {
    "recording_not_json": "The body is not a JSON array. The recording is stored unchanged and counts for "
    "billing, but yields no events.",
    "event_malformed": "An rrweb event is malformed or too large. Only that event is left out (counted up to "
    "1000 per segment).",
    "event_too_deep": "An rrweb event is nested too deeply for the JSON decoder. Only that event is left out.",
    "events_over_limit": "The segment has more facts than facts_per_segment_max. The rest is left out.",
    "rows_over_limit": "Rows and metrics exceed rows_bytes_max. The rest is left out.",
    "cost_over_limit": "Parsing costs too much for the segment's size. The rest is stored without being parsed.",
    "replay_event_missing": "The message has no replay_event.",
    "replay_event_not_json": "The replay_event is not a JSON object. Its fields are missing from rows.",
    "replay_event_over_limit": "The replay_event exceeds 1 MiB or has too many values. Its fields are missing "
    "from rows.",
    "negative_click_node_id": "A click has a negative node id. No click row is written.",
    "retention_clamped": "retention_days is outside 1 to 14600, the range of the tables. The nearest value is "
    "used.",
    "oversized_segment": "The decompressed segment exceeds 20 MB, which no SDK should send.",
}


class MessageRejected(Exception):
    """Raised if a message cannot be parsed. `reason` is a key of REASONS; the error text is for operators."""

    def __init__(self, reason: str, error: str) -> None:
        assert reason in REASONS
        super().__init__(error)
        self.reason = reason
