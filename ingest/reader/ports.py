"""Protocols of the loop's dependencies.

Production, tests and the simulation implement these protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Message, TopicPartition


class Clock(Protocol):
    """Monotonic seconds; the only clock used for decisions."""

    def __call__(self) -> float:
        """Returns the current time."""
        ...


class Source(Protocol):
    """The Kafka consumer. Events of the source (assignments, commit results) are delivered through the inbox or
    `drain`."""

    def poll(self, timeout_seconds: float) -> Sequence[Message]:
        """Serves callbacks and returns fetched messages, bounded in number and bytes; none while paused."""

    def commit(self, command: do.Commit) -> None:
        """Starts a commit. Never raises; the result is an event."""

    def pause(self, sources: tuple[TopicPartition, ...]) -> None:
        """Stops fetching from these partitions until `resume`; `poll` still keeps the group membership alive."""

    def resume(self, sources: tuple[TopicPartition, ...]) -> None:
        """Resumes fetching from these partitions."""

    def close(self) -> None:
        """Leaves the group."""


class Dispatcher(Protocol):
    """Dispatches to workers; results are events in the inbox."""

    def submit(self, command: do.Dispatch | do.Park | do.Renew | do.Discard | do.Recut) -> None:
        """Queues a command. Returns immediately and never raises."""

    def stop(self, deadline_seconds: float) -> None:
        """Performs submitted commands until the deadline."""


@dataclass(frozen=True, slots=True)
class UnusualMessage:
    """A message that may be expensive to parse, and is therefore left to the fallback parser."""

    message: Message

    @property
    def source(self) -> TopicPartition:
        """The partition of the message."""
        return self.message.source

    @property
    def epoch(self) -> int:
        """The epoch of the message."""
        return self.message.epoch


class FallbackParser(Protocol):
    """Parses unusual messages outside the loop. Each result is a MessageParsed in the inbox."""

    def submit(self, message: Message) -> None:
        """Queues a message. Returns immediately and never raises."""


class Parser(Protocol):
    """Parses messages, in this process or in another."""

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed | UnusualMessage]:
        """Yields one result per message, in order. The number of messages that are read before their results are
        consumed is bounded."""


class Inbox(Protocol):
    """The queue of events from other threads to the loop. `queue.SimpleQueue` is one."""

    def put(self, event: on.Event, /) -> None:
        """Adds an event without blocking. Any thread may call this method."""

    def get(self, block: bool = True, timeout: float | None = None) -> on.Event:
        """Waits at most `timeout` seconds for the next event. Raises queue.Empty. Only the loop's thread may call
        this method."""


# Called with each event, its commands and the time, after the commands have been performed.
Observer = Callable[[on.Event, Sequence[do.Command], float], None]
