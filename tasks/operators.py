"""Operators' decisions: written to Kafka first, copied to Redis for commands and pages.

    <prefix>:operators           hash: current decisions by key
    <prefix>:operators:audit     sorted set: actions, by time
    <prefix>:operators:copied    the offset up to which both are complete

Redis may lose the copy at any time. If `copied_offset` is missing, the copy is rebuilt from the topic. These are
the only keys without an expiry. Readers follow the topic itself and do not depend on the copy. See
docs/decisions/018-operators-decisions-in-kafka.md.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from tasks.foreign_keys import HASH, MISSING, SORTED_SET, results
from tasks.kafka import decisions
from tasks.kafka.decisions import AUDIT, Decision, Decisions, DecisionWriter, Values
from tasks.kafka.producing import NotProduced
from tasks.seals import Purpose, warn
from tasks.settings import Settings

log = logging.getLogger(__name__)
AUDIT_ENTRIES_MAX = 10_000
AUDIT_PRUNE_BATCH_SIZE = 100


class DecisionCopy:
    """The copy of the operators' decisions in Redis. Methods raise redis.exceptions.RedisError."""

    def __init__(self, client: Redis[bytes], settings: Settings) -> None:
        self._client: Any = client
        self._seals = settings.seals
        self.keys = names(settings.key_prefix)
        self._decided, self._audit, self._copied = self.keys

    def copied_offset(self) -> int | None:
        """Returns the offset up to which the copy is complete; None if it is missing or invalid and must be
        rebuilt.
        """
        pipe = self._client.pipeline(transaction=True)
        pipe.get(self._copied).type(self._decided).type(self._audit)
        found, decided, audit = results(pipe, b"")
        if decided not in (HASH, MISSING) or audit not in (SORTED_SET, MISSING):
            return None
        position, _, seal = (found or b"").partition(b" ")
        if not position.isdigit() or not self._seals.verifies(
            seal or None, Purpose.DECISION, self._copied, position
        ):
            return None
        return int(position)

    def apply(
        self, entries: Mapping[str, Decision], position: int | None = None, *, replace_all: bool = False
    ) -> None:
        """Applies these decisions in order and sets the copied offset to `position`. `replace_all`: replaces the
        whole copy.
        """
        pipe = self._client.pipeline(transaction=True)
        if replace_all:
            pipe.delete(self._decided, self._audit)
        for key, decision in entries.items():
            audit = key.startswith(f"{AUDIT}/")
            text = None
            if decision.value is not None:
                # The bytes are the same for a new decision and for one read from the topic, so that no entry is
                # stored twice.
                value = {"version": decisions.VERSION, **decision.value, "key": key}
                text = self._text(self._audit if audit else self._decided, value)
            if audit:
                if text is None:
                    at = int(key.split("/")[1].split("-")[0]) / 1000
                    # The key contains the time of the action in whole milliseconds; the score is the exact time.
                    pipe.zremrangebyscore(self._audit, at - 0.0001, at + 0.0011)
                else:
                    pipe.zadd(self._audit, {text: float(decision.value["at"])})  # type: ignore[index]
            elif text is None:
                pipe.hdel(self._decided, key)
            else:
                pipe.hset(self._decided, key, text)
        if position is not None:
            seal = self._seals.seal(Purpose.DECISION, self._copied, str(position))
            pipe.set(self._copied, b"%d %b" % (position, seal) if seal else position)
        pipe.execute()

    def follow(self, known: Decisions) -> None:
        """Updates the copy if it is behind."""
        reached = self.copied_offset()
        if reached is None:
            self.apply(known.since(0), known.position, replace_all=True)
        elif reached < known.position:
            self.apply(known.since(reached), known.position)

    def in_force(self) -> dict[str, dict[str, Any]]:
        """Returns all current decisions by key, without the entries of the audit trail."""
        found = {
            key.decode(): self._decode_entry(key.decode(), v)
            for key, v in self._client.hgetall(self._decided).items()
        }
        return {
            key: value
            for key, value in found.items()
            if value is not None and decisions.has_known_form(key, value)
        }

    def get(self, keys: list[str]) -> list[dict[str, Any] | None]:
        """Returns the decision for each of these keys, or None for a key that has no decision."""
        return [
            None if value is None else self._decode_entry(key, value)
            for key, value in zip(keys, self._client.hmget(self._decided, keys), strict=True)
        ]

    def audited(self, count_max: int) -> list[dict[str, Any]]:
        """Returns the last actions, newest first, each with its `key`."""
        texts = self._client.zrevrange(self._audit, 0, count_max - 1)
        found = [self._seals.open_object(Purpose.DECISION, self._audit, text) for text in texts]
        return [action for action in found if action is not None]

    def _text(self, place: str, value: dict[str, Any]) -> bytes:
        return msgspec.json.encode(self._seals.seal_object(Purpose.DECISION, place, value))

    def _decode_entry(self, key: str, text: bytes) -> dict[str, Any] | None:
        """Returns the decision in this entry; None if the entry has no valid seal for this key."""
        found = self._seals.open_object(Purpose.DECISION, self._decided, text)
        if found is None or found.get("key") != key:
            warn(Purpose.DECISION)
            return None
        return found

    def oldest_audit_keys(self) -> list[str]:
        """Returns the keys of the oldest actions beyond the limit."""
        too_many = int(self._client.zcard(self._audit)) - AUDIT_ENTRIES_MAX
        if too_many < AUDIT_PRUNE_BATCH_SIZE:
            return []
        found = self._client.zrange(self._audit, 0, too_many - 1)
        opened = [self._seals.open_object(Purpose.DECISION, self._audit, text) for text in found]
        return [str(entry["key"]) for entry in opened if entry is not None]


