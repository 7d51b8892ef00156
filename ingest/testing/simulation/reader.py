"""One reader process of the simulated world: the real pipeline and runtime loop, with simulated dependencies.

The process can be killed between any two commands, frozen as if by SIGSTOP, or shut down. Its slot in the
deployment starts a new process after the old one has ended.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.model import (
    Batch,
    Blob,
    Drop,
    DropReason,
    Message,
    Metric,
    MetricKind,
    Outcome,
    Reject,
    Row,
    Segment,
    TopicPartition,
)
from ingest.core.ownership import GroupView, Ownership
from ingest.core.pipeline import Pipeline
from ingest.reader.ports import UnusualMessage
from ingest.reader.runtime import Runtime
from ingest.testing.simulation.celery import Chord, Fleet
from ingest.testing.simulation.clock import Timeline
from ingest.testing.simulation.faults import Dice, Fault
from ingest.testing.simulation.kafka import Broker, Kind, SimulatedSource
from ingest.testing.simulation.redis import Redis
from ingest.testing.simulation.sinks import Item
from ingest.testing.simulation.trace import Trace, Violation
from tasks.wire import batch_key

STEP_SECONDS = 0.2
UNOWNED_SECONDS_MAX = 4.0
TURN_SECONDS = 1.0
RECREATION_SECONDS_MAX = 2.0
POISON_PREFIX = "poison"
PROJECTS = 5
UNUSUAL_MESSAGE_INTERVAL = 9


class ReaderKilled(BaseException):
    """Simulates SIGKILL by unwinding the process from any point."""


class Watcher(Protocol):
    """Observes a reader's events and commands."""

    def observe(self, reader: Reader, event: on.Event, commands: Sequence[do.Command]) -> None:
        """Records the events and commands of a decision."""


class Parser:
    """Creates segments with tiny rows from the records of the log.

    If `bad` is true, everything is rejected; if `sheds` is true, the messages of one project are dropped.

    `release` is part of every batch's digest, because another release may write different rows.
    """

    def __init__(self, broker: Broker, release: int, *, bad: bool, sheds: bool) -> None:
        self.release = release
        self._broker = broker
        self._bad = bad
        self._sheds = sheds

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed | UnusualMessage]:
        """Yields one result per message. Every UNUSUAL_MESSAGE_INTERVAL-th message counts as slow and is
        yielded as UnusualMessage, to be parsed later.
        """
        for message in messages:
            yield (
                UnusualMessage(message) if message.offset % UNUSUAL_MESSAGE_INTERVAL == 0 else self.parsed(message)
            )

    def parsed(self, message: Message) -> on.MessageParsed:
        """Returns the parse result of this message."""
        return on.MessageParsed(message.source, message.epoch, message.offset, self._outcome(message))

    def _outcome(self, message: Message) -> Outcome:
        generation = message.timestamp_ms
        record = self._broker.log_of(message.source.partition, generation).records[message.offset]
        if self._bad or record.kind is Kind.REJECT:
            project_id = project_of(message.offset)
            return Reject("simulated", "", message.offset, b"?", first_seen_ms=generation, project_id=project_id)
        if record.kind is Kind.SHEDDABLE and self._sheds:
            self._broker.shed.add((message.source.partition, message.offset, generation))
            return Drop(DropReason.KILLED, 1)
        with_blob = record.kind is not Kind.ROWS_ONLY
        return segment(record.identity, message.offset, with_blob=with_blob, generation=generation)


def project_of(offset: int) -> int | None:
    """Returns the project of a message. Every eleventh message has no project."""
    return offset % PROJECTS if offset % 11 else None


def segment(identity: str, offset: int, *, with_blob: bool = True, generation: int = 0) -> Segment:
    """Returns the smallest segment with items for every sink.

    The `received` field of the segment is the generation of the topic.
    """
    return Segment(
        org_id=1,
        project_id=project_of(offset) or 0,
        replay_id=identity,
        segment_id=0,
        retention_days=30,
        received=generation,
        blobs=(Blob(f"gcs/{identity}", b"", offset),) if with_blob else (),
        clickhouse=(Row("replays", f"clickhouse/{identity}", b"{}", offset),),
        bigquery=(Row("facts", f"bigquery/{identity}", b"{}", offset),),
        metrics=(Metric(MetricKind.COUNTER, f"datadog/{identity}", 1.0),),
        warnings=(),
        size_bytes=100,
    )


def messages_of(batch: Batch) -> list[tuple[int, int, int]]:
    """Returns (partition, offset, generation of the topic) for the messages in the batch."""
    partition = batch.source.partition
    taken = [(partition, seen.clickhouse[0].offset, seen.received) for seen in batch.segments]
    return taken + [(partition, reject.offset, reject.first_seen_ms) for reject in batch.rejects]


