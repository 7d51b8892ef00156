"""Tests the reader's loop with a real broker: consume, commit, pause, rebalance. A test double replaces the
fleet.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence

import pytest
from confluent_kafka import Consumer, ConsumerGroupState, Producer
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from structlog.testing import capture_logs

from ingest.core import commands as do
from ingest.core import cut_record
from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.model import Message
from ingest.core.pipeline import Pipeline
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.processes import Children
from ingest.reader.assignment import ConsumerFailed
from ingest.reader.group_watch import TopicDescriber
from ingest.reader.kafka import STALLED_SECONDS_MAX, KafkaSource
from ingest.reader.runtime import Runtime
from ingest.settings import Settings
from tasks.kafka.records import UNREADABLE
from tests.kit.batches import segment
from tests.kit.raw_producer import RawProducer

DEADLINE_SECONDS = 60.0


class PlainParser:
    """A parser that turns every message into a segment."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed]:
        for message in messages:
            self.messages.append(message)
            outcome = segment(message.offset, rows=False)
            yield on.MessageParsed(message.source, message.epoch, message.offset, outcome)


class Fleet:
    """A replacement for the flush fleet that keeps dispatched batches, and settles them while `open` is true."""

    def __init__(self, inbox: queue.SimpleQueue[on.Event]) -> None:
        self.inbox = inbox
        self.open = True
        self.dispatched: list[do.Dispatch] = []

    def submit(self, command: do.Dispatch | do.Park | do.Renew | do.Discard) -> None:
        if isinstance(command, do.Dispatch):
            self.dispatched.append(command)
            if self.open:
                self.settle(command)

    def settle(self, command: do.Dispatch) -> None:
        self.inbox.put(on.FlushSucceeded(command.batch.id, command.batch.epoch, command.stage))

    def stop(self, deadline_seconds: float) -> None: ...