def names(prefix: str) -> tuple[str, str, str]:
    """Returns the Redis keys of the copy, which do not expire."""
    return f"{prefix}:operators", f"{prefix}:operators:audit", f"{prefix}:operators:copied"


class Operators:
    """Writes and reads decisions. Thread-safe. `decide` raises NotProduced; reads raise RedisError, RangeError or
    DecisionsUnreadable.
    """

    def __init__(self, client: Redis[bytes], settings: Settings) -> None:
        self._settings = settings
        self._writer = DecisionWriter(settings)
        self._copy = DecisionCopy(client, settings)
        self._lock = threading.Lock()

    def decide(self, values: Values, action: Mapping[str, Any] | None = None) -> dict[str, int]:
        """Writes the audit entry, then the decisions. Returns their offsets by key once all are durable in the
        topic.

        If Redis is unreachable, a reader updates the copy later.
        """
        both: Values = {**(decisions.audit_entry(action) if action is not None else {}), **values}
        with self._lock:
            offsets = self._writer.write(both)
        written = {
            key: Decision(offsets[key], None if value is None else dict(value)) for key, value in both.items()
        }
        try:
            self._copy.apply(written)
        except (RedisError, OSError) as error:
            log.warning("the copy of operators' decisions in redis is behind: %s", error)
        else:
            self._prune()
        return offsets

    def audit(self, action: Mapping[str, Any]) -> None:
        """Records an operator action and the current time. The last AUDIT_ENTRIES_MAX actions are kept."""
        self.decide({}, action)

    def _prune(self) -> None:
        try:
            keys = self._copy.oldest_audit_keys()
            if keys:
                gone: Values = dict.fromkeys(keys)
                with self._lock:
                    offsets = self._writer.write(gone)
                self._copy.apply({key: Decision(offset, None) for key, offset in offsets.items()})
        except (RedisError, OSError, NotProduced) as error:
            log.warning("the audit trail was not shortened: %s", error)

    def _reload_lost_copy(self) -> Decisions | None:
        """If Redis has lost the copy, reads all decisions from the topic, rebuilds the copy if permitted, and
        returns the decisions. Otherwise, returns None.
        """
        if self._copy.copied_offset() is not None:
            return None
        known = decisions.load(self._settings)
        with contextlib.suppress(NoPermissionError):  # a viewer's Redis user is read-only
            self._copy.follow(known)
        return known

    def in_force(self) -> dict[str, dict[str, Any]]:
        """Returns all current decisions by key, without the entries of the audit trail."""
        known = self._reload_lost_copy()
        if known is None:
            return self._copy.in_force()
        return {
            key: decision.value
            for key, decision in known.entries.items()
            if decision.value is not None and not key.startswith(f"{AUDIT}/")
        }

    def get(self, keys: list[str]) -> list[dict[str, Any] | None]:
        """Returns the decision for each of these keys, or None for a key that has no decision."""
        known = self._reload_lost_copy()
        if known is None:
            return self._copy.get(keys)
        return [decision.value if (decision := known.entries.get(key)) is not None else None for key in keys]

    def audited(self, count_max: int = 100, *, copy_only: bool = False) -> list[dict[str, str]]:
        """Returns the last actions, newest first. `copy_only`: reads only the copy in Redis, which may be
        incomplete.
        """
        known = None if copy_only else self._reload_lost_copy()
        if known is None:
            actions = self._copy.audited(count_max)
        else:
            actions = sorted(known.of(AUDIT).values(), key=lambda action: float(action["at"]), reverse=True)[
                :count_max
            ]
        return [{name: str(value) for name, value in action.items()} for action in actions]
