"""Maps settings to the reader's components: core limits, parser rules, consumer properties.

Commands that read or parse messages use the same functions.
"""

from __future__ import annotations

from typing import Any

from ingest.core.limits import Limits
from ingest.core.parse import ParseRules
from ingest.settings import GroupProtocol, Settings
from tasks.kafka.options import kafka_options
from tasks.units import KiB, MiB


def limits_of(settings: Settings) -> Limits:
    """Returns the core's limits."""
    names = Limits.__dataclass_fields__
    return Limits(**{name: getattr(settings, name) for name in names if hasattr(settings, name)})


def rules_of(settings: Settings) -> ParseRules:
    """Returns the parser's limits and sampling rates."""
    names = ParseRules.__dataclass_fields__
    return ParseRules(**{name: getattr(settings, name) for name in names if hasattr(settings, name)})


def consumer_config(settings: Settings) -> dict[str, Any]:
    """Returns the librdkafka properties of the reader's consumer. The properties may contain the password, so do
    not log them."""
    config: dict[str, Any] = {
        "group.id": settings.kafka_group,
        "group.protocol": settings.kafka_group_protocol.value,
        "topic.metadata.refresh.interval.ms": int(settings.kafka_metadata_refresh_seconds * 1000),
        "queued.max.messages.kbytes": settings.kafka_queued_bytes_max // KiB,
        "fetch.message.max.bytes": 1 * MiB,
        "fetch.wait.max.ms": 100,
        # By default, a full queue pauses fetching for a whole second, during which a fast reader empties the queue
        # and then waits.
        "fetch.queue.backoff.ms": 20,
    }
    poll_ms = int(settings.kafka_max_poll_interval_seconds * 1000)
    # With the consumer protocol, brokers set these timeouts.
    if settings.kafka_group_protocol is GroupProtocol.CLASSIC:
        session_ms = int(settings.kafka_session_timeout_seconds * 1000)
        poll_ms = max(poll_ms, session_ms)
        config |= {
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": max(100, session_ms // 10),
        }
    config["max.poll.interval.ms"] = poll_ms
    if settings.kafka_instance_id:
        config["group.instance.id"] = settings.kafka_instance_id
    return {**config, **kafka_options(settings)}
