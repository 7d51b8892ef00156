"""The trend of the readers over the last hour, which is kept in Redis."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis

from tasks.trend import BUCKET_SECONDS, BUCKETS, RETENTION_SECONDS, TrendWriter, trend

NOW = 1_000_000.0 * BUCKET_SECONDS


@pytest.fixture
def client(redis_url: str, fresh_name: Any) -> Any:
    return Redis.from_url(redis_url)


@pytest.fixture
def prefix(fresh_name: Any) -> str:
    return str(fresh_name("trend"))


def beat(at: float, rate: float, lag: int = 0, delay: float = 0.0) -> str:
    """Returns a reader's heartbeat with the given partitions, plus one more partition that has no lag."""
    partitions = [{"lag_messages": lag, "lag_seconds": delay}, {"lag_messages": 0, "lag_seconds": 0.0}]
    snapshot = {"now": 1.0, "partitions": partitions}
    return json.dumps({"seen_at": at, "messages_per_second": rate, "bytes_per_second": 10, "snapshot": snapshot})


def test_rates_are_means_lags_are_sums_and_the_delay_is_the_longest(client: Any, prefix: str) -> None:
    """Values are aggregated over a reader's heartbeats in a bucket, and then over readers; a bucket without
    heartbeats is a gap.
    """
    one, two = TrendWriter(client, prefix), TrendWriter(client, prefix)
    one.add("one", beat(NOW, 10, lag=5, delay=30))
    one.add("one", beat(NOW + 5, 30, lag=4, delay=2))
    two.add("two", beat(NOW + 6, 100, lag=1, delay=7))
    one.add("one", beat(NOW - BUCKET_SECONDS, 7))

    found = trend(client, prefix, NOW + 10)

    assert found.start == NOW - (BUCKETS - 1) * BUCKET_SECONDS
    assert found.messages_per_second[-3:] == (None, 7, 120)
    assert (found.lag_messages[-1], found.delay_seconds[-1]) == (5, 30)
    assert len(found.messages_per_second) == BUCKETS


def test_every_key_expires(client: Any, prefix: str) -> None:
    """Every key of the trend expires, which bounds the memory in Redis."""
    TrendWriter(client, prefix).add("one", beat(NOW, 1))

    (key,) = client.scan_iter(f"{prefix}:*")
    assert 0 < client.ttl(key) <= RETENTION_SECONDS


def test_what_is_not_a_heartbeat_is_ignored(client: Any, prefix: str) -> None:
    """Values that are not heartbeats or samples are ignored. A bucket whose key was overwritten by another program
    has no value."""
    writer = TrendWriter(client, prefix)
    writer.add("one", "[]")
    writer.add("one", beat(NOW, 1))
    (key,) = client.scan_iter(f"{prefix}:*")
    client.hset(key, "two", "x")
    assert trend(client, prefix, NOW).messages_per_second[-1] == 1
    client.delete(key)
    client.set(key, "text")
    writer.add("one", beat(NOW, 1))

    assert trend(client, prefix, NOW).messages_per_second[-1] is None
    client.delete(key)
