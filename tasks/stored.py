"""Reads a replay's recordings, in both layouts.

    for segment in read_replay(settings, replay_id):
        segment.content  # bytes as written, or None if missing

`replay_segments` lists the segments. Segments in `replay_objects` are part of a packed object; every other segment
is a separate object. A replay has both kinds if the layout was changed while the replay was being recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.api_core.exceptions import NotFound

from tasks.settings import Settings
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs


@dataclass(frozen=True, slots=True)
class StoredLocation:
    """Location of a segment's bytes. `length_bytes` is None if the segment is the whole object."""

    project_id: int
    replay_id: str
    segment_id: int
    object: str
    start_bytes: int = 0
    length_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SegmentContent:
    """One segment. `content` is None if its object is missing (expired or deleted)."""

    place: StoredLocation
    content: bytes | None


def places(settings: Settings, replay_id: str, project_id: int | None = None) -> list[StoredLocation]:
    """Returns a replay's segments, ordered by project and segment number. Raises clickhouse-connect errors."""
    where = "WHERE replay_id = {replay:UUID}"
    parameters: dict[str, Any] = {"replay": replay_id}
    if project_id is not None:
        where += " AND project_id = {project:UInt64}"
        parameters["project"] = project_id
    with contextlib.closing(clickhouse.client(settings)) as server:
        own_objects = server.query(
            f"SELECT project_id, segment_id, object FROM replay_segments FINAL {where} "
            "ORDER BY project_id, segment_id",
            parameters=parameters,
        ).result_rows
        packed = server.query(
            f"SELECT project_id, segment_id, object, start_bytes, length_bytes FROM replay_objects FINAL {where}",
            parameters=parameters,
        ).result_rows
    within = {(row[0], row[1]): tuple(row[2:]) for row in packed}
    return [
        StoredLocation(project, replay_id, segment, *within.get((project, segment), (name,)))
        for project, segment, name in own_objects
    ]


def read_replay(settings: Settings, replay_id: str, project_id: int | None = None) -> Iterator[SegmentContent]:
    """Yields each segment with its bytes, with one download per segment. Raises errors of the two official
    clients."""
    found = places(settings, replay_id, project_id)
    server = gcs.client(settings)
    try:
        bucket = server.bucket(settings.gcs_bucket)
        for place in found:
            yield SegmentContent(place, read_stored(bucket, place, settings.sink_timeout_seconds))
    finally:
        server.close()


def read_stored(bucket: Any, place: StoredLocation, timeout_seconds: float) -> bytes | None:
    """Returns the bytes of one segment; None if the object is missing. `bucket`: a `Bucket` from
    google-cloud-storage."""
    span: dict[str, int] = {}
    if place.length_bytes is not None:
        if place.length_bytes == 0:
            return b""
        span = {"start": place.start_bytes, "end": place.start_bytes + place.length_bytes - 1}
    try:
        content: bytes = bucket.blob(place.object).download_as_bytes(
            raw_download=True, timeout=timeout_seconds, **span
        )
    except NotFound:
        return None
    return content
