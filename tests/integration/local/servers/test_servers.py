"""Redis, Cloud Storage, Kafka and DogStatsD work with their client libraries and recover after being killed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from datadog.dogstatsd.base import DogStatsd
from google.api_core.exceptions import Conflict, NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from ingest.local.servers.gcs import CloudStorage
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.processes import Children, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.servers.statsd import Statsd, StatsdServer, count_of, parse_line, sum_of
from tasks.units import MiB


def storage_client(endpoint: str) -> Any:
    return storage.Client(
        project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": endpoint}
    )


# ---- Redis


def test_redis_refuses_writes_instead_of_evicting(children: Children, tmp_path: Path):
    """A full Redis refuses writes instead of evicting queues or staged batches."""
    server = Redis(children, tmp_path / "redis", memory_bytes_max=8 * MiB)
    server.start()
    client = redis.Redis.from_url(server.address)
    client.set("kept", b"x")

    def fill() -> None:
        for number in range(100):
            client.set(f"big{number}", b"x" * MiB)

    with pytest.raises(redis.exceptions.OutOfMemoryError):
        fill()
    assert client.get("kept") == b"x"


def test_redis_restarts_with_or_without_its_data(children: Children, tmp_path: Path):
    """After a kill, Redis restores its data from an append-only file, or starts empty if the file was removed; the
    same client reconnects.
    """
    server = Redis(children, tmp_path / "redis", appendonly=True)
    server.start()
    client = redis.Redis.from_url(server.address)
    client.set("a", b"1")

    server.restart(kill=True)
    assert client.get("a") == b"1"
    server.restart(kill=True, empty=True)
    assert client.get("a") is None


def test_redis_forgets_everything_by_default(children: Children, tmp_path: Path):
    """By default Redis has no append-only file, so a kill loses everything."""
    server = Redis(children, tmp_path / "redis")
    server.start()
    client = redis.Redis.from_url(server.address)
    client.set("a", b"1")

    server.restart(kill=True)

    assert client.get("a") is None


# ---- Cloud Storage


def test_one_writer_of_many_wins_a_precondition(gcs_endpoint: str, fresh_name: Callable[[str], str]):
    """With if_generation_match=0, exactly one of several concurrent writers succeeds."""
    bucket = storage_client(gcs_endpoint).create_bucket(fresh_name("bucket"))
    outcomes: list[str] = []

    def write() -> None:
        try:
            storage_client(gcs_endpoint).bucket(bucket.name).blob("x").upload_from_string(
                b"x", if_generation_match=0
            )
            outcomes.append("won")
        except PreconditionFailed:
            outcomes.append("lost")

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]


def test_objects_survive_a_kill(children: Children, tmp_path: Path):
    """After a kill, objects still have their contents and metadata.

    A missing bucket gives 404, and an existing bucket gives 409 when it is created again.
    """
    server = CloudStorage(children, tmp_path / "gcs")
    server.start()
    client = storage_client(server.address)
    blob = client.create_bucket("bucket").blob("30/1/abc/0")
    blob.metadata = {"k": "v"}
    blob.upload_from_string(b"\x78\x9c", content_type="application/zlib")

    server.restart(kill=True)

    found = storage_client(server.address).bucket("bucket").get_blob("30/1/abc/0")
    assert found.download_as_bytes() == b"\x78\x9c"
    assert (found.content_type, found.metadata) == ("application/zlib", {"k": "v"})
    with pytest.raises(Conflict):
        client.create_bucket("bucket")
    with pytest.raises(NotFound):
        client.get_bucket("none")


# ---- Kafka


def produce(brokers: str, topic: str, count: int, partitions: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(10)
    producer = Producer({"bootstrap.servers": brokers})
    for number in range(count):
        producer.produce(topic, b"%d" % number, partition=number % partitions)
    assert producer.flush(10) == 0


def consumer_of(brokers: str, group: str) -> Consumer:
    options = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    return Consumer({"bootstrap.servers": brokers, "session.timeout.ms": 2000, "log_level": 2, **options})


def read(consumer: Consumer, count: int) -> list[bytes]:
    values: list[bytes] = []

    def enough() -> bool:
        message = consumer.poll(0.1)
        if message is not None and not message.error():
            values.append(message.value())
        return len(values) >= count

    wait_until(enough, 30, f"{count} messages")
    return values


def test_tansu_keeps_messages_and_committed_offsets(kafka_brokers: str, fresh_name: Callable[[str], str]):
    """Tansu keeps messages and committed offsets, so the next member of a group continues at the committed
    offset.
    """
    topic, group = fresh_name("topic"), fresh_name("group")
    produce(kafka_brokers, topic, 20)
    first = consumer_of(kafka_brokers, group)
    first.subscribe([topic])
    assert len(read(first, 20)) == 20
    first.commit(offsets=[TopicPartition(topic, 0, 12)], asynchronous=False)
    first.close()

    second = consumer_of(kafka_brokers, group)
    second.subscribe([topic])
    assert read(second, 8) == [b"%d" % number for number in range(12, 20)]
    second.close()


@pytest.mark.kafka
def test_apache_kafka_keeps_the_metadata_of_a_commit(apache_kafka: JavaKafka, fresh_name: Callable[[str], str]):
    """Apache Kafka stores the metadata of an offset commit, in which the cut record is kept; Tansu drops the
    metadata."""
    topic, group = fresh_name("topic"), fresh_name("group")
    produce(apache_kafka.address, topic, 10)
    consumer = consumer_of(apache_kafka.address, group)
    consumer.commit(offsets=[TopicPartition(topic, 0, 4, "1,2,2")], asynchronous=False)

    found = consumer.committed([TopicPartition(topic, 0)], timeout=10)[0]
    assert (found.offset, found.metadata) == (4, "1,2,2")
    assert consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10) == (0, 10)
    consumer.close()


@pytest.mark.kafka
def test_apache_kafka_keeps_its_data_after_a_kill(apache_kafka: JavaKafka, children: Children, tmp_path: Path):
    """After a kill and a restart of Apache Kafka, all messages can be read.

    The fixture `apache_kafka` skips the test with a reason if Kafka cannot run.
    """
    server = JavaKafka(children, tmp_path / "kafka", name="kafka-killed")
    server.start()
    produce(server.address, "t", 10)

    server.restart(kill=True)

    consumer = consumer_of(server.address, "g")
    consumer.assign([TopicPartition("t", 0, 0)])
    assert len(read(consumer, 10)) == 10
    consumer.close()


@pytest.mark.kafka
@pytest.mark.parametrize("security", ["SASL_SSL", "SSL"])
def test_apache_kafka_speaks_tls_and_sasl(
    apache_kafka: JavaKafka, children: Children, tmp_path: Path, security: Any
):
    """A client with the right TLS and SASL options can connect; a client with a wrong password, or without the CA
    certificate, cannot.
    """
    server = JavaKafka(children, tmp_path / "kafka", name=f"kafka-{security}", security=security)
    server.start()

    assert AdminClient(server.client_options).list_topics(timeout=10).brokers
    wrong = {**server.client_options, "log_level": 0}
    if "SASL" in security:
        wrong["sasl.password"] = "wrong"
    else:
        del wrong["ssl.ca.location"]
    with pytest.raises(Exception, match=r"_TRANSPORT|_TIMED_OUT|_ALL_BROKERS_DOWN|_AUTHENTICATION|_SSL"):
        AdminClient(wrong).list_topics(timeout=3)


# ---- DogStatsD


def test_the_listener_sums_metrics_of_the_official_client(statsd: Statsd):
    """The listener sums the official client's counters, gauges, distributions and timings by name and tags.

    The listener runs in its own process, from which the test reads the sums.
    """
    host, _, port = statsd.address.partition(":")
    client = DogStatsd(host=host, port=int(port), constant_tags=["env:test"], disable_telemetry=True)
    for size in (10, 20, 30):
        client.distribution("size", size, tags=["sink:gcs"])
    client.increment("done", 5)
    client.event("title", "text")
    client.flush()

    wait_until(lambda: statsd.count("size") == 3 and statsd.sum("done") == 5, 5, "the packets")
    entry = statsd.metrics("size")[0]
    assert entry["values"] == [10, 20, 30]
    assert entry["tags"] == ["env:test", "sink:gcs"]
    assert entry["kind"] == "d"
    assert any(line.startswith("_e{") for line in statsd.packets())
    statsd.reset()
    assert statsd.metrics() == []


def test_the_listener_runs_inside_a_process_too():
    """The listener can run inside the test's process, for tests that need no separate listener."""
    with StatsdServer() as server:
        client = DogStatsd(host="127.0.0.1", port=server.port, disable_telemetry=True)
        client.increment("a", 2)
        client.flush()

        wait_until(lambda: sum_of(server.recorder.metrics(), "a") == 2, 5, "the packet")
        assert count_of(server.recorder.metrics(), "a") == 1


def test_statsd_lines_are_parsed():
    """Lines with sample rates, tags and several values are parsed, and lines that are not metrics are ignored."""
    sample = parse_line("a.b:1:2|c|@0.5|#x:1,a:2|c:container|T1")
    assert sample is not None
    assert (sample.values, sample.rate, sample.tags) == (("1", "2"), 0.5, ("a:2", "x:1"))
    for line in ("_e{1,1}:a|b", "_sc|a|0", "nothing", "a:1", "a:1|q", ":1|c", "a:1|c|@x"):
        assert parse_line(line) is None, line
