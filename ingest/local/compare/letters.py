"""Every rejected message of the dead-letter topic."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.local.compare.report import ReconcileError
from ingest.local.load.expectation import Letter, Place
from ingest.settings import Settings
from tasks.kafka.options import kafka_options

CALL_SECONDS_MAX = 30.0


def read_letters(settings: Settings, deadline_seconds: float = 60.0) -> tuple[dict[Place, Letter], int]:
    """The rejects of the dead-letter topic by the place of their original, and how many records repeat one."""
    found: dict[Place, Letter] = {}
    repeats = 0
    for value, headers in _records(settings, settings.dlq_topic, deadline_seconds):
        if "sink" in headers or "reason" not in headers:
            continue
        place = (headers["topic"], int(headers["partition"]), int(headers["offset"]))
        repeats += place in found
        found[place] = Letter(headers["reason"], hashlib.sha256(value).hexdigest())
    return found, repeats


def _records(settings: Settings, topic: str, deadline_seconds: float) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Every record of a topic, from the beginning to the end as the broker tells it while fetching."""
    consumer = Consumer(
        {
            "group.id": f"{settings.kafka_group}-reconcile",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
            **kafka_options(settings),
        }
    )
    ends_at = time.monotonic() + deadline_seconds
    try:
        partitions = consumer.list_topics(topic, timeout=CALL_SECONDS_MAX).topics[topic].partitions
        open_partitions = set(partitions)
        consumer.assign([KafkaPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        while open_partitions:
            if time.monotonic() > ends_at:
                raise ReconcileError(f"topic {topic} was not read to its end within {deadline_seconds:g} s")
            record = consumer.poll(0.5)
            if record is None:
                continue
            error = record.error()
            if error is None:
                yield _value(record), _headers(record)
            elif error.code() == KafkaError._PARTITION_EOF:
                open_partitions.discard(record.partition())
            else:
                raise ReconcileError(f"topic {topic}: {error.str()}")
    except KafkaException as error:
        raise ReconcileError(f"topic {topic}: {error}") from error
    finally:
        consumer.close()


def _value(record: Message) -> bytes:
    value = record.value()
    return value if isinstance(value, bytes) else b""


def _headers(record: Message) -> dict[str, str]:
    pairs: list[Any] = list(record.headers() or ())
    return {name: (value or b"").decode("utf-8", "replace") for name, value in pairs}
