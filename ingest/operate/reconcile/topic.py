"""Reads a part of the input topic: converts a scope to spans and reads their messages.

Memory is bounded by one chunk of at most CHUNK_MESSAGES_MAX messages or about CHUNK_BYTES_MAX bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ingest.core.model import Message
from ingest.operate.remake import message_of
from ingest.settings import Settings
from tasks.kafka.ranges import Bounds, Range, RangeError, RangeReader
from tasks.units import MiB

CHUNK_MESSAGES_MAX = 1000
CHUNK_BYTES_MAX = 64 * MiB
SILENT_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Scope:
    """Either offsets [start, stop) of one partition, or a window of Kafka timestamps in Unix seconds, or the whole
    topic.

    A window starts at the first message that is not older than `since` and ends before the first message that is
    not older than `until`. Raises ValueError if both offsets and a window are given, or if the range is empty.
    """

    partition: int | None = None
    start: int | None = None
    stop: int | None = None
    since: float | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        by_offset = self.start is not None or self.stop is not None
        if by_offset and self.partition is None:
            raise ValueError("offsets require a partition: set --partition")
        if by_offset and (self.since is not None or self.until is not None):
            raise ValueError("give either offsets or a time window")
        if self.start is not None and self.stop is not None and self.start >= self.stop:
            raise ValueError(f"the range [{self.start}, {self.stop}) is empty: --stop is exclusive")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("the time window is empty: --since must be before --until")

    def holds(self, timestamp_ms: int) -> bool:
        """Returns whether a message with this timestamp is within the window. True for a message without a
        timestamp."""
        since, until = self.since or 0.0, math.inf if self.until is None else self.until
        return not timestamp_ms or since <= timestamp_ms / 1000 < until


@dataclass(slots=True)
class Span:
    """A part of one partition. `gone`: requested offsets that are no longer in the topic. `unreadable`: offsets in
    record batches that cannot be decompressed. `open`: offsets that were not read because they are not committed
    yet.
    """

    partition: int
    start: int
    stop: int
    gone: int = 0
    open: int = 0
    unreadable: int = 0

    def unread_offsets_text(self) -> str:
        """Describes the offsets that were not read; "" if all were read."""
        reasons = {
            "offsets are no longer in the topic": self.gone,
            "cannot be decompressed and were skipped": self.unreadable,
            "are not committed yet and were not read": self.open,
        }
        return "".join(f", {count} {reason}" for reason, count in reasons.items() if count)


class RecordingsTopic:
    """Reads the topic by offset. Methods raise tasks.kafka.ranges.RangeError."""

    def __init__(self, settings: Settings, scope: Scope, *, chunk_messages_max: int = CHUNK_MESSAGES_MAX) -> None:
        self._scope = scope
        self._chunk_messages_max = chunk_messages_max
        self._reader = RangeReader(
            settings,
            settings.kafka_topic,
            group=settings.kafka_group,
            bounds=Bounds(silent_seconds_max=SILENT_SECONDS_MAX),
        )

    def __enter__(self) -> RecordingsTopic:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def spans(self) -> list[Span]:
        """Returns the offsets to read, one span per partition; partitions with nothing to read are left out."""
        numbers = self._reader.partitions()
        if self._scope.partition is not None:
            if self._scope.partition not in numbers:
                raise RangeError(
                    f"topic {self._reader.topic} has no partition {self._scope.partition}: its partitions are "
                    f"{numbers[0]} to {numbers[-1]}"
                )
            numbers = (self._scope.partition,)
        committed = self._reader.committed(numbers)
        spans = [self._span(number, committed[number]) for number in numbers]
        return [span for span in spans if span.start < span.stop or span.gone or span.open]

    def committed(self) -> dict[int, int]:
        """Returns the group's committed offset for each partition in the scope."""
        if self._scope.partition is not None:
            return self._reader.committed((self._scope.partition,))
        return self._reader.committed(self._reader.partitions())

    def spans_from(self, positions: Mapping[int, int]) -> list[Span]:
        """Returns the spans of offsets that were committed beyond the given offsets."""
        committed = self.committed()
        spans = [
            Span(partition, max(start, held.start), max(start, held.start, committed[partition]))
            for partition, start in positions.items()
            for held in [self._reader.held(partition)]
            if start < committed[partition]
        ]
        return [span for span in spans if span.start < span.stop]

    def _span(self, partition: int, committed: int) -> Span:
        scope, held = self._scope, self._reader.held(partition)
        start, stop = scope.start, scope.stop
        if scope.since is not None:
            start = self._offset_at(held, scope.since)
        if scope.until is not None:
            stop = self._offset_at(held, scope.until)
        first = held.start if start is None else start
        last = max(held.stop, committed) if stop is None else stop
        until = min(last, committed)
        return Span(
            partition,
            max(first, held.start),
            max(until, first, held.start),
            gone=max(0, min(held.start, last) - first),
            open=max(0, min(last, held.stop) - max(committed, first)),
        )

    def _offset_at(self, held: Range, seconds: float) -> int:
        """Returns the first offset whose message is not older than this time; the log end if there is none."""
        found = self._reader.offset_at(held.partition, seconds)
        return held.stop if found is None else found

    def chunks(self, span: Span) -> Iterator[list[Message]]:
        """Yields the messages of a span, in chunks. Adds offsets that have expired in the meantime, or are
        unreadable, to the span's counts.
        """
        chunk: list[Message] = []
        size_bytes = 0
        for record in self._reader.read([Range(span.partition, span.start, span.stop)]):
            if not self._scope.holds(record.timestamp_ms):
                continue
            chunk.append(message_of(record))
            size_bytes += len(record.value)
            if len(chunk) >= self._chunk_messages_max or size_bytes >= CHUNK_BYTES_MAX:
                yield chunk
                chunk, size_bytes = [], 0
        span.gone += self._reader.gone.pop(span.partition, 0)
        span.unreadable += self._reader.unreadable.pop(span.partition, 0)
        if chunk:
            yield chunk
