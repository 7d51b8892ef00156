"""Whether librdkafka takes the properties that settings make: asked before a command does anything else.

Clients are made and closed again. They are given no brokers, so nothing is connected to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer

from tasks.loading import SettingsError
from tasks.settings import ENV_PREFIX, Settings

BROKERS = ("bootstrap.servers", "metadata.broker.list")


def is_plain(settings: Settings) -> bool:
    """Whether no property can be wrong: no options of the operator's, no encryption, no login."""
    return not settings.kafka_options and settings.kafka_security_protocol == "PLAINTEXT"


def verify_producer(config: Mapping[str, Any]) -> None:
    """Raises SettingsError when no producer can be made of the properties."""
    _made(lambda: Producer(_offline(config), logger=Silent()))


def verify_consumer(config: Mapping[str, Any]) -> None:
    """Raises SettingsError when no consumer can be made of the properties."""
    _made(lambda: Consumer(_offline(config), logger=Silent()).close())


def _made(make: Callable[[], object]) -> None:
    try:
        make()
    except (KafkaException, ValueError, TypeError) as error:
        cause = error.args[0] if error.args else error
        text = cause.str() if hasattr(cause, "str") else str(cause)
        raise SettingsError(
            f"wrong setting: {ENV_PREFIX}KAFKA_OPTIONS, or another of {ENV_PREFIX}KAFKA_*: no Kafka client can be "
            f"made of them ({' '.join(text.split())}): correct or remove that property"
        ) from error


def _offline(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in BROKERS}


class Silent:
    """What the library logs about a property is in its error too."""

    def log(self, level: int, text: str, *arguments: Any) -> None:
        """Nothing."""
