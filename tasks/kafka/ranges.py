"""Reads offset ranges [start, stop) of a topic's partitions, outside any consumer group.

    with RangeReader(settings, topic) as topic:
        for record in topic.read_all():
            ...

Does not subscribe or commit, so it does not affect readers. Partitions are read one after the other, in offset
order. A range may have gaps: compacted offsets, transaction markers, aborted messages. Reading ends at `stop`,
whether or not that offset has a record. Offsets not in the log (expired, or the topic was recreated) are skipped
and counted in `gone`; offsets whose record batch cannot be decompressed are skipped and counted in `unreadable`.

Every read is bounded by its range, by a timeout for responses, and by `Bounds`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from tasks.faults import Fault
from tasks.kafka.faults import REFUSED, UNCONNECTED, ClientErrors, list_topics
from tasks.kafka.options import kafka_options
from tasks.kafka.records import Record, record_of
from tasks.settings import Settings
from tasks.units import KiB, MiB

CALL_SECONDS_MAX = 15.0
DOWN_SECONDS_MAX = 1.5
POLL_SECONDS = 1.0
FETCH_WAIT_MS = 100
"""Maximum time a broker delays the end-of-partition response."""
QUEUED_BYTES_MAX = 32 * MiB
END = 2**63 - 1
GROUP = "replays-ingest-ranges"
"""librdkafka requires a group name even without joining."""

MISSING = frozenset((KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION))
# Errors about the read position: end of the log, offset out of range, record batch that cannot be decompressed.
POSITION_ERRORS = frozenset(
    (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET, KafkaError._BAD_COMPRESSION)
)
COORDINATOR_MOVE_ERRORS = frozenset(
    (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
)
COORDINATOR_WAIT_SECONDS = 0.1


class RangeError(Exception):
    """A range was not read to its end. The message names the topic and the reason. `fault`: the brokers' fault if
    it prevented the read, otherwise None.
    """

    def __init__(self, text: str, fault: Fault | None = None) -> None:
        super().__init__(text)
        self.fault = fault


class TopicMissing(RangeError):
    """The topic or partition does not exist."""


class KafkaRefused(RangeError):
    """The brokers refuse to serve reads: wrong password or certificate, or missing permission."""


class KafkaUnreachable(RangeError):
    """The brokers did not respond in time. A later read may succeed."""


class BoundReached(RangeError):
    """A limit of `Bounds` was reached."""


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets [start, stop) of one partition; empty when both are equal."""

    partition: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        assert 0 <= self.start <= self.stop, self

    def __str__(self) -> str:
        stop = "end" if self.stop == END else self.stop
        return f"partition {self.partition} [{self.start}, {stop})"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one `read`; None means unlimited.

    `seconds_max`: maximum total time to wait for Kafka, excluding the caller's processing time.
    `silent_seconds_max`: maximum wait for the next record. `metadata_seconds_max`: maximum wait for the topic's
    description; `down_seconds_max`: maximum wait for this description while the client is not connected to any
    broker.
    """

    messages_max: int | None = None
    bytes_max: int | None = None
    seconds_max: float | None = None
    silent_seconds_max: float = 60.0
    metadata_seconds_max: float = CALL_SECONDS_MAX
    down_seconds_max: float = DOWN_SECONDS_MAX


class RangeReader:
    """One client for one topic, used by one thread and closed by its owner. Methods raise RangeError.

    Buffers at most QUEUED_BYTES_MAX, or a single message if that message is larger. `group`: the consumer group
    whose offsets `committed` returns.
    """

    def __init__(
        self, settings: Settings, topic: str, *, group: str = GROUP, bounds: Bounds | None = None
    ) -> None:
        self.topic = topic
        self._brokers = settings.kafka_brokers
        self.gone: Counter[int] = Counter()
        """By partition: offsets in the ranges that are not in the log."""
        self.unreadable: Counter[int] = Counter()
        """By partition: offsets in record batches that the client cannot decompress, or that are too large."""
        self._bounds = bounds or Bounds()
        self._last_error = ""
        self._client_errors = ClientErrors()
        self._refusal: KafkaError | None = None
        options: dict[str, Any] = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            # Report an offset out of range instead of resetting silently.
            "auto.offset.reset": "error",
            "queued.max.messages.kbytes": QUEUED_BYTES_MAX // KiB,
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            **kafka_options(settings),
            "error_cb": self._note_error,
        }
        self._consumer = Consumer(options, logger=self._client_errors)

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._consumer.close()

    # Metadata

    def partitions(self) -> tuple[int, ...]:
        """Returns the partition numbers of the topic, in ascending order."""
        with self._converting_errors():
            found = list_topics(
                self._consumer,
                self._client_errors,
                self._bounds.metadata_seconds_max,
                topic=self.topic,
                down_seconds_max=self._bounds.down_seconds_max,
            )
            described = found.topics[self.topic]
            if described.error is not None:
                raise KafkaException(described.error)
        return tuple(sorted(described.partitions))

    def held(self, partition: int) -> Range:
        """Returns the range of offsets that a partition currently stores."""
        source = KafkaPartition(self.topic, partition)
        with self._converting_errors():
            low, high = self._consumer.get_watermark_offsets(source, timeout=CALL_SECONDS_MAX, cached=False)
        return Range(partition, max(0, low), max(0, low, high))

    def committed(self, partitions: Iterable[int]) -> dict[int, int]:
        """Returns the group's committed offset by partition; 0 if there is none."""
        requested = [KafkaPartition(self.topic, partition) for partition in partitions]
        ends_at = time.monotonic() + CALL_SECONDS_MAX
        with self._converting_errors():
            while True:
                try:
                    answer = self._consumer.committed(requested, timeout=max(0.1, ends_at - time.monotonic()))
                    break
                except KafkaException as failure:
                    # A broker that has just started has not loaded its groups yet.
                    if failure.args[0].code() not in COORDINATOR_MOVE_ERRORS or time.monotonic() > ends_at:
                        raise
                    self._consumer.poll(COORDINATOR_WAIT_SECONDS)
            for entry in answer:
                if entry.error is not None:
                    raise KafkaException(entry.error)
        return {entry.partition: max(0, entry.offset) for entry in answer}

    def offset_at(self, partition: int, seconds: float) -> int | None:
        """Returns the first offset whose message is not older than this time (Unix seconds); None if all messages
        are older."""
        requested = [KafkaPartition(self.topic, partition, int(seconds * 1000))]
        with self._converting_errors():
            found = self._consumer.offsets_for_times(requested, timeout=CALL_SECONDS_MAX)[0]
            if found.error is not None:
                raise KafkaException(found.error)
        return None if found.offset in (-1, OFFSET_END) else found.offset

    # Records

    def read(self, wanted: Iterable[Range]) -> Iterator[Record]:
        """Yields every record of these ranges, one range after another."""
        budget = _Budget(self._bounds)
        for range_ in wanted:
            if range_.start < range_.stop:
                yield from self._read(range_, budget)

    def read_all(self) -> Iterator[Record]:
        """Yields every record of the topic, up to the end of each partition as of its first fetch.

        The end is taken from fetch responses, because the embedded broker's offset query may return a lower value.
        """
        budget = _Budget(self._bounds)
        for partition in self.partitions():
            held = self.held(partition)
            if held.start < held.stop:
                yield from self._read(replace(held, stop=END), budget)

    def _read(self, wanted: Range, budget: _Budget) -> Iterator[Record]:
        position = wanted.start
        self._seek(wanted.partition, position)
        while position < wanted.stop:
            message = self._next(wanted, position, budget)
            if message is None:
                self.gone[wanted.partition] += wanted.stop - position
                return
            error, offset = message.error(), message.offset() or 0
            if error is None:
                if wanted.stop == END:
                    wanted = replace(wanted, stop=max(offset + 1, self._end(wanted.partition)))
                if offset >= wanted.stop:
                    return  # the rest of the range has no records
                record = record_of(message)
                budget.take(record, f"{self.topic}, {wanted}")
                yield record
                position = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                if wanted.stop != END:
                    self.gone[wanted.partition] += max(0, wanted.stop - max(position, offset))
                return
            elif error.code() == KafkaError._BAD_COMPRESSION:
                self.unreadable[wanted.partition] += 1
                position += 1
                if wanted.stop == END:
                    wanted = replace(wanted, stop=max(position, self.held(wanted.partition).stop))
                self._seek(wanted.partition, position)
            else:
                position = self._skip_missing(wanted, position)

    def _next(self, wanted: Range, position: int, budget: _Budget) -> Message | None:
        """Returns the next record, or an error whose code is in POSITION_ERRORS. Returns None if no error is
        reported and the log ends before `position`.
        """
        silent_seconds = 0.0
        while True:
            began = time.monotonic()
            with self._converting_errors():
                message = self._consumer.poll(POLL_SECONDS)
            waited = time.monotonic() - began
            budget.wait(waited, f"{self.topic}, {wanted}")
            silent_seconds += waited
            error = None if message is None else message.error()
            if message is not None and (error is None or error.code() in POSITION_ERRORS):
                return message
            if error is not None:
                self._note_error(error)
            self._raise_if_refused()
            if silent_seconds > 2 * POLL_SECONDS and self._is_past_end(wanted.partition, position):
                return None
            if silent_seconds > self._bounds.silent_seconds_max:
                cause = f" ({self._last_error})" if self._last_error else ""
                raise KafkaUnreachable(
                    f"topic {self.topic}: no record from {wanted} at offset {position} for "
                    f"{self._bounds.silent_seconds_max:g} s{cause}"
                )

    def _skip_missing(self, wanted: Range, position: int) -> int:
        """Continues at the first available offset of the range; returns it, or `stop` if there is none."""
        held = self.held(wanted.partition)
        if held.start <= position < held.stop:
            raise KafkaUnreachable(f"topic {self.topic}: offset {position} of {wanted} cannot be fetched")
        first = min(held.start, wanted.stop) if position < held.start else wanted.stop
        self.gone[wanted.partition] += first - position
        if first < wanted.stop:
            self._seek(wanted.partition, first)
        return first

    def _is_past_end(self, partition: int, position: int) -> bool:
        """Returns whether `position` is beyond the end of the log. The embedded broker reports no error in this
        case.
        """
        return 0 <= self._end(partition) < position and self.held(partition).stop < position

    def _end(self, partition: int) -> int:
        """Returns the end of the partition as of the last fetch."""
        with self._converting_errors():
            return self._consumer.get_watermark_offsets(KafkaPartition(self.topic, partition), cached=True)[1]

    def _seek(self, partition: int, offset: int) -> None:
        with self._converting_errors():
            self._consumer.assign([KafkaPartition(self.topic, partition, offset)])

    # Errors

    def _note_error(self, error: KafkaError) -> None:
        """Collects asynchronous errors of librdkafka, which keeps retrying."""
        self._last_error = error.str()
        self._client_errors.note(error)
        if error.code() in REFUSED or error.code() in MISSING or error.fatal():
            self._refusal = error

    def _raise_if_refused(self) -> None:
        if self._refusal is not None:
            raise self._sorted(self._refusal)

    @contextlib.contextmanager
    def _converting_errors(self) -> Iterator[None]:
        """Converts a client exception to a RangeError, preferring an asynchronous refusal as the reason."""
        try:
            yield
        except KafkaException as failure:
            with contextlib.suppress(KafkaException):
                self._consumer.poll(0)  # serves pending error callbacks
            self._raise_if_refused()
            error = failure.args[0]
            raise self._sorted(error) from failure

    def _sorted(self, error: KafkaError) -> RangeError:
        text = f"topic {self.topic}: {error.str()}"
        if error.code() in REFUSED or error.code() in UNCONNECTED:
            found = self._client_errors.fault(self._brokers, error)
            text = f"topic {self.topic}: {found.problem}; {found.what_to_do}"
            return (KafkaRefused if error.code() in REFUSED else KafkaUnreachable)(text, found)
        if error.code() in MISSING:
            return TopicMissing(text)
        return KafkaUnreachable(f"{text}; check that the brokers in REPLAYS_KAFKA_BROKERS={self._brokers} are up")


class _Budget:
    """Remaining limits of one read."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._messages = self._bytes = 0
        self._seconds = 0.0

    def take(self, record: Record, where: str) -> None:
        self._messages += 1
        self._bytes += len(record.value) + len(record.key or b"")
        if self._bounds.messages_max is not None and self._messages > self._bounds.messages_max:
            raise BoundReached(f"topic {where}: more than {self._bounds.messages_max} messages")
        if self._bounds.bytes_max is not None and self._bytes > self._bounds.bytes_max:
            raise BoundReached(f"topic {where}: more than {self._bounds.bytes_max} bytes")

    def wait(self, seconds: float, where: str) -> None:
        self._seconds += seconds
        if self._bounds.seconds_max is not None and self._seconds > self._bounds.seconds_max:
            raise BoundReached(f"topic {where}: not read to the end within {self._bounds.seconds_max:g} s")
