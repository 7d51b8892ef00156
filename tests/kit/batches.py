"""Small batches for tests of what comes after the core: each message with one item a sink."""

from __future__ import annotations

from ingest.core.model import (
    Batch,
    Blob,
    CutReason,
    DeadLetter,
    Metric,
    OffsetRange,
    Reject,
    Row,
    Segment,
    TopicPartition,
)

REPLAY = "0123456789abcdef0123456789abcdef"


def make_batch(
    messages: int = 3,
    start: int = 0,
    partition: int = 0,
    rejects: int = 0,
    epoch: int = 1,
    content: bytes = b"recording",
) -> Batch:
    """A batch of so many recordings, each with one item a sink, followed by rejects."""
    segments = []
    for offset in range(start, start + messages):
        segments.append(
            Segment(
                org_id=1,
                project_id=2,
                replay_id=REPLAY,
                segment_id=offset,
                retention_days=30,
                received=1_700_000_000,
                blobs=(Blob(f"30/2/{REPLAY}/{offset}", content + b" %d" % offset, offset),),
                clickhouse=(Row("replays", f"click-{offset}", b'{"n":%d}' % offset, offset),),
                bigquery=(Row("replay_events", f"fact-{offset}", b'{"n":%d}' % offset, offset),),
                metrics=(Metric("c", "replay.rage_click_detected", 1.0, ("sdk:js",)),),
                warnings=(),
                size_bytes=200,
            )
        )
    refused = []
    for offset in range(start + messages, start + messages + rejects):
        letter = DeadLetter(b"k", b"not msgpack", (("traceparent", b"00-1"),), "not_msgpack", "bad", offset, 5)
        refused.append(Reject("not_msgpack", "bad", letter))
    return Batch(
        TopicPartition("ingest-replay-recordings", partition),
        epoch,
        OffsetRange(start, start + messages + rejects),
        tuple(segments),
        tuple(refused),
        200 * messages,
        CutReason.COUNT,
    )
