"""What the brokers say about a topic and about a consumer group, through an admin client.

    cluster = Cluster(settings)
    cluster.topic("ingest-replay-recordings").id
    cluster.group("replays-ingest", "ingest-replay-recordings").members

Every call is bounded by CALL_SECONDS_MAX and raises `ClusterError`, whose text says what failed and why.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupState, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from tasks.kafka.options import kafka_options
from tasks.settings import Settings

CALL_SECONDS_MAX = 10.0
T = TypeVar("T")


class ClusterError(Exception):
    """The brokers did not answer, or refused. The text is for a person."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now. `id` changes when the topic is deleted and created again under its name."""

    id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a consumer group. `instance` is empty unless its membership is static."""

    id: str
    instance: str
    client: str
    host: str
    partitions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group, as far as one topic is concerned. `stable`: no rebalance is going on."""

    state: str
    stable: bool
    members: tuple[Member, ...]


class Cluster:
    """One admin client. Any thread may call."""

    def __init__(self, settings: Settings) -> None:
        # Its calls raise what failed. The library would print twenty lines per second to standard error while the
        # brokers are away, none of them JSON; the consumer beside it logs the same at a bounded rate.
        self._admin = AdminClient({"log_level": "0", **kafka_options(settings)})

    def topic(self, name: str) -> Topic:
        """Raises ClusterError also when there is no such topic."""
        found = _answer(
            f"describe topic {name}",
            lambda: self._admin.describe_topics(TopicCollection([name]), request_timeout=CALL_SECONDS_MAX)[name],
        )
        return Topic(str(found.topic_id), len(found.partitions))

    def group(self, name: str, topic: str) -> Group:
        """A group that does not exist has no members."""
        found = _answer(
            f"describe group {name}",
            lambda: self._admin.describe_consumer_groups([name], request_timeout=CALL_SECONDS_MAX)[name],
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


def _answer(what: str, ask: Callable[[], Future[Any]]) -> Any:
    try:
        return ask().result(timeout=2 * CALL_SECONDS_MAX)
    except KafkaException as failure:
        raise ClusterError(f"could not {what}: {failure.args[0].str()}") from failure
    except TimeoutError:
        raise ClusterError(f"could not {what}: no answer within {2 * CALL_SECONDS_MAX:g} s") from None
