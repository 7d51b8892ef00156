"""Decides which offsets are safe to commit; the at-least-once guarantee depends on this decision.

The guarantee
    An offset is committed only when every message before it, on its partition, is durable in every sink.

Why the guarantee holds
    1. `take` is called for every range of messages that the reader keeps, in order, without gaps: a range starts
       where the previous range stopped, or later if the log holds no messages at the offsets in between
       (compaction, transactions).
    2. `settle` is called for a range only after the last chord of its batch has verified the done mark of every
       flush task, dead letters included; a mark is set only after the write was acknowledged as durable.
    3. `committable` is the end of the longest run of settled ranges from the front. A settled range behind an
       unsettled range waits indefinitely.
    4. `skip_gap` raises `committable` to the end of the log if no range is pending and no message lies before
       that end.
    5. `split` replaces a range with two ranges that hold the same messages.
    6. `forget` drops a partition entirely. Uncommitted messages are read again by the next owner.

No other code decides on offsets, and nothing here depends on a clock, a batch or a sink.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ingest.core.model import OffsetRange, TopicPartition


@dataclass(slots=True)
class _PartitionLedger:
    """One partition: taken ranges in order, settled ranges, and the committable offset."""

    ranges: deque[OffsetRange] = field(default_factory=deque)
    settled: set[OffsetRange] = field(default_factory=set)
    committable: int | None = None
    taken_until: int = 0


class Ledger:
    """Taken and settled ranges per partition. The ledger is not thread-safe; only the pipeline uses it."""

    def __init__(self) -> None:
        self._lines: dict[TopicPartition, _PartitionLedger] = {}

    def take(self, source: TopicPartition, offsets: OffsetRange) -> None:
        """Adds a range in progress: nothing from `offsets.start` on is committable until the range settles."""
        line = self._lines.setdefault(source, _PartitionLedger())
        assert offsets.start >= line.taken_until, (source, offsets, line.taken_until)
        line.ranges.append(offsets)
        line.taken_until = offsets.stop

    def split(self, source: TopicPartition, offsets: OffsetRange, first: OffsetRange, second: OffsetRange) -> None:
        """Replaces an unsettled range with two ranges that hold the same messages."""
        line = self._lines[source]
        assert (first.start, second.stop) == (offsets.start, offsets.stop), (source, offsets, first, second)
        assert first.stop <= second.start, (source, offsets, first, second)
        assert offsets not in line.settled, (source, offsets)
        index = line.ranges.index(offsets)
        line.ranges[index] = first
        line.ranges.insert(index + 1, second)

    def settle(self, source: TopicPartition, offsets: OffsetRange) -> bool:
        """Marks a range as durable in every sink. Returns True if `committable` advanced.

        Settling a range twice, or one of a forgotten partition, has no effect.
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

    def skip_gap(self, source: TopicPartition, stop: int) -> bool:
        """Skips the offsets [taken_until, stop), which hold no message. Returns True if `committable` advanced,
        which requires that no range is pending."""
        line = self._lines.setdefault(source, _PartitionLedger())
        if line.ranges or stop <= line.taken_until:
            return False
        line.committable = line.taken_until = stop
        return True

    def committable(self, source: TopicPartition) -> int | None:
        """Returns the offset that may be committed for this partition; None if nothing has settled since its
        assignment."""
        line = self._lines.get(source)
        return line.committable if line else None

    def pending(self, source: TopicPartition) -> tuple[OffsetRange, ...]:
        """Returns every taken range from the first unsettled one on, in order: the ranges read again after a
        crash."""
        line = self._lines.get(source)
        return tuple(line.ranges) if line else ()

    def pending_count(self, source: TopicPartition) -> int:
        """Returns the number of ranges in `pending`."""
        line = self._lines.get(source)
        return len(line.ranges) if line else 0

    def taken_until(self, source: TopicPartition) -> int:
        """Returns the offset after the last one taken; 0 if none was taken."""
        line = self._lines.get(source)
        return line.taken_until if line else 0

    def forget(self, source: TopicPartition) -> None:
        """Removes a partition that is no longer owned; none of its offsets may be committed."""
        self._lines.pop(source, None)
