"""The recordings themselves: stored bytes of a replay's segments, unpacked, and the timeline that is in them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ingest.web.blobs import Unpacked, unpack
from ingest.web.model import NotFound, SegmentFacts, Segments
from ingest.web.stores import Stores
from ingest.web.timeline import Timeline, read

DOWNLOADS_AT_ONCE = 8


def recording(stores: Stores, segments: Segments, segment_id: int) -> Unpacked:
    """The recording, and the video, of one segment. Raises NotFound, ReadError or BlobError."""
    place = segments.places.get(segment_id)
    if place is None:
        raise NotFound(f"segment {segment_id} is not stored")
    return unpack(stores.content(place))


def recordings(stores: Stores, segments: Segments) -> Iterator[tuple[SegmentFacts, bytes]]:
    """The stored bytes of every segment that can be read, in order, fetched some at a time."""

    def content(one: SegmentFacts) -> bytes | None:
        try:
            return stores.content(segments.places[one.segment_id])
        except NotFound:  # deleted or expired since it was listed
            return None

    readable = segments.readable
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="segments") as pool:
        for start in range(0, len(readable), 4 * DOWNLOADS_AT_ONCE):
            group = readable[start : start + 4 * DOWNLOADS_AT_ONCE]
            for one, found in zip(group, pool.map(content, group), strict=True):
                if found is not None:
                    yield one, found


def timeline(stores: Stores, segments: Segments) -> Timeline:
    """What happened in the replay, from its own segments. One that cannot be read is named, not fatal."""
    unreadable: dict[int, str] = {}

    def readable() -> Iterator[tuple[int, bytes]]:
        for one, content in recordings(stores, segments):
            try:
                yield one.segment_id, unpack(content).recording
            except ValueError as error:
                unreadable[one.segment_id] = str(error)

    found = read(readable())
    found.unreadable.update(unreadable)
    return found
