"""Creates the dead-letter topic, the operators' topic and, for development, the input topic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.kafka.topics import ClusterUnreachable, Topics
from tasks.migrate.step import DAY_MILLISECONDS
from tasks.settings import Settings
from tasks.sinks.dead_letter.sink import HEADERS_BYTES
from tasks.units import MiB

SOURCE_PARTITIONS = 4
SOURCE_MESSAGE_BYTES_MAX = 15_000_000
SOURCE_RETENTION_HOURS = 24
DEAD_LETTER_PARTITIONS = 1
DEAD_LETTER_MESSAGE_BYTES_MAX = 17 * MiB
DEAD_LETTER_RETENTION_DAYS = 14


def migrate_topics(settings: Settings, *, dry_run: bool, source: bool) -> Iterator[str]:
    """Creates the dead-letter topic and the operators' topic; if `source` is True, also creates the input topic.

    Raises KafkaException, SinkError.
    """
    timeout_seconds = settings.sink_timeout_seconds
    try:
        topics = Topics(settings)
        present = topics.inventory(timeout_seconds).topics
    except ClusterUnreachable as failure:
        raise TransientSinkError(str(failure)) from failure
    source_bytes = SOURCE_MESSAGE_BYTES_MAX
    if settings.kafka_topic in present:
        source_bytes = topics.message_bytes_max(settings.kafka_topic, timeout_seconds) or source_bytes
    for name, (partitions, config) in _wanted(settings, source_bytes, source=source).items():
        if name in present:
            partitions = present[name].partitions
            yield f"= topic {name} is there, {partitions} partition{'' if partitions == 1 else 's'}"
            if name == settings.operators_topic:
                _expect_compaction(topics.config(name, timeout_seconds), name)
            continue
        yield f"create topic {name}"
        if not dry_run:
            topics.create(name, partitions, config, timeout_seconds)


def _expect_compaction(config: Mapping[str, str], name: str) -> None:
    """Checks that decisions do not expire. Raises PermanentSinkError."""
    policy = config.get("cleanup.policy", "compact")
    if policy != "compact":
        raise PermanentSinkError(
            f"topic {name} has cleanup.policy={policy}, so decisions would expire: set it to compact",
            configuration=True,
        )


def _wanted(settings: Settings, source_bytes: int, *, source: bool) -> dict[str, tuple[int, dict[str, str]]]:
    """Returns the number of partitions and the configuration of each topic."""
    wanted = {
        settings.dlq_topic: (
            DEAD_LETTER_PARTITIONS,
            {
                "max.message.bytes": str(max(DEAD_LETTER_MESSAGE_BYTES_MAX, source_bytes + HEADERS_BYTES)),
                "retention.ms": str(DEAD_LETTER_RETENTION_DAYS * DAY_MILLISECONDS),
                "cleanup.policy": "delete",
            },
        ),
        # One partition, so that decisions are ordered and an offset identifies a state.
        settings.operators_topic: (1, {"cleanup.policy": "compact", "max.message.bytes": str(MiB)}),
    }
    if source:
        wanted[settings.kafka_topic] = (
            SOURCE_PARTITIONS,
            {
                "max.message.bytes": str(SOURCE_MESSAGE_BYTES_MAX),
                "retention.ms": str(SOURCE_RETENTION_HOURS * DAY_MILLISECONDS // 24),
            },
        )
    return wanted
