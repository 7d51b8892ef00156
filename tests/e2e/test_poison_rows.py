"""A row that a sink refuses becomes a dead letter, the other rows are stored, the offset advances, and the row
can be replayed.

The servers themselves refuse these rows. BigQuery accepts no row older than ten years into a partitioned table.
ClickHouse refuses a whole insert if one row violates a constraint of the table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from ingest.local.compare.facts import read_facts
from ingest.testing.messages import recording
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.kafka.options import kafka_options
from tasks.sinks.gcs.sink import client as gcs_client
from tests.kit.whole_system import System

pytestmark = pytest.mark.timeout(240)
# Batches are large, so that a poison row shares its batch with other rows, and the load fills one or two batches
# per partition.
LARGE_BATCHES = {"batch_messages_max": "500", "batch_age_seconds_max": "2"}
SEGMENTS = 500
OLD_ID = "0ddba110000000000000000000000001"
BANNED_ID = "0ddba110000000000000000000000002"
BANNED_SEGMENT = 60_606
TWELVE_YEARS_SECONDS = 12 * 365 * 86_400
Position = tuple[int, int]
"""partition, offset"""


@pytest.fixture(scope="module")
def poisoned_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Position, Position]]:
    """A system that has ingested two poison messages among others, and the positions of the poison messages."""
    # Nothing may be parked for any other reason, such as a call that is slow because the machine is busy.
    patient = {"sink_timeout_seconds": "20", "flush_deadline_seconds": "120", "task_visibility_seconds": "300"}
    directory = tmp_path_factory.mktemp("system")
    # The reader starts with a backlog: otherwise it may cut a batch before the poison row has neighbors.
    with System(directory, starts_reader=False, **LARGE_BATCHES, **patient) as system:
        rule = f"CONSTRAINT banned CHECK segment_id != {BANNED_SEGMENT}"
        execute(system, f"ALTER TABLE replay_segments ADD {rule}")
        now = int(time.time())
        then = now - TWELVE_YEARS_SECONDS
        old = system.send(poison(OLD_ID, 0, then), timestamp_ms=then * 1000)
        banned = system.send(poison(BANNED_ID, BANNED_SEGMENT, now))
        system.load(SEGMENTS)
        system.start_reader()
        system.wait_until_committed()
        yield system, old, banned


def test_all_other_rows_are_stored_and_the_offset_advanced(
    poisoned_system: tuple[System, Position, Position],
) -> None:
    """Every sink has the whole load except for the poison rows, all offsets are committed, and nothing was
    parked.
    """
    system, *places = poisoned_system

    report = system.reconcile(extra_is_error=False)

    assert report.ok, report.failures()
    assert system.metric("replays_reader_batches_parked_total") == 0
    for place in places:
        assert committed(system, place) > place[1]


def test_a_row_that_bigquery_refuses_is_a_letter_with_its_reason(
    poisoned_system: tuple[System, Position, Position],
) -> None:
    """A row that BigQuery refuses becomes a dead letter with the reason, and the other sinks store its message.

    If the dead letter is replayed, the row is refused again and the dead letter is kept.
    """
    system, old, _ = poisoned_system
    (letter,) = letters(system, "bigquery")

    assert "outside the allowed bounds" in letter["error"]
    assert letter["item"].startswith("replay_events/")
    assert f"-{OLD_ID}-0-" in letter["item"]
    assert_is_about(letter, old)
    assert objects_named(system, OLD_ID) == 1

    again = json.loads(system.command("dlq", "replay", "--sink", "bigquery", "--yes", "--json", ok=False))
    assert again["written"] == 0
    assert "outside the allowed bounds" in again["failed"][0][1]
    assert [found["replayed"] for found in letters(system, "bigquery")] == [False]


def test_a_batch_refused_for_one_row_lacks_only_that_row_until_its_replay(
    poisoned_system: tuple[System, Position, Position],
) -> None:
    """Once the table accepts the row, a replay of its dead letter writes the row once, and only to ClickHouse."""
    system, _, banned = poisoned_system
    (letter,) = letters(system, "clickhouse")
    assert "banned" in letter["error"]
    assert letter["item"].startswith("replay_segments/")
    assert_is_about(letter, banned)
    # The same message also produces a row in another table, which is stored.
    assert rows_of_banned(system, "replays") == 1
    assert rows_of_banned(system, "replay_segments") == 0

    execute(system, "ALTER TABLE replay_segments DROP CONSTRAINT banned")
    before = held_elsewhere(system)
    dry = system.json("dlq", "replay", "--sink", "clickhouse", "--dry-run")
    assert (dry["written"], dry["produced"], dry["failed"]) == (1, 0, [])
    assert rows_of_banned(system, "replay_segments") == 0

    real = system.json("dlq", "replay", "--sink", "clickhouse", "--yes", "--by", "test")

    assert (real["written"], real["produced"], real["failed"]) == (1, 0, [])
    assert rows_of_banned(system, "replay_segments") == 1
    assert held_elsewhere(system) == before
    assert system.json("dlq", "replay", "--sink", "clickhouse", "--yes")["written"] == 0
    audit = Coordination(connect(system.settings), system.settings).audited()
    assert any(action["what"] == "dlq_replay" and action["sink"] == "clickhouse" for action in audit)


def poison(replay_id: str, segment_id: int, received: int) -> bytes:
    """Returns a message that produces a single BigQuery row, whose event type is `rrweb_event_count`."""
    events = [{"type": 3, "timestamp": received * 1000, "data": {"source": 1}}]
    fields = {"replay_id": replay_id, "received": received, "replay_event": None}
    return recording(events, segment_id, **fields)


def letters(system: System, sink: str) -> list[dict[str, Any]]:
    """Returns the dead letters of the given sink."""
    found: list[dict[str, Any]] = system.json("dlq", "ls", "--sink", sink, "--limit", "50")["letters"]
    return found


def assert_is_about(letter: dict[str, Any], where: Position) -> None:
    """Asserts that the dead letter names its message, and that the batch contained many others."""
    assert letter["reason"] == "sink_refused"
    assert tuple(int(number) for number in letter["origin"].split("-")[-2:]) == tuple(where)
    start, stop = letter["batch_id"].split("-")[-2:]
    assert int(stop) - int(start) > 20, letter["batch_id"]


def committed(system: System, where: Position) -> int:
    source = (system.settings.kafka_topic, where[0])
    return system.committed_offsets.of([source])[source]


def execute(system: System, sql: str) -> None:
    """Runs a ClickHouse statement that returns no rows."""
    from tasks.sinks.clickhouse.sink import client

    server = client(system.settings)
    try:
        server.command(sql)
    finally:
        server.close()


def rows_of_banned(system: System, table: str) -> int:
    rows = system.query(f"SELECT count() FROM {table} FINAL WHERE replay_id = toUUID('{BANNED_ID}')")
    return int(rows[0][0])


def objects_named(system: System, part: str) -> int:
    blobs = gcs_client(system.settings).list_blobs(system.settings.gcs_bucket)
    return sum(part in blob.name for blob in blobs)


def held_elsewhere(system: System) -> tuple[Any, ...]:
    """Returns the contents of the other sinks: objects, facts, and messages of the dead-letter topic."""
    consumer = Consumer({"group.id": "looks-only", **kafka_options(system.settings)})
    topic = system.settings.kafka_topic
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    ends = [consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20) for number in partitions]
    consumer.close()
    return objects_named(system, ""), read_facts(system.settings), ends
