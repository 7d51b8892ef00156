"""Replays for tests of the web package, parsed and written as in the pipeline, but without Kafka or workers."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

from ingest.core.model import Message, Segment, TopicPartition
from ingest.core.parse import ParseRules, parse
from ingest.local.load.produce import PROFILES, stream
from ingest.settings import Settings
from tasks.sinks.clickhouse.sink import ClickHouseSink
from tasks.sinks.gcs.sink import GcsSink
from tasks.wire import Blob, Row
from tests.kit.recordings import RECORDINGS

PARTITIONS = 4


def message(
    replay_id: str,
    segment_id: int,
    events: list[Any] | bytes,
    *,
    project_id: int = 7,
    at: int | None = None,
    document: dict[str, Any] | None = None,
    video: bytes | None = None,
    retention_days: int = 30,
) -> bytes:
    """Returns one Kafka value. `at` is the `received` time in Unix seconds."""
    body = events if isinstance(events, bytes) else zlib.compress(json.dumps(events).encode())
    return msgspec.msgpack.encode(
        {
            "type": "replay_recording_not_chunked",
            "replay_id": replay_id,
            "org_id": 1,
            "project_id": project_id,
            "received": int(time.time()) if at is None else at,
            "retention_days": retention_days,
            "key_id": None,
            "payload": b'{"segment_id":%d}\n' % segment_id + body,
            "replay_event": json.dumps(document).encode() if document is not None else None,
            "replay_video": video,
            "version": 1,
        }
    )


def generated(count: int, seed: int = 1, profile: str = "small") -> list[bytes]:
    """Returns the messages of realistic sessions, without malformed messages."""
    made = stream(PROFILES[profile], count, seed, int(time.time()) - 60)
    return [produced.value for produced in made if produced.entry.kind != "reject"]


def recorded_session(replay_id: str, segments: int = 4) -> list[bytes]:
    """Returns the messages of a session that a real SDK recorded, with the given replay id and split into the
    given number of segments.
    """
    (shop,) = [recorded for recorded in RECORDINGS if recorded.name == "v11-shop"]
    events = shop.events
    size = -(-len(events) // segments)
    return [message(replay_id, number, events[number * size : (number + 1) * size]) for number in range(segments)]


def store_replays(settings: Settings, values: Iterable[bytes], *, first_offset: int = 0) -> list[Segment]:
    """Writes the items that the pipeline would write; message n is in partition n % 4.

    The bucket and the tables must exist.
    """
    segments: list[Segment] = []
    for number, value in enumerate(values):
        source = TopicPartition(settings.kafka_topic, number % PARTITIONS)
        offset = first_offset + number // PARTITIONS
        parsed = parse(Message(source, 1, offset, value, timestamp_ms=int(time.time() * 1000)), ParseRules())
        assert isinstance(parsed, Segment), parsed
        segments.append(parsed)
    blobs, rows = GcsSink(settings), ClickHouseSink(settings)
    try:
        items = [Blob(b.name, b.content, b.offset) for each in segments for b in each.blobs]
        for start in range(0, len(items), 200):
            blobs.write(items[start : start + 200], "", 60)
        lines = [Row(r.table, r.id, r.json, r.offset) for each in segments for r in each.clickhouse]
        for start in range(0, len(lines), 5000):
            rows.write(lines[start : start + 5000], f"seed-{first_offset}-{start}-{time.time_ns()}", 60)
    finally:
        blobs.close()
        rows.close()
    return segments
