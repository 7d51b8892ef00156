"""An environment for operator commands: a topic with messages, its dead letters, and a reader with parked
batches.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer
from redis import Redis

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, OffsetRange, Stage, TopicPartition
from ingest.local.launch import settings_of
from ingest.local.servers.processes import wait_until
from ingest.reader.dispatch import Dispatcher
from ingest.settings import Settings
from tasks.coordination import Coordination
from tasks.kafka.decisions import DecisionWriter, load
from tasks.kafka.letters import Label, Origin
from tasks.migrate import migrate
from tasks.sinks import build
from tasks.wire import DeadLetter
from tests.kit.batches import batch_of, segment

READER = "reader-1"
MESSAGES = 5
DEADLINE_SECONDS = 30.0


@dataclass(frozen=True)
class OperatorSystem:
    """The operator environment, whose REPLAYS_* variables are in `env`.

    The topic holds `message 0` to `message 4`, on partition 0.
    """

    env: dict[str, str]
    settings: Settings
    reader: Dispatcher
    inbox: queue.SimpleQueue[on.Event] = field(default_factory=queue.SimpleQueue)

    @property
    def redis(self) -> Any:
        return Redis.from_url(self.settings.redis_url.get_secret_value())

    @property
    def coordination(self) -> Coordination:
        return Coordination(self.redis, self.settings)

    def next_event(self) -> on.Event:
        """Waits for the next event that the reader receives, and returns it."""
        return self.inbox.get(timeout=DEADLINE_SECONDS)

    def park(self, start: int, stop: int, error: str = "clickhouse is away") -> Batch:
        """Parks a batch with the given range."""
        held = [segment(offset) for offset in range(start, stop)]
        source = TopicPartition(self.settings.kafka_topic, 0)
        batch = batch_of(held, [], OffsetRange(start, stop), source=source)
        self.reader.submit(do.Park(batch, Stage.ROWS, 3, error, 300.0))
        wait_until(lambda: batch.id in self.coordination.parked(), DEADLINE_SECONDS, "the batch to be parked")
        wait_until(lambda: READER in self.coordination.readers(), DEADLINE_SECONDS, "the reader's heartbeat")
        return batch

    def simulate_exit(self) -> None:
        """Simulates the exit of the reader by removing its heartbeat."""
        self.reader.stop(1.0)
        self.redis.hdel(f"{self.settings.key_prefix}:readers", READER)

    def add_dead_letter(self, offset: int, reason: str) -> None:
        """Makes the message at the given offset a dead letter."""
        label = Label(reason, "it never parses", Origin(self.settings.kafka_topic, 0, offset), "")
        sink = build("dead_letter", self.settings)
        try:
            letter = DeadLetter(None, b"message %d" % offset, label.encode(), offset)
            sink.write([letter], f"letter-{offset}", DEADLINE_SECONDS)
        finally:
            sink.close()


def set_up_operator_system(env: dict[str, str]) -> Settings:
    """Empties the Redis database, creates the topics, the bucket and the tables, and produces the messages."""
    settings = settings_of(env)
    Redis.from_url(settings.redis_url.get_secret_value()).flushdb()
    for _ in migrate(settings, topics=True):
        pass
    producer = Producer({"bootstrap.servers": settings.kafka_brokers})
    for number in range(MESSAGES):
        producer.produce(settings.kafka_topic, b"message %d" % number, partition=0)
    assert producer.flush(20) == 0
    return settings


@contextmanager
def open_operator_system(env: dict[str, str], settings: Settings) -> Iterator[OperatorSystem]:
    """Opens an operator environment with a live reader. Redis is emptied afterwards."""
    inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
    operator_system = OperatorSystem(env, settings, Dispatcher(settings, READER, inbox), inbox)
    operator_system.reader.start()
    try:
        yield operator_system
    finally:
        operator_system.reader.stop(1.0)
        DecisionWriter(settings).write(dict.fromkeys(load(settings).entries))
        operator_system.redis.flushdb()
