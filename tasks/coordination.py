"""What readers, workers and operators exchange through Redis beside batches.

    <prefix>:reader:<reader>   stream: completions and operators' requests, for one reader
    <prefix>:readers           hash: the last heartbeat of each reader
    <prefix>:parked            hash: batches that wait for their retry
    <prefix>:audit             stream: what operators did

Nothing here decides on an offset: what is lost with Redis is shown, or asked for, again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from redis import Redis

from tasks.settings import Settings
from tasks.wire import Completion, reader_stream

STREAM_ENTRIES_MAX = 10_000
AUDIT_ENTRIES_MAX = 10_000
READER_FORGOTTEN_SECONDS = 86_400


class Coordination:
    """All of it behind one client. Raises redis.exceptions.RedisError."""

    def __init__(self, client: Redis[bytes], settings: Settings) -> None:
        self.client: Any = client  # redis-py types every answer as a union of sync and async
        self._prefix = settings.key_prefix
        self._ttl_seconds = settings.staged_ttl_seconds
        self._parked = f"{self._prefix}:parked"
        self._readers = f"{self._prefix}:readers"

    # Completions

    def tell(self, reader: str, completion: Completion) -> None:
        """One entry on the reader's stream."""
        stream = reader_stream(reader, self._prefix)
        pipe = self.client.pipeline(transaction=False)
        pipe.xadd(stream, {"c": msgspec.json.encode(completion)}, maxlen=STREAM_ENTRIES_MAX, approximate=True)
        pipe.expire(stream, self._ttl_seconds)
        pipe.execute()

    # Readers

    def hello(self, reader: str, about: str) -> None:
        """A heartbeat: `about` is JSON with host, pid, started_at and seen_at (unix seconds)."""
        pipe = self.client.pipeline(transaction=False)
        pipe.hset(self._readers, reader, about)
        pipe.hgetall(self._readers)
        pipe.expire(reader_stream(reader, self._prefix), self._ttl_seconds)
        _, found, _ = pipe.execute()
        silent = [name for name, text in found.items() if _silent_seconds(text) > READER_FORGOTTEN_SECONDS]
        if silent:
            self.client.hdel(self._readers, *silent)

    def goodbye(self, reader: str) -> None:
        """The reader ends."""
        self.client.hdel(self._readers, reader)

    def readers(self) -> dict[str, dict[str, Any]]:
        """The last heartbeat of each reader, with `silent_seconds` since it came."""
        found = self.client.hgetall(self._readers)
        return {
            name.decode(): {**msgspec.json.decode(text), "silent_seconds": _silent_seconds(text)}
            for name, text in sorted(found.items())
        }

    # Parked batches

    def park(self, batch_id: str, about: Mapping[str, Any]) -> None:
        """Shows a batch that is waiting for its retry."""
        self.client.hset(self._parked, batch_id, msgspec.json.encode(about))

    def unpark(self, batch_id: str) -> None:
        """It is not parked (any more)."""
        self.client.hdel(self._parked, batch_id)

    def parked(self) -> dict[str, dict[str, Any]]:
        """What `park` was given, by batch id; the oldest first."""
        found = [msgspec.json.decode(about) for about in self.client.hvals(self._parked)]
        return {about["batch_id"]: about for about in sorted(found, key=lambda about: about["parked_at"])}

    # The audit trail

    def audit(self, action: Mapping[str, Any]) -> None:
        """Keeps what an operator did, with the time; the last `AUDIT_ENTRIES_MAX` actions are kept."""
        fields = {name: str(value) for name, value in {"at": time.time(), **action}.items()}
        self.client.xadd(f"{self._prefix}:audit", fields, maxlen=AUDIT_ENTRIES_MAX, approximate=True)

    def audited(self, count_max: int = 100) -> list[dict[str, str]]:
        """The last actions, the newest first."""
        entries = self.client.xrevrange(f"{self._prefix}:audit", count=count_max)
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


def _silent_seconds(about: bytes) -> float:
    return max(0.0, time.time() - float(msgspec.json.decode(about)["seen_at"]))
