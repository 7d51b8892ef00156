"""librdkafka properties that `REPLAYS_KAFKA_OPTIONS` may not set, with reasons. Most of these properties affect
at-least-once delivery or are controlled by our own settings.

All other properties are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping

COMMITS = "offsets are committed only when every message before them is durable"
STARTS = "the start of each partition is decided by the reader (REPLAYS_KAFKA_OFFSET_RESET)"
DELIVERY = "an offset is committed only after the brokers acknowledged its dead letters"
STATISTICS = "nothing reads statistics, and a client that is never polled keeps them in memory"
CALLBACKS = "callbacks are code"


def setting(name: str) -> str:
    """Returns the reason why a librdkafka property that our setting `name` controls is refused."""
    return f"set REPLAYS_{name} instead"


GUARDED: Mapping[str, str] = {
    # Consumers
    "enable.auto.commit": COMMITS,
    "auto.commit.enable": COMMITS,
    "enable.auto.offset.store": COMMITS,
    "offset.store.method": COMMITS,
    "auto.offset.reset": STARTS,
    "enable.partition.eof": "planned batches and the lag at the end of a partition depend on it",
    "group.id": setting("KAFKA_GROUP"),
    "group.instance.id": setting("KAFKA_INSTANCE_ID"),
    "group.protocol": setting("KAFKA_GROUP_PROTOCOL"),
    "group.protocol.type": "consumers have only one type",
    "partition.assignment.strategy": "partitions are drained and handed over one by one (cooperative-sticky)",
    "session.timeout.ms": setting("KAFKA_SESSION_TIMEOUT_SECONDS"),
    "max.poll.interval.ms": setting("KAFKA_MAX_POLL_INTERVAL_SECONDS"),
    "topic.metadata.refresh.interval.ms": setting("KAFKA_METADATA_REFRESH_SECONDS"),
    # Producers
    "acks": DELIVERY,
    "request.required.acks": DELIVERY,
    "enable.idempotence": DELIVERY,
    "retries": DELIVERY,
    "message.send.max.retries": DELIVERY,
    "delivery.report.only.error": DELIVERY,
    "transactional.id": "dead letters are not written in transactions",
    "message.timeout.ms": setting("SINK_TIMEOUT_SECONDS"),
    "delivery.timeout.ms": setting("SINK_TIMEOUT_SECONDS"),
    "partitioner": "records with one key have to stay in one partition",
    # Both
    "statistics.interval.ms": STATISTICS,
    "enabled_events": CALLBACKS,
    "logger": CALLBACKS,
    "on_commit": CALLBACKS,
    "on_delivery": CALLBACKS,
    "opaque": CALLBACKS,
    "default.topic.config": "set the topic property directly",
}

GUARDED_PREFIXES: Mapping[str, str] = {
    "test.mock.": "the client would use simulated brokers",
}

GUARDED_SUFFIXES: Mapping[str, str] = {
    "_cb": CALLBACKS,
}


def refusal(name: str) -> str | None:
    """Returns the reason why this property may not be set; None if it may be set."""
    for prefix, reason in GUARDED_PREFIXES.items():
        if name.startswith(prefix):
            return reason
    for suffix, reason in GUARDED_SUFFIXES.items():
        if name.endswith(suffix):
            return reason
    return GUARDED.get(name)
