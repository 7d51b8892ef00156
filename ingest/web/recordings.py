"""Reads stored recordings of a replay and builds its timeline, in bounded pages and with the reader's limits.

Reports what was left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ingest.core.parse.budget import Budget
from ingest.core.stored_recording import BlobError, Unpacked, unpack
from ingest.web.blobs import STORED_BYTES_MAX, VIEWER_UNITS
from ingest.web.model import NotFound, SegmentFacts, Segments
from ingest.web.stores import Stores
from ingest.web.timeline import Timeline, read
from tasks.units import MiB

DOWNLOADS_AT_ONCE = 8
# Maximum stored bytes fetched ahead; at least one segment.
AHEAD_BYTES_MAX = 16 * MiB
# A timeline page ends with the segment that exceeds this.
PAGE_INFLATED_BYTES_MAX = 256 * MiB


def recording(stores: Stores, segments: Segments, segment_id: int) -> Unpacked:
    """The recording, and the video, of one segment. Raises NotFound, ReadError or BlobError."""
    for one in segments.readable:
        if one.segment_id == segment_id and segment_id in segments.places:
            _expect_our_size(one)
            return unpack(stores.content(segments.places[segment_id]))
    raise NotFound(f"segment {segment_id} is not stored")


def recordings(
    stores: Stores, segments: Segments, from_segment: int = 0
) -> Iterator[tuple[SegmentFacts, bytes | BlobError]]:
    """The stored bytes of every readable segment, in order, fetched in groups.

    Objects larger than any written by the reader are not fetched and yield an error.
    """

    def content(one: SegmentFacts) -> bytes | BlobError | None:
        try:
            _expect_our_size(one)
            return stores.content(segments.places[one.segment_id])
        except NotFound:  # the object was deleted or expired after it was listed
            return None
        except BlobError as error:
            return error

    readable = [one for one in segments.readable if one.segment_id >= from_segment]
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="segments") as pool:
        for group in _groups(readable):
            for one, found in zip(group, pool.map(content, group), strict=True):
                if found is not None:
                    yield one, found


def timeline(stores: Stores, segments: Segments, from_segment: int = 0) -> Timeline:
    """One page of the replay's timeline, from its own segments: starting at this one, up to the bounds.

    An unreadable segment is reported, not fatal.
    """
    unreadable: dict[int, str] = {}
    budget = Budget(VIEWER_UNITS)
    next_segment: int | None = None

    def readable() -> Iterator[tuple[int, bytes]]:
        nonlocal next_segment
        inflated_bytes = 0
        for one, content in recordings(stores, segments, from_segment):
            if inflated_bytes > PAGE_INFLATED_BYTES_MAX or budget.left <= 0:
                next_segment = one.segment_id
                return
            try:
                if isinstance(content, BlobError):
                    raise content
                unpacked = unpack(content).recording
            except BlobError as error:
                unreadable[one.segment_id] = str(error)
                continue
            inflated_bytes += len(unpacked)
            yield one.segment_id, unpacked
            del unpacked

    found = read(readable(), budget)
    found.unreadable.update(unreadable)
    found.next_segment = next_segment
    return found


def _groups(readable: Sequence[SegmentFacts]) -> Iterator[list[SegmentFacts]]:
    """Groups of segments fetched together."""
    group: list[SegmentFacts] = []
    size_bytes = 0
    for one in readable:
        if group and (size_bytes + one.bytes_stored > AHEAD_BYTES_MAX or len(group) == 4 * DOWNLOADS_AT_ONCE):
            yield group
            group, size_bytes = [], 0
        group.append(one)
        size_bytes += one.bytes_stored
    if group:
        yield group


def _expect_our_size(one: SegmentFacts) -> None:
    if one.bytes_stored > STORED_BYTES_MAX:
        raise BlobError(f"its object has {one.bytes_stored} bytes, more than this system writes")
