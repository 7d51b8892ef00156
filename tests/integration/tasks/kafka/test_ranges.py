"""Ranges of a topic that are read from brokers are half-open and may contain gaps; reading them always ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.processes import wait_until
from tasks.kafka.ranges import BoundReached, Bounds, KafkaUnreachable, Range, RangeReader, TopicMissing
from tasks.kafka.records import UNREADABLE
from tasks.settings import Settings
from tests.kit.raw_producer import RawProducer


def topic_of(settings: Settings, partitions: int = 1) -> Settings:
    """Creates the topic that the given settings name."""
    admin = AdminClient({"bootstrap.servers": settings.kafka_brokers})
    admin.create_topics([NewTopic(settings.kafka_topic, partitions)])[settings.kafka_topic].result(20)

    def known() -> bool:
        return settings.kafka_topic in admin.list_topics(timeout=10).topics

    wait_until(known, 20, "the topic")
    return settings


@pytest.fixture
def topic_settings(settings: Callable[..., Settings], kafka_brokers: str) -> Settings:
    """The settings of a topic with three partitions on the embedded broker."""
    return topic_of(settings(kafka_brokers=kafka_brokers), 3)


@pytest.fixture
def made_on_apache(settings: Callable[..., Settings], apache_kafka: JavaKafka) -> Settings:
    """Creates a topic with one partition on Apache Kafka, and returns its settings."""
    return topic_of(settings(kafka_brokers=apache_kafka.address))


def produce(settings: Settings, values: list[bytes], partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka_brokers})
    for value in values:
        producer.produce(
            settings.kafka_topic, value, key=b"k", headers=[("h", b"v"), ("n", None)], partition=partition
        )
    assert producer.flush(20) == 0


def transact(producer: Producer, topic: str, values: list[bytes], *, commit: bool = True) -> None:
    """Produces one transaction, which consists of the records and a marker."""
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush(20)
    if commit:
        producer.commit_transaction(20)
    else:
        producer.abort_transaction(20)


def values(reader: RangeReader, *wanted: Range) -> list[tuple[int, int, bytes]]:
    return [(record.partition, record.offset, record.value) for record in reader.read(wanted)]


def test_a_range_includes_its_start_and_excludes_its_stop(topic_settings: Settings) -> None:
    """Ranges are read in the requested order, with unchanged headers; an empty range has no records."""
    for partition in (0, 2):
        produce(topic_settings, [b"%d" % number for number in range(10)], partition)

    with RangeReader(topic_settings, topic_settings.kafka_topic) as reader:
        found = values(reader, Range(2, 3, 5), Range(0, 9, 10), Range(1, 0, 0), Range(0, 4, 4))
        (record,) = reader.read([Range(0, 0, 1)])

    assert found == [(2, 3, b"3"), (2, 4, b"4"), (0, 9, b"9")]
    assert (record.topic, record.key, record.headers) == (
        topic_settings.kafka_topic,
        b"k",
        (("h", b"v"), ("n", None)),
    )
    assert record.timestamp_ms > 0


def test_the_whole_topic_is_its_contents_when_the_read_began(topic_settings: Settings) -> None:
    """If the whole topic is read, every partition is read from its beginning; records that are written during the
    read are not included.
    """
    for partition in (0, 1):
        produce(topic_settings, [b"%d" % number for number in range(40)], partition)
    found = []

    with RangeReader(topic_settings, topic_settings.kafka_topic) as reader:
        for record in reader.read_all():
            found.append((record.partition, record.value))
            if len(found) == 5:
                produce(topic_settings, [b"late"] * 40, 0)

    assert found == [(partition, b"%d" % number) for partition in (0, 1) for number in range(40)]


def test_a_range_beyond_the_log_ends_and_is_counted(topic_settings: Settings) -> None:
    """If a recreated topic has fewer records than a range, the read stops at the partition's last record, and the
    missing records are counted."""
    produce(topic_settings, [b"0", b"1"])

    with RangeReader(topic_settings, topic_settings.kafka_topic) as reader:
        found = values(reader, Range(0, 1, 7), Range(0, 50, 60), Range(1, 0, 4))

        assert found == [(0, 1, b"1")]
        assert reader.gone == {0: 5 + 10, 1: 4}


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        (Bounds(messages_max=3), "more than 3 messages"),
        (Bounds(bytes_max=10), "more than 10 bytes"),
        (Bounds(seconds_max=0.0), "within 0 s"),
    ],
)
def test_a_read_ends_at_its_limits(topic_settings: Settings, bounds: Bounds, error: str) -> None:
    """A read ends at its limits, and the result says at which limit and at which offset."""
    produce(topic_settings, [b"four"] * 10)

    with (
        RangeReader(topic_settings, topic_settings.kafka_topic, bounds=bounds) as reader,
        pytest.raises(BoundReached, match=error),
    ):
        values(reader, Range(0, 0, 10))


def test_a_missing_topic_is_one_error(topic_settings: Settings) -> None:
    with RangeReader(topic_settings, "nowhere") as reader, pytest.raises(TopicMissing, match="nowhere"):
        reader.partitions()
    with (
        RangeReader(topic_settings, topic_settings.kafka_topic) as reader,
        pytest.raises(TopicMissing, match=topic_settings.kafka_topic),
    ):
        values(reader, Range(17, 0, 5))


def test_unavailable_brokers_end_the_read(topic_settings: Settings) -> None:
    """If the brokers are unavailable, a read ends after the configured time without a record, and reports the
    client's last error.
    """
    away = topic_settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"})

    with (
        RangeReader(away, topic_settings.kafka_topic, bounds=Bounds(silent_seconds_max=1.5)) as reader,
        pytest.raises(KafkaUnreachable, match=r"no record from .* for 1.5 s .*127.0.0.1:1"),
    ):
        values(reader, Range(0, 0, 5))


def test_unavailable_brokers_are_one_error(
    topic_settings: Settings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Unavailable brokers cause one error; the client library's log lines (twenty per second), which would hide
    the error, are suppressed.
    """
    away = topic_settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"})

    with (
        RangeReader(away, topic_settings.kafka_topic, bounds=Bounds(metadata_seconds_max=1.0)) as reader,
        pytest.raises(
            KafkaUnreachable, match=r"127.0.0.1:1 does not respond: .* or correct REPLAYS_KAFKA_BROKERS"
        ),
    ):
        reader.partitions()

    assert not caplog.records
    assert "FAIL" not in "".join(capfd.readouterr())


