"""Reads the committed offsets of the readers' group."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.local.compare.report import ReconcileError
from ingest.settings import Settings
from tasks.kafka.options import kafka_options

log = logging.getLogger(__name__)

CALL_SECONDS_MAX = 30.0
COORDINATOR_MOVE_ERRORS = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


class CommittedOffsets:
    """Reads the group's committed offsets, with one client for all requests."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = Consumer(
            {"group.id": settings.kafka_group, "enable.auto.commit": False, **kafka_options(settings)},
            logger=log,
        )

    def of(self, sources: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Maps each (topic, partition) to its committed offset, or 0 if there is none. Raises ReconcileError."""
        return {source: offset or 0 for source, (offset, _) in self.records_of(sources).items()}

    def records_of(self, sources: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int | None, str]]:
        """Maps each (topic, partition) to its committed offset, or None, and the metadata of that commit.

        Raises ReconcileError.
        """
        partitions = [KafkaPartition(topic, partition) for topic, partition in sources]
        ends_at = time.monotonic() + CALL_SECONDS_MAX
        while True:
            try:
                answer = self._consumer.committed(partitions, timeout=max(0.1, ends_at - time.monotonic()))
                break
            except KafkaException as error:
                # A broker that has just started may not have loaded its groups yet.
                if error.args[0].code() not in COORDINATOR_MOVE_ERRORS or time.monotonic() > ends_at:
                    raise ReconcileError(f"committed offsets: {error}") from error
                time.sleep(0.1)
        return {
            (entry.topic, entry.partition): (entry.offset, entry.metadata or "")
            if entry.offset >= 0
            else (None, "")
            for entry in answer
        }

    def close(self) -> None:
        """Closes the client."""
        self._consumer.close()