class Reader:
    """A reader that a test steps by hand, so that the test controls what happens between two steps."""

    def __init__(
        self,
        brokers: str,
        topic: str,
        limits: Limits,
        reset: str = "earliest",
        stalled_seconds_max: float = STALLED_SECONDS_MAX,
        **config: str,
    ) -> None:
        self.inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
        self.fleet = Fleet(self.inbox)
        self.events: list[on.Event] = []
        settings: dict[str, str | int] = {
            "bootstrap.servers": brokers,
            "group.id": f"{topic}-group",
            "topic.metadata.refresh.interval.ms": 500,
            **config,
        }
        if settings.get("group.protocol") != "consumer":
            settings |= {
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 500,
            }
        self.source = KafkaSource(
            settings,
            topic,
            self.inbox,
            reset,  # type: ignore[arg-type]
            TopicDescriber(Settings(kafka_brokers=brokers, kafka_topic=topic)),
            stalled_seconds_max,
        )
        self.pipeline = Pipeline(limits)
        self.parser = PlainParser()
        self.runtime = Runtime(
            self.pipeline, self.source, self.fleet, self.parser, self.inbox, time.monotonic, self.observe
        )
        self.source.subscribe(self.runtime.feed, self.runtime.drain)

    def observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        if not isinstance(event, on.Ticked):
            self.events.append(event)

    def step_until(self, condition: Callable[[], bool], *others: Reader) -> None:
        """Steps this loop, and `others` with it, until the condition holds."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.events[-5:]
            for reader in (self, *others):
                if reader.runtime.stopped is None:
                    reader.runtime.step()

    def seen(self, kind: type) -> list[on.Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def blobs(self) -> list[str]:
        return [
            f"{command.batch.source}/{blob.offset}"
            for command in self.fleet.dispatched
            for found in command.batch.segments
            for blob in found.blobs
        ]

    def crash(self) -> None:
        """Simulates a crash: nothing is drained and nothing is committed."""
        self.source.subscribe(lambda event: None, lambda sources: None)
        self.source.close()


def wait_for_assignment(brokers: str, group: str, partitions: int, seconds: float) -> bool:
    """Waits until the group's only member owns this many partitions, according to its coordinator.

    Returns False after the deadline.
    """
    admin = AdminClient({"bootstrap.servers": brokers})
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        members = admin.describe_consumer_groups([group])[group].result(timeout=DEADLINE_SECONDS).members
        if [len(member.assignment.topic_partitions) for member in members] == [partitions]:
            return True
    return False


def is_settled(admin: AdminClient, group: str, partitions: list[int]) -> bool:
    """Returns whether the group is stable and its members own these numbers of partitions, in ascending order."""
    found = admin.describe_consumer_groups([group])[group].result(timeout=DEADLINE_SECONDS)
    owned = sorted(len(member.assignment.topic_partitions) for member in found.members)
    return found.state == ConsumerGroupState.STABLE and owned == partitions


SETTLING_TURNS = 20
LIMITS = Limits(batch_messages_max=50, batch_age_seconds_max=0.2, drain_deadline_seconds=2.0)


@pytest.fixture(params=["tansu", pytest.param("apache", marks=pytest.mark.kafka)])
def brokers(request: pytest.FixtureRequest) -> str:
    """Runs a test on the embedded broker and on Apache Kafka."""
    if request.param == "tansu":
        return str(request.getfixturevalue("kafka_brokers"))
    return str(request.getfixturevalue("apache_kafka").address)


@pytest.fixture
def apache_topic(apache_kafka: JavaKafka, fresh_name: Callable[[str], str]) -> str:
    return create_topic(apache_kafka.address, fresh_name("recordings"), partitions=2)


@pytest.fixture
def topic(brokers: str, fresh_name: Callable[[str], str]) -> str:
    return create_topic(brokers, fresh_name("recordings"), partitions=2)


def create_topic(brokers: str, name: str, partitions: int) -> str:
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(20)
    return name


def produce(brokers: str, topic: str, count: int, partitions: int = 2) -> None:
    producer = Producer({"bootstrap.servers": brokers})
    for number in range(count):
        producer.produce(topic, b"%d" % number, partition=number % partitions)
    assert producer.flush(20) == 0


def committed(brokers: str, topic: str, partitions: int = 2) -> list[KafkaPartition]:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"{topic}-group"})
    try:
        found: list[KafkaPartition] = consumer.committed(
            [KafkaPartition(topic, number) for number in range(partitions)], timeout=10
        )
        return found
    finally:
        consumer.close()


def test_settled_batches_are_committed_one_past_their_last_message(brokers: str, topic: str) -> None:
    """Each of 300 messages is dispatched once, and in both partitions the offset after the last message is
    committed.
    """
    produce(brokers, topic, 300)
    reader = Reader(brokers, topic, LIMITS)

    reader.step_until(
        lambda: {(e.source.partition, e.offset) for e in reader.seen(on.Committed)} >= {(0, 150), (1, 150)}
    )  # type: ignore[attr-defined]

    assert [p.offset for p in committed(brokers, topic)] == [150, 150]
    assert sorted(reader.blobs()) == sorted(f"{topic}-{p}/{o}" for p in (0, 1) for o in range(150))
    reader.source.close()


@pytest.mark.kafka
def test_a_broker_stores_the_longest_record_by_default(apache_kafka: JavaKafka, apache_topic: str) -> None:
    """A broker with default settings stores a cut record of the maximum length. If the broker refused the
    record, the offset in the same commit would not be stored either.
    """
    stops = tuple(range(40, 100_000, 40))
    longest = cut_record.encode(0, cut_record.Record(stops=stops), Limits().cut_record_bytes_max)
    assert len(longest) >= Limits().cut_record_bytes_max - 1
    consumer = Consumer(
        {
            "bootstrap.servers": apache_kafka.address,
            "group.id": f"{apache_topic}-group",
            "enable.auto.commit": False,
        }
    )

    consumer.commit(offsets=[KafkaPartition(apache_topic, 0, 0, longest)], asynchronous=False)
    consumer.close()

    assert committed(apache_kafka.address, apache_topic)[0].metadata == longest


def test_nothing_is_committed_while_nothing_settles(brokers: str, topic: str) -> None:
    """While the fleet does not respond, the committed offset stays at the start, however much was read."""
    produce(brokers, topic, 300)
    reader = Reader(brokers, topic, LIMITS)
    reader.fleet.open = False

    reader.step_until(lambda: len(reader.blobs()) == 300)

    assert all(p.offset <= 0 for p in committed(brokers, topic))
    reader.crash()


def test_a_full_window_pauses_and_resumes_after_settling(brokers: str, topic: str) -> None:
    """A consumer that pauses at the limit of batches in flight and resumes after batches have settled loses no
    message, and reads no message twice.
    """
    produce(brokers, topic, 600)
    limits = Limits(
        batch_messages_max=20, batch_age_seconds_max=0.1, in_flight_batches_max=4, pause_after_seconds=0.1
    )
    reader = Reader(brokers, topic, limits)
    reader.fleet.open = False
    reader.step_until(lambda: reader.pipeline.paused)

    reader.fleet.open = True
    for command in reader.fleet.dispatched:
        reader.fleet.settle(command)
    reader.step_until(lambda: sum(e.offset == 300 for e in reader.seen(on.Committed)) >= 2)  # type: ignore[attr-defined]

    assert sorted(set(reader.blobs())) == sorted(reader.blobs())
    assert len(reader.blobs()) == 600
    reader.source.close()


def test_a_second_reader_takes_over_a_drained_partition(brokers: str, topic: str) -> None:
    """After a cooperative rebalance under load, the second reader continues from the committed offset, without
    duplicates.
    """
    produce(brokers, topic, 200)
    first = Reader(brokers, topic, LIMITS)
    first.step_until(lambda: len(first.blobs()) == 200)
    second = Reader(brokers, topic, LIMITS)

    first.step_until(lambda: len(first.pipeline.sources) == len(second.pipeline.sources) == 1, second)
    produce(brokers, topic, 200)
    first.step_until(lambda: len(first.blobs()) + len(second.blobs()) >= 400, second)

    assert len(set(first.blobs()) | set(second.blobs())) == 400
    assert len(first.blobs()) + len(second.blobs()) == 400
    for reader in (first, second):
        reader.source.close()


@pytest.mark.kafka
def test_a_reader_assigned_partitions_while_leaving_leaves_at_once(
    apache_kafka: JavaKafka, apache_topic: str
) -> None:
    """A reader that is assigned partitions while it leaves the group does not wait for offset queries, which get
    no response at that time.
    """
    produce(apache_kafka.address, apache_topic, 10)
    group = f"{apache_topic}-group"
    admin = AdminClient({"bootstrap.servers": apache_kafka.address})
    first = Reader(apache_kafka.address, apache_topic, LIMITS)
    for attempts_left in reversed(range(8)):
        second = Reader(apache_kafka.address, apache_topic, LIMITS)
        first.step_until(lambda: len(first.pipeline.sources) == len(second.pipeline.sources) == 1, second)  # noqa: B023
        first.step_until(lambda: is_settled(admin, group, [1, 1]), second)
        for _ in range(SETTLING_TURNS):  # the client may still have a pending callback of that rebalance
            first.runtime.step()
            second.runtime.step()
        second.source.close()
        given = wait_for_assignment(apache_kafka.address, group, 2, seconds=15)
        if given or not attempts_left:
            break
        # A callback of the previous rebalance may still be waiting for the first reader to poll, and would delay
        # the next rebalance.
        first.step_until(lambda: len(first.pipeline.sources) == 2)
    assert len(first.pipeline.sources) == 1, "the second partition is assigned only by the next poll"

    with capture_logs() as logs:
        first.source.close()

    assert given
    # The query would time out after CALL_SECONDS_MAX, and be repeated twice.
    assert [line["event"] for line in logs if line["event"] == "committed_offsets_unavailable"] == []


def test_a_partition_revoked_while_paused_is_read_after_its_return(brokers: str, topic: str) -> None:
    """A partition that was revoked while paused is read after it is assigned again, although the client keeps
    partitions paused across rebalances.
    """
    produce(brokers, topic, 400)
    limits = Limits(
        batch_messages_max=20,
        batch_age_seconds_max=0.1,
        in_flight_batches_max=4,
        pause_after_seconds=0.1,
        drain_deadline_seconds=1.0,
    )
    first = Reader(brokers, topic, limits)
    first.fleet.open = False
    first.step_until(lambda: first.pipeline.paused)
    second = Reader(brokers, topic, limits)
    second.fleet.open = False
    first.step_until(lambda: len(first.pipeline.sources) == len(second.pipeline.sources) == 1, second)

    first.fleet.open = True
    for command in first.fleet.dispatched:
        first.fleet.settle(command)
    second.crash()
    first.step_until(lambda: sum(e.offset == 200 for e in first.seen(on.Committed)) >= 2)  # type: ignore[attr-defined]

    assert [p.offset for p in committed(brokers, topic)] == [200, 200]
    first.source.close()


def test_a_stalled_partition_is_refetched(brokers: str, topic: str) -> None:
    """If the Kafka client silently stops fetching from a partition, the reader restarts the fetch, and the
    partition's messages still arrive.
    """
    reader = Reader(brokers, topic, LIMITS, stalled_seconds_max=1.0)
    produce(brokers, topic, 4)
    reader.step_until(lambda: len(reader.parser.messages) == 4)

    reader.source._consumer.pause([KafkaPartition(topic, 0)])
    produce(brokers, topic, 4)
    reader.source.query_log_ranges()
    with capture_logs() as logs:
        reader.step_until(lambda: len(reader.parser.messages) == 8)

    assert [line["partition"] for line in logs if line["event"] == "fetch_stalled"] == [0]
    assert sorted((m.source.partition, m.offset) for m in reader.parser.messages) == [
        (partition, offset) for partition in (0, 1) for offset in range(4)
    ]
    reader.source.close()


def test_shutdown_commits_settled_batches(brokers: str, topic: str) -> None:
    """On SIGTERM an open batch is flushed and committed, then the loop stops."""
    produce(brokers, topic, 30)
    reader = Reader(brokers, topic, Limits(batch_age_seconds_max=300, batch_age_idle_seconds=300))
    reader.step_until(lambda: len(reader.seen(on.MessageParsed)) == 30)

    reader.inbox.put(on.ShutdownRequested())
    stop = reader.runtime.run()

    assert stop.clean, reader.events[30:]
    assert [p.offset for p in committed(brokers, topic)] == [15, 15]


@pytest.mark.kafka
def test_an_offset_outside_the_log_follows_the_policy(apache_kafka: JavaKafka, apache_topic: str) -> None:
    """If the committed offset is past the end of the log, for example because the topic was recreated, the source
    reports this and reads the whole log.
    """
    produce(apache_kafka.address, apache_topic, 20)
    commit_far_ahead(apache_kafka.address, apache_topic)
    reader = Reader(apache_kafka.address, apache_topic, LIMITS)

    reader.step_until(lambda: len(set(reader.blobs())) == 20)

    assert {event.wanted for event in reader.seen(on.OffsetOutOfRange)} == {5000}  # type: ignore[attr-defined]
    reader.source.close()


@pytest.mark.kafka
def test_the_policy_error_stops_the_reader(apache_kafka: JavaKafka, apache_topic: str) -> None:
    """With the reset policy `error`, the reader stops, and the error names the setting that the operator must
    change.
    """
    produce(apache_kafka.address, apache_topic, 20)
    commit_far_ahead(apache_kafka.address, apache_topic)
    reader = Reader(apache_kafka.address, apache_topic, LIMITS, reset="error")

    with pytest.raises(ConsumerFailed, match="REPLAYS_KAFKA_OFFSET_RESET"):
        reader.step_until(lambda: False)
    reader.crash()


def commit_far_ahead(brokers: str, topic: str) -> None:
    commit(brokers, topic, [KafkaPartition(topic, number, 5000) for number in (0, 1)])


def commit(brokers: str, topic: str, offsets: list[KafkaPartition]) -> None:
    """Commits as an external tool would."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": f"{topic}-group"})
    consumer.commit(offsets=offsets, asynchronous=False)
    consumer.close()