def staged_items(batch: Batch) -> dict[str, tuple[Item, ...]]:
    """Maps task names, as in `tasks.wire`, to items, with one task per sink that has items."""
    partition = batch.source.partition

    def item(sink: str, identity: str, offset: int) -> Item:
        return Item(identity, partition, offset, f"{POISON_PREFIX}-{sink}" in identity, seen.received)

    tasks: dict[str, list[Item]] = {}
    for seen in batch.segments:
        offset = seen.clickhouse[0].offset
        for blob in seen.blobs:
            tasks.setdefault("blobs/gcs/0", []).append(item("gcs", blob.name, offset))
        tasks.setdefault("rows/clickhouse/0", []).extend(item("clickhouse", r.id, offset) for r in seen.clickhouse)
        tasks.setdefault("rows/bigquery/0", []).extend(item("bigquery", r.id, offset) for r in seen.facts)
        tasks.setdefault("rows/datadog/0", []).extend(item("datadog", m.name, offset) for m in seen.metrics)
    for reject in batch.rejects:
        offset = reject.offset
        letter = Item(f"{partition}/{offset}", partition, offset, generation=reject.first_seen_ms)
        tasks.setdefault("rows/dead_letter/0", []).append(letter)
    return {name: tuple(items) for name, items in tasks.items()}


