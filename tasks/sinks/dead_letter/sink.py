"""Rejected messages and refused rows, as records of the dead-letter topic.

Producing again makes a second record: Kafka has no key to overwrite by. A record's headers topic, partition and
offset (and sink, where a sink refused it) say what it is, and whoever reads the topic counts each of those once.
The idempotent producer keeps its own retries from doubling a record within the life of a process.

A dead letter has no other place to go. So nothing is ever the item's fault here: an error is for the machine,
or for a person who mends the topic while the batch waits, parked. That holds for a record that is too large as
well: the original came through a topic that took it, so the dead-letter topic has to take it with its headers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from tasks.errors import PermanentSinkError
from tasks.kafka.options import kafka_options, producer_options
from tasks.settings import Settings
from tasks.sinks.dead_letter.errors import TOO_LARGE, sort
from tasks.sinks.outcome import Kind, Outcome, Trouble, remaining_seconds
from tasks.sinks.per_process import PerProcess
from tasks.units import KiB
from tasks.wire import DeadLetter

POLL_SECONDS = 0.05
LOG_LEVEL_NOTICE = 5  # of syslog; below it librdkafka tells standard error how it cleans up
# Room for the headers that a dead letter has more than its original.
HEADERS_BYTES = 64 * KiB


class DeadLetterSink:
    """Writes DeadLetterItems. Memory: librdkafka's queue, at most 64 MiB."""

    name = "dead_letter"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.dlq_topic
        self._producer = PerProcess(lambda: Producer(producer_options(settings)))

    def write(self, items: Sequence[DeadLetter], token: str, deadline_seconds: float) -> None:
        """Produces `items` and returns when all in-sync replicas have them. `token` is not needed.

        TransientSinkError.failed lists what was not acknowledged in time. Such a record may still arrive.
        """
        ends_at = time.monotonic() + deadline_seconds
        outcome = Outcome(self.name)
        reports: dict[int, KafkaError | None] = {}
        try:
            producer = self._producer.get()
            for position, item in enumerate(items):
                self._produce(producer, item, _recorder(reports, position), ends_at)
            while len(reports) < len(items) and remaining_seconds(ends_at) > 0:
                producer.poll(min(POLL_SECONDS, remaining_seconds(ends_at)))
        except (KafkaException, BufferError, ValueError) as error:
            trouble = self._sorted(error, items)
            outcome.note(trouble, [place for place in range(len(items)) if place not in reports])
        refused: list[int] = []
        for position in range(len(items)):
            report = reports.get(position)
            if position not in reports:
                outcome.note(Trouble(Kind.TRANSIENT, "not acknowledged within the deadline"), [position])
            elif report is not None and report.name() in TOO_LARGE:
                refused.append(position)
            elif report is not None:
                outcome.note(self._sorted(KafkaException(report), items), [position])
        if refused:
            # Records travel in one batch and are refused with it: the largest is the one to make room for.
            outcome.note(self._too_large(max((items[place] for place in refused), key=_size_bytes)), refused)
        outcome.raise_if_any()

    def _produce(
        self,
        producer: Producer,
        item: DeadLetter,
        report: Callable[[KafkaError | None, Message], None],
        ends_at: float,
    ) -> None:
        """Queues one record, waiting for room. Raises BufferError when there is none until the deadline."""
        headers: Any = list(item.headers)
        while True:
            try:
                producer.produce(
                    self._topic, value=bytes(item.value), key=item.key, headers=headers, on_delivery=report
                )
                producer.poll(0)
                return
            except BufferError:
                if remaining_seconds(ends_at) <= 0:
                    raise
                producer.poll(min(POLL_SECONDS, remaining_seconds(ends_at)))

    def _sorted(self, error: BaseException, items: Sequence[DeadLetter]) -> Trouble:
        trouble = sort(error)
        code = error.args[0] if isinstance(error, KafkaException) else None
        if isinstance(code, KafkaError):
            if code.name() in TOO_LARGE:
                return self._too_large(max(items, key=_size_bytes))
            if code.fatal():
                self._producer.take()  # such a producer never works again; the next write makes another
        return Trouble(trouble.kind, f"topic {self._topic}: {trouble.message}")

    def _too_large(self, item: DeadLetter) -> Trouble:
        return Trouble(
            Kind.CONFIGURATION,
            f"topic {self._topic} refuses a record of {_size_bytes(item)} bytes "
            f"(offset {item.offset} of its source): raise its max.message.bytes above that",
        )

    def check(self) -> str:
        """Sees the topic, and that it takes what the source topic takes (where the broker tells)."""
        timeout_seconds = self._settings.sink_timeout_seconds
        try:
            admin = AdminClient({**kafka_options(self._settings), "log_level": LOG_LEVEL_NOTICE})
            found = admin.list_topics(timeout=timeout_seconds).topics.get(self._topic)
            if found is None or found.error is not None:
                raise PermanentSinkError(
                    f"topic {self._topic} is missing; run `replays-ingest migrate`", configuration=True
                )
            source, ours = (
                max_message_bytes(admin, topic, timeout_seconds)
                for topic in (self._settings.kafka_topic, self._topic)
            )
        except KafkaException as error:
            trouble = sort(error)
            brokers = self._settings.kafka_brokers
            raise Trouble(trouble.kind, f"brokers {brokers}: {trouble.message}").error() from error
        if source is not None and ours is not None and ours < source + HEADERS_BYTES:
            raise PermanentSinkError(
                f"topic {self._topic}: max.message.bytes is {ours}, so the largest messages of "
                f"{self._settings.kafka_topic} ({source}) do not fit; set it to {source + HEADERS_BYTES}",
                configuration=True,
            )
        return f"topic {self._topic} with {len(found.partitions)} partitions on {self._settings.kafka_brokers}"

    def close(self) -> None:
        producer = self._producer.take()
        if producer is not None:
            producer.flush(min(5.0, self._settings.sink_timeout_seconds))


def max_message_bytes(admin: AdminClient, topic: str, timeout_seconds: float) -> int | None:
    """The topic's limit; None when the broker does not tell (embedded ones, or no right to describe)."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        answer = admin.describe_configs([resource], request_timeout=timeout_seconds)
        entry = answer[resource].result(timeout_seconds).get("max.message.bytes")
        return int(entry.value) if entry is not None and entry.value is not None else None
    except (KafkaException, TimeoutError, ValueError):
        return None


def _recorder(
    reports: dict[int, KafkaError | None], position: int
) -> Callable[[KafkaError | None, Message], None]:
    """A delivery callback that knows which item it is about."""

    def report(error: KafkaError | None, message: Message) -> None:
        reports[position] = error

    return report


def _size_bytes(item: DeadLetter) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in item.headers)
    return len(item.key or b"") + len(item.value) + headers
