"""P5: one Celery task per message, on Redis: the design that most teams build first.

    celery -A benchmarks.peers_celery worker --concurrency 4
    python -m benchmarks.peers_celery --brokers HOST:PORT --topic T --group G --endpoint URL

Both need PEER_REDIS (the URL of Redis), PEER_ENDPOINT (the URL of the store) and PEER_TAG (prefix of keys).

A loop around confluent-kafka's Consumer publishes each value as one task. A prefork worker with `acks_late` parses
it with the typed parser of P1 and uploads one object with google-cloud-storage, one upload at a time per process.
The task then sets its offset's bit in a Redis bitmap; each partition has its own bitmap. The loop reads the
bitmaps every half second, or more often while the maximum of 1000 tasks is in flight. At most every half second,
it commits the offsets up to the first missing bit.

P5 stores each message at least once, because an offset is committed only after all messages before it are stored.
When a killed loop is restarted, it reads the uncommitted messages again; the tasks of a killed worker are
delivered again after Redis's visibility timeout (an hour). P5 guarantees nothing else: if a message always fails,
or Redis loses its data, the commits of the affected partitions stop until the loop is restarted.

P5 is the cheapest form of this design that we found: values are msgpack instead of JSON with base64 (Celery's
Redis transport adds base64 anyway), results are ignored, a mark is one SETBIT, and workers send no events, gossip
or heartbeats.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis
from celery import Celery
from confluent_kafka import Consumer, TopicPartition

from benchmarks.peers_common import COMMIT_SECONDS, Upload, consumer_config, named, peer_parser
from benchmarks.peers_parse import typed

IN_FLIGHT_MAX = 1000
FULL_WAIT_SECONDS = 0.02
MARKS_TTL_SECONDS = 3600
RETRIES_MAX = 8


def celery_app(url: str, tag: str) -> Celery:
    """Returns the Celery application. `tag` is a prefix of all Redis keys."""
    app = Celery("peer", broker=url)
    app.conf.update(
        task_serializer="msgpack",
        accept_content=["msgpack"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_transport_options={"global_keyprefix": f"{tag}:"},
        broker_connection_retry_on_startup=True,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
    )
    return app


app = celery_app(os.environ.get("PEER_REDIS", "redis://127.0.0.1:6379/0"), os.environ.get("PEER_TAG", "peer"))


@cache
def _tools() -> tuple[Upload, redis.Redis]:
    """Returns the clients of this worker process."""
    return Upload(os.environ["PEER_ENDPOINT"], "replays", 1), redis.Redis.from_url(os.environ["PEER_REDIS"])


@app.task(bind=True, name="store", max_retries=RETRIES_MAX)
def store(self: Any, partition: int, offset: int, value: bytes) -> None:
    """Stores one message, and marks its offset."""
    upload, client = _tools()
    try:
        name, found = named(typed, value)
        upload(name, found.blob)
        client.setbit(marks_key(os.environ["PEER_TAG"], partition), offset, 1)
    except Exception as error:
        raise self.retry(exc=error, countdown=1) from error


def marks_key(tag: str, partition: int) -> str:
    """Returns the key of a partition's bitmap."""
    return f"{tag}:marks:{partition}"


@dataclass(slots=True)
class Progress:
    """Offsets of one partition: the next one to commit, and the one after the last published task."""

    committed: int
    published: int

    def advance(self, marks: bytes, first_byte: int) -> int:
        """Moves `committed` over all set bits that follow it, and returns the number of these bits.

        `marks`: bytes of the bitmap, of which the first is byte number `first_byte`. Redis counts bits from the
        most significant one.
        """
        before = self.committed
        while self.committed < self.published:
            index = self.committed // 8 - first_byte
            if index >= len(marks) or not marks[index] & (0x80 >> self.committed % 8):
                break
            self.committed += 1
        return self.committed - before


class Loop:
    """Reads messages, publishes tasks, and commits the offsets of stored messages."""

    def __init__(self, consumer: Consumer, client: redis.Redis, topic: str, tag: str) -> None:
        self._consumer = consumer
        self._client = client
        self._topic = topic
        self._tag = tag
        self._partitions: dict[int, Progress] = {}
        self._moved: set[int] = set()

    @property
    def in_flight(self) -> int:
        """Number of published messages that are not known to be stored."""
        return sum(found.published - found.committed for found in self._partitions.values())

    def publish(self, partition: int, offset: int, value: bytes) -> None:
        """Publishes one message as a task."""
        found = self._partitions.get(partition)
        if found is None:
            found = self._partitions[partition] = Progress(offset, offset)
        store.apply_async((partition, offset, value))
        found.published = offset + 1

    def read_marks(self) -> None:
        """Advances each partition to its first offset without a mark."""
        waiting = {
            number: found for number, found in self._partitions.items() if found.published > found.committed
        }
        if not waiting:
            return
        pipe = self._client.pipeline(transaction=False)
        for number, found in waiting.items():
            key = marks_key(self._tag, number)
            pipe.getrange(key, found.committed // 8, found.published // 8)
            pipe.expire(key, MARKS_TTL_SECONDS)
        answers = pipe.execute()[::2]
        for (number, found), marks in zip(waiting.items(), answers, strict=True):
            if found.advance(marks, found.committed // 8):
                self._moved.add(number)

    def commit(self) -> None:
        """Commits the offsets of the partitions that have advanced."""
        done = [TopicPartition(self._topic, number, self._partitions[number].committed) for number in self._moved]
        self._moved.clear()
        if done:
            self._consumer.commit(offsets=done, asynchronous=True)

    def forget(self, _: Any, revoked: list[TopicPartition]) -> None:
        """Drops the state of revoked partitions. Their new owner reads uncommitted messages again."""
        for one in revoked:
            self._partitions.pop(one.partition, None)
            self._moved.discard(one.partition)

    def run(self, ending: threading.Event) -> None:
        """Runs until `ending` is set."""
        self._consumer.subscribe([self._topic], on_revoke=self.forget)
        committed_at = time.monotonic()
        while not ending.is_set():
            is_full = self.in_flight >= IN_FLIGHT_MAX
            message = None if is_full else self._consumer.poll(0.05)
            if message is not None and message.error() is None:
                number, offset, value = message.partition(), message.offset(), message.value()
                assert number is not None
                assert offset is not None
                assert isinstance(value, bytes)
                self.publish(number, offset, value)
            if is_full:
                ending.wait(FULL_WAIT_SECONDS)
                self.read_marks()
            if time.monotonic() - committed_at >= COMMIT_SECONDS:
                self.read_marks()
                self.commit()
                committed_at = time.monotonic()
        self._consumer.close()


def main() -> None:
    """Command line. Runs the loop until SIGTERM."""
    arguments = peer_parser(__doc__ or "").parse_args()
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    client = redis.Redis.from_url(os.environ["PEER_REDIS"])
    Loop(Consumer(consumer_config(arguments)), client, arguments.topic, os.environ["PEER_TAG"]).run(ending)


if __name__ == "__main__":
    main()