@pytest.mark.kafka
def test_the_end_after_transaction_markers_is_committed(apache_kafka: JavaKafka, apache_topic: str) -> None:
    """After a committed and an aborted transaction, the reader commits the offset that follows their transaction
    markers, so that the lag is zero.
    """
    producer = Producer({"bootstrap.servers": apache_kafka.address, "transactional.id": apache_topic})
    producer.init_transactions(20)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for number in range(4):
            producer.produce(apache_topic, b"%d" % number, partition=number % 2)
        producer.flush(20)
        end(20)
    reader = Reader(apache_kafka.address, apache_topic, LIMITS)

    reader.step_until(
        lambda: {(e.source.partition, e.offset) for e in reader.seen(on.Committed)} >= {(0, 6), (1, 6)}
    )  # type: ignore[attr-defined]

    assert len(reader.blobs()) == 4
    assert {p.partition: reader.source.query_log_ranges()[p][1] for p in reader.pipeline.sources} == {0: 6, 1: 6}
    reader.source.close()


def test_a_header_name_that_is_not_text_does_not_stop_ingestion(brokers: str, topic: str) -> None:
    """A header name that is not text, which clients in other languages can send, does not stop ingestion.

    The message is ingested without its headers, and the next message is ingested as usual.
    """
    producer = RawProducer(brokers)
    producer.produce(topic, b"before", [(b"name", b"value")])
    for name in (b"\xff\xfe", b"caf\xe9"):
        producer.produce(topic, b"bad", [(b"name", b"value"), (name, b"value")])
    producer.produce(topic, b"after", [])
    producer.close()
    reader = Reader(brokers, topic, LIMITS)

    reader.step_until(
        lambda: (0, 4) in {(e.source.partition, e.offset) for e in reader.seen(on.Committed)}  # type: ignore[attr-defined]
    )

    assert reader.blobs() == [f"{topic}-0/{offset}" for offset in range(4)]
    headers = {message.value: message.headers for message in reader.parser.messages}
    assert headers == {b"before": (("name", b"value"),), b"bad": UNREADABLE, b"after": ()}
    reader.source.close()


