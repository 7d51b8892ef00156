"""Operator actions on parked batches, with a real broker from which to read the range again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import OffsetRange, Stage
from ingest.settings import Settings
from tasks.coordination import PARKED_LEASE_SECONDS, Coordination
from tasks.errors import TransientSinkError
from tasks.kafka.letters import Origin, decode
from tasks.kafka.ranges import RangeReader
from tasks.kafka.records import Headers
from tasks.operate import NotParked, ReaderGone, abandon, retry
from tasks.sinks import build
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet


@pytest.fixture
def topic(kafka_brokers: str, fresh_name: Callable[[str], str]) -> str:
    """A topic with five messages, and its dead-letter topic."""
    name = fresh_name("recordings")
    admin = AdminClient({"bootstrap.servers": kafka_brokers})
    for future in admin.create_topics([NewTopic(name, 1), NewTopic(f"{name}-dlq", 1)]).values():
        future.result(20)
    producer = Producer({"bootstrap.servers": kafka_brokers})
    for number in range(5):
        producer.produce(name, f"message {number}".encode(), key=b"k", headers=[("trace", b"t")], partition=0)
    assert producer.flush(20) == 0
    return name


def park(fleet: Fleet, topic: str, start: int, stop: int) -> str:
    """Records a batch with the given range as parked by a running reader."""
    coordination = Coordination(fleet.client, fleet.settings)
    batch_id = f"{topic}-0-{start}-{stop}"
    about = {
        "batch_id": batch_id,
        "reader": "reader-1",
        "topic": topic,
        "partition": 0,
        "start": start,
        "stop": stop,
    }
    coordination.park(batch_id, {**about, "messages": stop - start, "parked_at": 0.0})
    fleet.wait(lambda: "reader-1" in coordination.readers(), "the reader")
    return batch_id


def test_an_abandoned_batch_is_dead_lettered_before_its_reader_is_notified(
    fleet: Fleet, kafka_brokers: str, topic: str
) -> None:
    """When a batch is abandoned, its original messages first become dead letters with the reason.

    The action is then audited, and the reader is notified and continues.
    """
    fleet.dispatcher()
    batch_id = park(fleet, topic, 1, 4)
    settings = Settings(kafka_brokers=kafka_brokers, kafka_topic=topic)
    coordination = Coordination(fleet.client, settings)

    printed = abandon(settings, coordination, build("dead_letter", settings), batch_id, "schema is gone", "ann")

    assert printed == f"{batch_id} is abandoned: 3 messages are dead letters, 0 had expired from the topic"
    assert fleet.next_event() == on.BatchAbandoned(batch_id, OffsetRange(1, 4), "schema is gone")
    letters = consume(settings, f"{topic}-dlq")
    assert [value for value, _ in letters] == [b"message 1", b"message 2", b"message 3"]
    label = decode(letters[0][1])
    assert label is not None
    assert (label.reason, label.error) == ("abandoned", "schema is gone (by ann)")
    assert (label.origin, label.batch_id) == (Origin(topic, 0, 1), batch_id)
    assert label.originals == (("trace", b"t"),)
    (action,) = coordination.audited()
    assert (action["what"], action["by"], action["reason"], action["messages"]) == (
        "abandon",
        "ann",
        "schema is gone",
        "3",
    )


def test_nothing_is_abandoned_while_dead_letters_cannot_be_stored(
    fleet: Fleet, kafka_brokers: str, topic: str
) -> None:
    """If the dead letters cannot be stored, the reader is not notified, and the batch stays parked."""
    fleet.dispatcher()
    batch_id = park(fleet, topic, 0, 2)
    settings = Settings(kafka_brokers=kafka_brokers, kafka_topic=topic, sink_timeout_seconds=1)
    away = build("dead_letter", settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"}))
    coordination = Coordination(fleet.client, fleet.settings)

    with pytest.raises(TransientSinkError):
        abandon(settings, coordination, away, batch_id, "why not", "ann")

    assert batch_id in coordination.parked()
    assert coordination.audited() == []
    assert fleet.inbox.empty()


@pytest.mark.parametrize("operate", ["retry", "abandon"])
def test_a_parked_entry_without_renewal_expires(
    fleet: Fleet, kafka_brokers: str, topic: str, operate: str
) -> None:
    """If the `Discard` command of a batch is lost, the batch's parked entry is no longer renewed and expires.

    Once the lease has expired, the batch cannot be retried or abandoned.
    """
    fleet.dispatcher()
    batch_id = park(fleet, topic, 0, 2)
    coordination = Coordination(fleet.client, fleet.settings)
    about = coordination.parked()[batch_id]
    over = {**about, "leased_until": coordination.now() - 1}
    fleet.client.hset(f"{fleet.settings.key_prefix}:parked", batch_id, json.dumps(over))
    settings = Settings(kafka_brokers=kafka_brokers, kafka_topic=topic)

    letters = build("dead_letter", settings)
    actions = {
        "retry": lambda: retry(coordination, batch_id, "ann"),
        "abandon": lambda: abandon(settings, coordination, letters, batch_id, "why not", "ann"),
    }

    with pytest.raises(NotParked, match="no reader holds a parked batch"):
        actions[operate]()

    assert coordination.parked() == {}
    assert consume(settings, f"{topic}-dlq") == []
    assert fleet.inbox.empty()


def test_a_renewal_restores_parked_entries_after_flushall(fleet: Fleet, topic: str) -> None:
    """After FLUSHALL a renewal restores the parked entries, because the lease contains everything that
    operators see.
    """
    batch, dispatcher = make_batch(), fleet.dispatcher()
    coordination = Coordination(fleet.client, fleet.settings)
    parked = do.Park(batch, Stage.BLOBS, 2, "bucket is gone", 25.0)
    fleet.client.flushall()

    dispatcher.submit(do.Renew(parked, 35.0))

    fleet.wait(lambda: batch.id in coordination.parked(), "the batch")
    shown = coordination.parked()[batch.id]
    assert (shown["error"], shown["attempt"]) == ("bucket is gone", 2)
    assert shown["retry_at"] - shown["parked_at"] == pytest.approx(60.0)
    assert fleet.client.ttl(f"{fleet.settings.key_prefix}:parked") > 0


@pytest.mark.parametrize("ahead_seconds", [-86_400.0, 86_400.0])
def test_a_lease_does_not_depend_on_the_clock_of_its_reader(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, ahead_seconds: float
) -> None:
    """Even if the reader's clock is a day off, its lease has the normal length."""
    clock, dispatcher = time.time, fleet.dispatcher()
    coordination = Coordination(fleet.client, fleet.settings)
    monkeypatch.setattr(time, "time", lambda: clock() + ahead_seconds)

    dispatcher.submit(do.Park(make_batch(), Stage.BLOBS, 2, "bucket is gone", 25.0))

    fleet.wait(lambda: len(coordination.parked()) == 1, "the batch")
    (shown,) = coordination.parked().values()
    assert 0 < shown["leased_until"] - fleet.client.time()[0] <= PARKED_LEASE_SECONDS + 1


