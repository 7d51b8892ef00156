"""Queries the brokers for the start offsets of an assignment; the rules are in `ingest.core.starting`.

A failed query is never treated as "no offset": it raises `NoStartOffset`, and the reader rejoins the group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.core.cut_record import reason_ignored
from ingest.core.starting import Start, StartPosition, StoredCommit, TopicView, is_doubtful, is_known, start

CALL_SECONDS_MAX = 10.0
ANSWER_SECONDS_MAX = 30.0
EPOCH_SECONDS_MAX = 5.0
REPEAT_SECONDS = 0.25
Reset = Literal["earliest", "latest", "error"]

# The client's epoch differs from the group's; the client's next heartbeat may correct that.
BEHIND = frozenset((KafkaError.STALE_MEMBER_EPOCH,))
# The coordinator no longer considers this client a member.
FENCED = frozenset(
    (
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
    )
)
FORBIDDEN = frozenset((KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED))

log = structlog.get_logger(__name__)


class ConsumerFailed(Exception):
    """Raised for an error that requires operator intervention: a fatal error, a missing permission, or an offset
    out of range with the policy `error`. The message says what to do."""


class NoStartOffset(Exception):
    """Raised if the brokers did not return a start offset, so nothing may be read. The message gives the cause."""


@dataclass(frozen=True, slots=True)
class PartitionStart:
    """The start offset of a partition. `committed` and `text` are from the group's commit. If that commit is
    unusable, `committed` is None and `text` is empty."""

    partition: int
    offset: int
    committed: int | None
    text: str
    start: Start


class Offsets:
    """Finds the start offsets of one topic, with one reset policy."""

    def __init__(self, topic: str, reset: Reset) -> None:
        self._topic = topic
        self._reset = reset

    def find(
        self, consumer: Consumer, numbers: Sequence[int], topic: TopicView, former: str
    ) -> list[PartitionStart]:
        """Returns the start offsets of these partitions, in the given order. Raises NoStartOffset or
        ConsumerFailed."""
        group = self._stored(consumer, numbers)
        if not all(is_known(group[number], topic) for number in numbers):
            topic = topic if topic.partitions else TopicView(topic.id, self._count(consumer))
            others = [number for number in range(topic.partitions) if number not in group]
            group |= self._stored(consumer, others)
        return [
            self._partition_start(consumer, number, group[number], start(number, group, topic, former))
            for number in numbers
        ]

    def _count(self, consumer: Consumer) -> int:
        """Returns the number of partitions of the topic. Raises NoStartOffset."""
        try:
            found = consumer.list_topics(self._topic, timeout=CALL_SECONDS_MAX).topics[self._topic]
        except (KafkaException, RuntimeError, KeyError) as failure:
            raise NoStartOffset(f"partitions of {self._topic}: {failure}") from failure
        if found.error is not None or not found.partitions:
            raise NoStartOffset(f"partitions of {self._topic}: {found.error or 'none'}")
        return len(found.partitions)

    def _partition_start(
        self, consumer: Consumer, number: int, stored: StoredCommit, found: Start
    ) -> PartitionStart:
        if found.position is StartPosition.COMMITTED and stored.offset is not None:
            reason = reason_ignored(stored.text)
            if reason:
                log.warning("cut_record_not_read", partition=number, reason=reason)
            return PartitionStart(number, stored.offset, stored.offset, stored.text, found)
        if found.position is StartPosition.POLICY and self._reset == "error":
            raise ConsumerFailed(
                f"{self._topic}-{number} has no committed offset and REPLAYS_KAFKA_OFFSET_RESET is error: "
                "set it to earliest or latest once, or commit an offset for the group"
            )
        low, high = self.log_range(consumer, number)
        at_end = found.position is StartPosition.POLICY and self._reset == "latest"
        return PartitionStart(number, high if at_end else low, None, "", found)

    def log_range(self, consumer: Consumer, number: int) -> tuple[int, int]:
        """Returns (oldest offset, end) of a partition, from its leader. Raises NoStartOffset."""
        try:
            low, high = consumer.get_watermark_offsets(
                KafkaPartition(self._topic, number), timeout=CALL_SECONDS_MAX, cached=False
            )
        except (KafkaException, RuntimeError) as failure:
            raise NoStartOffset(f"limits of {self._topic}-{number}: {failure}") from failure
        if high < 0:
            raise NoStartOffset(f"limits of {self._topic}-{number}: unknown")
        return max(low, 0), high

    def _stored(self, consumer: Consumer, numbers: Collection[int]) -> dict[int, StoredCommit]:
        """Returns the group's committed offsets for these partitions. Repeats the request for a limited time."""
        if not numbers:
            return {}
        return confirmed(lambda partitions: self._ask(consumer, partitions), numbers, time.monotonic, time.sleep)

    def _ask(self, consumer: Consumer, numbers: Collection[int]) -> dict[int, StoredCommit]:
        answers = consumer.committed([KafkaPartition(self._topic, n) for n in numbers], timeout=CALL_SECONDS_MAX)
        found = {}
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
            found[answer.partition] = (
                StoredCommit(answer.offset, answer.metadata or "") if answer.offset >= 0 else StoredCommit()
            )
        return found


def confirmed(
    ask: Callable[[Collection[int]], dict[int, StoredCommit]],
    numbers: Collection[int],
    clock: Callable[[], float],
    wait: Callable[[float], None],
) -> dict[int, StoredCommit]:
    """Returns the result of `ask` for these partitions. Doubtful results (`is_doubtful`) are requested a second
    time.

    Raises NoStartOffset or ConsumerFailed.
    """
    found = repeated(lambda: ask(numbers), clock, wait)
    doubtful = [number for number in numbers if is_doubtful(found[number])]
    if not doubtful:
        return found
    wait(REPEAT_SECONDS)
    again = repeated(lambda: ask(doubtful), clock, wait)
    contradicted = {number: stored.offset for number, stored in again.items() if stored != found[number]}
    if contradicted:
        log.warning("committed_offsets_contradicted", offsets=contradicted)
    return found | again


def repeated(
    ask: Callable[[], dict[int, StoredCommit]], clock: Callable[[], float], wait: Callable[[float], None]
) -> dict[int, StoredCommit]:
    """Calls `ask` until it returns, within the limits below. Raises NoStartOffset or ConsumerFailed.

    The request is repeated for EPOCH_SECONDS_MAX if the epoch is stale, not at all if the client is fenced, and
    for ANSWER_SECONDS_MAX after other errors.
    """
    began = clock()
    while True:
        try:
            return ask()
        except (KafkaException, RuntimeError) as failure:
            error = failure.args[0]
            code = error.code() if isinstance(error, KafkaError) else None
            log.warning("committed_offsets_unavailable", error=str(error))
            if code in FORBIDDEN:
                raise ConsumerFailed(
                    f"the group may not read its committed offsets: {error.str()}; allow it, then start again"
                ) from failure
            seconds_max = EPOCH_SECONDS_MAX if code in BEHIND else 0.0 if code in FENCED else ANSWER_SECONDS_MAX
            if clock() - began >= seconds_max:
                raise NoStartOffset(f"committed offsets: {error}") from failure
        wait(REPEAT_SECONDS)
