"""The way back from the flush fleet: this reader's stream in Redis, whose entries become events.

Tasks and operators write to the stream, one entry per completion. It is read from the reader's own position, with
one call for all batches. While Redis is away nothing is read; a stream that is gone, or that began anew with
smaller ids, is read from its beginning.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from ingest.core import events as on
from ingest.core.model import OffsetRange, Stage
from ingest.observe.heartbeat import Heartbeat, HeartbeatWriter
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.errors import shortened
from tasks.settings import Settings
from tasks.wire import Completion, CompletionKind, Incompatible, decode_completion, reader_stream

log = structlog.get_logger(__name__)

BLOCK_SECONDS_MAX = 1.0
COMPLETIONS_MAX = 512
RETRY_SECONDS = 0.2  # between two attempts while Redis does not answer


class CompletionReader:
    """Reads one reader's stream and calls `deliver` with each event, until `stopping` is set.

    It also writes the heartbeat, so a reader that is listed is a reader that can be told of completions.
    """

    def __init__(
        self,
        settings: Settings,
        reader: str,
        deliver: Callable[[on.Event], None],
        stopping: threading.Event,
        heartbeat: Callable[[], Heartbeat] = Heartbeat,
    ) -> None:
        self._deliver = deliver
        self._stopping = stopping
        self._stream = reader_stream(reader, settings.key_prefix)
        self._coordination = Coordination(connect(settings, retries=0), settings)
        self._heartbeat = HeartbeatWriter(self._coordination, reader, settings.heartbeat_seconds, heartbeat)
        self._last_id = "0-0"
        # The server must answer before the socket gives up on it.
        self._block_ms = max(1, int(1000 * min(BLOCK_SECONDS_MAX, settings.redis_timeout_seconds / 2)))

    def run(self) -> None:
        """Reads until `stopping` is set, then removes the heartbeat. Raises nothing."""
        healthy = True
        while not self._stopping.is_set():
            try:
                if not healthy:
                    self._find_beginning()
                if not self.read_once():
                    self._find_beginning()
                # Last: a Redis that is full takes no heartbeat, but its stream can still be read.
                self._heartbeat.write_if_due()
                healthy = True
            except (RedisError, OSError) as error:
                if healthy:
                    log.warning("completions_unreadable", error=shortened(str(error)))
                healthy = False
                self._stopping.wait(RETRY_SECONDS)
            except Exception:  # the reader must go on hearing whatever one entry did
                log.exception("completions_broken")
                self._stopping.wait(RETRY_SECONDS)
        with contextlib.suppress(RedisError, OSError):  # its heartbeat stops, that says it as well
            self._heartbeat.remove()

    def read_once(self) -> int:
        """Waits up to BLOCK_SECONDS_MAX for entries, delivers them, returns their number. Raises RedisError."""
        answer = self._coordination.client.xread({self._stream: self._last_id}, COMPLETIONS_MAX, self._block_ms)
        entries: list[Any] = _entries(answer)
        for entry_id, fields in entries:
            try:
                event = as_event(decode_completion(fields[b"c"]))
            except (KeyError, ValueError, Incompatible):
                log.exception("completion_unreadable", entry=entry_id)
            else:
                self._deliver(event)
            self._last_id = entry_id.decode()
        return len(entries)

    def _find_beginning(self) -> None:
        """Redis is empty, or another node whose clock is behind: then our position means nothing there."""
        if self._last_id == "0-0":
            return
        try:
            last = self._coordination.client.xinfo_stream(self._stream)["last-generated-id"]
        except ResponseError:  # no such key
            self._last_id = "0-0"
            return
        if _id(last) < _id(self._last_id):
            self._last_id = "0-0"


def as_event(completion: Completion) -> on.Event:
    """The event of one stream entry. Raises ValueError for a stage that there is not."""
    batch_id, epoch = completion.batch_id, completion.epoch
    match completion.kind:
        case CompletionKind.DONE:
            return on.FlushSucceeded(batch_id, epoch, Stage(completion.stage))
        case CompletionKind.FAILED:
            return on.FlushFailed(batch_id, epoch, Stage(completion.stage), completion.attempt, completion.error)
        case CompletionKind.RETRY:
            return on.RetryRequested(batch_id)
        case CompletionKind.ABANDONED:
            start, stop = batch_id.rsplit("-", 2)[1:]
            return on.BatchAbandoned(batch_id, OffsetRange(int(start), int(stop)), completion.error)


def _entries(answer: Any) -> list[Any]:
    """The entries of the one stream that was asked for; RESP2 answers with a list, RESP3 with a map."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [entry for entries in answer.values() for group in entries for entry in group]
    return [entry for _, entries in answer for entry in entries]


def _id(value: bytes | str) -> tuple[int, int]:
    text = value.decode() if isinstance(value, bytes) else value
    milliseconds, sequence = text.split("-")
    return int(milliseconds), int(sequence)