class SimulatedDispatcher:
    """Simulates `ingest.reader.dispatch.Dispatcher`: stages and starts the chord, or reports a failure."""

    def __init__(self, reader: Reader, redis: Redis, fleet: Fleet, dice: Dice, timeline: Timeline) -> None:
        self._reader = reader
        self._redis = redis
        self._fleet = fleet
        self._dice = dice
        self._timeline = timeline

    def submit(self, command: do.Dispatch | do.Park | do.Renew | do.Discard | do.Recut) -> None:
        """Performs the command a little later, unless the process is killed first."""
        self._reader.may_be_killed()
        seconds = self._dice.uniform(0.005, 0.05)
        match command:
            case do.Dispatch():
                self._timeline.after(seconds, self._dispatch, command)
            case do.Park() | do.Renew():
                self._timeline.after(seconds, self._park, command)
            case do.Discard() | do.Recut():
                self._timeline.after(seconds, self._discard, command)

    def stop(self, deadline_seconds: float) -> None:
        """Stops without waiting."""

    def _dispatch(self, command: do.Dispatch) -> None:
        if not self._reader.alive:
            return
        if self._reader.frozen:
            self._timeline.after(0.3, self._dispatch, command)
            return
        batch = command.batch
        if self._dice.occurs(Fault.STAGING_TOO_LARGE):
            self._answer_undispatched(command, too_large=True)
            return
        if self._redis.unavailable or self._dice.occurs(Fault.STAGING_REFUSED):
            self._answer_undispatched(command)
            return
        tasks = staged_items(batch)
        contents = "-".join(f"{item.generation}/{item.offset}" for items in tasks.values() for item in items)
        key = batch_key(batch.id, f"{self._reader.parser.release}:{contents}")
        self._redis.stage(key, dict(tasks))
        names = tuple(name for name in tasks if name.startswith(command.stage))
        generation = self._redis.generation
        chord = Chord(
            batch.id, batch.epoch, command.stage, command.attempt, key, names, generation, self._reader.put
        )
        if self._dice.occurs(Fault.PARTIALLY_PUBLISHED):
            self._fleet.start(chord, len(names) // 2)
            self._answer_undispatched(command)
        else:
            self._fleet.start(chord)

    def _answer_undispatched(self, command: do.Dispatch, *, too_large: bool = False) -> None:
        batch = command.batch
        self._reader.put(
            on.DispatchFailed(batch.id, batch.epoch, command.stage, command.attempt, "redis", too_large)
        )

    def _park(self, command: do.Park | do.Renew) -> None:
        if self._reader.alive and not self._redis.unavailable:
            self._redis.park(command.batch.id, self._reader, command.batch)

    def _discard(self, command: do.Discard | do.Recut) -> None:
        if not self._reader.alive or self._redis.unavailable or self._dice.occurs(Fault.DISCARD_LOST):
            return
        self._redis.parked.pop(command.batch.id, None)
        for key, fields in self._redis.batches.items():
            if key.startswith(batch_key(command.batch.id, "")):
                for name in [name for name in fields if not name.startswith("done/")]:
                    del fields[name]


class Reader:
    """One reader process. `put` adds to its inbox, and `step` runs one iteration of its loop."""

    def __init__(
        self,
        name: str,
        limits: Limits,
        source: SimulatedSource,
        parser: Parser,
        redis: Redis,
        fleet: Fleet,
        dice: Dice,
        timeline: Timeline,
        trace: Trace,
        watcher: Watcher,
        clock_ahead_seconds: float = 0.0,
    ) -> None:
        self.name = name
        self.alive = True
        self.busy = False
        self.stop: do.Stop | None = None
        self.parser = parser
        self.source = source
        self.pipeline = Pipeline(limits)
        self.stopping = False
        self.frozen_until = 0.0
        self.clock_ahead_seconds = clock_ahead_seconds
        self._other_topic_since: float | None = None
        self._ownership = Ownership(UNOWNED_SECONDS_MAX, TURN_SECONDS)
        self._seen: GroupView | None = None
        self._dice = dice
        self._timeline = timeline
        self._trace = trace
        self._watcher = watcher
        self._events: deque[on.Event] = deque()
        self._runtime = Runtime(
            pipeline=self.pipeline,
            source=self,
            dispatcher=SimulatedDispatcher(self, redis, fleet, dice, timeline),
            parser=parser,
            inbox=self,
            clock=lambda: timeline.now + clock_ahead_seconds,
            observe=self._observe,
            fallback_parser=self,
        )
        source.inbox = self.put
        source.emit = self._runtime.feed
        source.drain = self._drain
        source.die = self._end_process

    @property
    def frozen(self) -> bool:
        """True while the process is suspended, as if by SIGSTOP."""
        return self._timeline.now < self.frozen_until

    def step(self) -> None:
        """Runs one iteration of the loop, during which the simulated process may end."""
        self.busy = True
        try:
            self._runtime.step()
            self.stop = self._runtime.stopped
        except ReaderKilled:
            self.alive = False
        finally:
            self.busy = False
        if self.stop is not None and self.alive:
            self.alive = False
            self.source.close()

    def put(self, event: on.Event) -> None:
        """Adds an event. In a real reader, another thread does this."""
        if self.alive:
            self._events.append(event)

    def kill(self) -> None:
        """Kills the process immediately or, if it is frozen, as soon as it runs again."""
        self.alive = False

    def watch_ownership(self, view: GroupView) -> None:
        """Checks that all partitions have owners. In a real reader, another thread does this.

        A group description in which every partition has an owner is checked only once.
        """
        if view is self._seen:
            return
        self._seen = None if view.unowned else view
        if self._ownership.must_rejoin(view, self.source.member_id, self._timeline.now):
            self.source.rejoin()

    def watch_topic(self, topic_id: str) -> None:
        """Checks the id of the topic. In a real reader, another thread does this periodically."""
        now = self._timeline.now
        if self.source.topic_id in ("", topic_id):
            self._other_topic_since = None
        elif self._other_topic_since is None:
            self._other_topic_since = now
        elif now - self._other_topic_since >= RECREATION_SECONDS_MAX:
            self._other_topic_since = None
            self._trace.mark("topic_found_recreated")
            self.source.rejoin()

    def _end_process(self) -> None:
        self.alive = False
        raise ReaderKilled

    def request_stop(self) -> None:
        """Requests a shutdown, as SIGTERM does."""
        self.stopping = True
        self.put(on.ShutdownRequested())

    def may_be_killed(self) -> None:
        """Marks a point between two commands at which the process may be killed."""
        if not self.alive or self._dice.occurs(Fault.READER_CRASH_MIDWAY):
            self.alive = False
            raise ReaderKilled

    # The runtime's inbox

    def get(self, block: bool = True, timeout: float | None = None) -> on.Event:
        """Returns the next event. Simulated time passes during the wait. Raises queue.Empty or ReaderKilled."""
        timeline = self._timeline
        if block and not self._events:
            timeline.run_until(timeline.now + (timeout or 0.0))
        while timeline.now < self.frozen_until and self.alive:
            timeline.run_until(self.frozen_until)
        if not self.alive:
            raise ReaderKilled
        if not self._events:
            raise queue.Empty
        return self._events.popleft()

    # The runtime's fallback parser

    def submit(self, message: Message) -> None:
        """Submits a message for parsing. Results arrive a little later, in no fixed order."""
        self._trace.mark("deferred")
        self._timeline.after(self._dice.uniform(0.01, 0.6), self._answer, message)

    def _answer(self, message: Message) -> None:
        if self.alive:
            self.put(self.parser.parsed(message))

    # The message source that the runtime uses. The process may be killed before each commit.

    def poll(self, timeout_seconds: float) -> Sequence[Message]:
        return self.source.poll(timeout_seconds)

    def commit(self, command: do.Commit) -> None:
        self.may_be_killed()
        self.source.commit(command)

    def pause(self, sources: tuple[TopicPartition, ...]) -> None:
        self.source.pause(sources)

    def resume(self, sources: tuple[TopicPartition, ...]) -> None:
        self.source.resume(sources)

    def close(self) -> None:
        self.source.close()

    def _drain(self, sources: tuple[TopicPartition, ...]) -> None:
        started_at = self._timeline.now
        flying = any(flight.batch.source in sources for flight in self.pipeline.in_flight)
        self._runtime.drain(sources)
        if flying:
            self._trace.mark("revoked_with_batches_in_flight")
        if self._timeline.now - started_at >= self.pipeline.limits.drain_deadline_seconds:
            self._trace.mark("drain_deadline_passed")

    def _observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        trace, now = self._trace, self._timeline.now
        if trace.recording and (commands or not isinstance(event, on.Ticked)):
            trace.add(now, self.name, event)
            for command in commands:
                trace.add(now, self.name, f"    -> {command}")
        try:
            self._watcher.observe(self, event, commands)
        except Exception as error:  # because the loop ignores exceptions raised by observers
            raise Violation("checker", repr(error)) from error


def without_reject_limits(limits: Limits) -> Limits:
    """Disables halting on rejects, as an operator does to continue after bad messages."""
    return replace(limits, reject_ratio_max=1.0, reject_unattributed_ratio_max=1.0)
