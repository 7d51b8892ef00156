"""Decompresses the body of a request, up to a limit.

Relay also accepts br and zstd. This endpoint refuses br and zstd, because no browser SDK sends them.
"""

from __future__ import annotations

import zlib

from ingest.trial.endpoint.refusals import Reason, RequestRefused
from tasks.units import MiB

BODY_BYTES_MAX = 20 * MiB
ENVELOPE_BYTES_MAX = 100 * MiB
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def decompressed(body: bytes, encoding: str) -> bytes:
    """Returns the envelope from a body with this Content-Encoding. Raises RequestRefused with the reason
    unknown_encoding, body_invalid, body_too_large or envelope_too_large.

    Decompression stops at the limit.
    """
    if len(body) > BODY_BYTES_MAX:
        raise RequestRefused(Reason.BODY_TOO_LARGE, f"the body exceeds {BODY_BYTES_MAX} bytes")
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip" | "deflate":
            return _inflated(body)
        case _:
            raise RequestRefused(Reason.UNKNOWN_ENCODING, "Content-Encoding must be gzip, deflate or identity")


def _inflated(body: bytes) -> bytes:
    stream = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        found = stream.decompress(body, ENVELOPE_BYTES_MAX + 1)
    except zlib.error:
        raise RequestRefused(Reason.BODY_INVALID, "the body is neither gzip nor zlib, or is damaged") from None
    if len(found) > ENVELOPE_BYTES_MAX:
        raise RequestRefused(
            Reason.ENVELOPE_TOO_LARGE, f"the body decompresses to more than {ENVELOPE_BYTES_MAX} bytes"
        )
    if not stream.eof:
        raise RequestRefused(Reason.BODY_INVALID, "the compressed body is truncated")
    if stream.unused_data:
        raise RequestRefused(Reason.BODY_INVALID, "the compressed body is followed by other bytes")
    return found
