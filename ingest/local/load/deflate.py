"""Joins precompressed parts into one zlib stream, so that only the new bytes of a large body are compressed.

A `Part` is compressed once, independently of other parts, and ends on a byte boundary (a full flush). A header,
any sequence of such parts and newly compressed bytes, a final block, and the checksum of the whole body then form
a valid zlib stream (RFC 1950). The checksum of the body is computed from the checksums of the parts. The stream is
a few percent larger than if the body were compressed as a whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

LEVEL = 6
HEADER = b"\x78\x9c"
ADLER_BASE = 65521


class Part:
    """Bytes that many bodies share, both raw and as part of a deflate stream."""

    __slots__ = ("adler", "deflated", "raw")

    def __init__(self, raw: bytes) -> None:
        packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self.raw = raw
        self.deflated = packer.compress(raw) + packer.flush(zlib.Z_FULL_FLUSH)
        self.adler = zlib.adler32(raw)


Piece = Part | bytes


def inflated(pieces: Iterable[Piece]) -> bytes:
    """Returns the body, uncompressed."""
    return b"".join(piece.raw if isinstance(piece, Part) else piece for piece in pieces)


def deflated(pieces: Iterable[Piece]) -> bytes:
    """Returns the body as a zlib stream."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    out = [HEADER]
    low, high = 1, 0  # the two halves of Adler-32
    for piece in pieces:
        if isinstance(piece, Part):
            out.append(packer.flush(zlib.Z_FULL_FLUSH))
            out.append(piece.deflated)
            part_low, part_high = piece.adler & 0xFFFF, piece.adler >> 16
            high = (high + part_high + len(piece.raw) * (low - 1)) % ADLER_BASE
            low = (low + part_low - 1) % ADLER_BASE
        else:
            out.append(packer.compress(piece))
            checksum = zlib.adler32(piece, high << 16 | low)
            low, high = checksum & 0xFFFF, checksum >> 16
    out.append(packer.flush(zlib.Z_FINISH))
    out.append((high << 16 | low).to_bytes(4, "big"))
    return b"".join(out)
