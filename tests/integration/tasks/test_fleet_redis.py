"""Tests how the fleet behaves when Redis is at its limits, and how much memory the reader's publisher uses."""

from __future__ import annotations

import gc

import pytest
from celery.result import AsyncResult

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from tasks.units import MiB
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet


@pytest.fixture
def full_redis(fleet: Fleet) -> Fleet:
    """A Redis with a maximum memory of 8 MiB, most of which is already used."""
    fleet.client.config_set("maxmemory", 8 * MiB)
    number = 0
    while fleet.client.info("memory")["used_memory"] < 7 * MiB:
        fleet.client.set(f"ballast-{(number := number + 1)}", b"x" * 50_000)
    return fleet


def test_staging_stops_before_redis_is_full(full_redis: Fleet) -> None:
    """Staging stops before queues and marks run out of memory; the event names memory as the reason."""
    dispatcher = full_redis.dispatcher()

    refused = full_redis.settle(dispatcher, make_batch(messages=500), Stage.ROWS)
    assert isinstance(refused, on.DispatchFailed)
    assert "redis is nearly full" in refused.error


def test_work_finishes_while_redis_is_full(fleet: Fleet) -> None:
    """While Redis is at its memory limit, finished writes still set their marks and free their bytes, so memory
    becomes available.
    """
    fleet.script("clickhouse", "slow 4")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch(messages=300)
    dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 30.0))
    fleet.wait(lambda: bool(fleet.calls("clickhouse", "began")), "the flush to begin")
    fleet.wait(lambda: bool(fleet.calls("bigquery") and fleet.calls("datadog")), "the other sinks")
    (key,) = fleet.client.keys("replays:batch:*")

    fleet.client.config_set("maxmemory", 1)
    fleet.wait(lambda: fleet.client.hexists(key, "done/rows/clickhouse/0"), "the mark")
    gone = not fleet.client.hexists(key, "rows/clickhouse/0")
    fleet.client.config_set("maxmemory", 0)
    event: on.Event | None = None
    for attempt in range(2, 10):
        event = fleet.settle(dispatcher, batch, Stage.ROWS, attempt)
        if isinstance(event, on.FlushSucceeded):
            break

    assert gone
    assert event == on.FlushSucceeded(batch.id, 1, Stage.ROWS)
    assert len(fleet.calls("clickhouse")) == 1


def test_the_publisher_keeps_nothing_of_its_chords(fleet: Fleet) -> None:
    """The publisher keeps no results and no subscriptions for its chords; Celery's own backend would keep four
    results and four subscriptions per chord, forever.
    """
    dispatcher = fleet.dispatcher()
    for number in range(100):
        dispatcher.submit(do.Dispatch(make_batch(start=1000 * number), Stage.ROWS, 1, 60.0))
    fleet.wait(lambda: fleet.client.llen("replays:celery:flush.clickhouse") == 100, "all chords to be started")

    gc.collect()

    assert sum(isinstance(each, AsyncResult) for each in gc.get_objects()) < 10
    assert fleet.client.pubsub_channels("*celery-task-meta*") == []
