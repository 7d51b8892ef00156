"""On real servers, `check` performs the operations of the reader and the workers, and leaves nothing behind."""

from __future__ import annotations

import io
import re
import signal
import time
from collections.abc import Callable, Iterable

import msgspec
import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from redis import Redis as Client
from rich.console import Console

from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.processes import wait_until
from ingest.observe.heartbeat import Heartbeat, UnownedPartition
from ingest.operate import rehearsal, status
from ingest.operate.finding import Finding, Severity
from ingest.operate.top import page
from ingest.settings import GroupProtocol, Settings
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.kafka.cluster import Cluster, ClusterError
from tasks.kafka.producing import AcknowledgedProducer
from tasks.names import CONTROL_QUEUE
from tasks.observe.presence import Presence, consumers, queues_of
from tasks.release import RELEASE
from tasks.wire import SinkName
from tests.kit.fleet import Fleet

GROUP_SECONDS_MAX = 10


def only(findings: Iterable[Finding]) -> Finding:
    (found,) = findings
    return found


@pytest.fixture
def kafka(apache_kafka: JavaKafka, fresh_name: Callable[[str], str]) -> Callable[..., Settings]:
    """A function that creates a new topic with two partitions on Apache Kafka and returns its settings."""
    topic = fresh_name("topic")
    admin = AdminClient({"bootstrap.servers": apache_kafka.address})
    for future in admin.create_topics(
        [NewTopic(name, num_partitions=2) for name in (topic, f"{topic}-dlq")]
    ).values():
        future.result(20)

    def make(**given: object) -> Settings:
        fresh = {"kafka_brokers": apache_kafka.address, "kafka_topic": topic, "kafka_group": f"{topic}-group"}
        return Settings.model_validate(fresh | given)

    return make


def groups(settings: Settings) -> list[str]:
    """Returns the consumer groups whose names begin with the name of the production group."""
    admin = AdminClient({"bootstrap.servers": settings.kafka_brokers})
    found = admin.list_consumer_groups(request_timeout=GROUP_SECONDS_MAX).result(GROUP_SECONDS_MAX).valid
    return [listing.group_id for listing in found if listing.group_id.startswith(settings.kafka_group)]


@pytest.mark.parametrize("protocol", list(GroupProtocol))
def test_a_temporary_group_is_joined_committed_and_deleted(
    kafka: Callable[..., Settings], protocol: GroupProtocol
) -> None:
    """A temporary group is assigned both partitions; metadata as long as the longest cut record is committed and
    read back.

    The group is deleted afterwards.
    """
    settings = kafka(kafka_group_protocol=protocol, kafka_instance_id="reader-1")

    found = only(rehearsal.check_group(settings))

    assert found.level is Severity.OK, found
    assert "2 partitions assigned" in found.said
    assert "4000 bytes of metadata" in found.said
    assert "not tested" not in found.said
    assert groups(settings) == []


def test_a_commit_that_the_brokers_refuse_is_reported(kafka: Callable[..., Settings]) -> None:
    """A commit whose metadata is longer than the brokers accept is reported.

    The report names our setting and the brokers' setting, and `check` leaves no consumer group behind.
    """
    settings = kafka(cut_record_bytes_max=8000)

    found = only(rehearsal.check_group(settings))

    assert found.is_bad
    assert "offset.metadata.max.bytes" in found.advice
    assert "REPLAYS_CUT_RECORD_BYTES_MAX" in found.advice
    assert groups(settings) == []


def test_a_topic_without_readers_is_a_warning(kafka: Callable[..., Settings]) -> None:
    """If the group has no members, `check` reports a warning."""
    found = only(rehearsal.check_owners(kafka()))

    assert found.level is Severity.WARNING
    assert "no member" in found.said


def test_partitions_that_no_member_owns_are_an_error_with_their_lag(kafka: Callable[..., Settings]) -> None:
    """If the only member of the stable group reads another topic, the partitions without an owner are an error.

    The error contains the lag of these partitions.
    """
    settings = kafka()
    producer = AcknowledgedProducer(settings)
    for number in range(3):
        producer.produce(settings.kafka_topic, b"one key", b"%d" % number, ())
    other = Consumer({"bootstrap.servers": settings.kafka_brokers, "group.id": settings.kafka_group})
    try:
        other.subscribe([settings.dlq_topic])

        def is_member() -> bool:
            other.poll(0.1)
            try:
                group = Cluster(settings).group(settings.kafka_group, settings.kafka_topic)
            except ClusterError:  # the group's coordinator is still being chosen
                return False
            return group.stable and bool(group.members)

        wait_until(is_member, 30, "the member to join")
        found = only(rehearsal.check_owners(settings))
    finally:
        other.close()

    assert found.is_bad
    assert sorted(re.findall(r"\d \(lag \d\)", found.said)) in (
        ["0 (lag 0)", "1 (lag 3)"],
        ["0 (lag 3)", "1 (lag 0)"],
    )


def test_staging_and_tasks_are_checked_and_nothing_is_left(fleet: Fleet) -> None:
    """`check` stages a batch and runs a task in a worker, and no key remains in Redis."""
    before = set(fleet.client.keys("*"))

    for found in (only(rehearsal.check_staging(fleet.settings)), only(rehearsal.check_task(fleet.settings))):
        assert found.level is Severity.OK, found

    # The remaining keys are those with which clients verify that Redis accepts writes. These keys expire within
    # seconds.
    left = {key for key in set(fleet.client.keys("*")) - before if not key.endswith(b":probe")}
    assert left == set()


