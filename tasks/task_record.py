"""The record of a flush task in the hash of its staged batch: data that a sink keeps from one run of the task to
the next.

Two runs of a task overlap if the task is redelivered while its first worker is still running it. Therefore,
`store` replaces the content only if it is still the content that this run last loaded or stored.
"""

from __future__ import annotations

from typing import Any

from tasks.seals import Purpose
from tasks.settings import Settings
from tasks.staging import SEAL, Staging, StagingError
from tasks.wire import MANIFEST

# KEYS: the hash. ARGV: the manifest's field, the record's field, the content last seen, then fields and values to
# set. The flag allow-oom makes Redis run this script even at its memory limit. This is safe, because the write
# that follows ends by deleting the payload.
_STORE = """#!lua flags=allow-oom
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return -1 end
if (redis.call('HGET', KEYS[1], ARGV[2]) or '') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
return 1
"""


class StagedRecord:
    """The record of one task, for one run. Raises redis.exceptions.RedisError.

    A record without a valid seal is ignored and replaced, because a forged record could hide rows.
    """

    def __init__(self, staging: Staging, settings: Settings, batch: str, task: str) -> None:
        self._client: Any = staging.client
        self._unverified = staging.unverified
        self._seals = settings.seals
        self._key = staging.key(batch)
        self._task = task
        self._field = f"appends/{task}"
        self._seen = b""
        self._store = staging.client.register_script(_STORE)

    def load(self) -> bytes:
        """Returns the content; empty if there is none."""
        content, seal = self._client.hmget(self._key, [self._field, SEAL + self._field])
        self._seen = content or b""
        if not content:
            return b""
        if not self._seals.verifies(seal, Purpose.APPENDS, self._key, self._task, content):
            self._unverified(Purpose.APPENDS)
            return b""
        return bytes(content)

    def store(self, content: bytes) -> bool:
        """Replaces the content. Returns False if the content has changed since this run last loaded or stored it.
        Raises StagingError if the batch is gone."""
        fields: list[Any] = [self._field, content]
        if self._seals.active:
            seal = self._seals.seal(Purpose.APPENDS, self._key, self._task, content)
            fields += [SEAL + self._field, seal]
        stored = self._store(keys=[self._key], args=[MANIFEST, self._field, self._seen, *fields])
        if stored < 0:
            raise StagingError(f"the batch of {self._task} is not staged any more")
        if stored:
            self._seen = content
        return bool(stored)
