"""Redis as the fleet and the reader use it: every command about a staged batch is in this file.

Besides the payloads and done marks of `tasks.wire`, a batch's hash holds what must outlive one run of a task:

    left/<task>        JSON, `Progress`: what a task had still to write when it was put off
    error/<task>       one line: why the task's last run failed
    starts/<task>/<id> how often the Celery task with that id began without ending in any way
    chord/<stage>      the token of the last chord that was started for the stage

Redis keeps a batch for `staged_ttl_seconds`. A done mark is written by a script that Redis runs even at its memory
limit, together with the removal of the payload: otherwise a full Redis could not be emptied by finishing work.
Needs Redis 7 or Valkey.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from tasks.settings import Settings
from tasks.wire import (
    MANIFEST,
    ChordName,
    Completion,
    Manifest,
    batch_key,
    done_field,
    reader_stream,
    reference,
)

CONNECT_SECONDS_MAX = 3.0
HEALTH_CHECK_SECONDS = 25
# Marks outlive their batch for as long as its offsets may still be uncommitted: a reader that died right then
# is replaced within minutes.
SETTLED_TTL_SECONDS = 3600
STREAM_ENTRIES_MAX = 10_000
READER_FORGOTTEN_SECONDS = 86_400
AUDIT_ENTRIES_MAX = 10_000
ERROR_CHARACTERS_MAX = 500
# Above this share of maxmemory nothing is staged: what is left belongs to queues, chords and done marks.
MEMORY_SHARE_MAX = 0.75
MEMORY_ASKED_SECONDS = 1.0

_BEGIN = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return {1, 0, false} end
if redis.call('HEXISTS', KEYS[1], ARGV[4]) == 0 then return {2, 0, false} end
local starts = redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
return {0, starts, redis.call('HGET', KEYS[1], ARGV[3])}
"""
_MARK = """#!lua flags=allow-oom
redis.call('HSET', KEYS[1], ARGV[2], '1')
redis.call('HDEL', KEYS[1], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[1], ARGV[1], 'NX')
return 1
"""


class StagingError(Exception):
    """The batch's bytes are not in Redis (any more): the reader stages them again at its next attempt."""


class RedisFull(RedisError):
    """Redis is at, or too near to, its memory limit to stage anything."""


class Progress(msgspec.Struct):
    """What one flush task has still to do. `left`: positions not durable; `refused`: (position, error) pairs
    that the sink will never take and that are not dead letters yet."""

    left: list[int]
    refused: list[tuple[int, str]] = []


@dataclass(frozen=True, slots=True)
class Begun:
    """How a flush task finds itself: `done` before, or begun for the `starts`-th time without an end."""

    done: bool
    starts: int = 0
    progress: Progress | None = None


def connect(settings: Settings, *, retries: int = 1) -> Redis[bytes]:
    """A client that answers or raises: each call is bounded by `redis_timeout_seconds`, `retries` times more.

    Nothing is decoded: values are bytes.
    """
    options: dict[str, Any] = {}
    url = settings.redis_url.get_secret_value()
    if url.startswith("rediss://") and settings.redis_tls_ca_file is not None:
        options["ssl_ca_certs"] = str(settings.redis_tls_ca_file)
    return Redis.from_url(
        url,
        socket_timeout=settings.redis_timeout_seconds,
        socket_connect_timeout=min(CONNECT_SECONDS_MAX, settings.redis_timeout_seconds),
        socket_keepalive=True,
        health_check_interval=HEALTH_CHECK_SECONDS,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
        **options,
    )


def shortened(text: str) -> str:
    """One line, bounded: errors travel through Redis, logs and Flower."""
    line = " ".join(text.split())
    return line if len(line) <= ERROR_CHARACTERS_MAX else line[: ERROR_CHARACTERS_MAX - 3] + "..."


