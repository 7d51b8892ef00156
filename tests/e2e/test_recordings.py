"""Recordings of real SDKs pass through the real pipeline: blobs decode to the same JSON, and their rows exist."""

from __future__ import annotations

import json
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from tasks.units import MiB
from tests.kit.paths import foreign_fixtures
from tests.kit.recordings import RECORDINGS, inflated
from tests.kit.whole_system import System

FIXTURES = foreign_fixtures()
pytestmark = pytest.mark.timeout(240)
STARTED_AT = 1_700_000_000


def recordings() -> dict[str, list[Any]]:
    """Returns the rrweb events of every segment that we recorded, and of every third-party file, if such files are
    available.
    """
    found: dict[str, list[Any]] = {}
    for recorded in RECORDINGS:
        for number, body in enumerate(recorded.bodies):
            found[f"{recorded.name}/{number}"] = json.loads(inflated(body))
    patterns = ("rrweb/**/*.json", "sentry-javascript/*chromium", "relay/rrweb.json")
    for path in sorted(path for pattern in patterns for path in FIXTURES.glob(pattern)):
        events = json.loads(path.read_text())
        if isinstance(events, dict):
            events = [events]
        found[path.relative_to(FIXTURES).as_posix()] = events
    return found


def message(number: int, events: list[Any]) -> bytes:
    """Returns one Kafka value. The body of every second value is uncompressed."""
    body = json.dumps(events).encode()
    payload = b'{"segment_id":%d}\n' % number + (zlib.compress(body) if number % 2 else body)
    return msgspec.msgpack.encode(
        {
            "type": "replay_recording_not_chunked",
            "replay_id": f"{number + 1:032x}",
            "org_id": 1,
            "project_id": 7,
            "received": STARTED_AT,
            "retention_days": 30,
            "key_id": None,
            "payload": payload,
            "version": 1,
        }
    )


def test_recordings_of_real_sdks_are_stored_unchanged(tmp_path: Path) -> None:
    """Every object contains the JSON that was sent, every segment has its rows, and there is no dead letter."""
    sent = recordings()
    assert len(sent) > 20
    with System(tmp_path) as system:
        topic = system.settings.kafka_topic
        producer = Producer({"bootstrap.servers": system.settings.kafka_brokers, "message.max.bytes": 17 * MiB})
        for number, events in enumerate(sent.values()):
            producer.produce(topic, message(number, events))
        assert producer.flush(30) == 0
        system.wait_for_rows("replay_segments", len(sent))

        for number, events in enumerate(sent.values()):
            assert stored(system, f"30/7/{number + 1:032x}/{number}") == events
        counts = system.query(
            "SELECT count(), uniqExact(replay_id), sum(size_uncompressed) FROM replay_segments FINAL"
        )
        assert counts[0][:2] == (len(sent), len(sent))
        assert counts[0][2] == sum(len(json.dumps(events).encode()) for events in sent.values())
        assert system.query("SELECT count() FROM replays FINAL WHERE click_tag = ''")[0][0] == len(sent)
        # One of the segments has the number 0.
        assert system.query("SELECT count() FROM replay_outcomes FINAL")[0][0] == 1
        assert system.json("dlq", "ls")["letters"] == []


def stored(system: System, name: str) -> Any:
    """Returns the decoded JSON of one object."""
    quoted = urllib.request.quote(name, safe="")  # type: ignore[attr-defined]
    url = f"{system.stack.addresses['gcs']}/storage/v1/b/{system.settings.gcs_bucket}/o/{quoted}?alt=media"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(zlib.decompress(answer.read()))
