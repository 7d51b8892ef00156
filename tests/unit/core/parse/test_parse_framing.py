"""Tests how a payload becomes a blob: header line, bounded decompression, and the stored bytes."""

from __future__ import annotations

import json
import tracemalloc
import zlib

import pytest

from ingest.core.model import Segment
from ingest.core.parse import ParseRules, parse
from ingest.testing.messages import (
    REPLAY_ID,
    body,
    click_event,
    envelope,
    frame,
    mutation_event,
    recording,
    snapshot_event,
    video_recording,
)
from tasks.units import MiB
from tests.kit.parsing import ALL, clicks, message, metric, parsed, rejected, session, table


def test_a_compressed_body_is_stored_as_received():
    """A compressed body is stored as received, under a name that identifies the replay."""
    stream = zlib.compress(b'[{"type":3}]', 1)

    (blob,) = parsed(envelope(frame(stream, 12), retention_days=90, project_id=8)).blobs

    assert bytes(blob.content) == stream
    assert blob.name == f"90/8/{REPLAY_ID}/12"


def test_bytes_after_a_complete_stream_are_tolerated():
    """A body with bytes after a complete zlib stream is parsed, and the trailing bytes are stored."""
    stream = body([click_event()]) + b"trailing"

    segment = parsed(envelope(frame(stream)))

    assert len(clicks(segment)) == 1
    assert bytes(segment.blobs[0].content) == stream


def test_a_plain_body_is_compressed_before_it_is_stored():
    """A plain body is compressed before it is stored, and its events are read."""
    segment = parsed(recording([click_event()], compressed=False))

    assert json.loads(zlib.decompress(segment.blobs[0].content)) == [click_event()]
    assert len(clicks(segment)) == 1


def test_a_video_is_packed_with_its_events():
    """A video is stored with its events as zlib(0x01, length in 4 bytes, video, JSON), and its category is
    `replay_video`.
    """
    segment = parsed(video_recording(b"video" * 9, [click_event()]))

    unpacked = zlib.decompress(segment.blobs[0].content)
    assert unpacked[:5] == b"\x01" + (45).to_bytes(4, "big")
    assert unpacked[5:50] == b"video" * 9
    assert json.loads(unpacked[50:]) == [click_event()]
    assert [row["category"] for row in table(segment, "replay_outcomes")] == ["replay_video"]
    assert metric(segment, "replays.recording_consumer.replay_video_count") == [1]
    assert metric(segment, "replays.recording_consumer.replay_video_size") == [45]
    assert metric(segment, "replays.recording_consumer.replay_video_event_size") == [len(unpacked) - 50]


@pytest.mark.parametrize("video", [None, b"", ...])
def test_an_empty_video_counts_as_no_video(video: object):
    """If the video is empty, the stored object contains only the recording."""
    segment = parsed(recording(replay_video=video))

    assert zlib.decompress(segment.blobs[0].content) == b"[]"
    assert [row["category"] for row in table(segment, "replay_outcomes")] == ["replay"]


@pytest.mark.parametrize(
    ("header", "segment_id"),
    [
        (b'{"segment_id":0}', 0),
        (b'{"segment_id": 7, "x": 1}', 7),
        (b' {"x":{"segment_id":1},"segment_id":2} ', 2),
        (b'{"segment_id":3}\r', 3),
        (b'{"segment_id":4.0}', 4),
        (b'{"segment_id":721}', 721),
        (b'{"segment_id":65536}', 65536),
        (b'{"segment_id":9,"x":"' + b"y" * 5000 + b'"}', 9),
    ],
)
def test_a_header_line_is_an_object_with_a_segment_id(header: bytes, segment_id: int):
    """A header line must be an object with a segment id; it may have other keys and any whitespace."""
    assert parsed(envelope(frame(body([]), headers=header))).segment_id == segment_id


def test_the_payload_is_split_at_the_first_newline_only():
    """The payload is split at the first newline only, so a body may contain any number of newlines."""
    segment = parsed(envelope(frame(b"[\n\n]")))

    assert zlib.decompress(segment.blobs[0].content) == b"[\n\n]"


def test_a_segment_id_beyond_its_column_is_null_there_and_nowhere_else():
    """A segment id that does not fit into the 16 bits of `replays.segment_id` is null in that column, and kept
    everywhere else.
    """
    segment = parsed(recording(segment_id=65_536))

    assert session(segment)["segment_id"] is None
    assert table(segment, "replay_segments")[0]["segment_id"] == 65_536
    assert segment.blobs[0].name.endswith("/65536")


