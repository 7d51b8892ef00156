"""Converts refused items to dead letters, and dead letters back to items for a replay.

Letters do not contain the current time, so that equal refusals produce equal records. A letter's content is
untrusted: `revive` accepts only sinks, kinds, tables and names that this code writes.
"""

from __future__ import annotations

import re

import msgspec

from tasks.errors import shortened
from tasks.kafka.letters import NO_OFFSET, REFUSED, Kind, Label, Origin, Refusal
from tasks.wire import TABLES_BY_SINK, Blob, DeadLetter, Item, Manifest, Metric, Row, SinkName

KIND_BY_SINK = {
    SinkName.GCS: Kind.BLOB,
    SinkName.CLICKHOUSE: Kind.ROW,
    SinkName.BIGQUERY: Kind.ROW,
    SinkName.DATADOG: Kind.METRIC,
}
OBJECT = re.compile(r"[0-9]{1,5}/(?P<project>[0-9]{1,20})/[0-9a-f]{32}/[0-9]{1,20}")
PACKED = re.compile(r"[0-9]{1,5}/packed/(?P<batch>[^/]+)/[0-9]{1,10}-[0-9a-f]{32}")
ROW_ID_CHARACTERS_MAX = 1024


def dead_letter(item: Item, manifest: Manifest, sink: SinkName, error: str) -> DeadLetter:
    """Returns the record for the dead-letter topic. Must not be called for refused dead letters."""
    assert not isinstance(item, DeadLetter), item.offset
    if isinstance(item, Blob):
        kind, value, offset = Kind.BLOB, bytes(item.content), item.offset
    elif isinstance(item, Row):
        kind, value, offset = Kind.ROW, bytes(item.json), item.offset
    else:
        kind, value, offset = Kind.METRIC, msgspec.json.encode(item), NO_OFFSET
    label = Label(
        reason=REFUSED,
        error=shortened(error),
        origin=Origin(manifest.topic, manifest.partition, offset),
        batch_id=manifest.batch_id,
        refusal=Refusal(sink, kind, name_of(item)),
    )
    return DeadLetter(None, value, label.encode(), offset)


def name_of(item: Item) -> str:
    """Returns an item's name within its sink, unique among rows of a batch and table."""
    if isinstance(item, Blob | Metric):
        return item.name
    return f"{item.table}/{item.id}" if isinstance(item, Row) else f"offset {item.offset}"


def revive(label: Label, value: bytes) -> tuple[SinkName, Item]:
    """Returns the sink and the item of a letter. Raises ValueError for content that this code cannot have
    written.
    """
    refusal, offset = label.refusal, label.origin.offset
    if refusal is None:
        raise ValueError(f"the letter is a message, not an item that a sink refused ({label.reason})")
    sink = next((sink for sink in KIND_BY_SINK if sink == refusal.sink), None)
    if sink is None or refusal.kind != KIND_BY_SINK[sink]:
        raise ValueError(f"no sink {refusal.sink!r} accepts items of the kind {refusal.kind!r}")
    match KIND_BY_SINK[sink]:
        case Kind.BLOB:
            return sink, Blob(_object_name(refusal.item, label.batch_id), value, offset)
        case Kind.ROW:
            table, row_id = _row_name(sink, refusal.item)
            return sink, Row(table, row_id, _json_object(value), offset)
        case Kind.METRIC:
            return sink, _metric(refusal, value)


def _object_name(name: str, batch_id: str) -> str:
    packed = PACKED.fullmatch(name)
    if not OBJECT.fullmatch(name) and (packed is None or packed["batch"] != batch_id):
        raise ValueError(f"{name!r} is not the name of an object of batch {batch_id!r}")
    return name


def _row_name(sink: SinkName, item: str) -> tuple[str, str]:
    """Returns the table and the row id. The table name is one of our constants, not text from the dead letter."""
    named, _, row_id = item.partition("/")
    table = next((table for table in TABLES_BY_SINK[sink] if table == named), None)
    if table is None:
        raise ValueError(f"{sink} has no table {named!r}")
    if not 0 < len(row_id) <= ROW_ID_CHARACTERS_MAX:
        raise ValueError(f"a row's id must have 1 to {ROW_ID_CHARACTERS_MAX} characters, not {len(row_id)}")
    return table, row_id


def _json_object(value: bytes) -> bytes:
    """Returns the value if it is one JSON object on one line, because a second line would be a second row."""
    try:
        msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the row is not a JSON object: {error}") from None
    if b"\n" in value or b"\r" in value:
        raise ValueError("the row is not on one line")
    return value


def _metric(refusal: Refusal, value: bytes) -> Metric:
    try:
        metric = msgspec.json.decode(value, type=Metric)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a metric: {error}") from None
    if metric.name != refusal.item:
        raise ValueError(f"the metric is named {metric.name!r}, but its letter names {refusal.item!r}")
    return metric
