"""A stored recording, taken apart: what `ingest.core.parse.recording.stored` made.

    zlib(JSON)                                               a web segment
    zlib(0x01 + length (4 bytes, big-endian) + mp4 + JSON)   a mobile segment

The JSON is an array of rrweb events, or was not valid JSON when it came: it is stored all the same.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from ingest.core.parse.recording import VIDEO_MARK
from ingest.core.parse.rules import ParseRules
from tasks.units import MiB

# The reader's own bounds: what inflates to more was never stored, and a video lies in its message as it is.
INFLATED_BYTES_MAX = ParseRules().inflated_bytes_max + ParseRules().message_bytes_max
VIDEO_HEADER_BYTES = 5


class BlobError(ValueError):
    """The object is not what the reader writes. The text says in which way."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """`recording`: the JSON as it was sent, bytes. `video`: an mp4 file, None for a web segment."""

    recording: bytes
    video: bytes | None


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
    if raw[:1] != VIDEO_MARK:
        return Unpacked(raw, None)
    size = int.from_bytes(raw[1:VIDEO_HEADER_BYTES], "big")
    end = VIDEO_HEADER_BYTES + size
    if len(raw) < end:
        raise BlobError(f"a video of {size} bytes is said to follow, {len(raw) - VIDEO_HEADER_BYTES} do")
    return Unpacked(raw[end:], raw[VIDEO_HEADER_BYTES:end])
