"""One stored object, taken apart: whatever its bytes are, it is a recording or a BlobError."""

from __future__ import annotations

import contextlib
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.core.model import Segment
from ingest.testing.messages import click_event, snapshot_event, video_recording, viewport_event
from ingest.web import blobs
from ingest.web.blobs import BlobError, playable, split, unpack
from tests.kit.parsing import parsed


def stored(segment: Segment) -> bytes:
    (blob,) = segment.blobs
    return bytes(blob.content)


def test_what_the_reader_stores_of_a_mobile_segment_comes_apart_again() -> None:
    """The video and the events, to the byte."""
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
        (zlib.compress(b"\x01\x00\x00\x00\x09abc"), "a video of 9 bytes is said to follow, 3 do"),
    ],
)
def test_what_is_not_ours_says_in_which_way(content: bytes, reason: str) -> None:
    with pytest.raises(BlobError, match=reason):
        unpack(content)


def test_an_object_that_inflates_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound, not after it."""
    monkeypatch.setattr(blobs, "INFLATED_BYTES_MAX", 1000)

    with pytest.raises(BlobError, match="inflates to more"):
        unpack(zlib.compress(b" " * 1001))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    for each in (content, zlib.compress(content)):
        with contextlib.suppress(BlobError):
            list(split(unpack(each).recording))


def test_a_player_gets_events_that_it_draws() -> None:
    """No custom events, nothing of an unknown kind, no time in seconds: with it a session would last for years."""
    drawn = [viewport_event(), snapshot_event()]
    spans = [{"type": 5, "timestamp": 1790000000.5, "data": {}}, {"type": 3, "timestamp": 1790000000, "data": {}}]
    recording = json.dumps([drawn[0], click_event(), *spans, {"type": 99}, 7, drawn[1]]).encode()

    assert json.loads(playable(recording).content) == json.loads(json.dumps(drawn))
    with pytest.raises(BlobError, match="JSON array"):
        playable(b"{}")


def test_an_emoji_that_was_cut_in_half_costs_nothing() -> None:
    """An SDK cuts long texts by UTF-16; a browser reads the half, the decoder does not."""
    recording = rb'[{"type":4,"timestamp":1790000000000,"data":{"href":"https://a/\ud83d"}}]'

    (event,) = json.loads(playable(recording).content)

    assert event["data"]["href"] == "https://a/\N{REPLACEMENT CHARACTER}"


def test_an_event_that_is_nested_too_deeply_costs_itself() -> None:
    """The others are drawn."""
    deep = b'{"type":3,"timestamp":1790000000000,"data":' + b"[" * 5000 + b"]" * 5000 + b"}"
    recording = b"[" + deep + b',{"type":4,"timestamp":1790000000000,"data":{}}]'

    assert [event["type"] for event in json.loads(playable(recording).content)] == [4]
