"""Describes a Kafka message and its rows, for `replays-ingest inspect` and `dlq show`.

`describe` returns JSON values, and `render` formats them for a terminal. Both functions use the reader's parser,
so they show exactly what would be written. They never raise.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ingest.core.model import Message, Row, Segment, TopicPartition
from ingest.core.parse import REASONS, WARNINGS, ParseRules, parse
from ingest.core.parse.budget import Budget, BudgetSpent, units_of
from ingest.core.parse.envelope import Envelope, open_envelope
from ingest.core.parse.recording import inflate, is_plain, split
from ingest.core.parse.rules import MessageRejected
from ingest.core.parse.undecoded import Undecoded, undecoded
from tasks.printed import printable

SOURCE = TopicPartition("file", 0)
EVENT_TYPES = (
    "DomContentLoaded",
    "Load",
    "FullSnapshot",
    "IncrementalSnapshot",
    "Meta",
    "Custom",
    "Plugin",
    "Asset",
)
ROWS_SHOWN_MAX = 40
VALUE_CHARACTERS_MAX = 160
HEAD_BYTES = 64
# Budget for counting events by type, about one second, and the measured costs per event and per byte, in parser
# units.
COUNTING_UNITS = 1_000_000.0
_UNITS_PER_EVENT, _UNITS_PER_BYTE = 1.0, 0.001


class _Kind(msgspec.Struct, gc=False):
    type: Any = None


_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def describe(data: bytes, rules: ParseRules) -> dict[str, Any]:
    """Returns the readable content of a message and its rows, as JSON values.

    Keys: `bytes`, `reject` (None, or its reason, error and meaning), `head` (if it is not an envelope),
    `envelope`, `recording`, `warnings`, `object`, `clickhouse` (rows by table), `bigquery` (rows), `metrics`.
    If the message is a reject, the keys after `reject` may be missing. Partition, offset and Kafka timestamp are
    always 0.
    """
    outcome = parse(Message(SOURCE, epoch=0, offset=0, value=data), rules)
    found: dict[str, Any] = {"bytes": len(data), "reject": None}
    if not isinstance(outcome, Segment):
        found["reject"] = {
            "reason": outcome.reason,
            "error": outcome.error,
            "meaning": REASONS[outcome.reason],
        }
    _add_contents(data, rules, found)
    if isinstance(outcome, Segment):
        _add_sink_items(outcome, found)
    return found


def _add_contents(data: bytes, rules: ParseRules, found: dict[str, Any]) -> None:
    """Adds the envelope and the recording, as far as each can be read."""
    if len(data) > rules.message_bytes_max:
        return
    try:
        envelope = open_envelope(data)
    except MessageRejected:
        found["head"] = repr(data[:HEAD_BYTES])
        return
    found["envelope"] = _envelope(envelope)
    try:
        segment_id, body = split(envelope.payload)
        found["recording"] = {"segment_id": segment_id, "body_bytes": len(body)}
        raw = inflate(body, rules.inflated_bytes_max)
    except MessageRejected:
        return
    form = "plain JSON" if is_plain(body) else "zlib"
    found["recording"] |= {"form": form, "json_bytes": len(raw), "events": _events(raw, rules)}


def _envelope(envelope: Envelope) -> dict[str, Any]:
    event, video = envelope.replay_event, envelope.replay_video
    return {
        "replay_id": envelope.replay_id,
        "org_id": envelope.org_id,
        "project_id": envelope.project_id,
        "key_id": envelope.key_id,
        "received": envelope.received,
        "retention_days": envelope.retention_days,
        "version": envelope.version,
        "payload_bytes": len(envelope.payload),
        "replay_event_bytes": None if event is None else len(event),
        "replay_video_bytes": None if video is None else len(video),
    }


def _events(raw: bytes | bytearray, rules: ParseRules) -> dict[str, int] | None:
    """Returns the number of rrweb events by type; None if unknown.

    If counting would exceed the budget, the result also contains the type `not read` with a count of 1.
    """
    counts: Counter[str] = Counter()
    budget = Budget(units_of(rules) + COUNTING_UNITS)
    try:
        for item in undecoded(raw, budget):
            budget.spend(_UNITS_PER_EVENT + _UNITS_PER_BYTE * memoryview(item).nbytes)
            counts[_kind(item)] += 1
    except BudgetSpent:
        counts["not read"] = 1
    except _UNREADABLE:
        return None
    return dict(counts.most_common())


def _kind(item: Undecoded) -> str:
    try:
        kind = _decode_kind(item).type
    except _UNREADABLE:
        return "malformed"
    if type(kind) is not int:
        return "malformed"
    return EVENT_TYPES[kind] if 0 <= kind < len(EVENT_TYPES) else "unknown"


def _add_sink_items(segment: Segment, found: dict[str, Any]) -> None:
    """Adds the warnings, and the items that each sink writes for this segment, to `found`."""
    warnings = Counter(segment.warnings)
    found["warnings"] = [
        {"warning": name, "count": count, "meaning": WARNINGS[name]} for name, count in warnings.items()
    ]
    (blob,) = segment.blobs
    found["object"] = {"name": blob.name, "bytes": len(blob.content)}
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in segment.clickhouse:
        tables.setdefault(row.table, []).append(_decode_object(row.json))
    found["clickhouse"] = tables
    found["bigquery"] = [_fact(row) for row in segment.facts]
    found["metrics"] = [
        {"kind": metric.kind, "name": metric.name, "value": metric.value} for metric in segment.metrics
    ]


def _fact(row: Row) -> dict[str, Any]:
    """Returns the fact with `attributes` decoded."""
    fields = _decode_object(row.json)
    fields["attributes"] = _decode_object(fields["attributes"])
    return fields


# Terminal output. Message content is printed as plain text, without markup or control characters.


def render(description: dict[str, Any]) -> RenderableType:
    """Formats a description for a terminal."""
    parts: list[RenderableType] = []
    reject = description["reject"]
    if reject:
        parts.append(Text(f"Rejected: {reject['reason']}. {reject['meaning']}", style="bold red"))
        parts.append(_plain(reject["error"]))
    else:
        parts.append(Text(f"A segment, {description['bytes']:,} bytes as a message", style="bold green"))
    if "head" in description:
        parts.append(_plain(f"starts with {description['head']}"))
    for title, key in (("Envelope", "envelope"), ("Recording", "recording"), ("Cloud Storage", "object")):
        if key in description:
            parts.append(_pairs(title, description[key]))
    for warning in description.get("warnings", ()):
        times = f" x {warning['count']}" if warning["count"] > 1 else ""
        parts.append(Text(f"Warning: {warning['warning']}{times}. {warning['meaning']}", style="yellow"))
    for table, rows in description.get("clickhouse", {}).items():
        parts.append(_rows(f"ClickHouse {table}", rows, ()))
    if "bigquery" in description:
        parts.append(_rows("BigQuery replay_events", description["bigquery"], ("event_type", "timestamp")))
    if "metrics" in description:
        values: dict[str, list[str]] = {}
        for metric in description["metrics"]:
            values.setdefault(metric["name"], []).append(f"{metric['value']:g}")
        parts.append(_pairs("Datadog", {name: ", ".join(each) for name, each in values.items()}))
    return Group(*parts)


def _pairs(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            table.add_row(_plain(name), _plain(_short(value)))
    return table


def _rows(title: str, rows: list[dict[str, Any]], first: tuple[str, ...]) -> Table:
    """Returns a table with the columns `first`, followed by other non-empty columns."""
    shared = {"org_id", "project_id", "replay_id", "segment_id", "retention_days", "partition", "offset", "row_id"}
    table = Table(title=f"{title}, rows: {len(rows)}", title_justify="left", show_header=False, show_lines=True)
    for _ in first:
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows[:ROWS_SHOWN_MAX]:
        cells = [
            f"{name}={_short(value)}"
            for name, value in row.get("attributes", row).items()
            if name not in shared and value not in ("", None, [])
        ]
        table.add_row(*(_plain(_short(row[name])) for name in first), _plain("  ".join(cells)))
    if len(rows) > ROWS_SHOWN_MAX:
        table.caption = f"and {len(rows) - ROWS_SHOWN_MAX} more; --json shows all"
    return table


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{name}: {inner}" for name, inner in value.items())
    text = str(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[:VALUE_CHARACTERS_MAX] + "…"


def _plain(text: str) -> Text:
    return Text(printable(text))