def test_only_a_parked_batch_of_a_running_reader_can_be_operated(fleet: Fleet) -> None:
    """Only a parked batch of a running reader can be retried or abandoned; otherwise the error explains why
    nothing was done.
    """
    coordination = Coordination(fleet.client, fleet.settings)
    with pytest.raises(NotParked, match="batches ls"):
        retry(coordination, "recordings-0-0-3", "ann")

    coordination.park("recordings-0-0-3", {"batch_id": "recordings-0-0-3", "reader": "dead", "parked_at": 0.0})

    with pytest.raises(ReaderGone, match="dead"):
        retry(coordination, "recordings-0-0-3", "ann")


def test_a_parked_batch_is_retried_through_the_fleet(fleet: Fleet) -> None:
    """When a worker runs the retry task that Flower starts, the reader is notified and retries, and the batch
    settles.
    """
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch()
    dispatcher.submit(do.Park(batch, Stage.ROWS, 1, "clickhouse is away", 300.0))
    fleet.wait(lambda: fleet.client.hexists("replays:parked", batch.id), "the batch to be parked")
    from tasks.chord import publisher

    publisher(fleet.settings).send_task("retry_batch", args=[batch.id], kwargs={"by": "ann"}, queue="control")

    assert fleet.next_event() == on.RetryRequested(batch.id)
    assert fleet.settle(dispatcher, batch, Stage.ROWS, 2) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)


def consume(settings: Settings, topic: str) -> list[tuple[bytes, Headers]]:
    """Returns the value and headers of every record."""
    with RangeReader(settings, topic) as reader:
        return [(record.value, record.headers) for record in reader.read_all()]
