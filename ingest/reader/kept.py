"""Fetched messages that cannot be taken yet, by partition, in order.

A poll may return more messages than there is room for. The rest waits here, together with later messages of the
partition, so that offsets stay in order. Messages from at most one poll wait here, because partitions without room
are not fetched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ingest.core import events as on
from ingest.core.model import Message, TopicPartition
from ingest.reader.ports import UnusualMessage

Waiting = Message | on.MessageParsed | UnusualMessage | on.OffsetOutOfRange
"""A message, a parsed outcome, or a marker that the log continues at another offset."""


class WaitingMessages:
    """The queues of one loop, which are not thread-safe."""

    def __init__(self) -> None:
        self._queues: dict[TopicPartition, deque[Waiting]] = {}

    def __len__(self) -> int:
        """Returns the number of entries across all partitions."""
        return sum(map(len, self._queues.values()))

    @property
    def size_bytes(self) -> int:
        """Total size of the waiting unparsed messages, in bytes."""
        entries = (entry for queue in self._queues.values() for entry in queue)
        return sum(entry.size_bytes for entry in entries if isinstance(entry, Message))

    def has_waiting_items(self, source: TopicPartition) -> bool:
        """Returns True if anything from this partition is waiting."""
        return source in self._queues

    def add(self, waiting: Waiting) -> None:
        """Appends to the partition's queue."""
        self._queues.setdefault(waiting.source, deque()).append(waiting)

    def take_all(self) -> Iterable[Iterable[Waiting]]:
        """Removes and returns everything, by partition. The caller adds back whatever cannot be taken."""
        queues, self._queues = self._queues, {}
        return queues.values()

    def forget(self, sources: Iterable[TopicPartition]) -> None:
        """Forgets partitions that were reassigned or released."""
        for source in sources:
            self._queues.pop(source, None)