@pytest.mark.kafka
def test_markers_and_aborted_messages_are_gaps(made_on_apache: Settings) -> None:
    """A read also ends if the last offset of its range is a marker, or if the range contains only gaps."""
    topic = made_on_apache.kafka_topic
    producer = Producer({"bootstrap.servers": made_on_apache.kafka_brokers, "transactional.id": topic})
    producer.init_transactions(30)
    transact(producer, topic, [b"0", b"1"])  # the marker has offset 2
    transact(producer, topic, [b"3"], commit=False)  # the marker has offset 4
    transact(producer, topic, [b"5"])  # the marker has offset 6

    with RangeReader(made_on_apache, topic) as reader:
        everything = values(reader, Range(0, 0, 7))
        ends_with_marker = values(reader, Range(0, 1, 3))
        nothing_but_gaps = values(reader, Range(0, 2, 5))
        held = reader.held(0)

        assert everything == [(0, 0, b"0"), (0, 1, b"1"), (0, 5, b"5")]
        assert ends_with_marker == [(0, 1, b"1")]
        assert nothing_but_gaps == []
        assert held == Range(0, 0, 7)
        assert not reader.gone.total()
        assert [record.offset for record in reader.read_all()] == [0, 1, 5]


@pytest.mark.kafka
def test_expired_records_are_skipped_and_counted(made_on_apache: Settings) -> None:
    """Records that expire before or during the read are skipped and counted, and all other records are read."""
    topic = made_on_apache.kafka_topic
    produce(made_on_apache, [b"%d" % number for number in range(10)])
    admin = AdminClient({"bootstrap.servers": made_on_apache.kafka_brokers})
    for future in admin.delete_records([TopicPartition(topic, 0, 4)]).values():
        future.result(20)

    with RangeReader(made_on_apache, topic) as reader:
        found = values(reader, Range(0, 1, 6))
        left = values(reader, Range(0, 0, 3))

        assert found == [(0, 4, b"4"), (0, 5, b"5")]
        assert left == []
        assert reader.gone == {0: 3 + 3}


def test_a_record_with_unreadable_headers_is_still_read(topic_settings: Settings) -> None:
    """If a header name is not UTF-8, the record is read without its headers."""
    producer = RawProducer(topic_settings.kafka_brokers)
    producer.produce(topic_settings.kafka_topic, b"bad", [(b"name", b"1"), (b"\xff", b"2")])
    producer.produce(topic_settings.kafka_topic, b"after", [(b"name", b"1")])
    producer.close()

    with RangeReader(topic_settings, topic_settings.kafka_topic) as topic:
        found = [(record.value, record.headers) for record in topic.read_all()]

    assert found == [(b"bad", UNREADABLE), (b"after", (("name", b"1"),))]


def test_a_batch_that_cannot_be_decompressed_is_skipped_and_counted(made_on_apache: Settings) -> None:
    """If a record batch of a few kB decompresses to 150 MB, only its records are skipped."""
    produce(made_on_apache, [b"before"])
    bomb = Producer(
        {
            "bootstrap.servers": made_on_apache.kafka_brokers,
            "compression.type": "zstd",
            "message.max.bytes": 200_000_000,
            "batch.size": 300_000_000,
            "linger.ms": 2000,
        }
    )
    for value in (b"beside", bytes(150_000_000)):
        bomb.produce(made_on_apache.kafka_topic, value, partition=0)
    assert bomb.flush(60) == 0
    produce(made_on_apache, [b"after"])

    with RangeReader(made_on_apache, made_on_apache.kafka_topic) as reader:
        found = values(reader, Range(0, 0, 4))
        hidden, reader.unreadable = dict(reader.unreadable), type(reader.unreadable)()
        everything = [record.value for record in reader.read_all()]
        only = values(reader, Range(0, 2, 3))

    assert found == [(0, 0, b"before"), (0, 3, b"after")]
    assert hidden == {0: 2}
    assert everything == [b"before", b"after"]
    assert only == []
    assert reader.unreadable == {0: 3}
    assert not reader.gone
