"""Tests the reader's consumer under both group protocols, and constraints between its settings."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer
from pydantic import ValidationError

from ingest.reader.configuration import consumer_config
from ingest.settings import GroupProtocol, Settings

CLASSIC_ONLY = {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"}


def settings_with(**values: object) -> Settings:
    return Settings.model_validate(values)


def test_the_classic_protocol_is_cooperative() -> None:
    """Under the classic protocol the assignment is cooperative, so that each partition can be drained before it
    moves.
    """
    config = consumer_config(settings_with())

    assert config["group.protocol"] == "classic"
    assert config["partition.assignment.strategy"] == "cooperative-sticky"
    assert config["session.timeout.ms"] == 30_000
    Consumer(config).close()


def test_the_consumer_protocol_omits_properties_set_by_brokers() -> None:
    """Under the consumer protocol, properties that brokers set are omitted, because librdkafka refuses to start
    with them.
    """
    config = consumer_config(settings_with(kafka_group_protocol="consumer", kafka_instance_id="one"))

    assert not CLASSIC_ONLY & config.keys()
    assert config["group.instance.id"] == "one"
    Consumer(config).close()


def test_the_client_refuses_these_properties() -> None:
    """The client refuses each of these properties; otherwise omitting them would be unnecessary."""
    config = {**consumer_config(settings_with()), "group.protocol": "consumer"}

    with pytest.raises(Exception, match=r"session\.timeout\.ms|partition\.assignment\.strategy|heartbeat"):
        Consumer(config)


def test_under_classic_a_drain_ends_before_the_session() -> None:
    """Under the classic protocol, the drain deadline must be shorter than the session timeout; an equal deadline
    is refused.
    """
    settings_with(drain_deadline_seconds=29.9, kafka_session_timeout_seconds=30)

    with pytest.raises(
        ValidationError, match="REPLAYS_DRAIN_DEADLINE_SECONDS=30 is not shorter than REPLAYS_KAFKA_S"
    ):
        settings_with(drain_deadline_seconds=30, kafka_session_timeout_seconds=30)


def test_under_consumer_a_drain_ends_before_the_poll_interval() -> None:
    """Under the consumer protocol, the drain deadline is limited only by the poll interval.

    The session is kept alive in the background, and its timeout is a broker setting.
    """
    consumer = {"kafka_group_protocol": "consumer", "kafka_session_timeout_seconds": 1}
    settings_with(drain_deadline_seconds=89, **consumer)

    with pytest.raises(ValidationError, match="REPLAYS_KAFKA_MAX_POLL_INTERVAL_SECONDS=60"):
        settings_with(drain_deadline_seconds=60, kafka_max_poll_interval_seconds=60, **consumer)


def test_a_long_session_makes_the_poll_interval_as_long() -> None:
    """If the session timeout exceeds the maximum poll interval, that interval is raised to the session timeout,
    because librdkafka refuses a shorter one.
    """
    config = consumer_config(settings_with(kafka_session_timeout_seconds=900))

    assert config["max.poll.interval.ms"] == 900_000
    Consumer(config).close()


def test_the_consumer_protocol_refuses_a_heartbeat_interval() -> None:
    """A heartbeat interval is refused under the consumer protocol, because the brokers set it."""
    options = {"heartbeat.interval.ms": "500"}
    Consumer(consumer_config(settings_with(kafka_options=options))).close()

    with pytest.raises(
        ValidationError, match=r"heartbeat\.interval\.ms cannot be set with REPLAYS_KAFKA_GROUP_PROTO"
    ):
        settings_with(kafka_options=options, kafka_group_protocol=GroupProtocol.CONSUMER)


def test_added_partitions_are_noticed_long_before_librdkafka_would() -> None:
    """Added partitions are noticed within 30 seconds, because the metadata refresh interval is shorter than
    librdkafka's default of five minutes.
    """
    assert consumer_config(settings_with())["topic.metadata.refresh.interval.ms"] == 30_000
