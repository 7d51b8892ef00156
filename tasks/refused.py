"""An item that its sink refused, as a dead letter, and back again for a replay.

Headers: reason `sink_refused`, sink, error, kind (blob, row, metric), item (the item's own name within the sink),
topic, partition, offset (of the message it was made from; -1 for metrics, which are made of a whole batch),
batch_id. Nothing of the clock is in it, so that the same refusal is the same record.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tasks.errors import shortened
from tasks.wire import Blob, DeadLetter, Item, Manifest, Metric, Row

REASON = "sink_refused"
NO_OFFSET = -1


def dead_letter(item: Item, manifest: Manifest, sink: str, error: str) -> DeadLetter:
    """The record for the dead-letter topic. A refused dead letter has no other place to go: not accepted here."""
    assert not isinstance(item, DeadLetter), item.offset
    if isinstance(item, Blob):
        kind, name, value, offset = "blob", item.name, bytes(item.content), item.offset
    elif isinstance(item, Row):
        kind, name, value, offset = "row", f"{item.table}/{item.id}", bytes(item.json), item.offset
    else:
        kind, name, value, offset = "metric", item.name, msgspec.json.encode(item), NO_OFFSET
    headers = {
        "reason": REASON,
        "sink": sink,
        "error": shortened(error),
        "kind": kind,
        "item": name,
        "topic": manifest.topic,
        "partition": str(manifest.partition),
        "offset": str(offset),
        "batch_id": manifest.batch_id,
    }
    encoded = tuple((name, text.encode()) for name, text in headers.items())
    return DeadLetter(None, value, encoded, offset)


def revive(sink: str, value: bytes, headers: Mapping[str, bytes | None]) -> Item:
    """The item again, to be written to `sink`. Raises ValueError for a letter that is no refused item."""

    def text(name: str) -> str:
        return (headers.get(name) or b"").decode("utf-8", "replace")

    kind, name = text("kind"), text("item")
    offset = int(text("offset") or NO_OFFSET)
    if kind == "blob":
        return Blob(name, value, offset)
    if kind == "row" and "/" in name:
        table, row_id = name.split("/", 1)
        return Row(table, row_id, value, offset)
    if kind == "metric":
        return msgspec.json.decode(value, type=Metric)
    raise ValueError(f"not an item that {sink} refused: kind {kind!r}, item {name!r}")
