"""Lag per partition, in messages (from the log end) and in seconds (from Kafka timestamps)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from ingest.core.model import Message, TopicPartition
from ingest.observe.snapshot import PartitionState

OFFSET_TIMES_MAX = 2048  # (offset, Kafka timestamp) pairs per partition

LogRanges = Mapping[TopicPartition, tuple[int, int]]
"""Partition -> (first offset in the log, one past the last)."""


class LogEnds(Protocol):
    """The part of the Kafka source that is needed to compute the lag."""

    def log_ranges(self) -> LogRanges:
        """Returns the range of each assigned partition as of the last fetch. Makes no request."""

    def query_log_ranges(self) -> LogRanges:
        """Requests the ranges from the broker. The call blocks, and any thread may make it."""


class Lag:
    """The lag of each partition, updated by each poll and by each query for log end offsets. Only the loop's
    thread may call methods other than `update_log_ends`.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._times: dict[int, deque[tuple[int, int]]] = {}
        self._newest_ms: dict[int, int] = {}

    def polled(self, messages: Sequence[Message]) -> None:
        """Records, for each partition, the timestamps of the first and last message in this poll."""
        seen: set[int] = set()
        for message in messages:
            if not message.timestamp_ms:
                continue
            partition = message.source.partition
            self._newest_ms[partition] = message.timestamp_ms
            if partition not in seen:
                seen.add(partition)
                times = self._times.setdefault(partition, deque(maxlen=OFFSET_TIMES_MAX))
                times.append((message.offset, message.timestamp_ms))

    def update_log_ends(self, ranges: LogRanges) -> None:
        """Updates the known log ends, which never decrease. Any thread."""
        for source, (_, end) in ranges.items():
            self._ends[source.partition] = max(end, self._ends.get(source.partition, 0))

    def of(self, state: PartitionState, wall_clock: float) -> PartitionState:
        """Adds the log end, the lag in messages and the lag in seconds to the state. `wall_clock`: the
        wall-clock time in Unix seconds.

        Without a committed offset, all messages read so far count as lag.
        """
        times = self._times.get(state.partition)
        high = self._ends.get(state.partition, -1)
        done = state.committed if state.committed is not None else (times[0][0] if times else state.position)
        lag_messages = max(0, high - done) if high >= 0 else max(0, state.position - done)
        lag_seconds = 0.0
        if lag_messages:
            while times and times[0][0] < done:
                times.popleft()
            oldest_ms = times[0][1] if times else self._newest_ms.get(state.partition, 0)
            lag_seconds = max(0.0, wall_clock - oldest_ms / 1000) if oldest_ms else 0.0
        return msgspec.structs.replace(state, high=high, lag_messages=lag_messages, lag_seconds=lag_seconds)

    def forget(self, partition: int) -> None:
        """Removes a partition that is no longer assigned."""
        for by_partition in (self._ends, self._times, self._newest_ms):
            by_partition.pop(partition, None)
