"""Throughput, lag and delay of the last hour, from the readers' heartbeats.

    <prefix>:reader:trend/<bucket>   hash: reader -> JSON [messages/s, bytes/s, lag in messages, delay in seconds]

A bucket covers BUCKET_SECONDS, measured by the Redis clock. For each bucket, a reader writes the mean rates, the
last lag and the longest delay that its heartbeats reported within that bucket. Keys expire, which bounds the
memory: about 60 bytes per reader and bucket. Only the plots depend on these keys.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import ResponseError

from tasks.foreign_keys import results

log = logging.getLogger(__name__)
BUCKET_SECONDS = 30
BUCKETS = 120
RETENTION_SECONDS = BUCKET_SECONDS * (BUCKETS + 10)


class _Partition(msgspec.Struct, frozen=True):
    lag_messages: int = 0
    lag_seconds: float = 0.0


class _Snapshot(msgspec.Struct, frozen=True):
    partitions: tuple[_Partition, ...] = ()


class _Heartbeat(msgspec.Struct, frozen=True):
    seen_at: float
    messages_per_second: float = 0.0
    bytes_per_second: float = 0.0
    snapshot: _Snapshot = _Snapshot()


class Trend(msgspec.Struct, frozen=True):
    """One value per bucket, oldest first; None where no reader wrote. `start`: Unix seconds of the first bucket.

    Rates and lag are sums over all readers. The delay is the maximum over all readers: the age of the oldest
    uncommitted message.
    """

    start: float
    step_seconds: int
    messages_per_second: tuple[float | None, ...]
    bytes_per_second: tuple[float | None, ...]
    lag_messages: tuple[float | None, ...]
    delay_seconds: tuple[float | None, ...]


_beats = msgspec.json.Decoder(_Heartbeat)
_samples = msgspec.json.Decoder(tuple[float, float, float, float])


class TrendWriter:
    """Writes one reader's sample for the current bucket, and updates the sample at each heartbeat. Used by one
    thread."""

    def __init__(self, client: Redis[bytes], prefix: str) -> None:
        self._client: Any = client
        self._prefix = prefix
        self._bucket = 0
        self._rates: list[tuple[float, float]] = []
        self._delay_seconds = 0.0

    def add(self, reader: str, heartbeat: str) -> None:
        """`heartbeat` is a heartbeat as JSON. Raises RedisError."""
        try:
            beat = _beats.decode(heartbeat)
        except msgspec.MsgspecError:  # not a reader's heartbeat
            return
        bucket = int(beat.seen_at // BUCKET_SECONDS)
        if bucket != self._bucket:
            self._bucket, self._rates, self._delay_seconds = bucket, [], 0.0
        partitions = beat.snapshot.partitions
        self._rates.append((beat.messages_per_second, beat.bytes_per_second))
        self._delay_seconds = max(self._delay_seconds, *(one.lag_seconds for one in partitions), 0.0)
        messages, size_bytes = (sum(rates) / len(rates) for rates in zip(*self._rates, strict=True))
        lag = sum(one.lag_messages for one in partitions)
        sample = [round(messages, 1), round(size_bytes), lag, round(self._delay_seconds, 1)]
        key = _key(self._prefix, bucket)
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(key, reader, msgspec.json.encode(sample))
        pipe.expire(key, RETENTION_SECONDS)
        try:
            pipe.execute()
        except ResponseError as error:  # another program wrote the key; the heartbeat matters more
            log.warning("%s: %s", key, error)


def trend(client: Any, prefix: str, now: float) -> Trend:
    """Returns the trend of the last hour, up to the bucket of `now`. Raises RedisError."""
    last = int(now // BUCKET_SECONDS)
    buckets = range(last - BUCKETS + 1, last + 1)
    pipe = client.pipeline(transaction=False)
    for bucket in buckets:
        pipe.hgetall(_key(prefix, bucket))
    found = [_samples_of(texts) for texts in results(pipe, {})]
    return Trend(
        start=float(buckets.start * BUCKET_SECONDS),
        step_seconds=BUCKET_SECONDS,
        messages_per_second=tuple(_total(samples, 0) for samples in found),
        bytes_per_second=tuple(_total(samples, 1) for samples in found),
        lag_messages=tuple(_total(samples, 2) for samples in found),
        delay_seconds=tuple(max((one[3] for one in samples), default=None) for samples in found),
    )


def _total(samples: list[tuple[float, float, float, float]], position: int) -> float | None:
    return round(sum(one[position] for one in samples), 1) if samples else None


def _samples_of(texts: dict[bytes, bytes]) -> list[tuple[float, float, float, float]]:
    samples = []
    for text in texts.values():
        with suppress(msgspec.MsgspecError):
            samples.append(_samples.decode(text))
    return samples


def _key(prefix: str, bucket: int) -> str:
    return f"{prefix}:reader:trend/{bucket}"
