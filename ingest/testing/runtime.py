"""Runs the whole consumer in a test, one event at a time, with every effect under the test's control.

    runtime = MockRuntime(Limits(batch_messages_max=2))
    runtime.assign(PARTITION)
    runtime.submit(recording(segment_id=0))      # nothing yet
    runtime.submit(recording(segment_id=1))      # the batch is full
    runtime.settle()                             # every command succeeds
    assert runtime.committed == {PARTITION: 2}

Time advances only through `advance`. No threads run, and nothing is patched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.model import Message, TopicPartition
from ingest.core.parse import ParseRules, parse
from ingest.core.pipeline import Pipeline
from tasks.wire import SinkName

PARTITION = TopicPartition("ingest-replay-recordings", 0)

CommandT = TypeVar("CommandT", bound=do.Command)


class MockRuntime:
    """A runtime that passes every command to the test, which responds with an event of its choice.

    `commands`: the commands that the test has not taken yet. `committed`: the offsets that a broker would have
    stored.
    """

    def __init__(self, limits: Limits | None = None, rules: ParseRules | None = None) -> None:
        self.pipeline = Pipeline(limits or Limits())
        self.rules = rules or ParseRules()
        self.now = 0.0
        self.commands: list[do.Command] = []
        self.committed: dict[TopicPartition, int] = {}
        self.records: dict[TopicPartition, str] = {}
        self._epochs: dict[TopicPartition, int] = {}
        self._offsets: dict[TopicPartition, int] = {}

    # Events

    def assign(self, *sources: TopicPartition) -> list[do.Command]:
        """Assigns partitions, with their committed offsets."""
        given = []
        for source in sources or (PARTITION,):
            self._epochs[source] = self._epochs.get(source, 0) + 1
            self._offsets[source] = self.committed.get(source, 0)
            given.append(
                on.Assignment(
                    source, self._epochs[source], self.committed.get(source), self.records.get(source, "")
                )
            )
        return self.handle_event(on.PartitionsAssigned(tuple(given)))

    def submit(
        self, value: bytes, source: TopicPartition = PARTITION, offset: int | None = None
    ) -> list[do.Command]:
        """Parses a message with the real parser and submits it, by default at the next offset."""
        next_offset = self._offsets.get(source, 0) if offset is None else offset
        self._offsets[source] = next_offset + 1
        message = Message(source=source, epoch=self._epochs[source], offset=next_offset, value=value)
        return self.handle_event(on.MessageParsed(source, message.epoch, next_offset, parse(message, self.rules)))

    def handle_event(self, event: on.Event) -> list[do.Command]:
        """Passes an event of any kind to the pipeline, at the current time."""
        commands = self.pipeline.handle(event, self.now)
        self.commands.extend(commands)
        return commands

    def advance(self, seconds: float) -> list[do.Command]:
        """Advances the time, then ticks once."""
        self.now += seconds
        return self.handle_event(on.Ticked())

    def join(self) -> list[do.Command]:
        """Shuts down as if SIGTERM had been received: flushes and commits everything. Every command succeeds."""
        self.handle_event(on.ShutdownRequested())
        return self.settle()

    # Responses of the test

    def take(self, kind: type[CommandT]) -> list[CommandT]:
        """Removes and returns the pending commands of one kind."""
        taken: list[CommandT] = [command for command in self.commands if isinstance(command, kind)]
        self.commands = [command for command in self.commands if not isinstance(command, kind)]
        return taken

    def acknowledge_commits(self) -> None:
        """Acknowledges every pending commit."""
        while commits := self.take(do.Commit):
            for commit in commits:
                self.committed[commit.source] = commit.offset
                self.records[commit.source] = commit.record
                self.handle_event(on.Committed(commit.source, commit.epoch, commit.offset, commit.record))

    def succeed(self, dispatch: do.Dispatch) -> list[do.Command]:
        """Completes the chord of that stage."""
        return self.handle_event(on.FlushSucceeded(dispatch.batch.id, dispatch.batch.epoch, dispatch.stage))

    def fail(
        self, dispatch: do.Dispatch, error: str = "the sink failed", sinks: Iterable[SinkName] = ()
    ) -> list[do.Command]:
        """Fails the chord of the dispatched stage. `sinks`: the sinks that did not write; empty if they are
        unknown.
        """
        batch, stage, attempt = dispatch.batch, dispatch.stage, dispatch.attempt
        return self.handle_event(on.FlushFailed(batch.id, batch.epoch, stage, attempt, error, frozenset(sinks)))

    def fail_dispatch(
        self, dispatch: do.Dispatch, error: str = "Redis is unavailable", *, too_large: bool = False
    ) -> list[do.Command]:
        """Reports that the chord of that stage could not be started."""
        batch, attempt = dispatch.batch, dispatch.attempt
        return self.handle_event(
            on.DispatchFailed(batch.id, batch.epoch, dispatch.stage, attempt, error, too_large)
        )

    def settle(self) -> list[do.Command]:
        """Completes all pending commands successfully, and all commands that result from them, until none is left.

        Returns the dispatches.
        """
        completed: list[do.Command] = []
        while True:
            self.acknowledge_commits()
            dispatches = self.take(do.Dispatch)
            if not dispatches and not any(isinstance(command, do.Commit) for command in self.commands):
                return completed
            for dispatch in dispatches:
                completed.append(dispatch)
                self.succeed(dispatch)
