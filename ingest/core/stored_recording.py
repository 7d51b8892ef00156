"""Decodes a stored recording, as encoded by `ingest.core.parse.recording.stored`.

    zlib(JSON)                                               a web segment
    zlib(0x01 + length (4 bytes, big-endian) + mp4 + JSON)   a mobile segment

The JSON is an array of rrweb events. JSON that was invalid on arrival was stored anyway.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from ingest.core.parse.recording import VIDEO_MARK
from ingest.core.parse.rules import ParseRules
from tasks.units import MiB

# Maximum decompressed size of a stored object: a recording up to the reader's limit, plus a video, which is stored
# unmodified and is at most as large as its message.
INFLATED_BYTES_MAX = ParseRules().inflated_bytes_max + ParseRules().message_bytes_max
VIDEO_HEADER_BYTES = 5


class BlobError(ValueError):
    """Raised if the object was not written by a reader or is damaged; the message describes the problem."""


@dataclass(frozen=True, slots=True)
class UnpackedRecording:
    """`recording`: the JSON as it was sent. `video`: an mp4 file, None for a web segment."""

    recording: bytes
    video: bytes | None


def unpack(content: bytes) -> UnpackedRecording:
    """Separates the recording from the video. Raises BlobError if the content is not zlib, is truncated, inflates
    to more than INFLATED_BYTES_MAX, or ends within the video."""
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
        return UnpackedRecording(raw, None)
    size = int.from_bytes(raw[1:VIDEO_HEADER_BYTES], "big")
    end = VIDEO_HEADER_BYTES + size
    if len(raw) < end:
        raise BlobError(
            f"the header declares a video of {size} bytes, but {len(raw) - VIDEO_HEADER_BYTES} bytes follow"
        )
    return UnpackedRecording(raw[end:], raw[VIDEO_HEADER_BYTES:end])
