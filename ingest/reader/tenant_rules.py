"""Follows operators' decisions: kill switches, limits with shared buckets, erasures.

The operators' topic is read to its end before the first message is consumed, and is followed from then on. A
reader that cannot load the topic does not start. Tokens come from `{prefix}:tenants:bucket:{project}` in Redis (a
hash: tokens and time), shared by all readers. If Redis does not respond, kill switches and erasures are still
enforced, but limits are not. This module also writes a copy of the decisions to Redis, and restores this copy
within seconds after Redis is emptied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError

from ingest.observe.fleet import ReportedProblems
from ingest.reader.erasures import erasures_of
from ingest.reader.tenant_gate import Limit, TenantGate, TenantRules
from ingest.settings import Settings
from tasks import dependencies
from tasks.kafka.decisions import (
    KILLED,
    LIMIT,
    DecisionReader,
    DecisionsUnreadable,
    missing_topic,
    project_of,
)
from tasks.kafka.ranges import KafkaUnreachable, RangeError
from tasks.observe.loops import Loop, OnFailure, ignore
from tasks.operators import DecisionCopy, Operators

log = structlog.get_logger(__name__)
REFRESH_SECONDS = 1.0
METADATA_SECONDS_MAX = 2.0  # then the failure is logged and the call is tried again

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


class NotLoaded(Exception):
    """Raised if the decisions cannot be loaded and waiting would not help. The message says what to do."""


class TenantStore:
    """Reads and writes the tenant rules, and takes tokens from the projects' token buckets. Methods raise
    RedisError and the exceptions that `Operators` raises.
    """

    def __init__(self, client: Redis[bytes], settings: Settings) -> None:
        self._operators = Operators(client, settings)
        self._bucket = f"{settings.key_prefix}:tenants:bucket:"
        self._take = client.register_script(_TAKE)

    def rules(self) -> TenantRules:
        """Returns all current rules."""
        return rules_of_decisions(self._operators.in_force())

    def take(self, project_id: int, limit: Limit, wanted: int) -> float:
        """Takes up to `wanted` tokens from the project's shared bucket."""
        return float(
            self._take(keys=[f"{self._bucket}{project_id}"], args=[limit.per_second, limit.burst, wanted])
        )

    def kill(self, project_id: int, by: str) -> None:
        """Drops every message of the project in all readers, within about a second."""
        self._decide(f"{KILLED}/{project_id}", {}, "tenant_kill", by)

    def revive(self, project_id: int, by: str) -> None:
        """Removes the project's kill switch."""
        self._decide(f"{KILLED}/{project_id}", None, "tenant_revive", by)

    def limit(self, project_id: int, limit: Limit | None, by: str) -> None:
        """Sets the project's rate limit; None removes the limit."""
        value = None if limit is None else {"per_second": limit.per_second, "burst": limit.burst}
        self._decide(f"{LIMIT}/{project_id}", value, "tenant_limit", by, limit=str(limit))

    def _decide(self, key: str, value: Mapping[str, Any] | None, what: str, by: str, **more: str) -> None:
        decided = None if value is None else {"at": time.time(), "by": by, **value}
        self._operators.decide({key: decided}, {"what": what, "project": project_of(key), "by": by, **more})


def rules_of_decisions(decisions: Mapping[str, Mapping[str, Any]]) -> TenantRules:
    """Returns the kill switches and limits among current decisions, by key."""
    killed = frozenset(project_of(key) for key in decisions if key.startswith(f"{KILLED}/"))
    limits = {
        project_of(key): Limit(float(value["per_second"]), float(value["burst"]))
        for key, value in decisions.items()
        if key.startswith(f"{LIMIT}/")
    }
    return TenantRules(killed, limits)


class TenantRefresh:
    """Loads the decisions, then refreshes a gate's rules, erasures and tokens in a thread."""

    def __init__(
        self, client: Redis[bytes], settings: Settings, gate: TenantGate, on_failure: OnFailure = ignore
    ) -> None:
        self._settings = settings
        self._store = TenantStore(client, settings)
        self._copy = DecisionCopy(client, settings)
        self._gate = gate
        self._rules = TenantRules()
        self._reader: DecisionReader | None = None
        self._reported = ReportedProblems()
        self.loop = Loop(
            "tenant-rules",
            self.refresh,
            REFRESH_SECONDS,
            expected=(RedisError, RangeError, OSError),
            on_failure=on_failure,
        )

    def load(self, stopping: Callable[[float], bool]) -> bool:
        """Reads all decisions, retrying until it succeeds; `stopping(seconds)` waits and returns True to abort.

        Returns True once the decisions are loaded, and False if `stopping` aborted the load. Raises NotLoaded.
        """
        while True:
            try:
                self._follow()
            except KafkaUnreachable as unreachable:
                if unreachable.fault is None:
                    log.warning("decisions_not_loaded", error=str(unreachable))
                else:
                    self._reported.kafka(unreachable.fault)
            except RangeError as failure:
                raise NotLoaded(missing_topic(self._settings, failure)) from failure
            except DecisionsUnreadable as failure:
                raise NotLoaded(f"operators' decisions cannot be loaded: {failure}") from failure
            else:
                self._reported.kafka(None)
                return True
            if stopping(REFRESH_SECONDS):
                return False

    def start(self) -> None:
        """Starts the thread. Call `load` first."""
        self.loop.start()

    def stop(self) -> None:
        """Ends the thread."""
        if self.loop.stop(deadline_seconds=5.0) and self._reader is not None:
            self._reader.close()

    def refresh(self) -> None:
        """Refreshes once. After an error (RangeError, DecisionsUnreadable, RedisError or ValueError) the known
        rules stay in force."""
        try:
            self._follow()
            self._reported.kafka(None)
        except RangeError as failure:
            # While no broker is connected, some calls fail with an error about a missing partition.
            found = failure.fault or dependencies.kafka(self._settings)
            self._reported.kafka(found)
            if found is not None:
                raise KafkaUnreachable(found.line, found) from failure
            raise
        finally:
            self._take_tokens()
        if self._reader is not None:
            self._copy.follow(self._reader.decisions)

    def _follow(self) -> None:
        first = self._reader is None
        if self._reader is None:
            self._reader = DecisionReader(self._settings, metadata_seconds_max=METADATA_SECONDS_MAX)
        keys = self._reader.read()
        known = self._reader.decisions
        if keys or first:
            in_force = {key: entry.value for key, entry in known.entries.items() if entry.value is not None}
            self._rules = rules_of_decisions(in_force)
            self._gate.decide(self._rules, erasures_of(in_force, time.time()), known.position)

    def _take_tokens(self) -> None:
        """Takes as many tokens as there were messages since the last refresh."""
        rules, wanted = self._rules, self._gate.take_wanted_tokens()
        known = self._gate.limited
        tokens = {
            project: self._store.take(project, limit, max(wanted.get(project, 0), 1))
            for project, limit in rules.limits.items()
            if project in wanted or project not in known
        }
        self._gate.grant(rules, tokens, time.monotonic())
