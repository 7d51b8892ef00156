"""Stores operators' decisions as records of a compacted Kafka topic, the operators' topic. Their keys:

    killed/<project>                   the project's messages are dropped
    limit/<project>                    the project's token bucket: per_second, burst
    erased/<project>/replay/<id>       an erased replay; never written again
    erased/<project>/user/<digest>     the replays of a user that arrived before the erasure
    erased/<project>/all               everything of a project that arrived before the erasure
    audit/<milliseconds>-<token>       one action of an operator

The value is a JSON object; a record without a value revokes the decision. Every decision has `at` (Unix seconds)
and `by`; an erasure also has `until`, the time by which the erased messages will have expired from every topic (0
if they never expire). A write returns after the brokers' acknowledgement; a read covers the topic up to its end.
The topic has one partition, so that decisions are ordered and an offset identifies a state. See
docs/decisions/018-operators-decisions-in-kafka.md.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tasks.kafka.producing import AcknowledgedProducer, NotProduced
from tasks.kafka.ranges import DOWN_SECONDS_MAX, END, Bounds, Range, RangeError, RangeReader, TopicMissing
from tasks.kafka.records import Record
from tasks.kafka.topics import ClusterUnreachable, Topics
from tasks.settings import Settings

log = logging.getLogger(__name__)
VERSION = 1
KILLED, LIMIT, ERASED, AUDIT = "killed", "limit", "erased", "audit"
KINDS = frozenset((KILLED, LIMIT, ERASED, AUDIT))
REPLAY, USER, ALL = "replay", "user", "all"
"""What an erasure covers."""
LOOKUP_SECONDS_MAX = 10.0
SILENT_SECONDS_MAX = 20.0
# After this time, a reader that cannot reach the brokers at startup reports the problem, and tries again.
METADATA_SECONDS_MAX = 4.0

Values = Mapping[str, Mapping[str, Any] | None]
"""Values of decisions by key; None revokes a decision."""


class DecisionsUnreadable(Exception):
    """The topic has records of a newer release, or is not configured for decisions."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The last record of one key. `value` is None if revoked."""

    offset: int
    value: dict[str, Any] | None


def audit_key(at: float) -> str:
    """Returns a new key; keys sort by time."""
    return f"{AUDIT}/{int(at * 1000):013d}-{secrets.token_hex(4)}"


def project_of(key: str) -> int:
    """Returns the project of a decision. Raises ValueError for an audit entry."""
    return int(key.split("/")[1])


def has_known_form(key: str, value: Mapping[str, Any] | None) -> bool:
    """Returns False for a decision in a form that no release writes.

    Such a decision is ignored. If it were an error, no reader would start and no command could remove it.
    """
    kind, *parts = key.split("/")
    if value is None or kind not in KINDS or kind == AUDIT:
        return True
    if not parts or not (parts[0].isascii() and parts[0].isdecimal()):
        return False
    if kind == LIMIT:
        return all(_finite(value.get(name)) and value[name] > 0 for name in ("per_second", "burst"))
    if kind == ERASED:
        whole_project = len(parts) == 2 and parts[1] == ALL
        replay = len(parts) == 3 and parts[1] == REPLAY
        user = len(parts) == 3 and parts[1] == USER
        if not _finite(value.get("until", 0.0)):
            return False
        return replay or ((user or whole_project) and _finite(value.get("at")))
    return True


def _finite(number: object) -> bool:
    """Returns whether the value is a finite number that fits into a float."""
    try:
        return isinstance(number, int | float) and math.isfinite(number)
    except OverflowError:
        return False