# Where a partition starts


def starts(reader: Reader) -> dict[int, int | None]:
    """Returns the offset at which reading starts, for each partition that has no committed offset."""
    return {
        given.source.partition: given.start
        for event in reader.seen(on.PartitionsAssigned)
        for given in event.assignments  # type: ignore[attr-defined]
        if given.committed is None
    }


@pytest.mark.kafka
def test_the_start_chosen_by_the_policy_is_committed_before_reading(
    apache_kafka: JavaKafka, apache_topic: str
) -> None:
    """The start offset chosen by the reset policy is committed before the reader reads a message.

    The successor of a reader that died before its first batch therefore starts at the same offset and skips
    nothing.
    """
    brokers, topic = apache_kafka.address, apache_topic
    produce(brokers, topic, 20)
    first = Reader(brokers, topic, LIMITS, reset="latest")
    first.step_until(lambda: len(first.pipeline.sources) == 2)
    assert [p.offset for p in committed(brokers, topic)] == [10, 10]
    first.crash()

    produce(brokers, topic, 8)
    second = Reader(brokers, topic, LIMITS, reset="latest")
    second.step_until(lambda: len(second.blobs()) == 8)

    assert sorted(second.blobs()) == sorted(f"{topic}-{p}/{o}" for p in (0, 1) for o in range(10, 14))
    second.source.close()


