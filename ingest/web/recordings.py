"""Reads the stored recordings of a replay and builds its timeline, in bounded pages and with the reader's limits.

Data that was left out is reported.
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
    for segment in segments.readable:
        if segment.segment_id == segment_id and segment_id in segments.places:
            _check_size(segment)
            return unpack(stores.content(segments.places[segment_id]))
    raise NotFound(f"segment {segment_id} is not stored")


def recordings(
    stores: Stores, segments: Segments, from_segment: int = 0
) -> Iterator[tuple[SegmentFacts, bytes | BlobError]]:
    """The stored bytes of every readable segment, in order, fetched in groups.

    Objects larger than any written by the reader are not fetched and yield an error.
    """

    def content(segment: SegmentFacts) -> bytes | BlobError | None:
        try:
            _check_size(segment)
            return stores.content(segments.places[segment.segment_id])
        except NotFound:  # the object was deleted or expired after it was listed
            return None
        except BlobError as error:
            return error

    readable = [segment for segment in segments.readable if segment.segment_id >= from_segment]
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="segments") as pool:
        for group in _groups(readable):
            for segment, found in zip(group, pool.map(content, group), strict=True):
                if found is not None:
                    yield segment, found


def timeline(stores: Stores, segments: Segments, from_segment: int = 0) -> Timeline:
    """One page of the replay's timeline, starting at `from_segment` and bounded in size.

    Unreadable segments are listed in the result and do not cause an error.
    """
    unreadable: dict[int, str] = {}
    budget = Budget(VIEWER_UNITS)
    next_segment: int | None = None

    def readable() -> Iterator[tuple[int, bytes]]:
        nonlocal next_segment
        inflated_bytes = 0
        for segment, content in recordings(stores, segments, from_segment):
            if inflated_bytes > PAGE_INFLATED_BYTES_MAX or budget.left <= 0:
                next_segment = segment.segment_id
                return
            try:
                if isinstance(content, BlobError):
                    raise content
                unpacked = unpack(content).recording
            except BlobError as error:
                unreadable[segment.segment_id] = str(error)
                continue
            inflated_bytes += len(unpacked)
            yield segment.segment_id, unpacked
            del unpacked

    found = read(readable(), budget)
    found.unreadable.update(unreadable)
    found.next_segment = next_segment
    return found


def _groups(readable: Sequence[SegmentFacts]) -> Iterator[list[SegmentFacts]]:
    """Groups of segments that are fetched together."""
    group: list[SegmentFacts] = []
    size_bytes = 0
    for segment in readable:
        if group and (size_bytes + segment.bytes_stored > AHEAD_BYTES_MAX or len(group) == 4 * DOWNLOADS_AT_ONCE):
            yield group
            group, size_bytes = [], 0
        group.append(segment)
        size_bytes += segment.bytes_stored
    if group:
        yield group


def _check_size(segment: SegmentFacts) -> None:
    if segment.bytes_stored > STORED_BYTES_MAX:
        raise BlobError(f"its object has {segment.bytes_stored} bytes, more than this system writes")