class Decisions:
    """The decisions read so far. `position`: the offset after the last record."""

    def __init__(self) -> None:
        self.position = 0
        self.entries: dict[str, Decision] = {}

    def apply(self, record: Record) -> str | None:
        """Applies one record and returns its key; None if it is not a decision. Raises DecisionsUnreadable."""
        self.position = max(self.position, record.offset + 1)
        key = (record.key or b"").decode("utf-8", "replace")
        if not key:
            return None
        if key.split("/")[0] not in KINDS:
            raise DecisionsUnreadable(
                f"{record.topic} contains {key!r}, written by a newer release: upgrade first"
            )
        value = None
        if record.value:
            try:
                value = msgspec.json.decode(record.value, type=dict[str, Any])
            except msgspec.MsgspecError as error:
                raise DecisionsUnreadable(f"{record.topic} offset {record.offset}: {error}") from error
            if int(value.get("version", VERSION)) > VERSION:
                raise DecisionsUnreadable(f"{record.topic}: {key!r} was written by a newer release: upgrade first")
        if not has_known_form(key, value):
            log.warning(
                "%s offset %d: the decision %r has an invalid form and is ignored",
                record.topic,
                record.offset,
                key,
            )
            value = None
        self.entries[key] = Decision(record.offset, value)
        return key

    def since(self, offset: int) -> dict[str, Decision]:
        """Returns the decisions at this offset or later, in order."""
        found = [(decision.offset, key) for key, decision in self.entries.items() if decision.offset >= offset]
        return {key: self.entries[key] for _, key in sorted(found)}

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Returns the current decisions of one kind, by key."""
        return {
            key: decision.value
            for key, decision in self.entries.items()
            if decision.value is not None and key.startswith(f"{kind}/")
        }


class DecisionReader:
    """Reads the topic from its beginning, then only new records. Used by one thread; methods raise RangeError."""

    def __init__(self, settings: Settings, *, metadata_seconds_max: float = METADATA_SECONDS_MAX) -> None:
        self.decisions = Decisions()
        self._topic = settings.operators_topic
        bounds = Bounds(
            silent_seconds_max=SILENT_SECONDS_MAX,
            metadata_seconds_max=metadata_seconds_max,
        )
        self._reader = RangeReader(settings, self._topic, bounds=bounds)
        self._checked = False

    def read(self) -> list[str]:
        """Reads new records; returns their keys, in order. Raises DecisionsUnreadable as well."""
        if not self._checked:
            self._check()
        held = self._reader.held(0)
        if held.stop < self.decisions.position and held.start == 0:
            self.decisions = Decisions()  # the topic was recreated
        start = max(held.start, self.decisions.position)
        wanted = Range(0, start, END)
        if start >= held.stop:
            return []
        keys = [self.decisions.apply(record) for record in self._reader.read([wanted])]
        self.decisions.position = max(self.decisions.position, held.stop)
        return [key for key in keys if key is not None]

    def _check(self) -> None:
        partitions = self._reader.partitions()
        if len(partitions) != 1:
            raise DecisionsUnreadable(f"topic {self._topic} has {len(partitions)} partitions; it must have one")
        self._checked = True

    def close(self) -> None:
        """Closes the connections."""
        self._reader.close()


def load(settings: Settings) -> Decisions:
    """Reads all decisions once. Raises RangeError or DecisionsUnreadable."""
    reader = DecisionReader(settings)
    try:
        reader.read()
        return reader.decisions
    finally:
        reader.close()


class DecisionWriter:
    """Writes decisions. Used by one thread; connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = AcknowledgedProducer(settings)
        self._looked = False

    def write(self, values: Values) -> dict[str, int]:
        """Returns the offset of each decision once all are durable. Raises NotProduced, in which case some of the
        decisions may be durable.
        """
        self._expect_topic()
        topic = self._settings.operators_topic
        return {
            key: self._producer.produce(topic, key.encode(), None if value is None else encode(value), ())
            for key, value in values.items()
        }

    def _expect_topic(self) -> None:
        """Checks that the topic exists: producing to a missing topic may create it without compaction, and
        decisions would expire."""
        if self._looked:
            return
        topic = self._settings.operators_topic
        try:
            topics = Topics(self._settings)
            if topic not in topics.inventory(LOOKUP_SECONDS_MAX, down_seconds_max=DOWN_SECONDS_MAX).topics:
                raise NotProduced(f"topic {topic} is missing: run `replays-ingest migrate`")
        except ClusterUnreachable as failure:
            raise NotProduced(str(failure)) from failure
        self._looked = True


def encode(value: Mapping[str, Any]) -> bytes:
    """Returns a record's value."""
    return msgspec.json.encode({"version": VERSION, **value})


def audit_entry(action: Mapping[str, Any], at: float | None = None) -> dict[str, dict[str, Any]]:
    """Returns one audit entry by its key: the time `at`, in Unix seconds, and the action's values as strings."""
    at = time.time() if at is None else at
    return {audit_key(at): {"at": at, **{name: str(value) for name, value in action.items()}}}


def missing_topic(settings: Settings, failure: RangeError) -> str:
    """Returns the error text for an unreadable topic; it states what to do."""
    if failure.fault is not None:
        return failure.fault.line
    todo = ": run `replays-ingest migrate`" if isinstance(failure, TopicMissing) else ""
    return f"operators' decisions cannot be loaded: {failure}{todo}"
