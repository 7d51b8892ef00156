"""The recording payload: header line, bounded decompression, and the stored bytes.

Framing: `<JSON object><0x0A><body>`, split on the first newline; the body is a zlib stream (RFC 1950) of a JSON
array, or that array itself. libdeflate decompresses bodies that fit a preallocated buffer, at 2.7 times the speed
of zlib; isal decompresses all other bodies incrementally, up to the limit.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from deflate import DeflateError, zlib_decompress
from isal import igzip_lib, isal_zlib

from ingest.core.parse.rules import MessageRejected

HEADER_BYTES_MAX = 64 * 1024
HEADER_BYTES_TYPICAL = 128
SEGMENT_ID_MAX = 2**63 - 1
IsalError: Any = igzip_lib.IsalError
VIDEO_MARK = b"\x01"
# Recordings decompress to 2 to 10 times their size. A body that needs a larger buffer, or is longer than
# SINGLE_PASS_BYTES_MAX, is decompressed incrementally.
ROOM_RATIO, ROOM_BYTES_MIN = 12, 16 * 1024
SINGLE_PASS_BYTES_MAX = 256 * 1024

# The form written by every SDK. Other headers are decoded as JSON.
_usual_header = re.compile(rb'\{"segment_id":(0|[1-9][0-9]{0,17})\}').fullmatch
_decode_header = msgspec.json.Decoder().decode


def split(payload: memoryview) -> tuple[int, memoryview]:
    """Returns (segment_id, body). Raises MessageRejected with the reason `no_header` or `bad_header`."""
    head = bytes(payload[:HEADER_BYTES_TYPICAL])
    end = head.find(b"\n")
    if end < 0:
        head = bytes(payload[:HEADER_BYTES_MAX])
        end = head.find(b"\n")
        if end < 0:
            raise MessageRejected("no_header", f"no newline in the first {len(head)} bytes of the payload")
    usual = _usual_header(head, 0, end)
    return int(usual[1]) if usual else _segment_id(head[:end]), payload[end + 1 :]


def _segment_id(line: bytes) -> int:
    """Decodes the whole line, including unused fields: a lone surrogate anywhere makes it a bad header."""
    try:
        header = _decode_header(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageRejected("bad_header", str(error)) from None
    segment_id = header.get("segment_id") if isinstance(header, dict) else None
    if isinstance(segment_id, float) and segment_id.is_integer():
        segment_id = int(segment_id)
    if type(segment_id) is not int or not 0 <= segment_id <= SEGMENT_ID_MAX:
        raise MessageRejected("bad_header", "segment_id is not an integer of 0 or more")
    return segment_id


def is_plain(body: memoryview) -> bool:
    """Returns True if the body is the uncompressed JSON array."""
    return len(body) > 0 and body[0] == 0x5B


def inflate(body: memoryview, bytes_max: int) -> bytes | bytearray:
    """Returns the JSON array. Raises MessageRejected with the reason `body_not_zlib`, `body_truncated` or
    `body_too_large`.

    Bytes after a complete stream are ignored.
    """
    if is_plain(body):
        if len(body) > bytes_max:
            raise MessageRejected("body_too_large", f"more than {bytes_max} bytes")
        return bytes(body)
    size = len(body)
    if size <= SINGLE_PASS_BYTES_MAX:
        try:
            return zlib_decompress(body, min(max(size * ROOM_RATIO, ROOM_BYTES_MIN), bytes_max))
        except DeflateError:
            pass  # the code below reports the error, if any
    return _inflate_bounded(body, bytes_max)


def _inflate_bounded(body: memoryview, bytes_max: int) -> bytes:
    stream = isal_zlib.decompressobj()
    try:
        raw: bytes = stream.decompress(body, bytes_max + 1)
    except IsalError as error:
        raise MessageRejected("body_not_zlib", str(error)) from None
    if len(raw) > bytes_max:
        raise MessageRejected("body_too_large", f"inflates to more than {bytes_max} bytes")
    if not stream.eof:
        if not body:
            raise MessageRejected("body_not_zlib", "the body is empty")
        raise MessageRejected("body_truncated", f"the stream ends after {len(raw)} bytes of JSON")
    return raw


def stored(body: memoryview, raw: bytes | bytearray, video: memoryview | None) -> bytes | memoryview:
    """Returns the bytes for blob storage: the body as received, compressed if it arrived uncompressed.

    If there is a video, the bytes are zlib(0x01, 4-byte big-endian length, video, JSON).
    """
    if video:
        packed: bytes = isal_zlib.compress(b"".join((VIDEO_MARK, len(video).to_bytes(4, "big"), video, raw)))
        return packed
    return isal_zlib.compress(raw) if is_plain(body) else body
