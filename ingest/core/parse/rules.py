"""The bounds and sampling rates of parsing, and the stable names of all that can be wrong with a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.units import MiB


@dataclass(frozen=True, slots=True)
class ParseRules:
    """Names and defaults as in `ingest.settings`; bytes, and shares from 0 to 1."""

    message_bytes_max: int = 16 * MiB
    inflated_bytes_max: int = 100 * MiB
    clicks_per_segment_max: int = 20
    taps_per_segment_max: int = 20
    facts_per_segment_max: int = 2000
    rows_bytes_max: int = 4 * MiB
    sample_segment_rate: float = 1 / 500
    sample_event_rate: float = 0.002


@dataclass(frozen=True, slots=True)
class Usual:
    """What is parsed inline: the largest inflated recording, in bytes, and the parse budget, in cost units."""

    inflated_bytes_max: int = 8 * MiB
    units_max: float = 5_000.0


REASONS: Mapping[str, str] = {
    "message_too_large": "The Kafka value is larger than message_bytes_max.",
    "not_msgpack": "The value is not one msgpack document, or it was cut off.",
    "schema": "The document is not a replay_recording_not_chunked message: a field is missing or of a wrong type.",
    "no_header": "The payload has no newline, so no header line.",
    "bad_header": "The header line is not a JSON object with an integer segment_id of 0 or more.",
    "body_not_zlib": "The body is neither a zlib stream nor a JSON array.",
    "body_truncated": "The zlib stream of the body ends too early.",
    "body_too_large": "The body inflates to more than inflated_bytes_max.",
    "parser_failed": "The message met a limit of its parsing process, which the error names, or ended it twice.",
}

WARNINGS: Mapping[str, str] = {
    "recording_not_json": "The body is not a JSON array: stored as received, billed, no events.",
    "event_malformed": "One rrweb event has a wrong shape or holds too much: it alone is left out "
    "(counted up to 1000 per segment).",
    "event_too_deep": "One rrweb event is nested deeper than the JSON decoder goes: it alone is left out.",
    "events_over_limit": "More facts than facts_per_segment_max: the rest is left out.",
    "rows_over_limit": "Rows and metrics of more bytes than rows_bytes_max: the rest is left out.",
    "cost_over_limit": "Reading on would cost too much for the segment's size: stored, its rest is not read.",
    "replay_event_missing": "The message carries no replay_event.",
    "replay_event_not_json": "The replay_event is not a JSON object: rows without its fields.",
    "replay_event_over_limit": "The replay_event exceeds 1 MiB or has too many values: rows without its fields.",
    "negative_click_node_id": "A click names a node below 0: no click row.",
    "retention_clamped": "retention_days is outside 1 to 14600, what the tables can express: the nearest is used.",
    "oversized_segment": "The segment inflates to more than 20 MB, which no SDK should send.",
}


class Rejected(Exception):
    """The message will never parse. `reason` is a key of REASONS, the text is for a person."""

    def __init__(self, reason: str, error: str) -> None:
        assert reason in REASONS
        super().__init__(error)
        self.reason = reason
