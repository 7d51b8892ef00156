"""Redis state shared by readers, workers and operators, except for batches.

    <prefix>:reader:<reader>   stream: completions and operators' requests, for one reader
    <prefix>:readers           hash: the last heartbeat of each reader
    <prefix>:workers           hash: the last presence entry of each worker
    <prefix>:reader:trend/...  hashes: samples of the last hour (`tasks.trend`)
    <prefix>:parked            hash: parked batches, each a lease renewed by its reader

No offset depends on this state; lost entries are written again. All times are Unix seconds of the Redis clock, so
that clocks of different machines are never compared. Every key expires. Operators' decisions are in
`tasks.operators`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from redis import Redis
from redis.exceptions import NoPermissionError

from tasks.foreign_keys import remove_wrong_types, results
from tasks.seals import Purpose, Unverified, warn
from tasks.settings import Settings
from tasks.trend import Trend, TrendWriter, trend
from tasks.wire import Completion, reader_stream

if TYPE_CHECKING:
    from tasks.operators import Operators

STREAM_ENTRIES_MAX = 10_000
READER_EXPIRY_SECONDS = 86_400
WORKER_EXPIRY_SECONDS = 3600
# Several times the interval at which readers renew a lease (`Limits.parked_renew_seconds`), so that the lease
# survives short Redis outages.
PARKED_LEASE_SECONDS = 30.0
FIRST_PARKED_MAX = 10_000
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
# Batches that were parked by older releases have entries without a lease. Such an entry expires when its retry is
# overdue by this many seconds.
UNLEASED_SECONDS = 120.0
log = logging.getLogger(__name__)


class Coordination:
    """Reads and writes this state through one client. Raises redis.exceptions.RedisError."""

    def __init__(self, client: Redis[bytes], settings: Settings, unverified: Unverified = warn) -> None:
        self.client: Any = client  # redis-py types every result as a union of sync and async
        self._settings = settings
        self._seals = settings.seals
        self._unverified = unverified
        self._prefix = settings.key_prefix
        self._ttl_seconds = settings.staged_ttl_seconds
        self._parked = f"{self._prefix}:parked"
        self._readers = f"{self._prefix}:readers"
        self._workers = f"{self._prefix}:workers"
        self._first_parked: dict[str, float] = {}
        self._trend = TrendWriter(client, self._prefix)
        breakers = (f"{self._prefix}:breaker:{sink}" for sink in settings.sinks)
        self._sink_keys = (f"{self._prefix}:sinks", *breakers)

    @cached_property
    def operators(self) -> Operators:
        """Operators' decisions and actions. The module is imported on first use, because it also needs the Kafka
        client.
        """
        from tasks.operators import Operators

        return Operators(self.client, self._settings)

    def now(self) -> float:
        """Returns the current time of the Redis clock, in Unix seconds."""
        return redis_now(self.client)

    # Completions

    def send_completion(self, reader: str, completion: Completion) -> None:
        """Adds an entry to the reader's stream."""
        self.send_completions([(reader, completion)])

    def send_completions(self, entries: Iterable[tuple[str, Completion]]) -> None:
        """Adds entries to their readers' streams, in one round trip."""
        pipe = self.client.pipeline(transaction=True)  # so that a stream always has an expiry
        streams = set()
        for reader, completion in entries:
            stream, data = reader_stream(reader, self._prefix), msgspec.json.encode(completion)
            entry = {"c": data}
            if self._seals.active:
                entry["s"] = self._seals.seal(Purpose.COMPLETION, stream, data)
            pipe.xadd(stream, entry, maxlen=STREAM_ENTRIES_MAX, approximate=True)
            streams.add(stream)
        for stream in sorted(streams):
            pipe.expire(stream, self._ttl_seconds)
        pipe.execute()

    # Readers

    def publish_reader(self, reader: str, entry: str) -> None:
        """Stores a heartbeat: `entry` is JSON with host, pid, started_at and seen_at (Unix seconds)."""
        remove_wrong_types(self.client, (self._readers, self._parked))
        pipe = self.client.pipeline(transaction=True)
        pipe.hset(self._readers, reader, entry)
        pipe.expire(self._readers, READER_EXPIRY_SECONDS)
        pipe.hgetall(self._readers)
        pipe.expire(reader_stream(reader, self._prefix), self._ttl_seconds)
        pipe.time()
        _, _, found, _, clock = pipe.execute()
        now = seconds_of(clock)
        silent = _expired_names(found, now, READER_EXPIRY_SECONDS)
        if silent:
            self.client.hdel(self._readers, *silent)
        self._trend.add(reader, entry)

    def trend(self) -> Trend:
        """Returns the throughput, lag and delay for the last hour."""
        return trend(self.client, self._prefix, self.now())

    def remove_reader(self, reader: str) -> None:
        """Removes the reader."""
        self.client.hdel(self._readers, reader)

    def readers(self) -> dict[str, dict[str, Any]]:
        """Returns the last heartbeat of each reader, with its age as `silent_seconds`."""
        return self._read_entries(self._readers)

    # Workers

    def publish_worker(self, worker: str, entry: str) -> None:
        """Stores a worker's presence: `entry` is JSON with `seen_at` (Unix seconds). Old entries are removed."""
        remove_wrong_types(self.client, (self._workers, *self._sink_keys))
        pipe = self.client.pipeline(transaction=True)
        pipe.hset(self._workers, worker, entry)
        pipe.expire(self._workers, WORKER_EXPIRY_SECONDS)
        pipe.hgetall(self._workers)
        pipe.time()
        _, _, found, clock = pipe.execute()
        now = seconds_of(clock)
        silent = _expired_names(found, now, WORKER_EXPIRY_SECONDS)
        if silent:
            self.client.hdel(self._workers, *silent)

    def remove_worker(self, worker: str) -> None:
        """Removes the worker."""
        self.client.hdel(self._workers, worker)

    def workers(self) -> dict[str, dict[str, Any]]:
        """Returns the last presence entry of each worker, with the entry's age as `silent_seconds`."""
        return self._read_entries(self._workers)

    def _read_entries(self, key: str) -> dict[str, dict[str, Any]]:
        """Skips entries that this system did not write, so that all other entries can still be shown."""
        found, now = self._all_of(key)
        entries: dict[str, dict[str, Any]] = {}
        for name, text in sorted(found.items()):
            try:
                entry = msgspec.json.decode(text, type=dict[str, Any])
                silent_seconds = _silent_seconds(text, now)
                entries[name.decode()] = {**entry, "silent_seconds": silent_seconds}
            except UNREADABLE:
                log.warning("%s has an invalid entry: skipped", key)
        return entries

    # Parked batches

    def park(self, batch_id: str, entry: Mapping[str, Any]) -> None:
        """Publishes a parked batch for PARKED_LEASE_SECONDS; repeating it renews the lease.

        Adds `first_parked_at`: a failed retry parks the batch again, with a new `parked_at`.
        """
        now = self.now()
        first_at = self._first_parked.setdefault(batch_id, float(entry.get("parked_at") or now))
        if len(self._first_parked) > FIRST_PARKED_MAX:  # batches of partitions that moved to another reader
            del self._first_parked[next(iter(self._first_parked))]
        leased = {**entry, "first_parked_at": first_at, "leased_until": now + PARKED_LEASE_SECONDS}
        text = msgspec.json.encode(self._seals.seal_object(Purpose.PARKED, self._parked, leased))
        pipe = self.client.pipeline(transaction=True)
        pipe.hset(self._parked, batch_id, text)
        pipe.expire(self._parked, int(UNLEASED_SECONDS))
        pipe.execute()

    def unpark(self, batch_id: str) -> None:
        """Removes a batch that is no longer parked."""
        self._first_parked.pop(batch_id, None)
        self.client.hdel(self._parked, batch_id)

    def parked(self) -> dict[str, dict[str, Any]]:
        """Returns the parked batches whose leases have not expired, by batch id, oldest first."""
        texts, now = self._all_of(self._parked)
        found = [entry for entry in map(self._verified, texts.values()) if entry is not None]
        expired = [entry["batch_id"] for entry in found if _leased_until(entry) + PARKED_LEASE_SECONDS < now]
        if expired:  # removed well after expiry, so that a renewal is not lost
            with contextlib.suppress(NoPermissionError):  # a viewer's Redis user is read-only
                self.client.hdel(self._parked, *expired)
        live = sorted(
            (entry for entry in found if _leased_until(entry) >= now), key=lambda entry: float(entry["parked_at"])
        )
        return {entry["batch_id"]: entry for entry in live}

    def _verified(self, text: bytes) -> dict[str, Any] | None:
        """Returns a parked entry; None if it was not written by its reader."""
        entry = self._seals.open_object(Purpose.PARKED, self._parked, text)
        if entry is None:
            self._unverified(Purpose.PARKED)
        return entry

    def _all_of(self, key: str) -> tuple[dict[bytes, bytes], float]:
        """Returns all entries of a hash, and the current time."""
        pipe = self.client.pipeline(transaction=True)
        pipe.hgetall(key)
        pipe.time()
        found, clock = results(pipe, {})
        return found, seconds_of(clock)

    # The audit trail

    def audit(self, action: Mapping[str, Any]) -> None:
        """Records an operator action and the current time. Raises NotProduced."""
        self.operators.audit(action)

    def audited(self, count_max: int = 100, *, copy_only: bool = False) -> list[dict[str, str]]:
        """Returns the last actions, newest first. Raises RangeError if the actions are missing from Redis and
        Kafka is unreachable. `copy_only`: reads only the copy in Redis, which may be incomplete.
        """
        return self.operators.audited(count_max, copy_only=copy_only)


def redis_now(client: Any) -> float:
    """Returns the current time of the Redis clock, in Unix seconds."""
    return seconds_of(client.time())


def seconds_of(clock: tuple[int, int]) -> float:
    """Returns the time from a TIME response, in Unix seconds."""
    return clock[0] + clock[1] / 1e6


class _LastSeen(msgspec.Struct):
    seen_at: float


def _silent_seconds(entry: bytes, now: float) -> float:
    """Returns the age of an entry in seconds. Raises one of the exceptions in UNREADABLE."""
    return max(0.0, now - msgspec.json.decode(entry, type=_LastSeen).seen_at)


def _expired_names(found: Mapping[bytes, bytes], now: float, seconds_max: float) -> list[bytes]:
    """Returns the names of entries that are expired or invalid."""
    gone = []
    for name, text in found.items():
        try:
            if _silent_seconds(text, now) > seconds_max:
                gone.append(name)
        except UNREADABLE:
            gone.append(name)
    return gone


def _leased_until(entry: Mapping[str, Any]) -> float:
    return float(entry.get("leased_until") or float(entry["retry_at"]) + UNLEASED_SECONDS)
