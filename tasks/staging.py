"""Claim check: access to the Redis hash of a staged batch, for readers and workers.

Besides the payloads and done marks of `tasks.wire`, the hash has state that outlives one run of a task:

    left/<task>        JSON, `Progress`: items left when a task was postponed
    appends/<task>     the record of `tasks.task_record`: what was sent to which write stream
    error/<task>       one line: the error of the task's last run
    starts/<task>/<id> number of runs of the Celery task with that id that started but did not end
    chord/<stage>      the token of the last chord that was started for the stage
    seal/<field>       with a shared key, the seal of that field (`tasks.seals`); a done mark is its own seal

Redis keeps a batch for `staged_ttl_seconds`. A script that Redis runs even at its memory limit writes a done mark
and removes the payload; otherwise, finishing tasks could not free memory in a full Redis. Requires Redis 7 or
Valkey.

See docs/decisions/003-claim-check.md, docs/decisions/004-marks-decide.md,
docs/decisions/030-redis-memory-limit.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from tasks.breaker import REPORT, REQUEST, Part, Permit, read_permit
from tasks.coordination import redis_now
from tasks.errors import shortened
from tasks.seals import Purpose, Unverified, warn
from tasks.settings import Settings
from tasks.wire import (
    MANIFEST,
    VERSION,
    ChordName,
    Completion,
    CompletionKind,
    Incompatible,
    Manifest,
    TaskName,
    batch_key,
    decode_manifest,
    decode_manifest_head,
    done_field,
    reference,
)

# Done marks are kept while the batch's offsets may be uncommitted. A dead reader is replaced within minutes.
SETTLED_TTL_SECONDS = 3600
# A batch is staged only if Redis would then use at most this share of maxmemory. The rest is reserved for queues,
# chords and done marks.
MEMORY_SHARE_MAX = 0.75
# A batch is too large for this Redis if it needs more than this fraction of MEMORY_SHARE_MAX.
ONE_BATCH_SHARE_MAX = 0.5
MEMORY_READ_SECONDS = 1.0
SEAL = "seal/"
# The mark of a worker without a shared key.
UNSEALED_MARK = b"1"


class _BeginResult(IntEnum):
    """Result of `begin`."""

    STARTED = 0
    DONE = 1
    GONE = 2


# For a larger payload, the copy through Lua costs Redis more than an additional round trip.
INLINE_BYTES_MAX = 32 * 1024

# KEYS: the hash, and optionally a breaker. ARGV: the fields of the done mark, the starts, the progress, the
# payload, the manifest and both seals; 1 to ignore a forged mark, otherwise 0; INLINE_BYTES_MAX; the breaker's
# arguments. The last two results are the breaker's permit (nil if there is no breaker or the request to it failed)
# and the payload (nil if it is large or the breaker is open).
_BEGIN = (
    REQUEST
    + """
local got = redis.call('HMGET', KEYS[1], ARGV[1], ARGV[3], ARGV[5], ARGV[6], ARGV[7])
local mark, progress, manifest = got[1], got[2], got[3]
if mark and ARGV[8] == '0' then return {1, 0, progress, manifest, got[4], got[5], mark, false, false} end
local size = redis.call('HSTRLEN', KEYS[1], ARGV[4])
if not manifest or (size == 0 and redis.call('HEXISTS', KEYS[1], ARGV[4]) == 0) then return {2} end
local starts = redis.call('HINCRBY', KEYS[1], ARGV[2], 1)
local permit, payload = false, false
if #KEYS == 2 then
  local worked, answer = pcall(request, ARGV[10])
  if worked then permit = answer end
end
if size <= tonumber(ARGV[9]) and not (permit and permit[1] == 'open') then
  payload = redis.call('HGET', KEYS[1], ARGV[4])
