"""Writes tombstones, which record an erasure before anything is deleted, and waits for batches in flight to
settle.

    1. the tombstone is durable in the topic of operators' decisions, and from then on, readers drop
       messages of the replay
    2. every active reader reports that the messages it read before have settled
    3. bytes that were staged before the tombstone, by readers that have ended since, are removed from Redis,
       so that no late task writes them

Only then are the stores searched. A tombstone expires when no topic can contain a message of the replay any more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from redis.exceptions import RedisError

from ingest.reader.erasures import replay_key
from ingest.reader.settled import UNKNOWN_OFFSET
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.kafka.decisions import DecisionsUnreadable
from tasks.kafka.ranges import RangeError
from tasks.kafka.topics import ClusterUnreachable, Topics
from tasks.migrate.kafka import DEAD_LETTER_RETENTION_DAYS, SOURCE_RETENTION_HOURS
from tasks.operate import SILENT_SECONDS_MAX
from tasks.settings import Settings

HOUR_SECONDS, DAY_SECONDS = 3600.0, 86_400.0
POLL_SECONDS = 0.5
CALL_SECONDS_MAX = 10.0


class Tombstones:
    """Writes the tombstones of an erasure, and waits until every reader has applied them and has settled all
    messages that it read earlier. Raises NotProduced, RangeError, DecisionsUnreadable or RedisError.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = connect(settings)
        self._coordination = Coordination(self._client, settings)

    def decide(self, keys: list[str], by: str, action: dict[str, Any]) -> int:
        """Writes the tombstones durably; returns the offset after the last of them."""
        now = time.time()
        value = {"at": now, "by": by, "until": ends_at(self._settings, now)}
        offsets = self._coordination.operators.decide(dict.fromkeys(keys, value), action)
        return max(offsets.values()) + 1

    def settle(self, offset: int, seconds_max: float) -> list[str]:
        """Waits until every reader has settled all messages that it read before it applied the decisions below
        `offset`.

        Returns one line per reader that still has such messages after `seconds_max`.
        """
        since, ends = self._coordination.now(), time.monotonic() + seconds_max
        while True:
            unsettled_readers = self._unsettled_readers(offset)
            if not unsettled_readers:
                self._drop_staged_before(since)
                return []
            if time.monotonic() >= ends:
                return [
                    f"reader {name} may still write messages read earlier: run this again once its batches "
                    "have settled"
                    for name in unsettled_readers
                ]
            time.sleep(POLL_SECONDS)

    def _unsettled_readers(self, offset: int) -> list[str]:
        return [
            name
            for name, heartbeat in self._coordination.readers().items()
            if heartbeat["silent_seconds"] <= SILENT_SECONDS_MAX and _settled(heartbeat) < offset
        ]

    def _drop_staged_before(self, since: float) -> None:
        """Removes payloads of batches staged before this time. A batch staged before this time belongs to no
        running reader."""
        age_seconds = self._coordination.now() - since
        for key in self._client.scan_iter(f"{self._settings.key_prefix}:batch:*", count=500):
            if self._settings.staged_ttl_seconds - self._client.ttl(key) <= age_seconds:
                continue
            payloads = [name for name in self._client.hkeys(key) if name.startswith((b"blobs/", b"rows/"))]
            if payloads:
                self._client.hdel(key, *payloads)


def _settled(heartbeat: Mapping[str, Any]) -> int:
    """Returns the offset up to which a reader has settled decisions, from its heartbeat; UNKNOWN_OFFSET if that is
    not a number."""
    found = heartbeat.get("decisions_settled", UNKNOWN_OFFSET)
    return found if isinstance(found, int) else UNKNOWN_OFFSET


def ends_at(settings: Settings, now: float) -> float:
    """Returns the time by which every current message will have expired, in Unix seconds; 0 if a topic keeps
    messages indefinitely.

    A dead letter that is replayed on its last day stays in the input topic for another retention period.
    """
    try:
        topics = Topics(settings)
        source = _retention_seconds(topics, settings.kafka_topic, SOURCE_RETENTION_HOURS * HOUR_SECONDS)
        letters = _retention_seconds(topics, settings.dlq_topic, DEAD_LETTER_RETENTION_DAYS * DAY_SECONDS)
    except ClusterUnreachable:
        return 0.0
    if source is None or letters is None:
        return 0.0
    # Retention deletes whole log segments, which Kafka closes after at most a week by default.
    return now + source + letters + settings.staged_ttl_seconds + 8 * DAY_SECONDS


def _retention_seconds(topics: Topics, topic: str, usual: float) -> float | None:
    """Returns the retention of a topic in seconds; None if unlimited."""
    text = topics.config(topic, CALL_SECONDS_MAX).get("retention.ms")
    if text is None:
        return usual
    return None if int(text) < 0 else int(text) / 1000


def erased(settings: Settings, replay_id: str, project_id: int | None) -> dict[str, Any] | None:
    """Returns the tombstone of a replay, or None if it does not exist or cannot be read. If `project_id` is None,
    any project matches.
    """
    operators = Coordination(connect(settings), settings).operators
    try:
        if project_id is not None:
            return operators.get([replay_key(project_id, replay_id)])[0]
        suffix = replay_key(0, replay_id).split("/", 2)[2]
        return next((v for key, v in operators.in_force().items() if key.split("/", 2)[2:] == [suffix]), None)
    except (RedisError, RangeError, DecisionsUnreadable, OSError):
        return None
