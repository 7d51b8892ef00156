"""The dead-letter topic, and for development the topic that is read."""

from __future__ import annotations

from collections.abc import Iterator

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from tasks.kafka.options import kafka_options
from tasks.migrate.step import DAY_MILLISECONDS
from tasks.settings import Settings
from tasks.sinks.dead_letter import sink as dead_letter
from tasks.units import MiB

SOURCE_PARTITIONS = 4
SOURCE_MESSAGE_BYTES_MAX = 15_000_000
SOURCE_RETENTION_HOURS = 24
DEAD_LETTER_PARTITIONS = 1
DEAD_LETTER_MESSAGE_BYTES_MAX = 17 * MiB
DEAD_LETTER_RETENTION_DAYS = 14


def migrate_topics(settings: Settings, *, dry_run: bool, source: bool) -> Iterator[str]:
    """The dead-letter topic; with `source` the one that is read, too."""
    admin = AdminClient(kafka_options(settings))
    timeout_seconds = settings.sink_timeout_seconds
    present = admin.list_topics(timeout=timeout_seconds).topics
    source_bytes = SOURCE_MESSAGE_BYTES_MAX
    if settings.kafka_topic in present:
        source_bytes = dead_letter.max_message_bytes(admin, settings.kafka_topic, timeout_seconds) or source_bytes
    wanted = {
        settings.dlq_topic: NewTopic(
            settings.dlq_topic,
            num_partitions=DEAD_LETTER_PARTITIONS,
            config={
                "max.message.bytes": str(
                    max(DEAD_LETTER_MESSAGE_BYTES_MAX, source_bytes + dead_letter.HEADERS_BYTES)
                ),
                "retention.ms": str(DEAD_LETTER_RETENTION_DAYS * DAY_MILLISECONDS),
                "cleanup.policy": "delete",
            },
        )
    }
    if source:
        wanted[settings.kafka_topic] = NewTopic(
            settings.kafka_topic,
            num_partitions=SOURCE_PARTITIONS,
            config={
                "max.message.bytes": str(SOURCE_MESSAGE_BYTES_MAX),
                "retention.ms": str(SOURCE_RETENTION_HOURS * DAY_MILLISECONDS // 24),
            },
        )
    for name, topic in wanted.items():
        if name in present and present[name].error is None:
            yield f"= topic {name} is there, {len(present[name].partitions)} partitions"
            continue
        yield f"create topic {name}"
        if dry_run:
            continue
        try:
            admin.create_topics([topic], request_timeout=timeout_seconds)[name].result(timeout_seconds)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
