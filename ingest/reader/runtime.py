"""The loop: events in, `pipeline.handle(event, now)`, commands performed.

One thread turns it. What may block (Redis, Celery) is behind the dispatcher, which answers through the
inbox; what the consumer group wants arrives through the source's callbacks, inside `source.poll`.
"""

from __future__ import annotations

import queue

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import TopicPartition
from ingest.core.pipeline import Pipeline
from ingest.reader.ports import Clock, Dispatcher, Inbox, Observer, Parser, Source

IDLE_SECONDS = 0.05
TICK_SECONDS = 0.05
INBOX_EVENTS_MAX = 256


class Runtime:
    """Owns the pipeline and turns it.

    `observe` sees every event with the commands that followed, after they were performed: metrics and logs
    are views over that. `turned_at` is when the loop last went round, for the liveness probe.
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
    ) -> None:
        self.pipeline = pipeline
        self.stopped: do.Stop | None = None
        self.turned_at = clock()
        self._source = source
        self._dispatcher = dispatcher
        self._parser = parser
        self._inbox = inbox
        self._clock = clock
        self._observe = observe
        self._ticked_at = clock()
        self._released: set[TopicPartition] = set()

    def run(self) -> do.Stop:
        """Turns until the pipeline says stop, then closes the shells. Returns how it ended."""
        while self.stopped is None:
            self.step()
        self._dispatcher.stop(deadline_seconds=2.0)
        self._source.close()
        return self.stopped

    def step(self) -> None:
        """Once round: what came in, the time, then messages if there is room for them."""
        self.turned_at = self._clock()
        self._take_in(wait_seconds=0.0)
        self._tick()
        if self.stopped is not None:
            return
        if self.pipeline.has_room or self.pipeline.paused:
            messages = self._source.poll(IDLE_SECONDS)
            for parsed in self._parser.parse(messages):
                self.feed(parsed)
        else:
            self._take_in(wait_seconds=IDLE_SECONDS)  # full, but not for long enough to pause the consumer

    def feed(self, event: on.Event) -> None:
        """One event through the pipeline, and its commands performed."""
        now = self._clock()
        commands = self.pipeline.handle(event, now)
        for command in commands:
            self._perform(command)
        self._observe(event, commands, now)

    def drain(self, sources: tuple[TopicPartition, ...]) -> None:
        """The group takes these partitions back: returns once the core released them.

        Called by the source from inside its rebalance callback, so nothing is polled meanwhile; the core's
        drain deadline, which must be shorter than the session time-out, bounds the wait.
        """
        self._released.difference_update(sources)
        self.feed(on.PartitionsRevoked(sources))
        while self.stopped is None and not self._released.issuperset(sources):
            self.turned_at = self._clock()
            self._take_in(wait_seconds=IDLE_SECONDS)
            self._tick()

    def _take_in(self, wait_seconds: float) -> None:
        """Events that other threads left, waiting at most `wait_seconds` for the first."""
        for _ in range(INBOX_EVENTS_MAX):
            try:
                event = self._inbox.get(block=wait_seconds > 0, timeout=wait_seconds or None)
            except queue.Empty:
                return
            wait_seconds = 0.0
            self.feed(event)

    def _tick(self) -> None:
        if self._clock() - self._ticked_at >= TICK_SECONDS:
            self._ticked_at = self._clock()
            self.feed(on.Ticked())

    def _perform(self, command: do.Command) -> None:
        match command:
            case do.Dispatch() | do.Park() | do.Discard():
                self._dispatcher.submit(command)
            case do.Commit():
                self._source.commit(command)
            case do.Pause():
                self._source.pause(command.sources)
            case do.Resume():
                self._source.resume(command.sources)
            case do.Release():
                self._released.update(command.sources)
            case do.Halt():
                pass  # the pipeline takes nothing more; the observer makes the noise
            case do.Stop():
                self.stopped = command
