"""Reads this reader's completion stream in Redis and converts entries to events.

Tasks and operators write one entry per completion. One call reads the completions of all batches, from the last
position. A stream that was lost, or recreated with smaller ids, is read from its beginning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from ingest.core import events as on
from ingest.core.model import OffsetRange, Stage
from ingest.observe.heartbeat import Heartbeat, HeartbeatWriter
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.observe.loops import Loop, OnFailure, ignore
from tasks.seals import Purpose, Unverified, warn
from tasks.settings import Settings
from tasks.wire import Completion, CompletionKind, Incompatible, decode_completion, known_sinks, reader_stream

log = structlog.get_logger(__name__)

BLOCK_SECONDS_MAX = 1.0
COMPLETIONS_MAX = 512
# Interval between attempts while Redis does not respond.
RETRY_SECONDS = 0.2
RETRY_SECONDS_MAX = 1.0


class CompletionReader:
    """Reads one reader's stream and calls `deliver` with each event, in `loop`.

    The same thread writes the heartbeat, so a recent heartbeat shows that the reader can receive completions.
    """

    def __init__(
        self,
        settings: Settings,
        reader: str,
        deliver: Callable[[on.Event], None],
        heartbeat: Callable[[], Heartbeat] = Heartbeat,
        on_failure: OnFailure = ignore,
        unverified: Unverified = warn,
    ) -> None:
        self._deliver = deliver
        self._stream = reader_stream(reader, settings.key_prefix)
        self._seals = settings.seals
        self._unverified = unverified
        self._coordination = Coordination(connect(settings, retries=0), settings, unverified)
        self._heartbeat = HeartbeatWriter(self._coordination, reader, settings.heartbeat_seconds, heartbeat)
        self._last_id = "0-0"
        # The server must respond before the socket times out.
        self._block_ms = max(1, int(1000 * min(BLOCK_SECONDS_MAX, settings.redis_timeout_seconds / 2)))
        self._healthy = True
        self.loop = Loop(
            "completions",
            self.step,
            0.0,
            retry_seconds=RETRY_SECONDS,
            retry_seconds_max=RETRY_SECONDS_MAX,
            expected=(RedisError, OSError),
            on_failure=on_failure,
        )

    def step(self) -> None:
        """Waits for entries once, delivers them, and writes the heartbeat when due. Raises RedisError."""
        healthy, self._healthy = self._healthy, False
        if not healthy:
            self._find_beginning()
        if not self.read_once():
            self._find_beginning()
        # The heartbeat comes last, because a full Redis refuses it, although the stream can still be read.
        self._heartbeat.write_if_due()
        self._healthy = True

    def stop(self, deadline_seconds: float) -> None:
        """Ends the loop and removes the heartbeat."""
        self.loop.stop(deadline_seconds)
        with contextlib.suppress(RedisError, OSError):  # a heartbeat that was not removed expires
            self._heartbeat.remove()

    def read_once(self) -> int:
        """Waits up to BLOCK_SECONDS_MAX for entries and delivers them. Returns their number. Raises RedisError."""
        answer = self._coordination.client.xread({self._stream: self._last_id}, COMPLETIONS_MAX, self._block_ms)
        entries: list[Any] = _entries(answer)
        for entry_id, fields in entries:
            self._last_id = entry_id.decode()
            try:
                completion = fields[b"c"]
                if not self._seals.verifies(fields.get(b"s"), Purpose.COMPLETION, self._stream, completion):
                    self._unverified(Purpose.COMPLETION)
                    continue
                event = as_event(decode_completion(completion))
            except (KeyError, ValueError, Incompatible):
                log.exception("completion_unreadable", entry=entry_id)
            else:
                self._deliver(event)
        return len(entries)

    def _find_beginning(self) -> None:
        """Resets the position if Redis was emptied or has failed over to a node whose clock is behind."""
        if self._last_id == "0-0":
            return
        try:
            last = self._coordination.client.xinfo_stream(self._stream)["last-generated-id"]
        except ResponseError:  # the key does not exist
            self._last_id = "0-0"
            return
        if _id(last) < _id(self._last_id):
            self._last_id = "0-0"


def as_event(completion: Completion) -> on.Event:
    """Returns the event of one stream entry. Raises ValueError for an unknown stage."""
    batch_id, epoch = completion.batch_id, completion.epoch
    match completion.kind:
        case CompletionKind.DONE:
            return on.FlushSucceeded(batch_id, epoch, Stage(completion.stage))
        case CompletionKind.FAILED:
            sinks = known_sinks(completion.sinks)
            stage, attempt = Stage(completion.stage), completion.attempt
            return on.FlushFailed(batch_id, epoch, stage, attempt, completion.error, sinks)
        case CompletionKind.RETRY:
            return on.RetryRequested(batch_id)
        case CompletionKind.ABANDONED:
            start, stop = batch_id.rsplit("-", 2)[1:]
            return on.BatchAbandoned(batch_id, OffsetRange(int(start), int(stop)), completion.error)


def _entries(answer: Any) -> list[Any]:
    """Returns the entries of the requested stream, from the list of RESP2 or the map of RESP3."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [entry for entries in answer.values() for group in entries for entry in group]
    return [entry for _, entries in answer for entry in entries]


def _id(value: bytes | str) -> tuple[int, int]:
    text = value.decode() if isinstance(value, bytes) else value
    milliseconds, sequence = text.split("-")
    return int(milliseconds), int(sequence)
