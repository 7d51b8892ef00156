"""Joins a temporary consumer group as the reader would; used by `check`.

Uses its own group, so that no partition of a production group moves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tasks.kafka.usable import DiscardingLogger

POLL_SECONDS = 0.2
REFUSALS = (
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.INVALID_SESSION_TIMEOUT,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    KafkaError.UNSUPPORTED_VERSION,
)


class NotAMember(Exception):
    """Joining or committing failed. The message states why."""


class MetadataRefused(NotAMember):
    """The brokers refuse commit metadata of this size."""


class MetadataDropped(NotAMember):
    """The brokers store offsets but drop commit metadata."""


def join_and_commit(config: Mapping[str, Any], topic: str, metadata: str, seconds_max: float) -> int:
    """Joins the group of `config`, commits offset 0 of a partition with `metadata`, and reads the offset and the
    metadata back.

    Returns the number of assigned partitions. Raises NotAMember. Leaves the group; its offsets remain.
    """
    errors: list[str] = []
    assigned: list[TopicPartition] = []

    def on_assign(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        starts = [TopicPartition(each.topic, each.partition, 0) for each in partitions]
        consumer.incremental_assign(starts)
        consumer.pause(starts)
        assigned.extend(starts)

    consumer_config = {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
    }
    try:
        consumer = Consumer(
            {**config, **consumer_config, "error_cb": lambda error: errors.append(error.str())},
            logger=DiscardingLogger(),
        )
    except (KafkaException, ValueError) as failure:
        raise NotAMember(f"cannot create a consumer from the settings: {failure}") from failure
    try:
        consumer.subscribe([topic], on_assign=on_assign)
        ends_at = time.monotonic() + seconds_max
        while not assigned:
            polled = consumer.poll(POLL_SECONDS)
            error = polled.error() if polled is not None else None
            if error is not None:
                errors.append(error.str())
            if (error is not None and error.code() in REFUSALS) or time.monotonic() >= ends_at:
                why = f": {errors[-1]}" if errors else ""
                raise NotAMember(f"no partition was assigned within {seconds_max:g} s{why}")
        _commit(consumer, TopicPartition(topic, assigned[0].partition, 0, metadata), seconds_max)
    except KafkaException as failure:
        raise _refused(failure.args[0]) from failure
    finally:
        consumer.close()
    return len(assigned)


def _commit(consumer: Consumer, wanted: TopicPartition, seconds_max: float) -> None:
    for answer in consumer.commit(offsets=[wanted], asynchronous=False) or []:
        if answer.error is not None:
            raise _refused(answer.error)
    (stored,) = consumer.committed([TopicPartition(wanted.topic, wanted.partition)], timeout=seconds_max)
    if stored.error is not None:
        raise _refused(stored.error)
    if stored.offset != wanted.offset:
        raise NotAMember(f"a commit of offset {wanted.offset} was acknowledged, and {stored.offset} is stored")
    if stored.metadata != wanted.metadata:
        raise MetadataDropped("a commit's metadata was acknowledged and is not stored")


def _refused(error: KafkaError) -> NotAMember:
    if error.code() == KafkaError.OFFSET_METADATA_TOO_LARGE:
        return MetadataRefused(error.str())
    return NotAMember(error.str())
