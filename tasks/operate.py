"""What an operator does to a parked batch, from Flower, its API or the command line: retry it, or give it up.

The batch belongs to its reader: both only tell it what the operator wants, on its stream. Each deed is in the
audit trail (`tasks.operators`).
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
    """There is nothing to do: no reader says (any more) that it holds this batch. It may have settled."""


class ReaderGone(Exception):
    """The batch's reader is not heard of. The partition's next owner parks the batch anew if it fails again."""


def retry(coordination: Coordination, batch_id: str, by: str) -> str:
    """One line about what was done. Raises NotParked or ReaderGone."""
    reader = _reader_of(coordination, batch_id)
    coordination.audit({"what": "retry", "batch_id": batch_id, "by": by, "reader": reader})
    coordination.tell(reader, Completion(CompletionKind.RETRY, batch_id))
    return f"{reader} was asked to retry {batch_id}"


def abandon(
    settings: Settings, coordination: Coordination, dead_letters: Sink[Any], batch_id: str, reason: str, by: str
) -> str:
    """One line about what was done. Raises NotParked, ReaderGone, RangeError (the topic) or SinkError (the dead
    letters); then nothing is given up.

    The messages are read again from Kafka: what is in Redis are rows, and these may be just what is wrong.
    Repeating it repeats equal dead letters. The reader is told only once all of them are durable.
    """
    if not reason.strip():
        raise ValueError("say why: an abandoned batch is looked at again some day")
    reader = _reader_of(coordination, batch_id)
    about = coordination.parked()[batch_id]
    count, group, size_bytes = 0, list[DeadLetter](), 0
    with RangeReader(settings, about["topic"], bounds=READ) as topic:
        for record in topic.read([Range(about["partition"], about["start"], about["stop"])]):
            group.append(_letter(record, batch_id, f"{reason} (by {by})"))
            size_bytes += len(group[-1].value or b"")
            count += 1
            if size_bytes >= LETTERS_BYTES_MAX:
                _reader_of(coordination, batch_id)
                _bury(settings, dead_letters, batch_id, group)
                group, size_bytes = [], 0
    _reader_of(coordination, batch_id)  # reading took its time; durable messages are no dead letters
    _bury(settings, dead_letters, batch_id, group)
    # Less than the reader had: retention took them in the meantime. They cannot be kept any more, so say it.
    gone = max(0, int(about.get("messages", count)) - count)
    coordination.audit(
        {"what": "abandon", "batch_id": batch_id, "by": by, "reason": reason, "messages": count, "gone": gone}
    )
    coordination.tell(reader, Completion(CompletionKind.ABANDONED, batch_id, error=reason))
    log.warning(
        "%s abandoned by %s: %s (%s messages to the dead letters, %s gone)", batch_id, by, reason, count, gone
    )
    return f"{batch_id} is abandoned: {count} messages are dead letters, {gone} were gone from the topic"


def _reader_of(coordination: Coordination, batch_id: str) -> str:
    about = coordination.parked().get(batch_id)
    if about is None:
        raise NotParked(
            f"no reader holds a parked batch {batch_id}: it settled, or its reader is gone and the next owner of "
            "the partition tries it again; `replays-ingest batches ls` shows what is parked"
        )
    reader = str(about["reader"])
    alive = coordination.readers().get(reader)
    if alive is None or alive["silent_seconds"] > SILENT_SECONDS_MAX:
        raise ReaderGone(f"reader {reader} of {batch_id} is not heard of")
    return reader


def _letter(record: Record, batch_id: str, error: str) -> DeadLetter:
    """The original message, labelled with what became of it."""
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


def _bury(settings: Settings, dead_letters: Sink[Any], batch_id: str, letters: Sequence[DeadLetter]) -> None:
    if letters:
        token = f"{batch_id}:{ABANDONED}:{letters[0].offset}"
        dead_letters.write(letters, token, settings.sink_timeout_seconds)
