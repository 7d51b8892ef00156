"""One stored object: what Cloud Storage holds of a segment, taken apart.

    zlib(JSON)                                             a web segment
    zlib(0x01 + length (4 bytes, big-endian) + mp4 + JSON)   a mobile segment

The JSON is an array of rrweb events, or was not valid JSON when it came: it is stored all the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from ingest.core.parse.budget import Budget, Spent
from ingest.core.parse.rules import ParseRules
from ingest.core.parse.undecoded import Undecoded, undecoded
from tasks.units import MiB

# The reader's own bounds: what inflates to more was never stored, and a video lies in its message as it is.
INFLATED_BYTES_MAX = ParseRules().inflated_bytes_max + ParseRules().message_bytes_max
STORED_BYTES_MAX = 2 * ParseRules().message_bytes_max
# What taking recordings apart may cost for one answer, in the parser's units of about a microsecond.
VIEWER_UNITS = 1_000_000.0
# Measured: an event whose head is decoded, and a byte of it.
UNITS_EVENT, UNITS_BYTE = 1.0, 0.001
PLAYED_BYTES_MAX = 64 * MiB  # browsers do not play more than this in one piece
VIDEO_MARK = 1
VIDEO_HEADER_BYTES = 5

PLAYED_TYPES = frozenset((0, 1, 2, 3, 4, 6))
MILLISECONDS_MIN = 1e11  # above it a number is milliseconds: as seconds it would be the year 5138


class BlobError(ValueError):
    """The object is not what the reader writes. The text says in which way."""


class CutShort(BlobError):
    """Reading on would cost too much. What was read before counts."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """`recording`: the JSON as it was sent, bytes. `video`: an mp4 file, None for a web segment."""

    recording: bytes
    video: bytes | None


class _Head(msgspec.Struct):
    """What every rrweb event begins with."""

    type: int
    timestamp: float


def unpack(content: bytes) -> Unpacked:
    """Raises BlobError: not zlib, cut off, larger than INFLATED_BYTES_MAX, or a video that is cut off."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(content, INFLATED_BYTES_MAX + 1)
    except zlib.error as error:
        raise BlobError(f"not a zlib stream: {error}") from None
    if len(raw) > INFLATED_BYTES_MAX:
        raise BlobError(f"inflates to more than {INFLATED_BYTES_MAX // MiB} MiB")
    if not inflater.eof:
        raise BlobError(f"the stream is cut off after {len(raw)} bytes")
    if raw[:1] != bytes((VIDEO_MARK,)):
        return Unpacked(raw, None)
    size = int.from_bytes(raw[1:VIDEO_HEADER_BYTES], "big")
    end = VIDEO_HEADER_BYTES + size
    if len(raw) < end:
        raise BlobError(f"a video of {size} bytes is said to follow, {len(raw) - VIDEO_HEADER_BYTES} do")
    return Unpacked(raw[end:], raw[VIDEO_HEADER_BYTES:end])


def split(recording: bytes, budget: Budget | None = None) -> Iterator[Undecoded]:
    """The events of a recording, undecoded, some at a time. Raises BlobError: it is no JSON array; and CutShort.

    An emoji that the SDK cut in half is a replacement character in them, since nothing else reads it.
    """
    budget = Budget(VIEWER_UNITS) if budget is None else budget
    try:
        for event in undecoded(recording, budget):
            budget.spend(UNITS_EVENT + UNITS_BYTE * memoryview(event).nbytes)
            yield event
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BlobError(f"not a JSON array: {error}") from None
    except Spent:
        raise CutShort("its rest is not read: it would cost too much") from None


@dataclass(frozen=True, slots=True)
class Playable:
    """`content`: a JSON array, bytes. `left_out`: why its rest is not in it, "" when all is."""

    content: bytes
    left_out: str = ""


def playable(recording: bytes) -> Playable:
    """The events that a player draws: no custom events, nothing of an unknown kind.

    The SDK stamps its spans in seconds, everything else in milliseconds; a player that was given both would
    show a session of fifty years. Raises BlobError.
    """
    kept: list[bytes] = []
    size_bytes, left_out = 0, ""
    try:
        for event in split(recording):
            try:
                head = msgspec.json.decode(event, type=_Head)
            except (msgspec.DecodeError, RecursionError):
                continue
            if head.type not in PLAYED_TYPES or head.timestamp <= MILLISECONDS_MIN:
                continue
            size_bytes += memoryview(event).nbytes + 1
            if size_bytes > PLAYED_BYTES_MAX:
                left_out = f"there are more than {PLAYED_BYTES_MAX // MiB} MiB to play"
                break
            kept.append(bytes(event))
    except CutShort as error:
        left_out = str(error)
    return Playable(b"[" + b",".join(kept) + b"]", left_out)
