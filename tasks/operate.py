"""Retries or abandons a parked batch, for Flower, its API and the command line.

The batch belongs to its reader, so both functions send a request to the reader's stream. Each action is recorded
in the audit trail (`tasks.operators`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tasks.coordination import Coordination
from tasks.kafka.letters import ABANDONED, Label, Origin
from tasks.kafka.ranges import Bounds, Range, RangeReader
from tasks.kafka.records import Record
from tasks.settings import Settings
from tasks.sinks.base import Sink
from tasks.units import MiB
from tasks.wire import Completion, CompletionKind, DeadLetter

log = logging.getLogger(__name__)
READ = Bounds(seconds_max=60.0)
LETTERS_BYTES_MAX = 8 * MiB
SILENT_SECONDS_MAX = 60.0


class NotParked(Exception):
    """No reader has parked this batch. The batch may have settled."""


class ReaderGone(Exception):
    """The batch's reader sends no heartbeat. The partition's next owner parks the batch again if it fails."""


def retry(coordination: Coordination, batch_id: str, by: str) -> str:
    """Requests an immediate retry. Returns one line about the result. Raises NotParked or ReaderGone."""
    reader = _reader_of(coordination, batch_id)
    coordination.audit({"what": "retry", "batch_id": batch_id, "by": by, "reader": reader})
    coordination.send_completion(reader, Completion(CompletionKind.RETRY, batch_id))
    return f"{reader} was asked to retry {batch_id}"


def abandon(
    settings: Settings, coordination: Coordination, dead_letters: Sink[Any], batch_id: str, reason: str, by: str
) -> str:
    """Returns one line about the result. If it raises NotParked, ReaderGone, RangeError (from reading the topic)
    or SinkError (from writing dead letters), the batch is not abandoned.

    Messages are read again from Kafka, because the staged rows may be the problem. A repeated call produces
    identical dead letters. The reader is notified only once all dead letters are durable.
    """
    if not reason.strip():
        raise ValueError("a reason is required, to explain the dead letters later")
    reader = _reader_of(coordination, batch_id)
    entry = coordination.parked()[batch_id]
    count, group, size_bytes = 0, list[DeadLetter](), 0
    with RangeReader(settings, entry["topic"], bounds=READ) as topic:
        for record in topic.read([Range(entry["partition"], entry["start"], entry["stop"])]):
            group.append(_letter(record, batch_id, f"{reason} (by {by})"))
            size_bytes += len(group[-1].value or b"")
            count += 1
            if size_bytes >= LETTERS_BYTES_MAX:
                _reader_of(coordination, batch_id)
                _write_dead_letters(settings, dead_letters, batch_id, group)
                group, size_bytes = [], 0
    _reader_of(coordination, batch_id)  # fails if the batch settled while the topic was being read
    _write_dead_letters(settings, dead_letters, batch_id, group)
    # Messages that have expired from the topic are lost, so the line reports their number.
    gone = max(0, int(entry.get("messages", count)) - count)
    coordination.audit(
        {"what": "abandon", "batch_id": batch_id, "by": by, "reason": reason, "messages": count, "gone": gone}
    )
    coordination.send_completion(reader, Completion(CompletionKind.ABANDONED, batch_id, error=reason))
    log.warning(
        "%s abandoned by %s: %s (%s messages to the dead letters, %s gone)", batch_id, by, reason, count, gone
    )
    return f"{batch_id} is abandoned: {count} messages are dead letters, {gone} had expired from the topic"


def _reader_of(coordination: Coordination, batch_id: str) -> str:
    entry = coordination.parked().get(batch_id)
    if entry is None:
        raise NotParked(
            f"no reader holds a parked batch {batch_id}: it settled, or its reader is gone and the "
            "partition's next owner retries it; list parked batches with `replays-ingest batches ls`"
        )
    reader = str(entry["reader"])
    alive = coordination.readers().get(reader)
    if alive is None or alive["silent_seconds"] > SILENT_SECONDS_MAX:
        raise ReaderGone(f"reader {reader} of {batch_id} sends no heartbeat")
    return reader


def _letter(record: Record, batch_id: str, error: str) -> DeadLetter:
    """Returns the dead letter for an original message."""
    label = Label(
        reason=ABANDONED,
        error=error,
        origin=Origin(record.topic, record.partition, record.offset),
        batch_id=batch_id,
        first_seen_ms=record.timestamp_ms,
        originals=record.headers,
    )
    value = None if record.tombstone else record.value
    return DeadLetter(record.key, value, label.encode(), record.offset)


def _write_dead_letters(
    settings: Settings, dead_letters: Sink[Any], batch_id: str, letters: Sequence[DeadLetter]
) -> None:
    if letters:
        token = f"{batch_id}:{ABANDONED}:{letters[0].offset}"
        dead_letters.write(letters, token, settings.sink_timeout_seconds)
