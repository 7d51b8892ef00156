"""Verifies that librdkafka accepts the configured properties, before a command does anything else.

Creates and closes clients that have no brokers configured, so no connection is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer

from tasks.loading import SettingsError
from tasks.settings import ENV_PREFIX

BROKERS = ("bootstrap.servers", "metadata.broker.list")


def verify_producer(config: Mapping[str, Any]) -> None:
    """Raises SettingsError if no producer can be created."""
    _verify_client(lambda: Producer(_offline(config), logger=DiscardingLogger()))


def verify_consumer(config: Mapping[str, Any]) -> None:
    """Raises SettingsError if no consumer can be created."""
    _verify_client(lambda: Consumer(_offline(config), logger=DiscardingLogger()).close())


def _verify_client(make: Callable[[], object]) -> None:
    try:
        make()
    except (KafkaException, ValueError, TypeError) as error:
        cause = error.args[0] if error.args else error
        text = cause.str() if hasattr(cause, "str") else str(cause)
        raise SettingsError(
            f"wrong setting: {ENV_PREFIX}KAFKA_OPTIONS, or another of {ENV_PREFIX}KAFKA_*: no Kafka client "
            f"can be created ({' '.join(text.split())}): correct or remove that property"
        ) from error


def _offline(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in BROKERS}


class DiscardingLogger:
    """Discards librdkafka's log lines, because the raised error contains the same text."""

    def log(self, level: int, text: str, *arguments: Any) -> None:
        """Does nothing."""
