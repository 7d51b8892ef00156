"""The only door to the flush fleet: stages a batch, starts its chord, hears of its completion.

Two threads, so that the loop never waits for Redis. The *dispatch* thread performs commands in their order; the
*completion* thread reads this reader's stream, which tasks and operators write to. Both answer with events in the
inbox. Nothing here retries: a failure is an event, and the core decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, OffsetRange, Stage
from ingest.reader.encoding import Encoder
from tasks import chord
from tasks.settings import Settings
from tasks.staging import RedisFull, Staging, connect, shortened
from tasks.wire import Completion, Manifest, reader_stream, reference

log = structlog.get_logger(__name__)
Command = do.Dispatch | do.Park | do.Discard

COMMANDS_MAX = 4096
MANIFESTS_MAX = 4096
# What was encoded for a stage that did not start yet. What does not fit is encoded again.
UNSENT_BYTES_MAX = 32 * 1024 * 1024
# After Redis failed, commands fail at once for this long instead of each waiting for its own time-out.
DOWN_SECONDS = 1.0
BLOCK_SECONDS_MAX = 1.0
COMPLETIONS_MAX = 512
# Tasks stop retrying a little before the core stops waiting, so that it hears of the failure instead of silence.
DEADLINE_SHARE = 0.9


class Inbox(Protocol):
    """Where events are left for the loop."""

    def put(self, event: on.Event) -> None: ...


class Dispatcher:
    """`start`, then `submit` from one thread, then `stop`. `reader` names this process's stream.

    Every Dispatch is answered by FlushSucceeded or FlushFailed, or by nothing at all when the chord is lost.
    Memory: of the batches in flight the manifests, and the bytes of the stage that did not start yet; batches
    themselves only while their command waits.
    `about()` is what each heartbeat says beside host and pid; `trace(batch)` the W3C traceparent that the batch's
    tasks carry ("": none). Both are called on the threads of this module.
    `app`: another Celery app than the one that only publishes; an eager one runs the tasks in our thread.
    """

    def __init__(
        self,
        settings: Settings,
        reader: str,
        inbox: Inbox,
        about: Callable[[], dict[str, Any]] = dict,
        trace: Callable[[Batch], str] = lambda batch: "",
        app: Celery | None = None,
    ) -> None:
        self.reader = reader
        self._trace = trace
        self._settings = settings
        self._inbox = inbox
        self._encoder = Encoder(
            settings.sinks, settings.blobs_per_task, reader, packed=settings.gcs_layout == "packed"
        )
        self._commands: queue.Queue[Command | None] = queue.Queue(COMMANDS_MAX)
        self._manifests: dict[tuple[str, int], Manifest] = {}
        self._unsent: dict[tuple[str, int], dict[str, bytes]] = {}
        self._down_until = 0.0
        self._down_error = ""
        self._stopping = threading.Event()
        self._app = app or chord.publisher(settings)
        self._staging = Staging(connect(settings), settings)
        self._completions = CompletionReader(settings, reader, inbox.put, self._stopping, about)
        self._threads = [
            threading.Thread(target=self._perform_all, name="dispatch", daemon=True),
            threading.Thread(target=self._completions.run, name="completions", daemon=True),
        ]

    def start(self) -> None:
        """Starts both threads. Redis need not be there."""
        for thread in self._threads:
            thread.start()

    def submit(self, command: Command) -> None:
        """Returns at once. A queue that is full, which the in-flight bounds prevent, is a failed dispatch."""
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            if isinstance(command, do.Dispatch):
                self._fail(command, f"{COMMANDS_MAX} commands wait for redis")

    def stop(self, deadline_seconds: float) -> None:
        """Performs what was submitted, at most until the deadline, then ends both threads."""
        ends_at = time.monotonic() + deadline_seconds
        try:
            self._commands.put(None, timeout=deadline_seconds)
        except queue.Full:
            log.warning("dispatch_stopped_with_commands", waiting=self._commands.qsize())
        self._threads[0].join(max(0.0, ends_at - time.monotonic()))
        self._stopping.set()
        self._threads[1].join(max(0.1, ends_at - time.monotonic()))

    # The dispatch thread

    def _perform_all(self) -> None:
        while not self._stopping.is_set():
            try:
                command = self._commands.get(timeout=1.0)
            except queue.Empty:
                continue
            if command is None:
                return
            try:
                self._perform(command)
            except (RedisError, OperationalError, OSError) as error:
                self._failed(command, error)
            except Exception as error:  # a batch must never be forgotten because of our own mistake
                log.exception("dispatch_broken", command=type(command).__name__, batch=command.batch.id)
                self._failed(command, error)

    def _perform(self, command: Command) -> None:
        if time.monotonic() < self._down_until:
            raise RedisError(self._down_error)
        match command:
            case do.Dispatch():
                self._dispatch(command)
            case do.Park():
                self._park(command)
            case do.Discard():
                manifest = self._manifest(command.batch)
                self._forget((command.batch.id, command.batch.epoch))
                self._staging.discard(manifest)
                self._staging.unpark(manifest.batch_id)

    def _dispatch(self, command: do.Dispatch) -> None:
        """Only tasks without a mark are staged and started; none left means that the stage is durable."""
        batch, stage = command.batch, command.stage
        manifest = self._manifest(batch)
        name = reference(manifest)
        tasks = [entry.name for entry in manifest.of_stage(stage)]
        tasks = self._staging.unmarked(name, tasks) if tasks else []
        if not tasks:
            self._inbox.put(on.FlushSucceeded(batch.id, batch.epoch, stage))
            return
        token = chord.new_token()
        self._staging.stage(manifest, stage, token, self._payloads(batch, stage, tasks))
        until = int(time.time() + command.deadline_seconds * DEADLINE_SHARE)
        chord.start(self._app, name, tasks, stage, command.attempt, token, until, self._trace(batch))

    def _park(self, command: do.Park) -> None:
        batch, now = command.batch, time.time()
        self._staging.park(
            batch.id,
            {
                "batch_id": batch.id,
                "batch": reference(self._manifest(batch)),
                "reader": self.reader,
                "topic": batch.source.topic,
                "partition": batch.source.partition,
                "start": batch.offsets.start,
                "stop": batch.offsets.stop,
                "stage": str(command.stage),
                "attempt": command.attempt,
                "error": command.error,
                "size_bytes": batch.size_bytes,
                "messages": len(batch.segments) + len(batch.rejects),
                "parked_at": now,
                "retry_at": now + command.retry_seconds,
            },
        )

    def _manifest(self, batch: Batch) -> Manifest:
        """Made once a batch; a few that were fenced before their Discard are dropped when there are too many."""
        key = (batch.id, batch.epoch)
        if key not in self._manifests:
            if len(self._manifests) >= MANIFESTS_MAX:
                self._forget(next(iter(self._manifests)))
            encoded = self._encoder.encode(batch)
            self._manifests[key], self._unsent[key] = encoded.manifest, encoded.payloads
            self._bound_unsent()
        return self._manifests[key]

    def _bound_unsent(self) -> None:
        """Drops the oldest first: what a fenced batch left, and what waits too long for its second stage."""
        sizes = {key: sum(map(len, payloads.values())) for key, payloads in self._unsent.items()}
        size_bytes = sum(sizes.values())
        for key in list(self._unsent)[:-1]:  # never the one that is about to be staged
            if size_bytes <= UNSENT_BYTES_MAX:
                return
            size_bytes -= sizes[key]
            del self._unsent[key]

    def _payloads(self, batch: Batch, stage: Stage, tasks: list[str]) -> dict[str, bytes]:
        """As they were encoded for the manifest; at another attempt they are encoded again."""
        unsent = self._unsent.get((batch.id, batch.epoch), {})
        payloads = {name: unsent.pop(name) for name in tasks if name in unsent}
        if len(payloads) < len(tasks):
            payloads = self._encoder.payloads(batch, stage, tasks)
        if not unsent:
            self._unsent.pop((batch.id, batch.epoch), None)
        return payloads

    def _forget(self, key: tuple[str, int]) -> None:
        del self._manifests[key]
        self._unsent.pop(key, None)

    def _failed(self, command: Command, error: Exception) -> None:
        text = shortened(f"{type(error).__name__}: {error}")
        answered = isinstance(error, (RedisFull, ResponseError))
        away = isinstance(error, (RedisError, OperationalError, OSError)) and not answered
        if away and time.monotonic() >= self._down_until:
            self._down_until = time.monotonic() + DOWN_SECONDS
            self._down_error = text
        log.warning("dispatch_failed", command=type(command).__name__, batch=command.batch.id, error=text)
        if isinstance(command, do.Dispatch):
            self._unsent.pop((command.batch.id, command.batch.epoch), None)
            self._fail(command, text)

    def _fail(self, command: do.Dispatch, error: str) -> None:
        batch = command.batch
        self._inbox.put(
            on.FlushFailed(batch.id, batch.epoch, command.stage, command.attempt, error, dispatched=False)
        )


class CompletionReader:
    """Reads one reader's stream from its own position, and shows operators that the reader lives.

    The stream's entries are events to be, read with one call for all batches. Survives Redis: while it is away
    nothing is read; a stream that is gone, or that began anew with smaller ids, is read from its beginning.
    """

    def __init__(
        self,
        settings: Settings,
        reader: str,
        deliver: Callable[[on.Event], None],
        stopping: threading.Event,
        about: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._about = about
        self._deliver = deliver
        self._stopping = stopping
        self._reader = reader
        self._stream = reader_stream(reader, settings.key_prefix)
        self._staging = Staging(connect(settings, retries=0), settings)
        self._last_id = "0-0"
        self._beat_seconds = settings.heartbeat_seconds
        self._beat_at = -self._beat_seconds
        self._started_at = time.time()
        # The server must answer before the socket gives up on it.
        self._block_ms = max(1, int(1000 * min(BLOCK_SECONDS_MAX, settings.redis_timeout_seconds / 2)))

    def run(self) -> None:
        """Until `stopping`."""
        healthy = True
        while not self._stopping.is_set():
            try:
                if not healthy:
                    self._find_beginning()
                if not self.read_once():
                    self._find_beginning()
                self._beat()  # last: a Redis that is full takes no heartbeat, but it still has news for us
                healthy = True
            except (RedisError, OSError) as error:
                if healthy:
                    log.warning("completions_unreadable", error=shortened(str(error)))
                healthy = False
                self._stopping.wait(0.2)
            except Exception:  # the reader must go on hearing whatever one entry did
                log.exception("completions_broken")
                self._stopping.wait(0.2)
        with contextlib.suppress(RedisError, OSError):  # its heartbeat stops, that says it as well
            self._staging.goodbye(self._reader)

    def read_once(self) -> int:
        """Waits a moment for entries, delivers them, returns how many there were."""
        answer = self._staging.client.xread({self._stream: self._last_id}, COMPLETIONS_MAX, self._block_ms)
        entries: list[Any] = _entries(answer)
        for entry_id, fields in entries:
            try:
                completion = msgspec.json.decode(fields[b"c"], type=Completion)
                event = as_event(completion)
            except (KeyError, ValueError, msgspec.MsgspecError):
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
            last = self._staging.client.xinfo_stream(self._stream)["last-generated-id"]
        except ResponseError:  # no such key
            self._last_id = "0-0"
            return
        if _id(last) < _id(self._last_id):
            self._last_id = "0-0"

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at < self._beat_seconds:
            return
        about = {**self._about(), "host": socket.gethostname(), "pid": os.getpid(), "started_at": self._started_at}
        self._staging.hello(self._reader, json.dumps({**about, "seen_at": time.time()}))
        self._beat_at = now


def as_event(completion: Completion) -> on.Event:
    """The event of one stream entry. Raises ValueError for a kind that this release does not know."""
    batch_id, epoch = completion.batch_id, completion.epoch
    match completion.kind:
        case "done":
            return on.FlushSucceeded(batch_id, epoch, Stage(completion.stage))
        case "failed":
            return on.FlushFailed(batch_id, epoch, Stage(completion.stage), completion.attempt, completion.error)
        case "retry":
            return on.RetryRequested(batch_id)
        case "abandoned":
            start, stop = batch_id.rsplit("-", 2)[1:]
            return on.BatchAbandoned(batch_id, OffsetRange(int(start), int(stop)), completion.error)
    raise ValueError(f"unknown completion: {completion.kind!r}")


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
