"""Builds batches from messages that were read again, as the reader would build them, to compute expected items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ingest.core.model import Batch, CutReason, Message, OffsetRange, Outcome, Reject, Segment, TopicPartition
from tasks.kafka.records import Record

NO_EPOCH = 0


def message_of(record: Record) -> Message:
    """Converts a record to the core's representation."""
    return Message(
        source=TopicPartition(record.topic, record.partition),
        epoch=NO_EPOCH,
        offset=record.offset,
        value=record.value,
        key=record.key,
        headers=record.headers,
        timestamp_ms=record.timestamp_ms,
        tombstone=record.tombstone,
    )


def batch_of(source: TopicPartition, offsets: OffsetRange, outcomes: Iterable[Outcome | None]) -> Batch:
    """Builds the batch of a range from its parse results, which are in order. A result of None is skipped."""
    results: Sequence[Outcome | None] = tuple(outcomes)
    return Batch(
        source,
        NO_EPOCH,
        offsets,
        tuple(outcome for outcome in results if isinstance(outcome, Segment)),
        tuple(outcome for outcome in results if isinstance(outcome, Reject)),
        0,
        CutReason.COUNT,
    )