def test_no_worker_is_one_error(fleet: Fleet) -> None:
    """If no worker runs, `check` reports one error that names every queue, instead of one error per queue."""
    found = only(rehearsal.check_workers(fleet.settings))

    assert (found.name, found.is_bad) == ("workers", True)
    assert found.advice == "start `celery -A tasks worker`"
    assert all(queue in found.said for queue in queues_of(fleet.settings.sinks))


def test_a_queue_without_a_worker_is_an_error(fleet: Fleet) -> None:
    """If a worker serves only one queue, each other queue is reported as an error. The last finding says which
    worker to start.
    """
    served, *others = queues_of(fleet.settings.sinks)
    coordination = Coordination(connect(fleet.settings), fleet.settings)
    now = coordination.now()
    presence = Presence(host="h", processes=1, started_at=now, seen_at=now, queues=(served,), release=RELEASE)
    coordination.publish_worker("w@h", msgspec.json.encode(presence).decode())

    _, *found = rehearsal.check_workers(fleet.settings)

    assert [finding.name for finding in found] == [f"queue {name}" for name in others]
    assert all(finding.is_bad for finding in found)
    assert "celery -A tasks worker -Q control" in found[-1].advice


def test_status_and_top_show_partitions_without_an_owner(fleet: Fleet) -> None:
    """`status` and `top` show partitions without an owner, and ignore the reports of a silent reader."""
    coordination = Coordination(fleet.client, fleet.settings)
    for name, seen_at, unowned in (
        ("fresh", time.time(), (UnownedPartition(3, 41), UnownedPartition(5))),
        ("silent", time.time() - 3000, (UnownedPartition(7, 1),)),
    ):
        heartbeat = msgspec.json.encode(Heartbeat(seen_at=seen_at, unowned=unowned)).decode()
        coordination.publish_reader(name, heartbeat)

    found = status.collect(fleet.settings)
    console = Console(file=io.StringIO(), width=110)
    console.print(page(found))

    assert found.unowned == (UnownedPartition(3, 41), UnownedPartition(5))
    assert "partitions without an owner: 3 (lag 41), 5" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "queues without a worker: flush.gcs" in console.file.getvalue()  # type: ignore[attr-defined]


def test_workers_are_seen_with_their_queues_until_they_end(fleet: Fleet) -> None:
    """If the only running worker consumes two queues, the other queues have no consumer.

    The worker is no longer listed after it has stopped.
    """
    worker = fleet.worker("one", app="tasks", options=("-Q", f"{CONTROL_QUEUE},flush.gcs"))

    fleet.wait(lambda: bool(status.collect(fleet.settings).workers), "the worker to be listed")
    seen = status.collect(fleet.settings)
    (shown,) = seen.workers
    assert shown.worker.startswith("one@")
    assert shown.queues == (CONTROL_QUEUE, "flush.gcs")
    assert not shown.silent
    assert shown.processes == 2
    assert set(seen.queues_without_worker) == {
        name for name, count in consumers(seen.workers, fleet.settings.sinks).items() if not count
    }
    assert {"flush.clickhouse", "flush.bigquery"} <= set(seen.queues_without_worker)
    assert {sink.sink: sink.workers for sink in seen.sinks}["gcs"] == 1
    assert 0 < Client.from_url(fleet.redis.address).ttl(f"{fleet.settings.key_prefix}:workers") <= 3600

    worker.signal(signal.SIGTERM)
    fleet.wait(lambda: not status.collect(fleet.settings).workers, "the worker to be removed")


def test_readers_and_workers_with_different_apis_of_bigquery_are_named(fleet: Fleet) -> None:
    """Readers and workers that are configured with different BigQuery APIs are reported by name.

    Nothing is reported while their APIs agree, or if no process writes to BigQuery.
    """
    coordination = Coordination(fleet.client, fleet.settings)
    presence = Presence(seen_at=coordination.now(), queues=("flush.bigquery",), bigquery_write="storage")
    coordination.publish_worker("one@host", msgspec.json.encode(presence).decode())
    elsewhere = Presence(seen_at=coordination.now(), queues=("flush.gcs",), bigquery_write="insert_all")
    coordination.publish_worker("two@host", msgspec.json.encode(elsewhere).decode())

    def reported(api: str, sinks: tuple[SinkName, ...] = tuple(SinkName)) -> list[str]:
        beat = Heartbeat(seen_at=coordination.now(), bigquery_write=api)
        coordination.publish_reader("reader-7", msgspec.json.encode(beat).decode())
        settings = fleet.settings.model_copy(update={"sinks": sinks})
        return [finding.said for finding in rehearsal.check_workers(settings) if finding.name == "bigquery write"]

    assert reported("storage") == reported("") == reported("insert_all", (SinkName.GCS,)) == []
    assert reported("insert_all") == ["reader reader-7: insert_all, worker one@host: storage"]


def test_processes_of_different_releases_are_named(fleet: Fleet) -> None:
    """Processes of different releases are reported by name; nothing is reported while all processes have the same
    release."""
    coordination = Coordination(fleet.client, fleet.settings)

    def reported(release: str) -> list[str]:
        beat = Heartbeat(seen_at=coordination.now(), release=release)
        coordination.publish_reader("reader-7", msgspec.json.encode(beat).decode())
        return [finding.said for finding in rehearsal.check_workers(fleet.settings) if finding.name == "releases"]

    assert reported(RELEASE) == []
    (found,) = reported("0.0.9")
    assert "reader reader-7: 0.0.9" in found
    assert f"this command: {RELEASE}" in found
