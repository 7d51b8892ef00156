"""Lists, describes and creates topics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from tasks.errors import shortened
from tasks.faults import Cause, Fault, Server, fault
from tasks.kafka.faults import ClientErrors, list_topics
from tasks.kafka.options import kafka_options
from tasks.settings import Settings

MESSAGE_BYTES_MAX = "max.message.bytes"
RESPONSE_SECONDS_MAX = 4.0  # includes connecting, with TLS and a login
DOWN_SECONDS_MAX = 1.0


class ClusterUnreachable(Exception):
    """The brokers did not respond or, if `refused` is True, refused the request. The message is `fault.line`."""

    def __init__(self, found: Fault, *, refused: bool = False) -> None:
        super().__init__(found.line)
        self.fault = found
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Topic:
    """`in_sync`: number of in-sync replicas of the partition that has the fewest; 0 if unknown."""

    partitions: int
    in_sync: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """A snapshot of the cluster."""

    brokers: int
    topics: Mapping[str, Topic]


class Topics:
    """An admin client for use by one thread. Raises ClusterUnreachable if no client can be created."""

    def __init__(self, settings: Settings) -> None:
        self._brokers = settings.kafka_brokers
        self._errors = ClientErrors()
        options: dict[str, Any] = {**kafka_options(settings), "error_cb": self._errors.note}
        try:
            self._admin = AdminClient(options, logger=self._errors)
        except (KafkaException, ValueError) as failure:
            cause = failure.args[0] if failure.args else failure
            text = cause.str() if isinstance(cause, KafkaError) else str(cause)
            refused = fault(Server.KAFKA, Cause.CLIENT, f"no client can be created: {shortened(text)}")
            raise ClusterUnreachable(refused, refused=True) from failure

    def inventory(self, seconds_max: float, *, down_seconds_max: float = math.inf) -> Inventory:
        """Lists topics. Raises ClusterUnreachable after `seconds_max`, or when the broker refuses the client.

        `down_seconds_max`: after this time, the client's report that all brokers are down counts as a failure.
        """
        try:
            found = list_topics(self._admin, self._errors, seconds_max, down_seconds_max=down_seconds_max)
        except KafkaException as failure:
            cause = self._errors.fault(self._brokers)
            raise ClusterUnreachable(cause, refused=self._errors.refused()) from failure
        topics = {
            name: Topic(
                len(topic.partitions),
                min((len(partition.isrs) for partition in topic.partitions.values()), default=0),
            )
            for name, topic in found.topics.items()
            if topic.error is None
        }
        return Inventory(len(found.brokers), topics)

    def verify_reachable(self) -> None:
        """Raises ClusterUnreachable if the brokers do not respond within RESPONSE_SECONDS_MAX, or if they refuse
        connections for DOWN_SECONDS_MAX.

        Without this check, a consumer would wait forever for unreachable brokers, just as it waits for new
        messages.
        """
        self.inventory(RESPONSE_SECONDS_MAX, down_seconds_max=DOWN_SECONDS_MAX)

    def config(self, topic: str, timeout_seconds: float) -> dict[str, str]:
        """Returns the topic's configuration; empty if unavailable (embedded broker, or no permission)."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            answer = self._admin.describe_configs([resource], request_timeout=timeout_seconds)
            entries = answer[resource].result(timeout_seconds)
            return {name: str(entry.value) for name, entry in entries.items() if entry.value is not None}
        except (KafkaException, TimeoutError, ValueError):
            return {}

    def message_bytes_max(self, topic: str, timeout_seconds: float) -> int | None:
        """Returns the maximum message size of the topic; None if unknown."""
        return int(self.config(topic, timeout_seconds).get(MESSAGE_BYTES_MAX) or 0) or None

    def may_write(self, topic: str, timeout_seconds: float) -> bool | None:
        """Returns whether the account may produce to the topic; None if that is unknown."""
        topics: Any = TopicCollection([topic])
        try:
            answer = self._admin.describe_topics(
                topics, include_authorized_operations=True, request_timeout=timeout_seconds
            )
            operations = answer[topic].result(timeout_seconds).authorized_operations
        except (KafkaException, TimeoutError, ValueError):
            return None
        return AclOperation.WRITE in operations if operations else None

    def create(self, name: str, partitions: int, config: Mapping[str, str], timeout_seconds: float) -> None:
        """Creates the topic if it does not exist. Raises KafkaException."""
        topic = NewTopic(name, num_partitions=partitions, config=dict(config))
        try:
            self._admin.create_topics([topic], request_timeout=timeout_seconds)[name].result(timeout_seconds)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