@pytest.mark.kafka
@pytest.mark.parametrize("reset", ["latest", "error"])
def test_an_added_partition_is_read_from_its_beginning(
    apache_kafka: JavaKafka, apache_topic: str, reset: str
) -> None:
    """An added partition is read from its beginning, even if messages arrive before the group has discovered it.

    Under every policy, nothing is lost or skipped.
    """
    brokers = apache_kafka.address
    commit(brokers, apache_topic, [KafkaPartition(apache_topic, number, 0) for number in (0, 1)])
    reader = Reader(brokers, apache_topic, LIMITS, reset=reset)
    reader.step_until(lambda: len(reader.pipeline.sources) == 2)

    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_partitions([NewPartitions(apache_topic, 3)])[apache_topic].result(20)
    produce(brokers, apache_topic, 30, partitions=3)
    reader.step_until(lambda: len(reader.blobs()) == 30)

    assert starts(reader) == {2: 0}
    assert {f"{apache_topic}-2/{offset}" for offset in range(10)} <= set(reader.blobs())
    reader.source.close()


@pytest.mark.kafka
@pytest.mark.parametrize("reset", ["latest", "error"])
def test_a_recreated_topic_is_read_from_its_beginning(
    apache_kafka: JavaKafka, apache_topic: str, reset: str
) -> None:
    """The new log extends beyond the committed offset, so that only the topic id shows that the topic was
    recreated.

    The recorded cuts of the old log are ignored.

    Apache Kafka deletes a topic's offsets together with the topic; a member that commits once more restores the
    offsets.
    """
    brokers = apache_kafka.address
    produce(brokers, apache_topic, 20)
    first = Reader(brokers, apache_topic, LIMITS)
    first.step_until(lambda: sum(e.offset == 10 for e in first.seen(on.Committed)) >= 2)  # type: ignore[attr-defined]
    first.source.close()
    kept = committed(brokers, apache_topic)

    recreate(brokers, apache_topic)
    produce(brokers, apache_topic, 60)
    commit(brokers, apache_topic, kept)
    second = Reader(brokers, apache_topic, LIMITS, reset=reset)
    with capture_logs() as logs:
        second.step_until(lambda: len(second.blobs()) == 60)

    assert starts(second) == {0: 0, 1: 0}
    assert len([line for line in logs if line["event"] == "topic_recreated"]) == 1
    second.step_until(lambda: [p.offset for p in committed(brokers, apache_topic)] == [30, 30])
    second.source.close()
    third = Reader(brokers, apache_topic, LIMITS, reset=reset)
    third.step_until(lambda: len(third.pipeline.sources) == 2)
    assert starts(third) == {}, "the new topic's id is recorded with the offsets"
    third.source.close()