def test_one_byte_over_the_inflated_limit_is_a_reject():
    """A body whose decompressed size is exactly the limit is accepted, and a body that is one byte longer is
    rejected, for zlib and for plain JSON.
    """
    text = b"[" + b" " * (3 * MiB) + b"]"
    exactly, less = (ParseRules(inflated_bytes_max=len(text) - short) for short in (0, 1))

    for value in (envelope(frame(zlib.compress(text))), envelope(frame(text))):
        assert parsed(value, exactly)
        assert rejected(value, less).reason == "body_too_large"


def test_a_decompression_bomb_uses_no_more_than_the_limit():
    """A body of 100 kB that inflates to 100 MB is rejected if the limit is 8 MiB, and memory stays below twice the
    limit.
    """
    value = envelope(frame(zlib.compress(b"[" + b" " * 100_000_000 + b"]", 9)))
    assert len(value) < 100_000

    tracemalloc.start()
    try:
        reason = rejected(value, ParseRules(inflated_bytes_max=8 * MiB)).reason
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert reason == "body_too_large"
    assert peak < 2 * 8 * MiB


@pytest.mark.parametrize("level", [1, 9])
def test_a_large_segment_takes_less_than_twice_its_size(level: int):
    """Parsing a segment with more than 10 MB of snapshots takes less than twice its size in memory.

    The blob is a view of the message, not a copy.
    """
    text = json.dumps([snapshot_event([f"child {number}" for number in range(9000)])] * 100).encode()
    assert len(text) > 10_000_000
    value = message(envelope(frame(zlib.compress(text, level))))

    tracemalloc.start()
    try:
        segment = parse(value, ALL)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert isinstance(segment, Segment)
    assert peak < 2 * len(text)


def test_a_million_events_are_read():
    """The peak memory of parsing a million events is less than three times the inflated size."""
    count = 1_000_000
    text = b"[" + b'{"type":3,"data":{"source":1}},' * (count - 1) + json.dumps(click_event()).encode() + b"]"
    value = message(envelope(frame(zlib.compress(text, 1))))

    tracemalloc.start()
    try:
        segment = parse(value, ParseRules(sample_segment_rate=0.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert isinstance(segment, Segment)
    assert segment.bigquery[-1].id.endswith("-999999-ui.click")
    assert peak < 3 * len(text)


@pytest.mark.parametrize("text", [b"0,", b"[],", b'{"type":5},'], ids=repr)
def test_parsing_of_a_million_worthless_events_is_cut_short(text: bytes):
    """A segment with a million events that yield no row is kept, but its warnings, rows and memory are bounded."""
    value = message(envelope(frame(zlib.compress(b"[" + text * 1_000_000 + b"0]"))))

    tracemalloc.start()
    try:
        segment = parse(value, ALL)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert isinstance(segment, Segment)
    assert len(segment.warnings) < 3000
    assert len(segment.bigquery) <= 2000
    assert peak < 150 * MiB


@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
def test_nesting_of_any_depth_loses_at_most_its_own_event(depth: int):
    """A deeply nested value in an event does not crash the interpreter, and the click after it is read."""
    click = json.dumps(click_event()).encode()
    arrays = b"[" * depth + b"]" * depth
    objects = b'{"a":' * depth + b"1" + b"}" * depth

    for deep in (arrays, objects, b'{"type":5,"data":' + arrays + b"}", b'{"type":3,"data":' + objects + b"}"):
        segment = parsed(recording(b"[" + deep + b"," + click + b"]"))
        assert len(clicks(segment)) == 1
        assert segment.bigquery[-1].id.endswith("-1-ui.click")


@pytest.mark.parametrize("depth", [5_000, 100_000])
def test_nesting_of_any_depth_elsewhere_crashes_nothing(depth: int):
    """Deep nesting in the envelope, header, replay_event or an unterminated recording does not crash the
    interpreter.
    """
    arrays = b"[" * depth + b"]" * depth

    rejected(b"\x91" * depth + b"\xc0")
    rejected(envelope(frame(body([]), headers=b'{"segment_id":' + arrays + b"}")))
    assert "replay_event_not_json" in parsed(recording(replay_event=b'{"tags":' + arrays + b"}")).warnings
    assert parsed(recording(b"[" * depth)).warnings


def test_mutations_alone_produce_only_the_row_that_counts_them():
    """A recording of mutations produces only the row that counts them, and data that no row needs is not
    decoded.
    """
    segment = parsed(recording([mutation_event(), snapshot_event(), {"type": 99}, {"type": 7}, {"type": 0}]))

    assert [json.loads(json.loads(row.json)["attributes"]) for row in segment.bigquery] == [{"count": 5}]
    assert segment.warnings == ()
