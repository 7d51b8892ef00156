"""The recording payload: header line, bounded inflate, and the bytes that are stored.

Framing: `<JSON object><0x0A><body>`, split on the first newline; the body is a zlib stream (RFC 1950) of a JSON
array, or that array itself. Inflating goes through isal, which is more than twice as fast as zlib, and stops at
the bound: a bomb costs the bound and no more.
"""

from __future__ import annotations

from typing import Any

import msgspec
from isal import igzip_lib, isal_zlib

from ingest.core.parse.rules import Rejected

NEWLINE = 0x0A
HEADER_BYTES_MAX = 64 * 1024
SEGMENT_ID_MAX = 2**63 - 1
IsalError: type[Exception] = igzip_lib.IsalError
VIDEO_MARK = b"\x01"
FIRST_INFLATE_RATIO = 8


class _Header(msgspec.Struct, gc=False):
    segment_id: Any = None


_decode_header = msgspec.json.Decoder(_Header).decode


def split(payload: memoryview) -> tuple[int, memoryview]:
    """(segment_id, body). Raises Rejected: no_header, bad_header."""
    head = bytes(payload[:HEADER_BYTES_MAX])
    end = head.find(b"\n")
    if end < 0:
        raise Rejected("no_header", f"no newline in the first {len(head)} bytes of the payload")
    try:
        segment_id = _decode_header(head[:end]).segment_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("bad_header", str(error)) from None
    if isinstance(segment_id, float) and segment_id.is_integer():
        segment_id = int(segment_id)
    if type(segment_id) is not int or not 0 <= segment_id <= SEGMENT_ID_MAX:
        raise Rejected("bad_header", "segment_id is not an integer of 0 or more")
    return segment_id, payload[end + 1 :]


def is_plain(body: memoryview) -> bool:
    """Whether the body is the JSON array itself."""
    return len(body) > 0 and body[0] == 0x5B


def inflate(body: memoryview, bytes_max: int) -> bytes:
    """The JSON array. Raises Rejected: body_not_zlib, body_truncated, body_too_large.

    Bytes behind a complete stream are tolerated.
    """
    if is_plain(body):
        if len(body) > bytes_max:
            raise Rejected("body_too_large", f"more than {bytes_max} bytes")
        return bytes(body)
    stream = isal_zlib.decompressobj()
    try:
        raw = stream.decompress(body, bytes_max + 1)
    except IsalError as error:
        raise Rejected("body_not_zlib", str(error)) from None
    if len(raw) > bytes_max:
        raise Rejected("body_too_large", f"inflates to more than {bytes_max} bytes")
    if not stream.eof:
        if not body:
            raise Rejected("body_not_zlib", "the body is empty")
        raise Rejected("body_truncated", f"the stream ends after {len(raw)} bytes of JSON")
    return raw


def stored(body: memoryview, raw: bytes, video: memoryview | None) -> bytes | memoryview:
    """What goes into blob storage: the compressed bytes as received, never compressed again.

    A plain body is compressed first. With a video: zlib(0x01, 4-byte big-endian length, video, JSON).
    """
    if video:
        return isal_zlib.compress(b"".join((VIDEO_MARK, len(video).to_bytes(4, "big"), video, raw)))
    return isal_zlib.compress(raw) if is_plain(body) else body
