"""Data types of the core: messages, parsed outcomes and batches.

Objects created for every message or row are msgspec structs, which are created in C and not tracked by the garbage
collector; small values in events and commands are frozen dataclasses. The types of objects that are passed to
workers (`Blob`, `Row`, `Metric`, `Stage`) are defined in `tasks.wire`; the parser creates these objects directly,
so that they need not be converted or copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

import msgspec

from tasks.proto_rows import FACT_COLUMNS, FACT_TABLE
from tasks.wire import Blob, EncodedRows, Metric, MetricKind, ProtoRows, Row, SinkName, Stage

__all__ = [
    "Batch",
    "Blob",
    "CutReason",
    "Drop",
    "Message",
    "Metric",
    "MetricKind",
    "OffsetRange",
    "Outcome",
    "Reject",
    "Row",
    "Segment",
    "Stage",
    "TopicPartition",
]


class TopicPartition(NamedTuple):
    """One partition of one topic. A tuple, because it is the key of several lookups per message."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


@dataclass(frozen=True, slots=True, order=True)
class OffsetRange:
    """Half-open range of offsets: `OffsetRange(40, 43)` holds 40, 41 and 42; Kafka commits 43."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        assert 0 <= self.start < self.stop, (self.start, self.stop)

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


# Memory overhead per header, in addition to name and value. A header staged in Redis has a smaller overhead.
HEADER_BYTES = 128
# Overhead of the labels of a dead letter, in addition to the record and the error.
DEAD_LETTER_BYTES = 512

Headers = tuple[tuple[str, bytes | None], ...]


def headers_bytes(headers: Headers) -> int:
    """Returns the approximate memory that the headers use, in bytes; headers staged in Redis take less space."""
    if not headers:
        return 0
    return sum(HEADER_BYTES + 4 * len(name) + len(value or b"") for name, value in headers)


class Message(msgspec.Struct, frozen=True, gc=False):
    """One Kafka record as received.

    `epoch` counts assignments of the partition in this process; messages of older epochs are ignored.
    `timestamp_ms` was set by the broker or the producer, in milliseconds; 0 if there is none. `tombstone`: the
    value is null, and `value` is empty.
    """

    source: TopicPartition
    epoch: int
    offset: int
    value: bytes
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int = 0
    tombstone: bool = False

    @property
    def size_bytes(self) -> int:
        """Size of value, key and headers, both in memory and staged as a dead letter."""
        return len(self.value) + len(self.key or b"") + headers_bytes(self.headers)


class Segment(msgspec.Struct, frozen=True, gc=False):
    """One parsed recording message, as the items for each sink.

    `received` is in Unix seconds (Relay's clock), and `warnings` are the stable names of problems that do not make
    the message a reject. `size_bytes` is the total staged size. Facts are in `bigquery` as JSON, or in
    `proto_facts` as protobuf.
    """

    org_id: int
    project_id: int
    replay_id: str
    segment_id: int
    retention_days: int
    received: int
    blobs: tuple[Blob, ...]
    clickhouse: tuple[Row, ...]
    bigquery: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    warnings: tuple[str, ...]
    size_bytes: int
    proto_facts: bytes = b""
    proto_facts_count: int = 0

    @property
    def facts_count(self) -> int:
        """Number of facts, whether they are JSON or protobuf."""
        return len(self.bigquery) + self.proto_facts_count

    @property
    def facts(self) -> tuple[Row, ...]:
        """The facts as JSON. This is slow if they are encoded as protobuf, so only commands use it, not the
        reader."""
        return (*self.bigquery, *proto_rows([self]))

    @property
    def offset(self) -> int:
        """Offset of the message, taken from the items; -1 if there are no items."""
        items = self.blobs or self.clickhouse or self.bigquery
        return items[0].offset if items else -1


def proto_rows(segments: Iterable[Segment]) -> EncodedRows:
    """Returns the facts that are encoded as protobuf."""
    found = [segment for segment in segments if segment.proto_facts_count]
    return EncodedRows(
        ProtoRows(
            FACT_TABLE,
            FACT_COLUMNS,
            tuple((segment.offset, segment.proto_facts_count) for segment in found),
            b"".join([segment.proto_facts for segment in found]),
        )
    )


class Reject(msgspec.Struct, frozen=True, gc=False):
    """A message that cannot be parsed, with the original record. A reject becomes a dead letter when its batch is
    flushed.

    `reason` is one of `ingest.core.parse.REASONS` and stable (a metric label); `error` is for operators.
    `first_seen_ms` is the Kafka timestamp; `project_id` is None if the message names no project. `tombstone`: see
    `Message`; the dead letter also has a null value.
    """

    reason: str
    error: str
    offset: int
    value: bytes
    key: bytes | None = None
    headers: Headers = ()
    first_seen_ms: int = 0
    project_id: int | None = None
    tombstone: bool = False

    @classmethod
    def of(cls, message: Message, reason: str, error: str, project_id: int | None = None) -> Reject:
        """Creates a reject from this message."""
        return cls(
            reason,
            error,
            offset=message.offset,
            value=message.value,
            key=message.key,
            headers=message.headers,
            first_seen_ms=message.timestamp_ms,
            project_id=project_id,
            tombstone=message.tombstone,
        )

    @property
    def size_bytes(self) -> int:
        """Staged bytes: the whole record, its error and labels."""
        record_bytes = len(self.value) + len(self.key or b"") + headers_bytes(self.headers)
        return record_bytes + 4 * len(self.error) + DEAD_LETTER_BYTES


class DropReason(StrEnum):
    """Why a message was dropped by a rule. The values are stable, because they are labels of
    `replays_reader_drops_total`."""

    KILLED = "killed"  # the project is disabled (`replays-ingest tenants kill`)
    SHED = "shed"  # the message is a reject of a shed project, and the reject policy is drop
    ERASED = "erased"  # the replay, user or project was erased (`replays-ingest erase`)
    RATE_LIMITED = "rate_limited"  # the project sent more than its limit (`replays-ingest tenants limit`)


class Drop(msgspec.Struct, frozen=True, gc=False):
    """A message that was dropped by a rule: it is counted but never written."""

    reason: DropReason
    project_id: int

    @property
    def size_bytes(self) -> int:
        """Always 0: nothing is staged."""
        return 0


Outcome = Segment | Reject | Drop


class CutReason(StrEnum):
    """Why a batch was cut."""

    COUNT = "count"
    BYTES = "bytes"
    AGE = "age"
    IDLE = "idle"  # cut early, because nothing was in flight
    PLANNED = "planned"  # the previous owner had recorded this boundary
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Batch:
    """The unit of dispatch: one contiguous offset range of one partition.

    `id` depends only on the range, so the same range cut again is the same batch. `opened_at` and `cut_at`
    (monotonic seconds) are informational: no decision or identity depends on them.
    """

    source: TopicPartition
    epoch: int
    offsets: OffsetRange
    segments: tuple[Segment, ...] = field(repr=False)
    rejects: tuple[Reject, ...] = field(repr=False)
    size_bytes: int
    cut_by: CutReason
    opened_at: float = field(default=0.0, compare=False, repr=False)
    cut_at: float = field(default=0.0, compare=False, repr=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.source}-{self.offsets.start}-{self.offsets.stop}")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The chords that this batch needs, in order; empty if there is nothing to write."""
        blobs = any(segment.blobs for segment in self.segments)
        rows = bool(self.rejects) or any(s.clickhouse or s.facts_count or s.metrics for s in self.segments)
        return tuple([Stage.BLOBS] * blobs + [Stage.ROWS] * rows)

    def sinks(self, stage: Stage) -> frozenset[SinkName]:
        """The sinks for which this batch has items in this stage. Some of these sinks may be disabled."""
        if stage is Stage.BLOBS:
            return frozenset((SinkName.GCS,))
        segments = self.segments
        present = {
            SinkName.CLICKHOUSE: any(segment.clickhouse for segment in segments),
            SinkName.BIGQUERY: any(segment.facts_count for segment in segments),
            SinkName.DATADOG: any(segment.metrics for segment in segments),
            SinkName.DEAD_LETTER: bool(self.rejects),
        }
        return frozenset(sink for sink, is_present in present.items() if is_present)

    def halves(self) -> tuple[Batch, Batch] | None:
        """Splits the batch into two of similar size; returns None for a single message. The same batch always has
        the same halves.
        """
        outcomes: list[Segment | Reject] = [*self.segments, *self.rejects]
        outcomes.sort(key=lambda outcome: outcome.offset)
        before_bytes, boundary = 0, None
        for earlier, later in pairwise(outcomes):
            before_bytes += earlier.size_bytes
            if self.offsets.start <= earlier.offset < later.offset:
                boundary = earlier.offset + 1, later.offset
                if 2 * before_bytes >= self.size_bytes:
                    break
        if boundary is None:
            return None
        return self._part(self.offsets.start, boundary[0]), self._part(boundary[1], self.offsets.stop)

    def _part(self, start: int, stop: int) -> Batch:
        segments = tuple(segment for segment in self.segments if start <= segment.offset < stop)
        rejects = tuple(reject for reject in self.rejects if start <= reject.offset < stop)
        size_bytes = sum(segment.size_bytes for segment in segments) + sum(reject.size_bytes for reject in rejects)
        return replace(
            self,
            offsets=OffsetRange(start, stop),
            segments=segments,
            rejects=rejects,
            size_bytes=size_bytes,
            cut_by=CutReason.BYTES,
        )
