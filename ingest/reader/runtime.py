"""The loop: takes events, calls `pipeline.handle(event, now)`, performs commands.

One thread runs the loop. Blocking calls (Redis, Celery) are made by the dispatcher, which responds through the
inbox; group changes arrive through the source's callbacks, inside `source.poll`.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import structlog

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Message, Outcome, TopicPartition
from ingest.core.pipeline import Pipeline, Room
from ingest.reader.kept import Waiting, WaitingMessages
from ingest.reader.ports import Clock, Dispatcher, FallbackParser, Inbox, Observer, Parser, Source, UnusualMessage
from tasks.observe.loops import Guard

IDLE_SECONDS = 0.05
TICK_SECONDS = 0.05
INBOX_EVENTS_MAX = 256
STOP_SECONDS_MAX = 2.0
TICKED = on.Ticked()

log = structlog.get_logger(__name__)


class Runtime:
    """Owns and runs the pipeline.

    `observe` receives every event with its commands, after they have been performed; metrics and logs are derived
    from it. `guard` logs and counts exceptions raised in `observe`, so that they never stop the loop.
    `last_iteration_at` is the time of the last iteration, for the liveness probe. `polled` is called with the
    messages of each poll. `screen` can replace an outcome with a drop before batching.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        source: Source,
        dispatcher: Dispatcher,
        parser: Parser,
        inbox: Inbox,
        clock: Clock,
        observe: Observer = lambda event, commands, now: None,
        guard: Guard | None = None,
        polled: Callable[[Sequence[Message]], None] = lambda messages: None,
        fallback_parser: FallbackParser | None = None,
        screen: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    ) -> None:
        self.pipeline = pipeline
        self.stopped: do.Stop | None = None
        self.last_iteration_at = clock()
        self._source = source
        self._dispatcher = dispatcher
        self._parser = parser
        self._inbox = inbox
        self._clock = clock
        self._observe = observe
        self._polled = polled
        self._fallback_parser = fallback_parser
        self._screen = screen
        self._kept = WaitingMessages()
        self.guard = guard or Guard()
        self._closing = False
        self._ticked_at = clock()
        self._released: set[TopicPartition] = set()

    def run(self) -> do.Stop:
        """Runs until the pipeline stops. Returns how the pipeline ended.

        The dispatcher is always stopped and the source closed, so that this member leaves the group immediately.
        After an exception nothing more is committed and no partition is drained.
        """
        try:
            while self.stopped is None:
                self.step()
            return self.stopped
        finally:
            self.close()

    def close(self) -> None:
        """Closes the dispatcher and the source. An error while closing the dispatcher is logged and does not
        prevent the source from being closed. Idempotent."""
        if self._closing:
            return
        self._closing = True
        try:
            self._dispatcher.stop(deadline_seconds=STOP_SECONDS_MAX)
        except Exception:
            log.exception("close_failed", part="dispatcher")
        try:
            self._source.close()
        except Exception:
            log.exception("close_failed", part="source")

    def step(self) -> None:
        """Runs one iteration: handles events and the tick, then takes messages if there is room."""
        self.last_iteration_at = self._clock()
        self._receive_items(wait_seconds=0.0)
        self._tick()
        if self.stopped is not None:
            return
        for waiting in self._kept.take_all():
            self._take(waiting)
        if self.pipeline.has_room or self.pipeline.paused:
            messages = self._source.poll(IDLE_SECONDS)
            self.guard.call("polled", self._polled, messages)
            if messages:
                self._take(messages)
        else:
            # There is no room, but this has not lasted long enough to pause the consumer.
            self._receive_items(wait_seconds=IDLE_SECONDS)

    def _take(self, fetched: Iterable[Waiting]) -> None:
        """Parses and delivers messages while there is room, in order; keeps the rest."""
        for unparsed, run in groupby(fetched, key=lambda item: isinstance(item, Message)):
            postponed: list[Waiting] = []
            taken: Iterator[Any] = self._items_with_room(run, postponed)
            for event in self._parser.parse(taken) if unparsed else taken:
                self._hand_over(event)
            for item in postponed:
                self._kept.add(item)

    def _items_with_room(self, run: Iterable[Waiting], postponed: list[Waiting]) -> Iterator[Waiting]:
        """Yields the messages for which there is room, and adds the others to `postponed`. The room is checked
        before each message, because the outcomes of earlier messages use some of it.

        The postponed messages are kept only once the whole run is parsed: until then, the parser may still return
        earlier messages of the same partitions, which must be kept first.
        """
        sources: set[TopicPartition] = set()
        for item in run:
            if item.source in sources or self._waits(item):
                sources.add(item.source)
                postponed.append(item)
            elif isinstance(item, on.OffsetOutOfRange) or self._room(item) is Room.NOW:
                yield item

    def _waits(self, item: Waiting) -> bool:
        """Returns True if an earlier message of its partition is waiting, or if there is no room for this item."""
        if self.waits(item.source):
            return True
        return not isinstance(item, on.OffsetOutOfRange) and self._room(item) is Room.LATER

    def waits(self, source: TopicPartition) -> bool:
        """Returns True if an earlier message of this partition has not been taken yet."""
        return self._kept.has_waiting_items(source) or self.pipeline.is_deferred(source)

    def _room(self, item: Message | on.MessageParsed | UnusualMessage) -> Room:
        return self.pipeline.room(item.source, item.epoch)

    def _hand_over(self, item: on.MessageParsed | UnusualMessage | on.OffsetOutOfRange) -> None:
        """Passes one outcome to the core, or keeps it if an earlier message of its partition is now waiting."""
        if self.waits(item.source):
            self._kept.add(item)
        elif isinstance(item, UnusualMessage):
            message = item.message
            self.feed(on.MessageDeferred(message.source, message.epoch, message.offset, message.size_bytes))
            assert self._fallback_parser is not None, "a parser without a fallback parser has no unusual messages"
            self._fallback_parser.submit(message)
        else:
            self.feed(item)

    def feed(self, event: on.Event) -> None:
        """Handles one event and executes the resulting commands. While the loop is closing, events are ignored.

        An event that reports that the log continues at another offset is handled only after the messages that were
        already fetched.
        """
        if self._closing:
            return
        if isinstance(event, on.OffsetOutOfRange) and self.waits(event.source):
            self._kept.add(event)
            return
        if isinstance(event, on.PartitionsLost):
            self._kept.forget(event.sources)
        if isinstance(event, on.MessageParsed):
            outcome = self._screen(event.outcome)
            if outcome is not event.outcome:
                event = replace(event, outcome=outcome)
        now = self._clock()
        commands = self.pipeline.handle(event, now)
        for command in commands:
            self._perform(command)
        self.guard.call("observe", self._observe, event, commands, now)

    def drain(self, sources: tuple[TopicPartition, ...]) -> None:
        """Called when the group revokes partitions; returns once the core has released them.

        The call runs inside the source's rebalance callback, so nothing is polled in the meantime, and takes at
        most the core's drain deadline, which must be shorter than the session timeout.
        """
        self._released.difference_update(sources)
        self.feed(on.PartitionsRevoked(sources))
        while self.stopped is None and not self._closing and not self._released.issuperset(sources):
            self.last_iteration_at = self._clock()
            self._receive_items(wait_seconds=IDLE_SECONDS)
            self._tick()

    def _receive_items(self, wait_seconds: float) -> None:
        """Handles events from other threads, waiting at most `wait_seconds` for the first."""
        for _ in range(INBOX_EVENTS_MAX):
            try:
                event = self._inbox.get(block=wait_seconds > 0, timeout=wait_seconds or None)
            except queue.Empty:
                return
            wait_seconds = 0.0
            self.feed(event)

    def _tick(self) -> None:
        now = self._clock()
        if now - self._ticked_at >= TICK_SECONDS:
            self._ticked_at = now
            self.feed(TICKED)

    def _perform(self, command: do.Command) -> None:
        match command:
            case do.Dispatch() | do.Park() | do.Renew() | do.Discard() | do.Recut():
                self._dispatcher.submit(command)
            case do.Commit():
                self._source.commit(command)
            case do.Pause():
                self._source.pause(command.sources)
            case do.Resume():
                self._source.resume(command.sources)
            case do.Release():
                self._released.update(command.sources)
                self._kept.forget(command.sources)
            case do.Halt():
                pass  # the pipeline takes no more messages; the observer reports the halt
            case do.Shed():
                pass  # the observer reports it
            case do.Stop():
                self.stopped = command