@pytest.mark.kafka
@pytest.mark.parametrize("reset", ["latest", "error"])
def test_a_topic_recreated_under_a_running_reader_is_read_from_its_beginning(
    apache_kafka: JavaKafka, apache_topic: str, reset: str
) -> None:
    """A topic that is recreated while a reader is running is read from its beginning.

    The committed offset is beyond the end of the new, shorter log, but no message was lost, so the reset policy
    does not apply.
    """
    brokers = apache_kafka.address
    produce(brokers, apache_topic, 40)
    commit(brokers, apache_topic, [KafkaPartition(apache_topic, number, 0) for number in (0, 1)])
    reader = Reader(brokers, apache_topic, LIMITS, reset=reset)
    reader.step_until(lambda: sum(e.offset == 20 for e in reader.seen(on.Committed)) >= 2)  # type: ignore[attr-defined]

    recreate(brokers, apache_topic)
    produce(brokers, apache_topic, 10)
    reader.step_until(lambda: len(reader.blobs()) == 50)

    assert reader.seen(on.OffsetOutOfRange) == []
    reader.source.close()


def recreate(brokers: str, topic: str) -> None:
    """Deletes the topic and creates it again under the same name, as soon as the brokers allow that."""
    admin = AdminClient({"bootstrap.servers": brokers})
    described = TopicDescriber(Settings(kafka_brokers=brokers, kafka_topic=topic))
    before = described().id
    admin.delete_topics([topic])[topic].result(20)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while topic in admin.list_topics(timeout=10).topics:
        assert time.monotonic() < deadline
    create_topic(brokers, topic, partitions=2)
    while described().id in ("", before):
        assert time.monotonic() < deadline


@pytest.mark.kafka
def test_readers_that_die_before_the_offset_advances_are_counted(
    apache_kafka: JavaKafka, apache_topic: str
) -> None:
    """Readers that die before the offset advances are counted in the commit's metadata; a clean shutdown does
    not count.
    """
    brokers = apache_kafka.address
    produce(brokers, apache_topic, 20)
    seen = []
    for number in range(4):
        reader = Reader(brokers, apache_topic, LIMITS)
        reader.fleet.open = False
        reader.step_until(lambda: len(reader.pipeline.sources) == 2)  # noqa: B023
        reader.step_until(lambda: len({e.source for e in reader.seen(on.Committed)}) == 2)  # noqa: B023
        seen.append(
            {source.partition: reader.pipeline.failed_starts(source) for source in reader.pipeline.sources}
        )
        if number == 2:
            reader.inbox.put(on.ShutdownRequested())
            reader.runtime.run()
        else:
            reader.crash()

    assert seen == [{0: 0, 1: 0}, {0: 1, 1: 1}, {0: 2, 1: 2}, {0: 2, 1: 2}]
    last = Reader(brokers, apache_topic, LIMITS)
    last.step_until(lambda: sum(e.offset == 10 for e in last.seen(on.Committed)) >= 2)  # type: ignore[attr-defined]
    assert [last.pipeline.failed_starts(source) for source in last.pipeline.sources] == [0, 0]
    last.source.close()


