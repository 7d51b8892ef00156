"""Bodies assembled from compressed parts are ordinary zlib streams."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ingest.local.load.deflate import Part, Piece, deflated, inflated

pieces = some.lists(
    some.tuples(some.booleans(), some.binary(max_size=3000)).map(
        lambda given: Part(given[1]) if given[0] else given[1]
    ),
    max_size=8,
)


@given(pieces)
def test_any_sequence_of_parts_and_fresh_bytes_inflates_to_their_concatenation(body: list[Piece]):
    """zlib itself checks the stream's Adler-32, which is computed here without reading the parts again."""
    stream = deflated(body)

    inflater = zlib.decompressobj()
    assert inflated(body) == inflater.decompress(stream)
    assert inflater.eof
    assert inflater.unused_data == b""


def test_a_part_is_not_compressed_again():
    """A large part is copied without being compressed again, so the stream is about as long as the compressed
    part.
    """
    part = Part(b"<div class='card'></div>" * 10_000)

    stream = deflated([b"[", part, b"]"])

    assert len(stream) == pytest.approx(len(part.deflated), abs=40)
