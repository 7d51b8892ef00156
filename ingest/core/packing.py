"""Layout `packed`: concatenates a batch's recordings into a few objects, with an index of their positions.

The result is deterministic: the same batch gives the same names, bytes and index. A name ends with a digest of the
bytes, so an existing object with the same name is identical. If another release of the parser produces different
bytes, the name differs too. See docs/decisions/027-packed-layout.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import xxhash

from ingest.core.model import Batch, Blob, Row, Segment
from tasks.units import MiB

OBJECT_BYTES_MAX = 16 * MiB
"""Maximum size of an object, unless a single recording is larger."""

INDEX_TABLE, SEGMENTS_TABLE = "replay_objects", "replay_segments"
_encode = msgspec.json.Encoder().encode


def pack(batch: Batch) -> tuple[list[Blob], list[Row]]:
    """Returns the objects `<retention days>/packed/<batch id>/<part>-<digest>`, and an index row for each
    recording.

    All recordings in an object have the same retention, so that a lifecycle rule that matches the first part of
    the name works for both layouts. An object's `offset` is that of its first recording.
    """
    objects: list[Blob] = []
    rows: list[Row] = []
    for part, (days, members) in enumerate(_parts(batch)):
        content = b"".join(blob.content for _, blob in members)
        digest = xxhash.xxh3_128_hexdigest(content)
        name = f"{days}/packed/{batch.id}/{part}-{digest}"
        objects.append(Blob(name, content, members[0][1].offset))
        start = 0
        for segment, blob in members:
            rows.append(_row(segment, blob, name, start))
            start += len(blob.content)
    return objects, rows


def _parts(batch: Batch) -> Iterator[tuple[int, list[tuple[Segment, Blob]]]]:
    """Yields (retention days, content of one object), by retention and then by offset."""
    for days in sorted({segment.retention_days for segment in batch.segments}):
        members: list[tuple[Segment, Blob]] = []
        size_bytes = 0
        for segment in batch.segments:
            for blob in segment.blobs if segment.retention_days == days else ():
                if members and size_bytes + len(blob.content) > OBJECT_BYTES_MAX:
                    yield days, members
                    members, size_bytes = [], 0
                members.append((segment, blob))
                size_bytes += len(blob.content)
        if members:
            yield days, members


class _Arrival(msgspec.Struct, gc=False):
    received: int


_arrival = msgspec.json.Decoder(_Arrival).decode


def _received(segment: Segment) -> int:
    """Returns the validated arrival time, read from the row of the segment. The unvalidated time may wrap around
    in the column; the table would then delete the row, and the recording could no longer be found."""
    return next(
        (_arrival(row.json).received for row in segment.clickhouse if row.table == SEGMENTS_TABLE),
        segment.received,
    )


def _row(segment: Segment, blob: Blob, name: str, start: int) -> Row:
    fields = {
        "project_id": segment.project_id,
        "replay_id": segment.replay_id,
        "segment_id": segment.segment_id,
        "received": _received(segment),
        "retention_days": segment.retention_days,
        "name": blob.name,
        "object": name,
        "start_bytes": start,
        "length_bytes": len(blob.content),
    }
    return Row(INDEX_TABLE, f"{segment.replay_id}/{segment.segment_id}", _encode(fields), blob.offset)
