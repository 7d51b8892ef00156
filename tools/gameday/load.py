"""The steady load of a game day: recordings that appear to arrive at Relay now, and malformed messages."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import msgspec
from confluent_kafka import KafkaError, Producer
from confluent_kafka import Message as KafkaMessage

from ingest.local.load.produce import PROFILES, default_start, values
from ingest.settings import Settings
from ingest.testing.messages import recording
from tasks.kafka.options import kafka_options

GARBAGE_PROJECT = 4242


class Load(threading.Thread):
    """Sends segments at a steady rate until `close`.

    `garbage_share`: unparsable messages to add, as a fraction of the segments; they belong to `garbage_projects`
    consecutive projects, starting at `garbage_project`. `silent`: send nothing. `ends`: the log end of each
    partition, counting only acknowledged messages.
    """

    def __init__(self, settings: Settings, rate: float) -> None:
        super().__init__(name="load", daemon=True)
        self.garbage_share, self.garbage_project, self.garbage_projects = 0.0, GARBAGE_PROJECT, 1
        self.silent = False
        self.ends: dict[int, int] = {}
        self.messages = 0
        self.error = ""
        self._rate, self._topic = rate, settings.kafka_topic
        self._over = threading.Event()
        options = {"linger.ms": 5, "partitioner": "random", "sticky.partitioning.linger.ms": 0}
        self._producer = Producer({**options, "enable.idempotence": True, **kafka_options(settings)})

    def run(self) -> None:
        profile = replace(PROFILES["small"], malformed=0.0)
        began, owed = time.monotonic(), 0.0
        for number, value in enumerate(values(profile, 10_000_000, 1, default_start())):
            while (left := began + number / self._rate - time.monotonic()) > 0:
                self._producer.poll(min(left, 0.1))
            if self._over.is_set():
                return
            if self.silent:
                continue
            self.send(received_at(value, int(time.time())))
            owed += self.garbage_share
            while owed >= 1:
                owed -= 1
                project_id = self.garbage_project + number % self.garbage_projects
                self.send(recording(b"hello", compressed=False, project_id=project_id, received=int(time.time())))

    def send(self, value: bytes, timestamp_ms: int = 0) -> None:
        """Queues one message. `timestamp_ms`: Kafka timestamp, Unix milliseconds; 0 means the current time."""
        self._producer.produce(self._topic, value, timestamp=timestamp_ms, on_delivery=self._delivered)

    def close(self) -> None:
        """Ends the load and waits for the last acknowledgement."""
        self._over.set()
        self.join(10)
        self._producer.flush(20)

    def _delivered(self, error: KafkaError | None, record: KafkaMessage) -> None:
        if error is not None:
            self.error = error.str()
            return
        partition, offset = record.partition(), record.offset()
        assert partition is not None
        assert offset is not None
        self.messages += 1
        self.ends[partition] = max(offset + 1, self.ends.get(partition, 0))


def received_at(value: bytes, seconds: int) -> bytes:
    """Returns the same message with the given arrival time at Relay (Unix seconds)."""
    envelope = msgspec.msgpack.decode(value)
    return msgspec.msgpack.encode({**envelope, "received": seconds})