end
return {0, starts, progress, manifest, got[4], got[5], mark, permit, payload}
"""
)
# KEYS: the hash, and optionally a breaker. ARGV: the expiry in seconds, the field and the value of the done mark,
# seven fields to remove, the breaker's arguments. Returns the breaker's state; an empty string if there is no
# breaker or the report to it failed.
_MARK = (
    "#!lua flags=allow-oom\n"
    + REPORT
    + """
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('HDEL', KEYS[1], unpack(ARGV, 4, 10))
redis.call('EXPIRE', KEYS[1], ARGV[1], 'NX')
if #KEYS == 1 then return '' end
local worked, state = pcall(report, unpack(ARGV, 11))
return worked and state or ''
"""
)
# The check and the write are atomic, because a key that expired between them would be recreated without an expiry.
_PUT_OFF = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('HDEL', KEYS[1], ARGV[2])
return 1
"""


class StagingError(Exception):
    """The batch's bytes are not in Redis. The reader stages them again at its next attempt."""


class Forged(StagingError):
    """An entry has no valid seal. The reader stages the batch again at its next attempt."""


class RedisFull(RedisError):
    """Redis is too close to its memory limit to stage the batch. `too_large`: the batch would not fit into an
    empty Redis either.
    """

    def __init__(self, text: str, *, too_large: bool = False) -> None:
        super().__init__(text)
        self.too_large = too_large


class Progress(msgspec.Struct):
    """Remaining work of a flush task. `left`: positions that are not durable. `refused`: position and error of
    each permanently refused item that is not a dead letter yet.
    """

    left: list[int]
    refused: list[tuple[int, str]] = []


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a flush task that has started.

    `starts`: number of runs that have started but not ended, including this run. `progress`: where to continue, if
    an earlier run made progress. `content`: expected digest of the payload; "" without a shared key. `permit`: the
    breaker's answer, if `begin` got one. `inline_payload`: the payload, if the script that began the run returned
    it.
    """

    manifest: Manifest
    starts: int
    progress: Progress | None
    content: str = ""
    permit: Permit | None = None
    inline_payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The completion to send to `reader`."""

    reader: str
    completion: Completion


