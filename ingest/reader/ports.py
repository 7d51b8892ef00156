"""What the loop needs of the world around it, one protocol per shell.

Production, tests and the simulation implement them; every protocol of the reader is declared here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Message, TopicPartition


class Clock(Protocol):
    """Monotonic seconds; the only clock that decisions are made by."""

    def __call__(self) -> float:
        """Now."""
        ...


class Source(Protocol):
    """The Kafka consumer. Its own events (assignments, commit answers) go into the inbox, or through `drain`."""

    def poll(self, timeout_seconds: float) -> Sequence[Message]:
        """Serves callbacks and returns what was fetched: bounded in number and bytes, nothing while paused."""

    def commit(self, command: do.Commit) -> None:
        """Never raises: the answer is an event."""

    def pause(self, sources: tuple[TopicPartition, ...]) -> None:
        """Fetches nothing from these partitions until `resume`; `poll` still serves the group."""

    def resume(self, sources: tuple[TopicPartition, ...]) -> None:
        """Fetches from these partitions again."""

    def close(self) -> None:
        """Leaves the group."""


class Dispatcher(Protocol):
    """The way to the flush fleet; answers are events in the inbox."""

    def submit(self, command: do.Dispatch | do.Park | do.Renew | do.Discard | do.Recut) -> None:
        """Returns at once and never raises."""

    def stop(self, deadline_seconds: float) -> None:
        """Performs what was submitted, at most until the deadline."""


@dataclass(frozen=True, slots=True)
class Unusual:
    """A message that is not plainly cheap to parse: it belongs on the second line."""

    message: Message

    @property
    def source(self) -> TopicPartition:
        """Of the message."""
        return self.message.source

    @property
    def epoch(self) -> int:
        """Of the message."""
        return self.message.epoch


class SecondLine(Protocol):
    """Where unusual messages are parsed, beside the loop. Each answer is a MessageParsed in the inbox."""

    def submit(self, message: Message) -> None:
        """Returns at once and never raises."""


class Parser(Protocol):
    """Where parsing runs."""

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed | Unusual]:
        """One answer per message, in order. Asks for the next messages once the answers before were taken."""


class Inbox(Protocol):
    """The queue of events that other threads leave for the loop. `queue.SimpleQueue` is one."""

    def put(self, event: on.Event, /) -> None:
        """Never blocks; any thread."""

    def get(self, block: bool = True, timeout: float | None = None) -> on.Event:
        """The next event, waiting at most `timeout` seconds. Raises queue.Empty; the loop's thread."""


# Sees each event with the commands that followed and the time, after the commands were performed.
Observer = Callable[[on.Event, Sequence[do.Command], float], None]