class Staging:
    """Staged batches behind one client. `batch` is always a `reference`. Raises redis.exceptions.RedisError."""

    def __init__(self, client: Redis[bytes], settings: Settings) -> None:
        self.client: Any = client  # redis-py types every answer as a union of sync and async
        self._prefix = settings.key_prefix
        self._ttl_seconds = settings.staged_ttl_seconds
        self._begin = client.register_script(_BEGIN)
        self._mark = client.register_script(_MARK)
        self._memory_asked_at = -MEMORY_ASKED_SECONDS
        self._memory_left: int | None = None
        self._parked = f"{self._prefix}:parked"
        self._readers = f"{self._prefix}:readers"

    def key(self, batch: str) -> str:
        """The Redis key of this batch."""
        batch_id, digest = batch.rsplit(":", 1)
        return batch_key(batch_id, digest, self._prefix)

    # The reader's side

    def unmarked(self, batch: str, names: Iterable[str]) -> list[str]:
        """Those of the tasks `names` whose writes are not known to be durable."""
        names = list(names)
        marks = self.client.hmget(self.key(batch), [done_field(name) for name in names])
        return [name for name, mark in zip(names, marks, strict=True) if mark is None]

    def stage(self, manifest: Manifest, stage: str, token: str, payloads: Mapping[str, bytes]) -> None:
        """Puts the manifest, this stage's payloads and its chord's token there; keeps marks and progress.

        Raises RedisFull before it would take what queues and marks need.
        """
        self._expect_room(sum(map(len, payloads.values())))
        key = self.key(reference(manifest))
        fields: dict[str, Any] = {MANIFEST: msgspec.json.encode(manifest), f"chord/{stage}": token, **payloads}
        stale = [f"error/{name}" for name in payloads]
        stale += [entry.name for entry in manifest.tasks if entry.stage != stage]
        pipe = self.client.pipeline(transaction=False)
        pipe.hset(key, mapping=fields)
        pipe.hdel(key, *stale)
        pipe.expire(key, self._ttl_seconds)
        try:
            pipe.execute()
        except ResponseError as error:
            if not str(error).startswith("OOM") and "maxmemory" not in str(error):
                raise
            self._memory_asked_at = -MEMORY_ASKED_SECONDS
            raise RedisFull(f"redis is at its memory limit (maxmemory): {shortened(str(error))}") from error

    def _expect_room(self, size_bytes: int) -> None:
        """Asks at most once a second; a server that does not tell (ACL) or has no limit is taken to have room."""
        now = time.monotonic()
        if now - self._memory_asked_at >= MEMORY_ASKED_SECONDS:
            self._memory_asked_at = now
            self._memory_left = None
            try:
                told = self.client.info("memory")
            except NoPermissionError:
                told = {}
            limit = int(told.get("maxmemory") or 0)
            if limit:
                self._memory_left = int(limit * MEMORY_SHARE_MAX) - int(told.get("used_memory") or 0)
        if self._memory_left is None:
            return
        if size_bytes > self._memory_left:
            raise RedisFull(
                f"redis is nearly full: {size_bytes} bytes to stage, {max(0, self._memory_left)} left "
                f"below {MEMORY_SHARE_MAX:.0%} of maxmemory"
            )
        self._memory_left -= size_bytes

    def discard(self, manifest: Manifest) -> None:
        """The batch settled: only its done marks stay, for `SETTLED_TTL_SECONDS`."""
        key = self.key(reference(manifest))
        names = [entry.name for entry in manifest.tasks]
        gone = [f"{kind}{name}" for name in names for kind in ("", "left/", "error/")]
        pipe = self.client.pipeline(transaction=False)
        if gone:
            pipe.hdel(key, *gone)
        pipe.expire(key, min(SETTLED_TTL_SECONDS, self._ttl_seconds))
        pipe.execute()

    # What operators see

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

    def audit(self, deed: Mapping[str, Any]) -> None:
        """Keeps what an operator did, with the time; the last `AUDIT_ENTRIES_MAX` deeds are kept."""
        fields = {name: str(value) for name, value in {"at": time.time(), **deed}.items()}
        self.client.xadd(f"{self._prefix}:audit", fields, maxlen=AUDIT_ENTRIES_MAX, approximate=True)

    def audited(self, count_max: int = 100) -> list[dict[str, str]]:
        """The last deeds, the newest first."""
        entries = self.client.xrevrange(f"{self._prefix}:audit", count=count_max)
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]

    def hello(self, reader: str, about: str) -> None:
        """The reader lives: `about` is JSON with host, pid, started_at and seen_at (unix seconds)."""
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
        """The readers, with `silent_seconds` since each was last heard of."""
        found = self.client.hgetall(self._readers)
        return {
            name.decode(): {**msgspec.json.decode(text), "silent_seconds": _silent_seconds(text)}
            for name, text in sorted(found.items())
        }

    # The fleet's side

    def begin(self, batch: str, task: str, task_id: str) -> Begun:
        """Notes a start. Raises StagingError when there is neither mark nor payload."""
        fields = [done_field(task), f"starts/{task}/{task_id}", f"left/{task}", task]
        state, starts, progress = self._begin(keys=[self.key(batch)], args=fields)
        if state == 2:
            raise StagingError(f"the bytes of {task} of {batch} are not staged")
        return Begun(
            done=state == 1,
            starts=int(starts),
            progress=msgspec.json.decode(progress, type=Progress) if progress else None,
        )

    def payload(self, batch: str, task: str) -> bytes:
        """The bytes of one task. Raises StagingError when they are gone."""
        data: bytes | None = self.client.hget(self.key(batch), task)
        if data is None:
            raise StagingError(f"the bytes of {task} of {batch} are not staged")
        return data

    def mark(self, batch: str, task: str, task_id: str) -> None:
        """The task's write is durable: its mark is set, the rest of it is no longer needed."""
        gone = [task, f"left/{task}", f"error/{task}", f"starts/{task}/{task_id}"]
        self._mark(keys=[self.key(batch)], args=[self._ttl_seconds, done_field(task), *gone])

    def put_off(self, batch: str, task: str, task_id: str, error: str, progress: Progress | None) -> None:
        """The run ended without the mark. What it reached and why it stopped is kept, if the batch still is."""
        key = self.key(batch)
        if not self.client.hexists(key, MANIFEST):
            return
        fields: dict[str, Any] = {f"error/{task}": shortened(error)}
        if progress is not None:
            fields[f"left/{task}"] = msgspec.json.encode(progress)
        pipe = self.client.pipeline(transaction=False)
        pipe.hset(key, mapping=fields)
        pipe.hdel(key, f"starts/{task}/{task_id}")
        pipe.execute()

    def manifest(self, batch: str) -> Manifest:
        """What the reader said about the batch. Raises StagingError when it is gone."""
        data: bytes | None = self.client.hget(self.key(batch), MANIFEST)
        if data is None:
            raise StagingError(f"{batch} is not staged")
        return msgspec.json.decode(data, type=Manifest)

    def report(self, chord: ChordName, *, failed: bool) -> Completion | None:
        """Tells the batch's reader how this stage stands, by its marks alone. None: there was nobody to tell.

        A failure that an older chord reports says nothing about the one that is out, so it stays here.
        """
        batch, stage, attempt, token = chord
        key = self.key(batch)
        manifest_json, current = self.client.hmget(key, [MANIFEST, f"chord/{stage}"])
        if manifest_json is None:
            return None
        manifest = msgspec.json.decode(manifest_json, type=Manifest)
        names = [entry.name for entry in manifest.of_stage(stage)]
        missing = self.unmarked(batch, names)
        if missing and (current or b"").decode() != token:
            return None
        error = ""
        if missing:
            notes = self.client.hmget(key, [f"error/{name}" for name in missing])
            silent = "ended without a word" if failed else "has no done mark"
            error = shortened(
                "; ".join(
                    f"{name}: {note.decode() if note else silent}"
                    for name, note in zip(missing, notes, strict=True)
                )
            )
        completion = Completion(
            "failed" if missing else "done", manifest.batch_id, manifest.epoch, stage, attempt, error
        )
        self.tell(manifest.reader, completion)
        return completion

    def tell(self, reader: str, completion: Completion) -> None:
        """One entry on the reader's stream."""
        stream = reader_stream(reader, self._prefix)
        pipe = self.client.pipeline(transaction=False)
        pipe.xadd(stream, {"c": msgspec.json.encode(completion)}, maxlen=STREAM_ENTRIES_MAX, approximate=True)
        pipe.expire(stream, self._ttl_seconds)
        pipe.execute()


def _silent_seconds(about: bytes) -> float:
    return max(0.0, time.time() - float(msgspec.json.decode(about)["seen_at"]))


__all__ = [
    "Begun",
    "Progress",
    "RedisFull",
    "Staging",
    "StagingError",
    "connect",
    "shortened",
]