class Staging:
    """Accesses staged batches through one client. `batch` is always a reference to a staged batch, as returned by
    `tasks.wire.reference`. Raises redis.exceptions.RedisError.

    `unverified(purpose)` is called for entries ignored because they lack a valid seal.
    """

    def __init__(self, client: Redis[bytes], settings: Settings, unverified: Unverified = warn) -> None:
        self._seals = settings.seals
        self.unverified = unverified
        self.client: Any = client  # redis-py types every result as a union of sync and async
        self._prefix = settings.key_prefix
        self._ttl_seconds = settings.staged_ttl_seconds
        self._begin = client.register_script(_BEGIN)
        self._mark = client.register_script(_MARK)
        self._put_off = client.register_script(_PUT_OFF)
        self._memory_read_at = -MEMORY_READ_SECONDS
        self._memory_left: int | None = None
        self._memory_share = 0

    def key(self, batch: str) -> str:
        """Returns the Redis key of this batch."""
        batch_id, digest = batch.rsplit(":", 1)
        return batch_key(batch_id, digest, self._prefix)

    def now(self) -> float:
        """Returns the time of the Redis clock, in Unix seconds. This clock is used because a task's deadline is
        set on one machine and evaluated on another.
        """
        return redis_now(self.client)

    def manifest(self, key: str) -> Manifest | None:
        """Returns the manifest at this key; None if there is no valid manifest. Raises Incompatible for a newer
        version.
        """
        data, seal = self.client.hmget(key, [MANIFEST, SEAL + MANIFEST])
        if data is None or not self._is_manifest_valid(key, data, seal):
            return None
        return decode_manifest(data)

    # The reader's side

    def unmarked(self, manifest: Manifest, names: Iterable[str]) -> list[str]:
        """Returns the tasks among `names` without a done mark."""
        names, batch = list(names), reference(manifest)
        contents = {entry.name: entry.content for entry in manifest.tasks}
        marks = self.client.hmget(self.key(batch), [done_field(name) for name in names])
        return [
            name
            for name, mark in zip(names, marks, strict=True)
            if not self._is_mark(mark, batch, name, contents.get(name, ""))
        ]

    def _is_mark(self, mark: bytes | None, batch: str, task: str, content: str) -> bool:
        """Returns True if the mark is valid for the task's payload with the digest `content`. A worker without a
        shared key writes `UNSEALED_MARK`.
        """
        if mark is None:
            return False
        seal = None if mark == UNSEALED_MARK else mark
        if self._seals.verifies(seal, Purpose.MARK, self.key(batch), task, content):
            return True
        self.unverified(Purpose.MARK)
        return False

    def _is_manifest_valid(self, key: str, data: bytes, seal: bytes | None) -> bool:
        valid = self._seals.verifies(seal, Purpose.MANIFEST, key, data)
        if not valid:
            self.unverified(Purpose.MANIFEST)
        return valid

    def stage(self, manifest: Manifest, chord: ChordName, payloads: Mapping[str, bytes]) -> None:
        """Writes the manifest, the chord's token and its payloads; keeps marks and progress.

        Raises RedisFull if that would use memory reserved for queues and marks.
        """
        self._expect_room(sum(map(len, payloads.values())))
        key = self.key(chord.batch)
        data = msgspec.json.encode(manifest)
        fields: dict[str, Any] = {
            MANIFEST: data,
            **self._seal(MANIFEST, Purpose.MANIFEST, key, data),
            f"chord/{chord.stage}": chord.token,
            **payloads,
        }
        stale = [f"error/{name}" for name in payloads]
        stale += [entry.name for entry in manifest.tasks if entry.stage != chord.stage]
        pipe = self.client.pipeline(transaction=True)  # a broken connection must not leave a key without expiry
        pipe.hset(key, mapping=fields)
        pipe.hdel(key, *stale)
        pipe.expire(key, self._ttl_seconds)
        try:
            pipe.execute()
        except ResponseError as error:
            if not str(error).startswith("OOM") and "maxmemory" not in str(error):
                raise
            self._memory_read_at = -MEMORY_READ_SECONDS
            raise RedisFull(f"redis is at its memory limit (maxmemory): {shortened(str(error))}") from error

    def _seal(self, name: str, purpose: Purpose, *parts: bytes | str) -> dict[str, bytes]:
        """Returns the seal of the field `name`, as an additional field; empty without a key."""
        return {SEAL + name: self._seals.seal(purpose, *parts)} if self._seals.active else {}

    def _expect_room(self, size_bytes: int) -> None:
        """Raises RedisFull if Redis has too little free memory for `size_bytes`. Reads the memory usage at most
        once per second. Does not raise if Redis has no memory limit or its ACL hides the limit.
        """
        now = time.monotonic()
        if now - self._memory_read_at >= MEMORY_READ_SECONDS:
            self._memory_read_at = now
            self._memory_left = None
            try:
                memory_info = self.client.info("memory")
            except NoPermissionError:
                memory_info = {}
            limit = int(memory_info.get("maxmemory") or 0)
            self._memory_share = int(limit * MEMORY_SHARE_MAX)
            if limit:
                self._memory_left = self._memory_share - int(memory_info.get("used_memory") or 0)
        if self._memory_left is None:
            return
        if size_bytes > self._memory_left:
            raise RedisFull(
                f"redis is nearly full: {size_bytes} bytes to stage, {max(0, self._memory_left)} left "
                f"below {MEMORY_SHARE_MAX:.0%} of maxmemory",
                too_large=size_bytes > self._memory_share * ONE_BATCH_SHARE_MAX,
            )
        self._memory_left -= size_bytes

    def discard(self, manifest: Manifest) -> None:
        """Deletes a settled batch except for its done marks, which expire after `SETTLED_TTL_SECONDS`."""
        key = self.key(reference(manifest))
        names = [entry.name for entry in manifest.tasks]
        kinds = ("", "left/", f"{SEAL}left/", "appends/", f"{SEAL}appends/", "error/")
        gone = [f"{kind}{name}" for name in names for kind in kinds]
        pipe = self.client.pipeline(transaction=False)
        if gone:
            pipe.hdel(key, *gone)
        pipe.expire(key, min(SETTLED_TTL_SECONDS, self._ttl_seconds))
        pipe.execute()

    # A flush task's side

    def begin(self, batch: str, task: str, task_id: str, request: Part | None = None) -> Run | None:
        """Starts a run of the task: increments the number of starts and returns a `Run`. Returns None if the
        task's done mark is set.

        `request`: a request to the sink's circuit breaker, made in the same round trip if the task starts. Raises
        StagingError if there is neither mark nor payload, Forged if the manifest has no valid seal, and
        Incompatible for a batch of a newer release.
        """
        found, *got = self._start(batch, task, task_id, request)
        if found == _BeginResult.DONE:
            if not self._seals.active or self._done(batch, task, got):
                return None
            found, *got = self._start(batch, task, task_id, request, ignore_mark=True)
        if found == _BeginResult.GONE:
            raise StagingError(f"the bytes of {task} of {batch} are not staged")
        starts, left, data, seal, left_seal, _, answer, payload = got
        permit = None if answer is None else read_permit(answer)
        try:
            if not self._is_manifest_valid(self.key(batch), data, seal):
                raise Forged(f"the manifest of {batch} is not sealed with the shared key")
            manifest = decode_manifest(data)
            progress = self._progress(batch, task, left, left_seal)
        except Exception:
            if request is not None and permit is not None:
                request.give_back(permit)
            raise
        return Run(manifest, int(starts), progress, _content(manifest, task), permit, payload)

    def _start(
        self, batch: str, task: str, task_id: str, request: Part | None, *, ignore_mark: bool = False
    ) -> Any:
        """Returns the result of `_BEGIN`: the outcome, the number of starts, the progress, the manifest, the two
        seals, the mark, the permit and the payload.
        """
        fields = [done_field(task), f"starts/{task}/{task_id}", f"left/{task}", task, MANIFEST]
        seals = [SEAL + MANIFEST, f"{SEAL}left/{task}"]
        return self._call(self._begin, batch, [*fields, *seals, int(ignore_mark), INLINE_BYTES_MAX], request)

    def _call(self, script: Any, batch: str, args: list[Any], part: Part | None) -> Any:
        """Runs a script together with `part`, a request or report to a breaker. Leaves `part` out if the Redis
        user may not access the breaker's key."""
        key = self.key(batch)
        if part is not None:
            with suppress(NoPermissionError):
                return script(keys=[key, part.key], args=[*args, *part.arguments])
        return script(keys=[key], args=args)

    def _done(self, batch: str, task: str, got: Sequence[Any]) -> bool:
        """Returns True if the mark is valid for the payload whose digest is in the manifest."""
        data, seal, mark = got[2], got[3], got[5]
        if data is None or not self._is_manifest_valid(self.key(batch), data, seal):
            return False
        return self._is_mark(mark, batch, task, _content(decode_manifest(data), task))

    def _progress(self, batch: str, task: str, left: bytes | None, seal: bytes | None) -> Progress | None:
        """Progress of the last run. Forged progress could skip items, so it is ignored and the task starts
        over.
        """
        if not left:
            return None
        if not self._seals.verifies(seal, Purpose.PROGRESS, self.key(batch), task, left):
            self.unverified(Purpose.PROGRESS)
            return None
        return msgspec.json.decode(left, type=Progress)

    def payload(self, batch: str, task: str, run: Run) -> bytes:
        """Returns the bytes of one task, verified against the digest of its run if there is one.

        Raises StagingError if they are missing and Forged if the digest differs.
        """
        data: bytes | None = run.inline_payload
        if data is None:
            data = self.client.hget(self.key(batch), task)
        if data is None:
            raise StagingError(f"the bytes of {task} of {batch} are not staged")
        if run.content and self._seals.active and self._seals.content(data) != run.content:
            self.unverified(Purpose.PAYLOAD)
            raise Forged(f"the bytes of {task} of {batch} are not those that its reader staged")
        return data

    def mark(self, batch: str, task: str, task_id: str, content: str = "", result: Part | None = None) -> str:
        """Sets the done mark of a task whose write is durable, and deletes its payload.

        `result`: a report to a circuit breaker, sent in the same round trip. Returns the breaker's state, or an
        empty string if no report was sent or the report failed.
        """
        unfinished = (f"{kind}{name}/{task}" for kind in ("", SEAL) for name in ("left", "appends"))
        # _MARK expects exactly seven names.
        gone = [task, *unfinished, f"error/{task}", f"starts/{task}/{task_id}"]
        key = self.key(batch)
        mark = self._seals.seal(Purpose.MARK, key, task, content) or UNSEALED_MARK
        state = self._call(self._mark, batch, [self._ttl_seconds, done_field(task), mark, *gone], result)
        return str(state, "ascii")

    def put_off(
        self,
        batch: str,
        task: str,
        task_id: str,
        error: str,
        progress: Progress | None,
        *,
        is_poison: bool = False,
    ) -> None:
        """Stores the progress and the error of a run that ended without a mark, if the batch still exists.

        `is_poison`: the task crashed its workers. The count of its starts is kept, so that a redelivered
        copy of the task fails immediately.
        """
        fields: list[Any] = [f"error/{task}", shortened(error)]
        if progress is not None:
            left = msgspec.json.encode(progress)
            fields += [f"left/{task}", left]
            for sealed in self._seal(f"left/{task}", Purpose.PROGRESS, self.key(batch), task, left).items():
                fields += sealed
        self._put_off(
            keys=[self.key(batch)], args=[MANIFEST, "" if is_poison else f"starts/{task}/{task_id}", *fields]
        )

    # The end of a chord

    def report(self, chord: ChordName, *, unexplained: str) -> Report | None:
        """Returns the state of the chord's stage, based on done marks.

        None if no reader is waiting for the chord. Failures of older chords are not reported. `unexplained` is the
        error text for a task that has neither mark nor error.
        """
        key = self.key(chord.batch)
        data, current, seal = self.client.hmget(key, [MANIFEST, f"chord/{chord.stage}", SEAL + MANIFEST])
        if data is None or not self._is_manifest_valid(key, data, seal):
            return None
        head, missing = decode_manifest_head(data), []
        try:
            manifest = decode_manifest(data)
        except Incompatible as error:
            failure = str(error)
        else:
            missing = self.unmarked(manifest, [entry.name for entry in manifest.of_stage(chord.stage)])
            failure = self._failure(manifest, missing, unexplained)
        if failure and (current or b"").decode() != chord.token:
            return None
        completion = Completion(
            CompletionKind.FAILED if failure else CompletionKind.DONE,
            head.batch_id,
            head.epoch,
            chord.stage,
            chord.attempt,
            shortened(failure),
            version=min(VERSION, head.version),
            sinks=tuple(sorted({TaskName.parse(name).sink for name in missing})),
        )
        return Report(head.reader, completion)

    def _failure(self, manifest: Manifest, missing: Sequence[str], unexplained: str) -> str:
        """Returns the unfinished tasks with their errors; empty if there are none."""
        if not missing:
            return ""
        notes = self.client.hmget(self.key(reference(manifest)), [f"error/{name}" for name in missing])
        return "; ".join(
            f"{name}: {note.decode() if note else unexplained}" for name, note in zip(missing, notes, strict=True)
        )


def _content(manifest: Manifest, task: str) -> str:
    """Returns the expected digest of a task's payload; "" if the manifest lacks the digest or the task."""
    return next((entry.content for entry in manifest.tasks if entry.name == task), "")
