"""Stores rejected messages and refused rows as records of the dead-letter topic.

A repeated write creates a second record, because Kafka cannot overwrite by key. The headers topic, partition and
offset (and sink, if a sink refused the item) identify a record, and readers of the topic count each identity once.
Within the lifetime of a process, the idempotent producer prevents duplicates that its own retries would cause.

A record is durable when its delivery report has no error and has the offset assigned by the broker.

A dead letter cannot be stored anywhere else, so no item ever counts as faulty here: an error is retried
automatically, or an operator fixes the topic while the batch is parked. This includes a record that is too large:
since the input topic accepted the message, the dead-letter topic must accept it with its headers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.kafka.letters import sealed
from tasks.kafka.options import producer_options
from tasks.kafka.producing import unconfirmed_delivery
from tasks.kafka.topics import MESSAGE_BYTES_MAX, ClusterUnreachable, Topics
from tasks.settings import Settings
from tasks.sinks.base import Report
from tasks.sinks.dead_letter.errors import TOO_LARGE, classify
from tasks.sinks.outcome import Blame, Failure, Outcome, seconds_until
from tasks.sinks.per_process import PerProcessValue
from tasks.units import KiB
from tasks.wire import DeadLetter

POLL_SECONDS = 0.05
# Space for the additional headers of a dead letter.
HEADERS_BYTES = 64 * KiB
PROOF = "The broker's delivery report for each record, with `acks=all`: no error, and an assigned offset."


class DeadLetterSink:
    """Writes dead letters. librdkafka's queue needs at most 64 MiB of memory."""

    name = "dead_letter"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.dlq_topic
        self._producer = PerProcessValue(lambda: Producer(producer_options(settings)))

    def write(self, items: Sequence[DeadLetter], token: str, deadline_seconds: float) -> None:
        """Produces `items` and returns when all in-sync replicas have them. `token` is not needed.

        TransientSinkError.failed lists the records that were not acknowledged in time. Such records may still be
        written.
        """
        ends_at = time.monotonic() + deadline_seconds
        outcome = Outcome(self.name)
        reports: dict[int, KafkaException | Failure | None] = {}
        try:
            producer = self._producer.get()
            for position, item in enumerate(items):
                self._produce(producer, item, _recorder(reports, position), ends_at)
            while len(reports) < len(items) and seconds_until(ends_at) > 0:
                producer.poll(min(POLL_SECONDS, seconds_until(ends_at)))
        except (KafkaException, BufferError, ValueError) as error:
            failure = self._sorted(error, items)
            outcome.note(failure, [place for place in range(len(items)) if place not in reports])
        refused: list[int] = []
        for position in range(len(items)):
            report = reports.get(position)
            if position not in reports:
                outcome.note(Failure(Blame.NETWORK, "not acknowledged within the deadline"), [position])
            elif isinstance(report, Failure):
                outcome.note(report.about(f"topic {self._topic}"), [position])
            elif report is not None and report.args[0].name() in TOO_LARGE:
                refused.append(position)
            elif report is not None:
                outcome.note(self._sorted(report, items), [position])
        if refused:
            # The broker refuses a record batch as a whole and does not say which record is too large, so the error
            # names the largest one.
            outcome.note(self._too_large(max((items[place] for place in refused), key=_size_bytes)), refused)
        outcome.raise_if_any()

    def _produce(
        self,
        producer: Producer,
        item: DeadLetter,
        report: Callable[[KafkaError | None, Message], None],
        ends_at: float,
    ) -> None:
        """Queues one record, waiting while the queue is full. Raises BufferError if it stays full until the
        deadline."""
        value = None if item.value is None else bytes(item.value)
        headers: Any = list(sealed(self._settings.seals, self._topic, item.key, value, item.headers))
        while True:
            try:
                producer.produce(self._topic, value=value, key=item.key, headers=headers, on_delivery=report)
                producer.poll(0)
                return
            except BufferError:
                if seconds_until(ends_at) <= 0:
                    raise
                producer.poll(min(POLL_SECONDS, seconds_until(ends_at)))

    def _sorted(self, error: BaseException, items: Sequence[DeadLetter]) -> Failure:
        failure = classify(error)
        code = error.args[0] if isinstance(error, KafkaException) else None
        if isinstance(code, KafkaError):
            if code.name() in TOO_LARGE:
                return self._too_large(max(items, key=_size_bytes))
            if code.fatal():
                self._producer.take()  # this producer cannot be used again; the next write creates another
        return failure.about(f"topic {self._topic}")

    def _too_large(self, item: DeadLetter) -> Failure:
        return Failure(
            Blame.TABLE,
            f"topic {self._topic} refuses a record of {_size_bytes(item)} bytes "
            f"(offset {item.offset} of its source): raise its max.message.bytes above that",
        )

    def examine(self, items: Sequence[DeadLetter], deadline_seconds: float) -> None:
        """Does nothing, because no letter counts as faulty."""

    def check(self) -> Report:
        """Checks the topic, its limits, and whether the account may write to it (if the broker reports that)."""
        timeout_seconds = self._settings.sink_timeout_seconds
        try:
            topics = Topics(self._settings)
            found = topics.inventory(timeout_seconds).topics.get(self._topic)
        except ClusterUnreachable as failure:
            if failure.refused:
                raise PermanentSinkError(str(failure), configuration=True) from failure
            raise TransientSinkError(str(failure)) from failure
        if found is None:
            raise PermanentSinkError(
                f"topic {self._topic} is missing; run `replays-ingest migrate`", configuration=True
            )
        source, letters_config = (
            topics.config(topic, timeout_seconds) for topic in (self._settings.kafka_topic, self._topic)
        )
        allowed = topics.may_write(self._topic, timeout_seconds)
        self._refuse_too_small(source, letters_config)
        if allowed is False:
            raise PermanentSinkError(
                f"topic {self._topic}: the account may not write to it; grant Write and IdempotentWrite",
                configuration=True,
            )
        not_tested = ["storing a record: Kafka cannot delete a single one"]
        if allowed is None:
            not_tested.append("the permission to write: the broker does not report it")
        if not letters_config:
            not_tested.append("the topic's configuration: the broker does not report it")
        return Report(
            f"topic {self._topic} with {found.partitions} partitions on {self._settings.kafka_brokers}",
            tuple(_config_warnings(self._topic, letters_config, found.in_sync)),
            tuple(not_tested),
        )

    def _refuse_too_small(self, source: Mapping[str, str], letters_config: Mapping[str, str]) -> None:
        """Raises PermanentSinkError if the largest message that the source topic allows would not fit into a
        record of the dead-letter topic.
        """
        wanted, have = (int(config.get(MESSAGE_BYTES_MAX) or 0) for config in (source, letters_config))
        if wanted and have and have < wanted + HEADERS_BYTES:
            raise PermanentSinkError(
                f"topic {self._topic}: max.message.bytes is {have}, so the largest messages of "
                f"{self._settings.kafka_topic} ({wanted}) do not fit; set it to {wanted + HEADERS_BYTES}",
                configuration=True,
            )

    def close(self) -> None:
        producer = self._producer.take()
        if producer is not None:
            producer.flush(min(5.0, self._settings.sink_timeout_seconds))


def _config_warnings(topic: str, config: Mapping[str, str], replicas: int) -> Iterator[str]:
    """Yields one sentence for each setting of the topic that may cause letters to be refused or lost."""
    if "compact" in config.get("cleanup.policy", "delete"):
        yield (
            f"topic {topic}: cleanup.policy is {config['cleanup.policy']}, so the broker refuses letters without "
            "a key and drops letters whose keys repeat: set it to delete"
        )
    needed = int(config.get("min.insync.replicas") or 1)
    if 0 < replicas < needed:
        yield f"topic {topic}: {replicas} replicas are in sync, and min.insync.replicas is {needed}"


def _recorder(
    reports: dict[int, KafkaException | Failure | None], position: int
) -> Callable[[KafkaError | None, Message], None]:
    """Returns a delivery callback for the item at this position."""

    def report(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            reports[position] = KafkaException(error)
            return
        lack = unconfirmed_delivery(message)
        reports[position] = Failure(Blame.NETWORK, lack, unproven=True) if lack else None

    return report


def _size_bytes(item: DeadLetter) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in item.headers)
    return len(item.key or b"") + len(item.value or b"") + headers
