"""What an operator does to a parked batch, from Flower, its API or the command line: retry it, or give it up.

    POST /api/task/async-apply/retry_batch     {"args": ["<batch id>"], "kwargs": {"by": "me"}}
    POST /api/task/async-apply/abandon_batch   {"args": ["<batch id>"], "kwargs": {"reason": "...", "by": "me"}}

The batch belongs to its reader: both only tell it what the operator wants, on its stream. Each deed is in the
audit stream `{prefix}:audit`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from celery.utils.log import get_task_logger
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tasks.celery import app
from tasks.errors import TransientSinkError
from tasks.flush import tools
from tasks.kafka.options import kafka_options
from tasks.settings import KiB, MiB, Settings
from tasks.sinks.base import Sink
from tasks.staging import Staging
from tasks.wire import Completion, DeadLetterItem

log = get_task_logger(__name__)
REASON = "abandoned"
READ_SECONDS_MAX = 60.0
LETTERS_BYTES_MAX = 8 * MiB
SILENT_SECONDS_MAX = 60.0


class NotParked(Exception):
    """There is nothing to do: no batch of that id is parked. It may have settled meanwhile."""


class ReaderGone(Exception):
    """The batch's reader is not heard of. The partition's next owner parks the batch anew if it fails again."""


@app.task(name="retry_batch", ignore_result=True, acks_late=True)
def retry_batch(batch_id: str, by: str = "unknown") -> str:
    """Asks the batch's reader to try it now instead of at its next backoff."""
    return retry(tools.get().staging, batch_id, by)


@app.task(name="abandon_batch", ignore_result=True, acks_late=True)
def abandon_batch(batch_id: str, reason: str, by: str = "unknown") -> str:
    """Moves the batch's messages to the dead letters and tells its reader to go on without it."""
    mine = tools.get()
    return abandon(mine.settings, mine.staging, mine.sink("dead_letter"), batch_id, reason, by)


def retry(staging: Staging, batch_id: str, by: str) -> str:
    """One line about what was done. Raises NotParked or ReaderGone."""
    reader = _reader_of(staging, batch_id)
    staging.audit({"what": "retry", "batch_id": batch_id, "by": by, "reader": reader})
    staging.tell(reader, Completion("retry", batch_id))
    return f"{reader} was asked to retry {batch_id}"


def abandon(
    settings: Settings, staging: Staging, dead_letters: Sink[Any], batch_id: str, reason: str, by: str
) -> str:
    """One line about what was done. Raises NotParked, ReaderGone, or what Kafka said; then nothing is given up.

    The messages are read again from Kafka: what is in Redis are rows, and these may be just what is wrong.
    Repeating it repeats equal dead letters. The reader is told only once all of them are durable.
    """
    if not reason.strip():
        raise ValueError("say why: an abandoned batch is looked at again some day")
    reader = _reader_of(staging, batch_id)
    about = staging.parked()[batch_id]
    source = TopicPartition(about["topic"], about["partition"], about["start"])
    count, group, size_bytes = 0, list[DeadLetterItem](), 0
    for message in _messages(settings, source, about["stop"]):
        group.append(_letter(message, batch_id, f"{reason} (by {by})"))
        size_bytes += len(group[-1].value)
        count += 1
        if size_bytes >= LETTERS_BYTES_MAX:
            _bury(settings, dead_letters, batch_id, group)
            group, size_bytes = [], 0
    _bury(settings, dead_letters, batch_id, group)
    # Less than the reader had: retention took them in the meantime. They cannot be kept any more, so say it.
    gone = max(0, int(about.get("messages", count)) - count)
    staging.audit(
        {"what": "abandon", "batch_id": batch_id, "by": by, "reason": reason, "messages": count, "gone": gone}
    )
    staging.tell(reader, Completion("abandoned", batch_id, error=reason))
    log.warning(
        "%s abandoned by %s: %s (%s messages to the dead letters, %s gone)", batch_id, by, reason, count, gone
    )
    return f"{batch_id} is abandoned: {count} messages are dead letters, {gone} were gone from the topic"


def _reader_of(staging: Staging, batch_id: str) -> str:
    about = staging.parked().get(batch_id)
    if about is None:
        raise NotParked(f"no batch {batch_id} is parked; `replays-ingest batches ls` shows what is")
    reader = str(about["reader"])
    alive = staging.readers().get(reader)
    if alive is None or alive["silent_seconds"] > SILENT_SECONDS_MAX:
        raise ReaderGone(f"reader {reader} of {batch_id} is not heard of")
    return reader


def _messages(settings: Settings, source: TopicPartition, stop: int) -> Iterator[Message]:
    """The range's messages as they are in the topic now. Raises TransientSinkError when Kafka does not answer."""
    consumer = Consumer(
        {
            "group.id": "replays-ingest-operate",  # never used: nothing is subscribed to, nothing committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "queued.max.messages.kbytes": 32 * MiB // KiB,
            **kafka_options(settings),
        }
    )
    try:
        consumer.assign([source])
        ends_at = time.monotonic() + READ_SECONDS_MAX
        while time.monotonic() < ends_at:
            message = consumer.poll(1.0)
            if message is None:
                continue
            error = message.error()
            if error is None:
                if (message.offset() or 0) >= stop:
                    return
                yield message
                if (message.offset() or 0) + 1 == stop:
                    return
            elif error.code() == KafkaError._PARTITION_EOF:
                return  # the end of the log, which is not below `stop` unless the rest is gone
            elif not error.retriable():
                raise KafkaException(error)
        raise TransientSinkError(
            f"{source.topic}-{source.partition} could not be read in {READ_SECONDS_MAX:.0f} s"
        )
    finally:
        consumer.close()


def _letter(message: Message, batch_id: str, error: str) -> DeadLetterItem:
    """The original message with headers that say what became of it."""
    ours = {
        "reason": REASON,
        "error": error,
        "topic": message.topic(),
        "partition": str(message.partition()),
        "offset": str(message.offset()),
        "batch_id": batch_id,
        "first_seen": str(max(0, message.timestamp()[1])),
    }
    originals = tuple((pair[0], _as_bytes(pair[1])) for pair in message.headers() or () if pair[0] not in ours)
    encoded = tuple((name, str(text).encode()) for name, text in ours.items())
    return DeadLetterItem(
        _as_bytes(message.key()), _as_bytes(message.value()) or b"", originals + encoded, message.offset() or 0
    )


def _bury(settings: Settings, dead_letters: Sink[Any], batch_id: str, letters: Sequence[DeadLetterItem]) -> None:
    if letters:
        token = f"{batch_id}:{REASON}:{letters[0].offset}"
        dead_letters.write(letters, token, settings.sink_timeout_seconds)


def _as_bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
