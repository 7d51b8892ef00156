"""One stored object: what Cloud Storage holds of a segment, taken apart.

    zlib(JSON)                                             a web segment
    zlib(0x01 + length (4 bytes, big-endian) + mp4 + JSON)   a mobile segment

The JSON is an array of rrweb events, or was not valid JSON when it came: it is stored all the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ingest.core.parse.budget import Budget, Spent
from ingest.core.parse.elements import undecoded
from tasks.units import MiB

INFLATED_BYTES_MAX = 128 * MiB  # the reader refuses 100 MiB by default, a video comes on top
# What taking one recording apart may cost, in the parser's units of about a microsecond.
VIEWER_UNITS = 2_000_000.0
VIDEO_MARK = 1
VIDEO_HEADER_BYTES = 5

PLAYED_TYPES = frozenset((0, 1, 2, 3, 4, 6))
MILLISECONDS_MIN = 1e11  # above it a number is milliseconds: as seconds it would be the year 5138


class BlobError(ValueError):
    """The object is not what the reader writes. The text says in which way."""


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


def split(recording: bytes) -> Sequence[msgspec.Raw | bytes | bytearray]:
    """The events of a recording, undecoded, as the reader sees them. Raises BlobError when it is no JSON array.

    An emoji that the SDK cut in half is a replacement character in them, since nothing else reads it.
    """
    try:
        return undecoded(recording, Budget(VIEWER_UNITS))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BlobError(f"not a JSON array: {error}") from None
    except Spent:
        raise BlobError("too costly to take apart: it is nested too deeply in too many places") from None


def playable(recording: bytes) -> bytes:
    """The events that a player draws, as a JSON array: no custom events, nothing of an unknown kind.

    The SDK stamps its spans in seconds, everything else in milliseconds; a player that was given both would
    show a session of fifty years. Raises BlobError.
    """
    kept = []
    for event in split(recording):
        try:
            head = msgspec.json.decode(event, type=_Head)
        except (msgspec.DecodeError, RecursionError):
            continue
        if head.type in PLAYED_TYPES and head.timestamp > MILLISECONDS_MIN:
            kept.append(bytes(event))
    return b"[" + b",".join(kept) + b"]"
