"""What the core talks about: messages, what is parsed from them, and batches.

Bulk data (one object a message or row) are msgspec structs, made in C and invisible to the garbage
collector; small values that travel in events and commands are frozen dataclasses. What is handed to the flush
fleet (`Blob`, `Row`, `Metric`, `Stage`) is defined in `tasks.wire`, and made here once: nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

import msgspec

from tasks.wire import Blob, Metric, MetricKind, Row, Stage

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
    """One partition of one topic. A tuple, because it is the key of most look-ups, several per message."""

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


# Of a header besides its name and value: the objects that hold them in memory, more than their framing in Redis.
HEADER_BYTES = 128
# Of a dead letter besides the record and the error: its labels.
LETTER_BYTES = 512

Headers = tuple[tuple[str, bytes | None], ...]


def headers_bytes(headers: Headers) -> int:
    """About what they take in memory; staged they take less."""
    if not headers:
        return 0
    return sum(HEADER_BYTES + 4 * len(name) + len(value or b"") for name, value in headers)


class Message(msgspec.Struct, frozen=True, gc=False):
    """One Kafka record as received.

    `epoch` counts assignments of the partition in this process: what belongs to an older one is ignored.
    `timestamp_ms` is the broker's or producer's, in milliseconds; 0 when there is none. `tombstone`: the value is
    null; `value` is empty then.
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
        """What it holds in memory, and what its dead letter would stage: value, key and headers."""
        return len(self.value) + len(self.key or b"") + headers_bytes(self.headers)


class Segment(msgspec.Struct, frozen=True, gc=False):
    """One recording message, parsed: exactly what each sink gets of it.

    `received` is in unix seconds (Relay's clock), `warnings` are the stable names of what was wrong with
    the message without making it a reject (a counter each). `size_bytes` is the sum of all that is staged.
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

    @property
    def offset(self) -> int:
        """Of its message, as its items have it; -1 when it has none to write."""
        items = self.blobs or self.clickhouse or self.bigquery
        return items[0].offset if items else -1


class Reject(msgspec.Struct, frozen=True, gc=False):
    """A message that will never parse: the original record, and why. It becomes a dead letter with its batch.

    `reason` is one of `ingest.core.parse.REASONS`, and stable (a metric's label); `error` is for a person.
    `first_seen_ms` is the Kafka timestamp, `project_id` None when the message names no project. `tombstone` as in
    `Message`: the dead letter has a null value, too.
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
        """The reject that keeps this message."""
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
        """Bytes staged for it: the whole record, its error and labels."""
        record_bytes = len(self.value) + len(self.key or b"") + headers_bytes(self.headers)
        return record_bytes + 4 * len(self.error) + LETTER_BYTES


class DropReason(StrEnum):
    """Why a message was dropped on purpose. Stable: labels of `replays_reader_drops_total`."""

    KILLED = "killed"  # an operator switched the project off (`replays-ingest tenants kill`)
    SHED = "shed"  # a reject of a project that is shed, by the policy on rejects
    ERASED = "erased"  # an operator erased its replay, user or project (`replays-ingest erase`)
    RATE_LIMITED = "rate_limited"  # the project sent more than its limit (`replays-ingest tenants limit`)


class Drop(msgspec.Struct, frozen=True, gc=False):
    """A message that a rule dropped on purpose: counted, never written."""

    reason: DropReason
    project_id: int

    @property
    def size_bytes(self) -> int:
        """Nothing is staged for it."""
        return 0


Outcome = Segment | Reject | Drop


class CutReason(StrEnum):
    """Why a batch was cut."""

    COUNT = "count"
    BYTES = "bytes"
    AGE = "age"
    IDLE = "idle"  # younger than that, but nothing was in flight
    PLANNED = "planned"  # a predecessor had recorded this boundary
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Batch:
    """What is dispatched together: one contiguous offset range of one partition.

    `id` depends on nothing but the range, so the same range cut again is the same batch, everywhere.
    `opened_at` and `cut_at` (monotonic seconds) are for people: no decision and no identity comes from them.
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
        """The chords that this batch needs, in order; empty when there is nothing to write."""
        blobs = any(segment.blobs for segment in self.segments)
        rows = bool(self.rejects) or any(s.clickhouse or s.bigquery or s.metrics for s in self.segments)
        return tuple([Stage.BLOBS] * blobs + [Stage.ROWS] * rows)

    def halves(self) -> tuple[Batch, Batch] | None:
        """Two batches of about the same bytes that hold the same messages; None: it is a single message.

        Each begins and ends at a message, as every batch does. Pure: the same batch has the same halves.
        """
        both: list[Segment | Reject] = [*self.segments, *self.rejects]
        held = sorted(both, key=lambda one: one.offset)
        before_bytes, at = 0, None
        for former, one in pairwise(held):
            before_bytes += former.size_bytes
            if self.offsets.start <= former.offset < one.offset:
                at = former.offset + 1, one.offset
                if 2 * before_bytes >= self.size_bytes:
                    break
        if at is None:
            return None
        return self._part(self.offsets.start, at[0]), self._part(at[1], self.offsets.stop)

    def _part(self, start: int, stop: int) -> Batch:
        segments = tuple(one for one in self.segments if start <= one.offset < stop)
        rejects = tuple(one for one in self.rejects if start <= one.offset < stop)
        size_bytes = sum(one.size_bytes for one in segments) + sum(one.size_bytes for one in rejects)
        return replace(
            self,
            offsets=OffsetRange(start, stop),
            segments=segments,
            rejects=rejects,
            size_bytes=size_bytes,
            cut_by=CutReason.BYTES,
        )
