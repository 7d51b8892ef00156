"""Reading a stored recording either yields events or raises BlobError, whatever bytes the recording contains."""

from __future__ import annotations

import contextlib
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.core.stored_recording import BlobError, unpack
from ingest.testing.messages import click_event, snapshot_event, viewport_event
from ingest.web.blobs import player_events, split


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    for each in (content, zlib.compress(content)):
        with contextlib.suppress(BlobError):
            list(split(unpack(each).recording))


def test_a_player_gets_only_events_it_can_draw() -> None:
    """Custom events, unknown types and events with times in seconds are removed.

    Other events have times in milliseconds, so an event with a time in seconds would make the session appear to
    last for years.
    """
    drawn = [viewport_event(), snapshot_event()]
    spans = [{"type": 5, "timestamp": 1790000000.5, "data": {}}, {"type": 3, "timestamp": 1790000000, "data": {}}]
    recording = json.dumps([drawn[0], click_event(), *spans, {"type": 99}, 7, drawn[1]]).encode()

    assert json.loads(player_events(recording).content) == json.loads(json.dumps(drawn))
    with pytest.raises(BlobError, match="JSON array"):
        player_events(b"{}")


def test_half_an_emoji_loses_no_event() -> None:
    """An SDK may truncate a long string between the two UTF-16 code units of a character.

    Browsers accept the resulting lone surrogate, but our decoder does not; the event must still be read.
    """
    recording = rb'[{"type":4,"timestamp":1790000000000,"data":{"href":"https://a/\ud83d"}}]'

    (event,) = json.loads(player_events(recording).content)

    assert event["data"]["href"] == "https://a/\N{REPLACEMENT CHARACTER}"


def test_an_event_that_is_nested_too_deeply_affects_no_other() -> None:
    """An event that is nested too deeply is removed, and the other events are kept."""
    deep = b'{"type":3,"timestamp":1790000000000,"data":' + b"[" * 5000 + b"]" * 5000 + b"}"
    recording = b"[" + deep + b',{"type":4,"timestamp":1790000000000,"data":{}}]'

    assert [event["type"] for event in json.loads(player_events(recording).content)] == [4]
