"""Reads the stored recordings of a replay and builds its timeline, in bounded pages and with the reader's limits.

Data that was left out is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ingest.core.parse.budget import Budget
from ingest.core.stored_recording import BlobError, UnpackedRecording, unpack
from ingest.web.blobs import STORED_BYTES_MAX, VIEWER_UNITS, player_events
from ingest.web.model import NotFound, SegmentFacts, Segments
from ingest.web.stores import Stores
from ingest.web.timeline import Timeline, add_errors, read
from tasks.units import MiB

DOWNLOADS_AT_ONCE = 8
# Maximum stored bytes to fetch ahead; at least one segment is always fetched.
READ_AHEAD_BYTES_MAX = 16 * MiB
SEGMENT_ID_MAX = 2**63
# A timeline page ends with the segment at which the total size of the page exceeds this limit.
PAGE_INFLATED_BYTES_MAX = 256 * MiB


def recording(stores: Stores, segments: Segments, segment_id: int) -> UnpackedRecording:
    """Returns the recording, and the video, of one segment. Raises NotFound, ReadError or BlobError."""
    for segment in segments.readable:
        if segment.segment_id == segment_id and segment_id in segments.places:
            _check_size(segment)
            return unpack(stores.content(segments.places[segment_id]))
    raise NotFound(f"segment {segment_id} is not stored")


def recordings(
    stores: Stores, segments: Segments, from_segment: int = 0
) -> Iterator[tuple[SegmentFacts, bytes | BlobError]]:
    """Yields the stored bytes of every readable segment, in order, fetched in groups.

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
    """Returns one page of the replay's timeline, starting at `from_segment` and bounded in size.

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
    inside = range(from_segment, SEGMENT_ID_MAX if next_segment is None else next_segment)
    add_errors(found, [one for one in segments.errors if one.segment_id in inside])
    return found


@dataclass(frozen=True, slots=True)
class EventsPage:
    """One page of a recording for the player. `events`: a JSON array, as bytes.

    `left_out`: why a segment is incomplete, by segment; `unreadable`: why a segment is missing, by segment.
    `next_segment` starts the next page; None after the last.
    """

    events: bytes
    left_out: Mapping[int, str]
    unreadable: Mapping[int, str]
    next_segment: int | None


def read_events_page(stores: Stores, segments: Segments, from_segment: int, bytes_max: int) -> EventsPage:
    """Returns the events of at least one segment, up to about `bytes_max` bytes. Unreadable segments are
    reported."""
    parts: list[bytes] = []
    left_out: dict[int, str] = {}
    unreadable: dict[int, str] = {}
    size_bytes = 0
    for one, content in recordings(stores, segments, from_segment):
        if size_bytes >= bytes_max:
            return EventsPage(_joined(parts), left_out, unreadable, one.segment_id)
        try:
            if isinstance(content, BlobError):
                raise content
            found = player_events(unpack(content).recording)
        except BlobError as error:
            unreadable[one.segment_id] = str(error)
            continue
        if found.left_out:
            left_out[one.segment_id] = found.left_out
        parts.append(found.content[1:-1])
        size_bytes += len(found.content)
    return EventsPage(_joined(parts), left_out, unreadable, None)


def _joined(parts: Sequence[bytes]) -> bytes:
    """Concatenates JSON arrays into one array."""
    return b"[" + b",".join(part for part in parts if part) + b"]"


def _groups(readable: Sequence[SegmentFacts]) -> Iterator[list[SegmentFacts]]:
    """Yields groups of segments that are fetched together."""
    group: list[SegmentFacts] = []
    size_bytes = 0
    for segment in readable:
        if group and (
            size_bytes + segment.bytes_stored > READ_AHEAD_BYTES_MAX or len(group) == 4 * DOWNLOADS_AT_ONCE
        ):
            yield group
            group, size_bytes = [], 0
        group.append(segment)
        size_bytes += segment.bytes_stored
    if group:
        yield group


def _check_size(segment: SegmentFacts) -> None:
    if segment.bytes_stored > STORED_BYTES_MAX:
        raise BlobError(f"its object has {segment.bytes_stored} bytes, more than this system writes")
