"""What the settings mean for a reader's parts: the core's bounds, the parser's rules, the consumer's properties.

Commands that parse or read as the reader does take them from here, so that they see what it sees.
"""

from __future__ import annotations

from typing import Any

from ingest.core.limits import Limits
from ingest.core.parse import ParseRules
from ingest.settings import Settings
from tasks.kafka.options import kafka_options
from tasks.units import KiB, MiB


def limits_of(settings: Settings) -> Limits:
    """The core's bounds, by their common names."""
    names = Limits.__dataclass_fields__
    return Limits(**{name: getattr(settings, name) for name in names if hasattr(settings, name)})


def rules_of(settings: Settings) -> ParseRules:
    """The parser's bounds and sampling rates, by their common names."""
    names = ParseRules.__dataclass_fields__
    return ParseRules(**{name: getattr(settings, name) for name in names if hasattr(settings, name)})


def consumer_config(settings: Settings) -> dict[str, Any]:
    """The librdkafka properties of the reader's consumer. May hold the password: never log it."""
    config: dict[str, Any] = {
        "group.id": settings.kafka_group,
        "session.timeout.ms": int(settings.kafka_session_timeout_seconds * 1000),
        "heartbeat.interval.ms": max(100, int(settings.kafka_session_timeout_seconds * 1000 / 10)),
        "max.poll.interval.ms": max(300_000, int(settings.kafka_session_timeout_seconds * 1000)),
        "queued.max.messages.kbytes": settings.kafka_queued_bytes_max // KiB,
        "fetch.message.max.bytes": 1 * MiB,
        "fetch.wait.max.ms": 100,
    }
    if settings.kafka_instance_id:
        config["group.instance.id"] = settings.kafka_instance_id
    return {**config, **kafka_options(settings)}
