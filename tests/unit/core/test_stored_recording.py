"""Decoding a stored recording returns what the reader stored, or raises a BlobError that describes the
difference.
"""

from __future__ import annotations

import json
import zlib

import pytest

from ingest.core import stored_recording
from ingest.core.model import Segment
from ingest.core.stored_recording import BlobError, unpack
from ingest.testing.messages import snapshot_event, video_recording, viewport_event
from tests.kit.parsing import parsed


def stored(segment: Segment) -> bytes:
    (blob,) = segment.blobs
    return bytes(blob.content)


def test_a_stored_mobile_segment_is_decoded_into_its_parts() -> None:
    """A stored mobile segment is decoded into its video and its events, byte for byte."""
    events = [viewport_event(), snapshot_event()]

    found = unpack(stored(parsed(video_recording(b"an mp4 file", events))))

    assert found.video == b"an mp4 file"
    assert json.loads(found.recording) == json.loads(json.dumps(events))


def test_a_web_segment_has_no_video() -> None:
    found = unpack(zlib.compress(b"[]"))

    assert (found.recording, found.video) == (b"[]", None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut off"),
        (b"[]", "not a zlib stream"),
        (zlib.compress(b"[" + b" " * 1000 + b"]")[:-8], "cut off"),
        (zlib.compress(b"\x01\x00\x00\x00\x09abc"), "the header declares a video of 9 bytes, but 3 bytes follow"),
    ],
)
def test_an_invalid_object_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BlobError, match=reason):
        unpack(content)


def test_an_object_that_inflates_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that inflates beyond the limit is refused, and its decompression stops at the limit."""
    monkeypatch.setattr(stored_recording, "INFLATED_BYTES_MAX", 1000)

    with pytest.raises(BlobError, match="inflates to more"):
        unpack(zlib.compress(b" " * 1001))
