"""What was fetched and cannot be taken yet, by partition, in the order in which it came.

A poll may bring more than there is room for. The rest waits here, and with it everything that comes after it in
its partition, so that offsets stay in order. It is bounded by what one poll brings: partitions without room are
not fetched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ingest.core import events as on
from ingest.core.model import Message, TopicPartition
from ingest.reader.ports import Unusual

Waiting = Message | on.MessageParsed | Unusual | on.OffsetOutOfRange
"""A message, what a parser made of one already, or that the log goes on elsewhere behind them."""


class Kept:
    """Queues of one loop. Not thread-safe."""

    def __init__(self) -> None:
        self._queues: dict[TopicPartition, deque[Waiting]] = {}

    def __len__(self) -> int:
        """How much waits, over all partitions."""
        return sum(map(len, self._queues.values()))

    @property
    def size_bytes(self) -> int:
        """Bytes of the messages that wait unparsed."""
        waiting = (one for queue in self._queues.values() for one in queue)
        return sum(one.size_bytes for one in waiting if isinstance(one, Message))

    def holds(self, source: TopicPartition) -> bool:
        """Whether anything of this partition waits."""
        return source in self._queues

    def add(self, waiting: Waiting) -> None:
        """Behind what waits of its partition."""
        self._queues.setdefault(waiting.source, deque()).append(waiting)

    def take_all(self) -> Iterable[Iterable[Waiting]]:
        """Removes and gives everything, one partition after the other. What cannot be taken is added again."""
        queues, self._queues = self._queues, {}
        return queues.values()

    def forget(self, sources: Iterable[TopicPartition]) -> None:
        """These partitions are assigned anew, or no longer ours."""
        for source in sources:
            self._queues.pop(source, None)
