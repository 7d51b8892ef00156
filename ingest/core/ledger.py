"""Which offsets are safe to commit: the at-least-once guarantee, all of it.

The guarantee
    An offset is committed only when every message before it, on its partition, is durable in every sink.

Why it holds
    1. `take` is called for every range of messages that the reader keeps, in order, without holes: a range
       begins where the previous one stopped, or later when the log itself has a gap (compaction,
       transactions), in which case there is no message in between.
    2. `settle` is called for a range only after the last chord of its batch verified the done mark of every
       flush task, dead letters included; a mark is set only after the write was acknowledged as durable.
    3. `committable` is the end of the longest run of settled ranges counted from the front. A settled range
       behind an unsettled one waits, however long.
    4. `pass_over` raises `committable` to the end of the log when no range is pending and no message lies before
       that end: there is nothing between to be durable.
    5. `split` replaces a range by two that hold the same messages.
    6. `forget` drops a partition whole. What was not committed is read again by the next owner.

There is no other place that decides on offsets, and nothing here looks at a clock, a batch or a sink.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ingest.core.model import OffsetRange, TopicPartition


@dataclass(slots=True)
class _Line:
    """One partition: its taken ranges in order, those of them that settled, and what may be committed."""

    ranges: deque[OffsetRange] = field(default_factory=deque)
    settled: set[OffsetRange] = field(default_factory=set)
    committable: int | None = None
    taken_until: int = 0


class Ledger:
    """Ranges taken and settled, a line a partition. Not thread-safe; one owner, the pipeline."""

    def __init__(self) -> None:
        self._lines: dict[TopicPartition, _Line] = {}

    def take(self, source: TopicPartition, offsets: OffsetRange) -> None:
        """These offsets are being worked on: nothing from `offsets.start` on is committable until they settle."""
        line = self._lines.setdefault(source, _Line())
        assert offsets.start >= line.taken_until, (source, offsets, line.taken_until)
        line.ranges.append(offsets)
        line.taken_until = offsets.stop

    def split(self, source: TopicPartition, offsets: OffsetRange, first: OffsetRange, second: OffsetRange) -> None:
        """This unsettled range is now two, with nothing between them that has to be durable."""
        line = self._lines[source]
        assert (first.start, second.stop) == (offsets.start, offsets.stop), (source, offsets, first, second)
        assert first.stop <= second.start, (source, offsets, first, second)
        assert offsets not in line.settled, (source, offsets)
        index = line.ranges.index(offsets)
        line.ranges[index] = first
        line.ranges.insert(index + 1, second)

    def settle(self, source: TopicPartition, offsets: OffsetRange) -> bool:
        """Every message of this range is durable everywhere. True when `committable` rose.

        Settling a range twice, or one of a forgotten partition, changes nothing.
        """
        line = self._lines.get(source)
        if line is None or offsets not in line.ranges:
            return False
        line.settled.add(offsets)
        rose = False
        while line.ranges and line.ranges[0] in line.settled:
            done = line.ranges.popleft()
            line.settled.discard(done)
            line.committable = done.stop
            rose = True
        return rose

    def pass_over(self, source: TopicPartition, stop: int) -> bool:
        """No message lies in [taken_until, stop). True when `committable` rose: not while a range is pending."""
        line = self._lines.setdefault(source, _Line())
        if line.ranges or stop <= line.taken_until:
            return False
        line.committable = line.taken_until = stop
        return True

    def committable(self, source: TopicPartition) -> int | None:
        """The offset that Kafka may store for this partition; None while nothing settled since it was assigned."""
        line = self._lines.get(source)
        return line.committable if line else None

    def pending(self, source: TopicPartition) -> tuple[OffsetRange, ...]:
        """Every taken range from the first unsettled one on, in order: what a crash now would cut again."""
        line = self._lines.get(source)
        return tuple(line.ranges) if line else ()

    def pending_count(self, source: TopicPartition) -> int:
        """How many ranges `pending` holds."""
        line = self._lines.get(source)
        return len(line.ranges) if line else 0

    def taken_until(self, source: TopicPartition) -> int:
        """One past the last offset taken; 0 while nothing is."""
        line = self._lines.get(source)
        return line.taken_until if line else 0

    def forget(self, source: TopicPartition) -> None:
        """The partition is no longer ours: nothing of it may be committed any more."""
        self._lines.pop(source, None)
