"""Parsed messages, and batches of them, for tests of the stages after the parser."""

from __future__ import annotations

from collections.abc import Iterable

from ingest.core.model import (
    Batch,
    Blob,
    CutReason,
    Drop,
    DropReason,
    Metric,
    MetricKind,
    OffsetRange,
    Reject,
    Row,
    Segment,
    TopicPartition,
)
from ingest.testing.runtime import PARTITION

REPLAY = "0123456789abcdef0123456789abcdef"
RECEIVED = 1_700_000_000
"""Unix seconds at which every segment was received."""


def segment(
    offset: int = 0,
    *,
    blob: bool = True,
    rows: bool = True,
    content: bytes = b"recording",
    received: int = RECEIVED,
    warnings: tuple[str, ...] = (),
    size_bytes: int = 100,
) -> Segment:
    """Returns a segment at the given offset, with one blob, one row per table and one metric.

    The segment's `size_bytes` is the argument, not the actual size.
    """
    return Segment(
        org_id=1,
        project_id=2,
        replay_id=REPLAY,
        segment_id=offset,
        retention_days=30,
        received=received,
        blobs=(Blob(f"30/2/{REPLAY}/{offset}", content, offset),) if blob else (),
        clickhouse=(Row("replays", f"click-{offset}", b'{"n":%d}' % offset, offset),) if rows else (),
        bigquery=(Row("replay_events", f"fact-{offset}", b'{"n":%d}' % offset, offset),) if rows else (),
        metrics=(Metric(MetricKind.COUNTER, "replay.rage_click_detected", 1.0, ("sdk:js",)),) if rows else (),
        warnings=warnings,
        size_bytes=size_bytes,
    )


def reject(
    offset: int = 0,
    reason: str = "not_msgpack",
    value: bytes = b"not msgpack",
    project_id: int | None = None,
) -> Reject:
    """Returns the reject for an unparsable message at the given offset."""
    headers = (("traceparent", b"00-1"),)
    return Reject(reason, "bad", offset, value, b"k", headers, first_seen_ms=5, project_id=project_id)


def drop() -> Drop:
    """Returns the drop for a message whose project is disabled."""
    return Drop(DropReason.KILLED, 2)


def batch_of(
    segments: Iterable[Segment],
    rejects: Iterable[Reject],
    offsets: OffsetRange,
    *,
    source: TopicPartition = PARTITION,
    epoch: int = 1,
) -> Batch:
    """Returns the batch that covers the given range."""
    held = tuple(segments)
    size_bytes = sum(item.size_bytes for item in held)
    return Batch(source, epoch, offsets, held, tuple(rejects), size_bytes, CutReason.COUNT)


def make_batch(
    messages: int = 3,
    start: int = 0,
    partition: int = 0,
    rejects: int = 0,
    epoch: int = 1,
    content: bytes = b"recording",
) -> Batch:
    """Returns a batch of `messages` segments, starting at offset `start`, followed by `rejects` rejects.

    Each segment has different content.
    """
    middle, stop = start + messages, start + messages + rejects
    segments = [
        segment(offset, content=content + b" %d" % offset, size_bytes=200) for offset in range(start, middle)
    ]
    refused = [reject(offset) for offset in range(middle, stop)]
    source = TopicPartition(PARTITION.topic, partition)
    return batch_of(segments, refused, OffsetRange(start, stop), source=source, epoch=epoch)
