"""Dead letters on a broker, and errors injected by librdkafka's mock cluster."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.processes import wait_until
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.kafka.topics import Topics
from tasks.migrate.kafka import migrate_topics
from tasks.settings import Settings
from tasks.sinks import Level, check
from tasks.sinks.dead_letter.sink import DeadLetterSink
from tasks.units import MiB
from tasks.wire import DeadLetter

Record = tuple[bytes | None, bytes, list[tuple[str, bytes | None]]]


def letter(offset: int, value: bytes = b"hello") -> DeadLetter:
    headers = (
        ("reason", b"headers_missing"),
        ("topic", b"source"),
        ("partition", b"0"),
        ("offset", str(offset).encode()),
        ("trace", None),
    )
    return DeadLetter(b"key" if offset % 2 else None, value, headers, offset)


@pytest.fixture
def topic_settings(settings: Callable[..., Settings], kafka_brokers: str) -> Settings:
    """Settings whose dead-letter topic exists."""
    found = settings(kafka_brokers=kafka_brokers)
    assert list(migrate_topics(found, dry_run=False, source=False)) == [
        f"create topic {name}" for name in (found.dlq_topic, found.operators_topic)
    ]
    return found


def records(topic_settings: Settings, wanted: int) -> list[Record]:
    """Returns the topic's first `wanted` records."""
    consumer = Consumer(
        {
            "bootstrap.servers": topic_settings.kafka_brokers,
            "group.id": "test",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 32 * MiB,
        }
    )
    consumer.assign([TopicPartition(topic_settings.dlq_topic, 0, 0)])
    found: list[Record] = []

    def enough() -> bool:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            found.append((message.key(), message.value() or b"", message.headers() or []))
        return len(found) >= wanted

    wait_until(enough, 20, f"{wanted} dead letters")
    consumer.close()
    return found


def test_dead_letters_keep_key_value_and_headers(topic_settings: Settings) -> None:
    """Dead letters keep the original bytes, even if they are given as memoryviews, and every header in order."""
    items = [letter(1), letter(2, os.urandom(100_000)), DeadLetter(None, memoryview(b"view"), (), 3)]
    sink = DeadLetterSink(topic_settings)

    sink.write(items, "token", 15)

    assert records(topic_settings, 3) == [(item.key, bytes(item.value), list(item.headers)) for item in items]
    sink.close()
    sink.close()


def test_a_repeated_write_makes_identifiable_duplicates(topic_settings: Settings) -> None:
    """A repeated write produces a second record, which is a known limit.

    The records can be identified by their headers, so a repeated letter counts once.
    """
    items = [letter(offset) for offset in range(20)]
    sink = DeadLetterSink(topic_settings)

    sink.write(items, "token", 15)
    sink.write(items, "token", 15)
    found = records(topic_settings, 40)

    identities = {
        tuple(dict(headers)[name] for name in ("topic", "partition", "offset")) for _, _, headers in found
    }
    assert len(found) == 40
    assert len(identities) == 20
    sink.close()


def test_a_message_of_sixteen_megabytes_fits_with_its_headers(topic_settings: Settings) -> None:
    """A message of sixteen megabytes, the largest that the reader accepts, fits into a dead letter with its
    headers.
    """
    item = letter(1, os.urandom(16 * MiB - 1000))
    sink = DeadLetterSink(topic_settings)

    sink.write([item], "token", 30)

    assert records(topic_settings, 1) == [(item.key, item.value, list(item.headers))]
    sink.close()


def test_a_record_that_does_not_fit_parks_the_batch_with_what_to_change(topic_settings: Settings) -> None:
    """If a record exceeds a size limit, its batch is parked, and the error says which topic setting to raise."""
    limited = topic_settings.model_copy(update={"kafka_options": {"message.max.bytes": "100000"}})
    sink = DeadLetterSink(limited)

    with pytest.raises(PermanentSinkError, match=r"200\d\d\d bytes \(offset 7 .*max\.message\.bytes") as refused:
        sink.write([letter(7, b"x" * 200_000)], "token", 15)

    assert refused.value.configuration
    sink.close()


def test_unavailable_brokers_are_transient_and_list_every_letter(settings: Callable[..., Settings]) -> None:
    """With unavailable brokers, the write fails within its deadline with a transient error that lists every
    letter; `check` fails, too.
    """
    sink = DeadLetterSink(settings(kafka_brokers="127.0.0.1:1", sink_timeout_seconds=1))

    with pytest.raises(TransientSinkError) as failed:
        sink.write([letter(1), letter(2)], "token", 0.5)
    with pytest.raises(TransientSinkError):
        sink.check()

    assert failed.value.failed == (0, 1)
    sink.close()


def test_properties_that_librdkafka_refuses_are_configuration(settings: Callable[..., Settings]) -> None:
    sink = DeadLetterSink(settings(kafka_brokers="127.0.0.1:1", kafka_options={"no.such.property": "1"}))

    with pytest.raises(PermanentSinkError, match=r"no\.such\.property") as refused:
        sink.write([letter(1)], "token", 1)

    assert refused.value.configuration


