"""State in Redis is not authenticated, but a forged entry must not hide other entries from operators."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ingest.operate.erase.tombstones import Tombstones
from ingest.operate.status import collect
from ingest.settings import Settings
from ingest.web.journey import journeys
from tasks.connection import connect
from tasks.coordination import Coordination

NAME = "reader-1"
WORKER = "worker-1"
GARBAGE = (
    b"",
    b"garbage",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b'{"seen_at": "x"}',
    b'{"seen_at": 1e999}',
    b"[" * 100_000,
    b'{"seen_at": 1, "snapshot": {"partitions": [{}]}}',
    b'{"seen_at": 1, "snapshot": 7, "rejects": [], "decisions_settled": "x", "queues": 3}',
    b'{"seen_at": 1, "p50_seconds": "x"}',
)


@pytest.fixture
def forged_entries(stored: Settings) -> Iterator[Coordination]:
    """The entries of a running reader and worker, and forged entries that none of our programs wrote."""
    client = connect(stored)
    coordination, prefix = Coordination(client, stored), stored.key_prefix
    now = coordination.now()
    heartbeat = {"seen_at": now, "topic": "t", "snapshot": {"now": 1.0, "partitions": []}}
    coordination.publish_reader(NAME, json.dumps(heartbeat))
    coordination.publish_worker(WORKER, json.dumps({"seen_at": now}))
    keys = [f"{prefix}:{name}" for name in ("readers", "workers", "sinks")]
    for key in keys:
        client.hset(key, b"\xff", b"{}")
        for number, text in enumerate(GARBAGE):
            client.hset(key, f"clickhouse{number or ''}", text)
    client.hset(f"{prefix}:breaker:clickhouse", mapping={"opened_until": "x", "failed": "inf"})
    yield coordination
    client.delete(*keys, f"{prefix}:breaker:clickhouse")
    client.close()


def test_forged_state_hides_nothing_of_ours(stored: Settings, forged_entries: Coordination):
    """All commands and pages show the entries of our programs and omit forged ones."""
    seen = collect(stored)

    assert NAME in [reader.reader for reader in seen.readers]
    assert WORKER in [worker.worker for worker in seen.workers]
    assert {sink.sink for sink in seen.sinks} >= {"gcs", "clickhouse"}
    assert journeys(stored, [(0, 0)]).error == ""
    assert NAME in forged_entries.readers()


def test_an_erasure_does_not_count_a_forged_heartbeat_as_settled(stored: Settings, forged_entries: Coordination):
    """An erasure does not count a reader with a forged heartbeat as settled, but waits for that reader, as for a
    reader of an earlier release.
    """
    client = connect(stored)
    client.hset(f"{stored.key_prefix}:readers", "odd", json.dumps({"seen_at": 2e9, "decisions_settled": "x"}))

    left = Tombstones(stored).settle(1, 0.0)
    client.close()

    assert any("reader odd may still write" in line for line in left)


def test_a_heartbeat_removes_forged_entries(stored: Settings, forged_entries: Coordination):
    """Readers and workers continue to publish their state, and remove the forged entries."""
    now = forged_entries.now()
    forged_entries.publish_reader(NAME, json.dumps({"seen_at": now}))
    forged_entries.publish_worker(WORKER, json.dumps({"seen_at": now}))

    client = connect(stored)
    left = {key: client.hgetall(f"{stored.key_prefix}:{key}") for key in ("readers", "workers")}
    client.close()
    assert left["readers"].keys() >= {NAME.encode()}
    assert not {b"garbage", b"null", b"{}"} & {*left["readers"].values(), *left["workers"].values()}


HASHES = ("readers", "workers", "sinks", "parked", "breaker:clickhouse", "operators", "operators:audit")
OTHERS = ("operators:copied", "celery:unacked", "celery:control", "celery:flush.clickhouse")


@pytest.fixture
def wrongly_typed(stored: Settings) -> Iterator[Coordination]:
    """Overwrites every shared key that commands read. The new value is a Redis set, a type that none of our
    programs uses for these keys.
    """
    client = connect(stored)
    for name in HASHES + OTHERS:
        client.delete(f"{stored.key_prefix}:{name}")
        client.sadd(f"{stored.key_prefix}:{name}", "x")
    yield Coordination(client, stored)
    client.delete(*(f"{stored.key_prefix}:{name}" for name in HASHES + OTHERS))
    client.close()


def test_keys_of_another_type_block_no_command(stored: Settings, wrongly_typed: Coordination):
    """If keys in Redis have the wrong type, commands show all data that is still valid.

    Decisions are read from Kafka, and the copy in Redis is rebuilt from them.
    """
    seen = collect(stored)

    assert (seen.readers, seen.parked) == ((), ())
    assert {sink.sink for sink in seen.sinks} >= set(stored.sinks)
    assert wrongly_typed.operators.in_force() == wrongly_typed.operators.in_force()
    assert isinstance(wrongly_typed.audited(), list)


def test_a_heartbeat_replaces_keys_of_another_type(stored: Settings, wrongly_typed: Coordination):
    """If keys in Redis have the wrong type, readers and workers overwrite the keys with their own state, without
    operator action.
    """
    now = wrongly_typed.now()
    wrongly_typed.publish_reader(NAME, json.dumps({"seen_at": now, "topic": "t", "snapshot": {"now": 1.0}}))
    wrongly_typed.publish_worker(WORKER, json.dumps({"seen_at": now}))

    assert NAME in wrongly_typed.readers()
    assert WORKER in wrongly_typed.workers()
    types = {name: wrongly_typed.client.type(f"{stored.key_prefix}:{name}") for name in HASHES[:5]}
    assert set(types.values()) <= {b"hash", b"none"}
