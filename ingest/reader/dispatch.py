"""Dispatches batches to workers: stages their bytes, starts chords, publishes parked batches.

The dispatch thread performs the core's commands in order, so that the loop never waits for Redis. The thread of
`ingest.reader.completions` reads completions. Both threads put events into the inbox. This module does not retry:
a failure is an event, and the core decides.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, Stage
from ingest.observe.heartbeat import Heartbeat
from ingest.reader.completions import CompletionReader
from ingest.reader.encoding import Encoder
from ingest.reader.ports import Inbox
from tasks import chord
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.errors import shortened
from tasks.observe.loops import Loop, LoopEnded, OnFailure, ignore
from tasks.seals import Unverified, warn
from tasks.settings import Settings
from tasks.staging import RedisFull, Staging
from tasks.units import MiB
from tasks.wire import ChordName, Manifest, reference

log = structlog.get_logger(__name__)
Command = do.Dispatch | do.Park | do.Renew | do.Discard | do.Recut

COMMANDS_MAX = 4096
MANIFESTS_MAX = 4096
# Maximum encoded bytes kept in memory for stages that have not started. Bytes dropped at this limit are encoded
# again when their stage starts.
UNSENT_BYTES_MAX = 32 * MiB
# After a Redis failure, commands fail immediately for this long instead of each waiting for a timeout.
DOWN_SECONDS = 1.0
# Tasks stop retrying after this fraction of the core's deadline, so that the core receives a failure before the
# deadline passes.
DEADLINE_SHARE = 0.9


class Dispatcher:
    """Call `start`, then `submit` from one thread, then `stop`. `reader` names the completion stream of this
    process.

    Every Dispatch results in FlushSucceeded, FlushFailed or DispatchFailed, or in no event if its chord was lost.
    Memory holds the manifests of batches in flight, the bytes of stages that have not started, and the batches of
    waiting commands.

    `heartbeat()` builds each heartbeat, on the completion thread. `trace(batch)` returns the W3C traceparent of
    the batch's tasks ("" if none), on the dispatch thread. `on_failure(name)` is called for each failure of a
    loop, and `unverified(purpose)` for each entry that is ignored because it has no valid seal. `app`: a Celery
    app to use instead of the publish-only one; an eager app runs the tasks in this thread.
    """

    def __init__(
        self,
        settings: Settings,
        reader: str,
        inbox: Inbox,
        heartbeat: Callable[[], Heartbeat] = Heartbeat,
        trace: Callable[[Batch], str] = lambda batch: "",
        app: Celery | None = None,
        on_failure: OnFailure = ignore,
        unverified: Unverified = warn,
    ) -> None:
        self.reader = reader
        self._trace = trace
        self._settings = settings
        self._inbox = inbox
        self._encoder = Encoder(
            settings.sinks,
            settings.blobs_per_task,
            reader,
            packed=settings.gcs_layout == "packed",
            seals=settings.seals,
        )
        self._commands: queue.Queue[Command | None] = queue.Queue(COMMANDS_MAX)
        self._manifests: dict[tuple[str, int], Manifest] = {}
        self._unsent: dict[tuple[str, int], dict[str, bytes]] = {}
        self._down_until = 0.0
        self._down_error = ""
        self._app = app or chord.publisher(settings)
        client = connect(settings)
        self._staging = Staging(client, settings, unverified)
        self._coordination = Coordination(client, settings, unverified)
        self._completions = CompletionReader(settings, reader, inbox.put, heartbeat, on_failure, unverified)
        self._loop = Loop("dispatch", self._perform_next, 0.0, on_failure=on_failure)

    def start(self) -> None:
        """Starts both threads. Redis need not be reachable."""
        self._loop.start()
        self._completions.loop.start()

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The two loops that the readiness check covers."""
        return self._loop, self._completions.loop

    def submit(self, command: Command) -> None:
        """Queues a command and returns immediately. If the queue is full, which the limits on batches in flight
        prevent, the dispatch fails."""
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            if isinstance(command, do.Dispatch):
                self._fail(command, f"{COMMANDS_MAX} commands wait for redis")

    def stop(self, deadline_seconds: float) -> None:
        """Performs submitted commands until the deadline, then stops both threads."""
        ends_at = time.monotonic() + deadline_seconds
        try:
            self._commands.put(None, timeout=deadline_seconds)
        except queue.Full:
            log.warning("dispatch_stopped_with_commands", waiting=self._commands.qsize())
        self._loop.join(ends_at - time.monotonic())
        self._loop.request_stop()
        self._completions.stop(max(0.1, ends_at - time.monotonic()))

    # The dispatch thread

    def _perform_next(self) -> None:
        """Performs the next command, waiting up to one second. Every failure of a command becomes an event."""
        try:
            command = self._commands.get(timeout=1.0)
        except queue.Empty:
            return
        if command is None:
            raise LoopEnded
        try:
            self._perform(command)
        except (RedisError, OperationalError, OSError) as error:
            self._on_failure(command, error)
        except Exception as error:
            log.exception("dispatch_broken", command=type(command).__name__, batch=command.batch.id)
            self._on_failure(command, error)

    def _perform(self, command: Command) -> None:
        if time.monotonic() < self._down_until:
            raise RedisError(self._down_error)
        match command:
            case do.Dispatch():
                self._dispatch(command)
            case do.Park():
                self._show(command)
            case do.Renew():
                self._show(command.park, command.age_seconds)
            case do.Discard() | do.Recut():
                manifest = self._manifest(command.batch)
                self._forget((command.batch.id, command.batch.epoch))
                self._staging.discard(manifest)
                self._coordination.unpark(manifest.batch_id)

    def _dispatch(self, command: do.Dispatch) -> None:
        """Stages and starts the tasks that have no done mark. If all tasks have a done mark, the stage is
        durable."""
        batch, stage = command.batch, command.stage
        manifest = self._manifest(batch)
        tasks = [entry.name for entry in manifest.of_stage(stage)]
        tasks = self._staging.unmarked(manifest, tasks) if tasks else []
        if not tasks:
            self._inbox.put(on.FlushSucceeded(batch.id, batch.epoch, stage))
            return
        name = ChordName(reference(manifest), stage, command.attempt, chord.new_token())
        self._staging.stage(manifest, name, self._payloads(batch, stage, tasks))
        until = int(self._staging.now() + command.deadline_seconds * DEADLINE_SHARE)
        chord.start(self._app, chord.FanOut(name, tuple(tasks), until, self._trace(batch)))

    def _show(self, command: do.Park, age_seconds: float = 0.0) -> None:
        batch, now = command.batch, self._coordination.now()
        self._coordination.park(
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
                "parked_at": now - age_seconds,
                "retry_at": now + command.retry_seconds,
            },
        )

    def _manifest(self, batch: Batch) -> Manifest:
        """Returns the manifest, encoded once per batch. The oldest manifests are dropped if there are too many."""
        key = (batch.id, batch.epoch)
        if key not in self._manifests:
            if len(self._manifests) >= MANIFESTS_MAX:
                self._forget(next(iter(self._manifests)))
            encoded = self._encoder.encode(batch)
            self._manifests[key], self._unsent[key] = encoded.manifest, encoded.payloads
            self._limit_unsent_payloads()
        return self._manifests[key]

    def _limit_unsent_payloads(self) -> None:
        """Limits how many encoded bytes are kept in memory. Drops the oldest bytes first, because they belong to
        fenced batches or to batches whose second stage has not started for a long time."""
        sizes = {key: sum(map(len, payloads.values())) for key, payloads in self._unsent.items()}
        size_bytes = sum(sizes.values())
        for key in list(self._unsent)[:-1]:  # except the one about to be staged
            if size_bytes <= UNSENT_BYTES_MAX:
                return
            size_bytes -= sizes[key]
            del self._unsent[key]

    def _payloads(self, batch: Batch, stage: Stage, tasks: list[str]) -> dict[str, bytes]:
        """Returns the bytes that were encoded together with the manifest; for further attempts, encodes the items
        again."""
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

    def _on_failure(self, command: Command, error: Exception) -> None:
        text = shortened(f"{type(error).__name__}: {error}")
        refused = isinstance(error, (RedisFull, ResponseError))
        unreachable = isinstance(error, (RedisError, OperationalError, OSError)) and not refused
        if unreachable and time.monotonic() >= self._down_until:
            self._down_until = time.monotonic() + DOWN_SECONDS
            self._down_error = text
        log.warning("dispatch_failed", command=type(command).__name__, batch=command.batch.id, error=text)
        if isinstance(command, do.Dispatch):
            self._unsent.pop((command.batch.id, command.batch.epoch), None)
            self._fail(command, text, too_large=isinstance(error, RedisFull) and error.too_large)

    def _fail(self, command: do.Dispatch, error: str, *, too_large: bool = False) -> None:
        batch = command.batch
        self._inbox.put(on.DispatchFailed(batch.id, batch.epoch, command.stage, command.attempt, error, too_large))
