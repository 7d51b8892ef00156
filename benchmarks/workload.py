"""The load of a benchmark: segments generated from a seed, produced all at once or at a rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.shapes import Shape
from ingest.local.load.produce import PROFILES, stream
from ingest.settings import Settings
from tasks.units import MiB

BENCH_DIRECTORY = Path(".bench")
STARTED_AT = 1_790_000_000


@dataclass(frozen=True, slots=True)
class Workload:
    """Kafka values generated from a seed, and the name of the object that each value produces."""

    profile: str
    values: list[bytes]
    names: list[str]

    @property
    def mean_bytes(self) -> float:
        """Mean size of one value."""
        return sum(map(len, self.values)) / len(self.values)


def workload(count: int, profile: str = "clean", seed: int = 1) -> Workload:
    """Returns the workload, which is generated once and then read from .bench/."""
    BENCH_DIRECTORY.mkdir(exist_ok=True)
    path = BENCH_DIRECTORY / f"workload-{profile}-{count}-{seed}.msgpack"
    if not path.exists():
        pairs = [
            (message.value, message.entry.blob) for message in stream(PROFILES[profile], count, seed, STARTED_AT)
        ]
        path.with_suffix(".new").write_bytes(msgspec.msgpack.encode(pairs))
        path.with_suffix(".new").rename(path)
    found = msgspec.msgpack.decode(path.read_bytes(), type=list[tuple[bytes, str]])
    return Workload(profile, [value for value, _ in found], [name for _, name in found])


def make_topic(settings: Settings, partitions: int) -> None:
    """Creates the topics of a run."""
    admin = AdminClient({"bootstrap.servers": settings.kafka_brokers})
    topics = [NewTopic(settings.kafka_topic, partitions, 1), NewTopic(settings.dlq_topic, 1, 1)]
    topics.append(NewTopic(settings.operators_topic, 1, 1, config={"cleanup.policy": "compact"}))
    for future in admin.create_topics(topics).values():
        try:
            future.result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # if the client sent the request twice
                raise


class Load(threading.Thread):
    """Produces the segments of a run. Segments are assigned to the partitions in turn, so that each partition has
    the same load.

    Without a rate, all are produced at once. With a rate, the first `primer` segments are produced at once, and
    the others at that rate once `go` is set, so that the topic contains no backlog that built up while the system
    was starting. `sent_at` contains the time at which each segment was produced, in Unix seconds.
    """

    def __init__(self, settings: Settings, shape: Shape, workload: Workload) -> None:
        super().__init__(daemon=True)
        self._settings = settings
        self._shape = shape
        self._values = workload.values
        self.primer = min(shape.warm // 2, shape.count) if shape.rate else shape.count
        self.go = threading.Event()
        self.sent_at: list[float] = []

    def run(self) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self._settings.kafka_brokers,
                "linger.ms": 5,
                "message.max.bytes": 16 * MiB,
                "queue.buffering.max.kbytes": 65536,
                "compression.type": "lz4",
            }
        )
        for number in range(self.primer):
            self._send(producer, number)
        producer.flush(60)
        if self.primer == self._shape.count:
            return
        self.go.wait()
        began = time.monotonic() - self.primer / self._shape.rate
        for number in range(self.primer, self._shape.count):
            while (left := began + number / self._shape.rate - time.monotonic()) > 0:
                producer.poll(min(left, 0.05))
            self._send(producer, number)
        producer.flush(60)

    def _send(self, producer: Producer, number: int) -> None:
        value = self._values[number % len(self._values)]
        while True:
            try:
                producer.produce(
                    self._settings.kafka_topic, value=value, partition=number % self._shape.partitions
                )
                break
            except BufferError:
                producer.poll(0.05)
        self.sent_at.append(time.time())
        producer.poll(0)


def delays_of(
    objects: Mapping[str, float], load: Workload, sent_at: Sequence[float], shape: Shape
) -> dict[str, float]:
    """Returns percentiles of the delay from produce() to storage, in ms, for segments after the warm-up.

    A packed object is named after its batch, whose id ends with the batch's offset range. In the other layout, a
    segment is identified by its name, so the result is empty if segments were sent more than once.
    """
    delays: list[float] = []
    if shape.layout == "packed":
        for name, at in objects.items():
            stem = next(part for part in name.split("/") if part.count("-") >= 3)
            partition, start, stop = map(int, stem.split(".")[0].rsplit("-", 3)[1:])
            numbers = (offset * shape.partitions + partition for offset in range(start, stop))
            delays += [at - sent_at[number] for number in numbers if shape.warm <= number < len(sent_at)]
    elif shape.count <= len(load.names):
        for number in range(shape.warm, shape.count):
            if (at := objects.get(load.names[number])) is not None:
                delays.append(at - sent_at[number])
    if not delays:
        return {}
    delays.sort()
    found = {
        f"p{share}": delays[min(len(delays) - 1, len(delays) * share // 100)] * 1000 for share in (50, 90, 99)
    }
    return found | {"max": delays[-1] * 1000, "segments": float(len(delays))}