def test_a_topic_is_created_once(settings: Callable[..., Settings], kafka_brokers: str) -> None:
    """The topic is created once; a dry run only reports.

    With `source` the source topic is created, too, and `check` finds the dead-letter topic.
    """
    found = settings(kafka_brokers=kafka_brokers)
    sink = DeadLetterSink(found)
    with pytest.raises(PermanentSinkError, match="migrate"):
        sink.check()

    planned = list(migrate_topics(found, dry_run=True, source=True))
    done = list(migrate_topics(found, dry_run=False, source=True))
    again = list(migrate_topics(found, dry_run=False, source=True))

    assert (
        planned
        == done
        == [f"create topic {name}" for name in (found.dlq_topic, found.operators_topic, found.kafka_topic)]
    )
    assert [line for line in again if not line.startswith("=")] == []
    assert found.dlq_topic in sink.check().text
    sink.close()


@pytest.mark.kafka
def test_a_topic_that_is_too_small_is_found_by_check_and_parks_the_batch(
    settings: Callable[..., Settings], apache_kafka: JavaKafka
) -> None:
    """`check` finds a topic whose limit is too small, and a write parks its batch.

    Once an operator has raised the limit, the same write succeeds.
    """
    found = settings(kafka_brokers=apache_kafka.address, sink_timeout_seconds=20)
    admin = AdminClient({"bootstrap.servers": found.kafka_brokers})
    small = NewTopic(found.dlq_topic, num_partitions=1, config={"max.message.bytes": "10000"})
    source = NewTopic(found.kafka_topic, num_partitions=1, config={"max.message.bytes": "15000000"})
    for future in admin.create_topics([small, source]).values():
        future.result(20)
    sink = DeadLetterSink(found)

    with pytest.raises(PermanentSinkError, match=r"10000.*set it to 15065536"):
        sink.check()
    items = [letter(1), letter(2, os.urandom(20_000))]
    with pytest.raises(
        PermanentSinkError, match=r"record of 200\d\d bytes \(offset 2 .*max\.message\.bytes"
    ) as refused:
        sink.write(items, "token", 20)
    larger = ConfigEntry("max.message.bytes", "15065536", incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ResourceType.TOPIC, found.dlq_topic, incremental_configs=[larger])
    admin.incremental_alter_configs([topic])[topic].result(20)
    sink.write(items, "token", 20)

    assert refused.value.configuration
    assert [value for _, value, _ in records(found, 2)] == [item.value for item in items]
    assert found.dlq_topic in sink.check().text
    sink.close()


@pytest.mark.kafka
def test_topics_are_created_with_sufficient_limits(
    settings: Callable[..., Settings], apache_kafka: JavaKafka
) -> None:
    """The created dead-letter topic accepts the largest message of the source topic with its headers."""
    found = settings(kafka_brokers=apache_kafka.address, sink_timeout_seconds=20)

    list(migrate_topics(found, dry_run=False, source=True))

    topics = Topics(found)
    limits = {found.kafka_topic: 15_000_000, found.dlq_topic: 17 * MiB}
    wait_until(  # a new topic can be described once its metadata has reached the broker
        lambda: limits == {name: topics.message_bytes_max(name, 20) for name in limits}, 20, "the limits"
    )
    sink = DeadLetterSink(found)
    assert found.dlq_topic in sink.check().text
    sink.write([letter(1, os.urandom(16 * MiB))], "token", 20)
    sink.close()


@pytest.mark.kafka
def test_check_warns_about_a_topic_that_may_lose_letters(
    settings: Callable[..., Settings], apache_kafka: JavaKafka
) -> None:
    """`check` warns if the topic is compacted, because a compacted topic refuses letters without a key. `check`
    also warns if more in-sync replicas are required than exist.
    """
    found = settings(kafka_brokers=apache_kafka.address, sink_timeout_seconds=20)
    admin = AdminClient({"bootstrap.servers": found.kafka_brokers})
    config = {"cleanup.policy": "compact", "max.message.bytes": "17825792", "min.insync.replicas": "2"}
    admin.create_topics([NewTopic(found.dlq_topic, num_partitions=1, config=config)])[found.dlq_topic].result(20)
    wait_until(lambda: Topics(found).config(found.dlq_topic, 20), 20, "the topic's settings")

    checked = check("dead_letter", found)

    warnings_text = "\n".join(checked.warnings)
    assert checked.level is Level.WARNING
    assert "cleanup.policy is compact" in warnings_text
    assert "1 replicas are in sync, and min.insync.replicas is 2" in warnings_text
    assert "storing a record: Kafka cannot delete a single one" in checked.not_tested


def test_check_reports_what_a_broker_does_not_show(topic_settings: Settings) -> None:
    """If a broker, such as the embedded one, does not expose its settings, `check` reports this, but not as an
    error.
    """
    checked = check("dead_letter", topic_settings)

    assert checked.level is Level.OK
    assert topic_settings.dlq_topic in checked.text
    assert any("storing a record" in line for line in checked.not_tested)