@pytest.mark.kafka
@pytest.mark.parametrize("bytes_max", [30, 8])
def test_a_broker_that_stores_shorter_records_gets_shorter_ones(
    children: Children, tmp_path_factory: pytest.TempPathFactory, fresh_name: Callable[[str], str], bytes_max: int
) -> None:
    """If a broker stores only shorter records, the record is shortened immediately, to nothing if necessary.

    Offsets are stored, and the refusal is logged once.
    """
    options = {"offset.metadata.max.bytes": str(bytes_max)}
    server = JavaKafka(children, tmp_path_factory.mktemp("kafka"), name=fresh_name("kafka"), options=options)
    server.start()
    topic = create_topic(server.address, fresh_name("recordings"), partitions=2)
    produce(server.address, topic, 200)
    reader = Reader(server.address, topic, LIMITS)

    with capture_logs() as logs:
        reader.step_until(lambda: sum(e.offset == 100 for e in reader.seen(on.Committed)) >= 2)  # type: ignore[attr-defined]

    assert [p.offset for p in committed(server.address, topic)] == [100, 100]
    logged = [line["event"] for line in logs if line["event"] in ("commit_failed", "commit_metadata_refused")]
    assert logged == ["commit_metadata_refused"]
    reader.source.close()
    server.stop()


@pytest.mark.kafka
def test_a_static_member_waits_until_its_instance_id_is_free(apache_kafka: JavaKafka, apache_topic: str) -> None:
    """Under KIP-848, the group refuses a reader whose instance id is still in use, for example by a killed
    predecessor whose session has not timed out yet.

    The refused reader logs one line, waits without exiting, and reads once the id is free.
    """
    static = {"group.protocol": "consumer", "group.instance.id": "one"}
    produce(apache_kafka.address, apache_topic, 20)
    first = Reader(apache_kafka.address, apache_topic, LIMITS, **static)
    first.step_until(lambda: len(first.pipeline.sources) == 2)
    second = Reader(apache_kafka.address, apache_topic, LIMITS, **static)

    with capture_logs() as logs:
        first.step_until(lambda: second.source.renewals >= 2, second)
        assert second.pipeline.sources == ()
        first.step_until(lambda: sum(e.offset == 10 for e in first.seen(on.Committed)) >= 2)  # type: ignore[attr-defined]
        first.source.close()
        produce(apache_kafka.address, apache_topic, 20)
        second.step_until(lambda: len(set(first.blobs()) | set(second.blobs())) == 40)

    assert len([line for line in logs if line["event"] == "instance_id_in_use"]) == 1
    second.source.close()


@pytest.mark.kafka
def test_two_readers_share_a_topic_under_the_consumer_protocol(apache_kafka: JavaKafka, apache_topic: str) -> None:
    """Under the consumer protocol, a second reader takes over a drained partition, and every message is read.

    Only the first reader has to choose the offset at which reading starts; the second reader finds a committed
    one.
    """
    brokers = apache_kafka.address
    produce(brokers, apache_topic, 200)
    first = Reader(brokers, apache_topic, LIMITS, **{"group.protocol": "consumer"})
    first.step_until(lambda: len(first.blobs()) == 200)
    second = Reader(brokers, apache_topic, LIMITS, **{"group.protocol": "consumer"})

    first.step_until(lambda: len(first.pipeline.sources) == len(second.pipeline.sources) == 1, second)
    produce(brokers, apache_topic, 200)
    first.step_until(lambda: len(first.blobs()) + len(second.blobs()) >= 400, second)

    assert len(set(first.blobs()) | set(second.blobs())) == 400
    assert starts(first) == {0: 0, 1: 0}
    assert starts(second) == {}
    for reader in (first, second):
        reader.source.close()
