"""Tenant rules in Redis: the kill switch and the shared token buckets, kept fresh for this reader's gate.

Keys: `{prefix}:tenants:killed` (set of project ids), `{prefix}:tenants:limits` (hash: project id -> JSON),
`{prefix}:tenants:bucket:{project}` (hash: tokens and when). A thread asks once a second; the loop never waits
for Redis, and when Redis does not answer the gate opens.
"""

from __future__ import annotations

import json
import time
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from ingest.reader.tenant_gate import Limit, TenantGate, TenantRules
from tasks.observe.loops import Loop, OnFailure, ignore

REFRESH_SECONDS = 1.0

# KEYS[1] bucket; ARGV: per_second, burst, wanted. Returns the tokens granted, as text (Lua truncates numbers).
_TAKE = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local rate, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min(burst, (tonumber(kept[1]) or burst) + math.max(0, now - (tonumber(kept[2]) or now)) * rate)
local granted = math.max(0, math.min(tokens, wanted))
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens - granted), 'at', tostring(now))
redis.call('EXPIRE', KEYS[1], math.ceil(burst / rate) + 60)
return tostring(granted)
"""


class TenantStore:
    """Reads and writes the rules. Raises redis.exceptions.RedisError."""

    def __init__(self, client: Redis[bytes], prefix: str) -> None:
        self._client: Any = client
        self._killed = f"{prefix}:tenants:killed"
        self._limits = f"{prefix}:tenants:limits"
        self._bucket = f"{prefix}:tenants:bucket:"
        self._take = client.register_script(_TAKE)

    def rules(self) -> TenantRules:
        """All rules as they stand."""
        killed = frozenset(int(project) for project in self._client.smembers(self._killed))
        limits = {
            int(project): Limit(**json.loads(text)) for project, text in self._client.hgetall(self._limits).items()
        }
        return TenantRules(killed, limits)

    def take(self, project_id: int, limit: Limit, wanted: int) -> float:
        """Up to `wanted` tokens out of the project's shared bucket."""
        return float(
            self._take(keys=[f"{self._bucket}{project_id}"], args=[limit.per_second, limit.burst, wanted])
        )

    def kill(self, project_id: int) -> None:
        """Every message of the project is dropped from now on, in all readers, within about a second."""
        self._client.sadd(self._killed, project_id)

    def revive(self, project_id: int) -> None:
        """The kill switch of the project is off again."""
        self._client.srem(self._killed, project_id)

    def limit(self, project_id: int, limit: Limit | None) -> None:
        """Sets the project's bucket; None removes it."""
        if limit is None:
            self._client.hdel(self._limits, project_id)
        else:
            text = json.dumps({"per_second": limit.per_second, "burst": limit.burst})
            self._client.hset(self._limits, str(project_id), text)


class TenantRefresh:
    """The thread that keeps a gate's rules and tokens fresh."""

    def __init__(self, store: TenantStore, gate: TenantGate, on_failure: OnFailure = ignore) -> None:
        self._store = store
        self._gate = gate
        self.loop = Loop(
            "tenant-rules", self.refresh, REFRESH_SECONDS, expected=(RedisError, OSError), on_failure=on_failure
        )

    def start(self) -> None:
        """Starts the thread. While Redis does not answer nothing new is shed."""
        self.loop.start()

    def stop(self) -> None:
        """Ends the thread."""
        self.loop.stop(deadline_seconds=5.0)

    def refresh(self) -> None:
        """One round: the rules, and as many tokens as the last second wanted. Raises RedisError or ValueError."""
        rules = self._store.rules()
        wanted = self._gate.take_wanted()
        tokens = {
            project: self._store.take(project, limit, max(wanted.get(project, 0), 1))
            for project, limit in rules.limits.items()
            if project in wanted or project not in self._gate.rules.limits
        }
        self._gate.grant(rules, tokens, time.monotonic())
