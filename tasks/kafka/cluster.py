"""Describes topics and consumer groups through an admin client.

    cluster = Cluster(settings)
    cluster.topic("ingest-replay-recordings").id
    cluster.group("replays-ingest", "ingest-replay-recordings").members

Every call is bounded by CALL_SECONDS_MAX and raises `ClusterError`, whose message states what failed and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from tasks.kafka.options import kafka_options
from tasks.settings import Settings

CALL_SECONDS_MAX = 10.0
BEGINNING: Any = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
END: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class ClusterError(Exception):
    """The brokers did not respond, or they refused the request. The message is meant for operators."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic. `id` changes when the topic is deleted and recreated."""

    id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a consumer group. `instance` is the `group.instance.id` of a static member, and empty for other
    members.
    """

    id: str
    instance: str
    client: str
    host: str
    partitions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group, for one topic. `stable`: no rebalance is in progress."""

    state: str
    stable: bool
    members: tuple[Member, ...]


class Cluster:
    """An admin client, which is replaced when a request fails. Thread-safe.

    librdkafka 2.16.0 aborts the process if a request to a group's coordinator times out while no broker is
    available, and a broker becomes available later (assertion in `rd_kafka_enq_once_del_source_return`). Closing
    the client in between prevents this.
    """

    def __init__(self, settings: Settings) -> None:
        # librdkafka's own log is disabled, because failed calls raise exceptions anyway. While brokers are
        # unreachable, librdkafka would print twenty lines of plain text (not JSON) per second to standard error.
        # The reader's consumer also logs connection errors, at a limited rate.
        self._options = {"log_level": "0", **kafka_options(settings)}
        self._admin = AdminClient(self._options)

    def topic(self, name: str) -> Topic:
        """Describes a topic. Raises ClusterError if the request fails or the topic does not exist."""
        found = self._answer(
            f"describe topic {name}",
            self._admin.describe_topics(TopicCollection([name]), request_timeout=CALL_SECONDS_MAX)[name],
        )
        return Topic(str(found.topic_id), len(found.partitions))

    def group(self, name: str, topic: str) -> Group:
        """Describes a group; one that does not exist has no members. Raises ClusterError if the request fails."""
        found = self._answer(
            f"describe group {name}",
            self._admin.describe_consumer_groups([name], request_timeout=CALL_SECONDS_MAX)[name],
        )
        members = tuple(
            Member(
                member.member_id,
                member.group_instance_id or "",
                member.client_id,
                member.host,
                frozenset(p.partition for p in member.assignment.topic_partitions if p.topic == topic),
            )
            for member in found.members
        )
        return Group(found.state.name.lower(), found.state is ConsumerGroupState.STABLE, members)

    def lag(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Returns the number of messages after the group's committed offset, by partition; -1 if unknown. For a
        partition without a commit, returns the total number of messages in the log. Never raises; sends no request
        if there are no partitions.
        """
        topic_partitions = [TopicPartition(topic, partition) for partition in partitions]
        if not topic_partitions:
            return {}
        try:
            committed = self._committed(group, topic_partitions)
            low, high = (self._offsets(topic_partitions, spec) for spec in (BEGINNING, END))
        except ClusterError:
            return {entry.partition: -1 for entry in topic_partitions}
        return {
            partition: max(0, high[partition] - max(low[partition], committed.get(partition, -1)))
            for partition in high
        }

    def _committed(self, group: str, topic_partitions: list[TopicPartition]) -> dict[int, int]:
        request = ConsumerGroupTopicPartitions(group, topic_partitions)
        found = self._answer(
            f"list the offsets of group {group}",
            self._admin.list_consumer_group_offsets([request], request_timeout=CALL_SECONDS_MAX)[group],
        )
        return {entry.partition: entry.offset for entry in found.topic_partitions}

    def _offsets(self, topic_partitions: list[TopicPartition], spec: Any) -> dict[int, int]:
        requested = dict.fromkeys(topic_partitions, spec)
        futures = self._admin.list_offsets(requested, request_timeout=CALL_SECONDS_MAX)
        return {
            entry.partition: self._answer(f"list the offsets of {entry}", future).offset
            for entry, future in futures.items()
        }

    def delete_group(self, name: str) -> None:
        """Deletes a group that has no members, together with its offsets. Raises ClusterError."""
        self._answer(
            f"delete group {name}",
            self._admin.delete_consumer_groups([name], request_timeout=CALL_SECONDS_MAX)[name],
        )

    def _answer(self, what: str, future: Future[Any]) -> Any:
        try:
            return future.result(timeout=2 * CALL_SECONDS_MAX)
        except KafkaException as failure:
            error = f"could not {what}: {failure.args[0].str()}"
        except TimeoutError:
            error = f"could not {what}: no answer within {2 * CALL_SECONDS_MAX:g} s"
        # No exception or local variable refers to the old client, so this closes it.
        self._admin = AdminClient(self._options)
        raise ClusterError(error)
