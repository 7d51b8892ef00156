"""Timeline of each batch from its first message to its commit, derived from events and commands.

The timelines provide latencies for metrics, and one log line per batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ingest.core import commands as do
from ingest.core import cut_record
from ingest.core import events as on
from ingest.core.model import Batch, CutReason, OffsetRange, Stage, TopicPartition

SETTLED_BATCHES_MAX = 4096  # settled batches that wait for their commit behind a parked batch
RECORDED_ENDS_MAX = 256


class BatchEnd(StrEnum):
    """How a batch ended in this process."""

    COMMITTED = "committed"
    ABANDONED = "abandoned"  # abandoned by an operator
    RELEASED = "released"  # its partition was released before the batch was committed
    LOST = "lost"  # its partition was lost before the batch was committed


@dataclass(slots=True)
class Journey:
    """One batch. Times are in monotonic seconds; None for milestones that have not been reached."""

    batch_id: str
    source: TopicPartition
    epoch: int
    offsets: OffsetRange
    segments: int
    rejects: int
    size_bytes: int
    cut_by: CutReason
    opened_at: float
    cut_at: float
    recorded_at: float | None = None
    dispatched_at: float | None = None
    stage: Stage | None = None
    stage_started_at: float | None = None
    blobs_at: float | None = None
    rows_at: float | None = None
    settled_at: float | None = None
    committed_at: float | None = None
    attempts: int = 0
    failures: int = 0
    failed_last: bool = False
    outcome: BatchEnd | None = None
    error: str = ""

    def summary(self) -> dict[str, object]:
        """Returns the fields of the log line; milestones in seconds since the cut. Contains no payload."""
        line: dict[str, object] = {
            "batch": self.batch_id,
            "partition": self.source.partition,
            "start": self.offsets.start,
            "stop": self.offsets.stop,
            "epoch": self.epoch,
            "outcome": self.outcome or "",
            "segments": self.segments,
            "rejects": self.rejects,
            "size_bytes": self.size_bytes,
            "cut_by": self.cut_by,
            "chords": self.attempts,
            "failures": self.failures,
            "open_seconds": round(self.cut_at - self.opened_at, 4),
        }
        milestones = {
            "recorded": self.recorded_at,
            "dispatched": self.dispatched_at,
            "blobs": self.blobs_at,
            "rows": self.rows_at,
            "settled": self.settled_at,
            "committed": self.committed_at,
        }
        for milestone, at in milestones.items():
            if at is not None:
                line[f"{milestone}_seconds"] = round(at - self.cut_at, 4)
        if self.error:
            line["error"] = self.error
        return line


@dataclass(slots=True)
class _Partition:
    """Commits of one partition. `recorded`: (highest recorded end, time); `settled`: batches that wait for their
    commit."""

    recorded: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECORDED_ENDS_MAX))
    settled: deque[Journey] = field(default_factory=deque)


class Journal:
    """Tracks every dispatched batch.

    Memory is bounded by the batches in flight and SETTLED_BATCHES_MAX per partition.
    """

    def __init__(self) -> None:
        self._open: dict[str, Journey] = {}
        self._partitions: dict[TopicPartition, _Partition] = {}

    def get(self, batch_id: str) -> Journey | None:
        """Returns the journey of a batch; None if it has settled or is unknown."""
        return self._open.get(batch_id)

    def observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> list[Journey]:
        """Processes one event and the commands that resulted from it. Returns the journeys that ended."""
        ended: list[Journey] = []
        match event:
            case on.FlushSucceeded():
                self._succeeded(event, now)
            case on.FlushFailed() | on.DispatchFailed():
                journey = self._open.get(event.batch_id)
                if journey is not None and journey.epoch == event.epoch:
                    journey.failures += 1
                    journey.failed_last, journey.error = True, event.error
            case on.Committed():
                ended += self._committed(event, now)
            case on.BatchAbandoned():
                journey = self._open.get(event.batch_id)
                if journey is not None:
                    journey.outcome, journey.error = BatchEnd.ABANDONED, event.reason
            case on.PartitionsLost():
                ended += self._end_journeys(event.sources, BatchEnd.LOST)
            case on.OffsetOutOfRange():
                ended += self._end_journeys((event.source,), BatchEnd.LOST)
            case _:
                pass
        for command in commands:
            match command:
                case do.Dispatch():
                    self._dispatched(command, now)
                case do.Discard():
                    ended += self._settled(command.batch, now)
                case do.Recut():
                    self._open.pop(command.batch.id, None)
                case do.Release():
                    ended += self._end_journeys(command.sources, BatchEnd.RELEASED)
                case _:
                    pass
        return ended

    def _dispatched(self, command: do.Dispatch, now: float) -> None:
        batch = command.batch
        journey = self._open.get(batch.id)
        if journey is None or journey.epoch != batch.epoch:
            journey = self._open[batch.id] = _begin(batch)
            journey.dispatched_at = now
            partition = self._partitions.setdefault(batch.source, _Partition())
            journey.recorded_at = next((at for stop, at in partition.recorded if stop >= batch.offsets.stop), None)
        journey.attempts += 1
        journey.failed_last = False
        journey.stage, journey.stage_started_at = command.stage, now

    def _succeeded(self, event: on.FlushSucceeded, now: float) -> None:
        journey = self._open.get(event.batch_id)
        if journey is None or journey.epoch != event.epoch:
            return
        if event.stage is Stage.BLOBS:
            journey.blobs_at = now
        else:
            journey.rows_at = now

    def _settled(self, batch: Batch, now: float) -> Iterable[Journey]:
        journey = self._open.pop(batch.id, None)
        if journey is None:
            return
        journey.settled_at = now
        waiting = self._partitions.setdefault(batch.source, _Partition()).settled
        if len(waiting) >= SETTLED_BATCHES_MAX:
            yield waiting.popleft()
        waiting.append(journey)

    def _committed(self, event: on.Committed, now: float) -> Iterable[Journey]:
        partition = self._partitions.setdefault(event.source, _Partition())
        stops = cut_record.decode(event.offset, event.record).stops
        if stops:
            partition.recorded.append((stops[-1], now))
        remaining: deque[Journey] = deque()
        for journey in partition.settled:
            if journey.epoch == event.epoch and journey.offsets.stop <= event.offset:
                journey.committed_at = now
                journey.outcome = journey.outcome or BatchEnd.COMMITTED
                yield journey
            else:
                remaining.append(journey)
        partition.settled = remaining

    def _end_journeys(self, sources: tuple[TopicPartition, ...], outcome: BatchEnd) -> Iterable[Journey]:
        """Ends the journeys of partitions that were released or lost. The next owner cuts these batches again."""
        for batch_id in [key for key, journey in self._open.items() if journey.source in sources]:
            yield _ended(self._open.pop(batch_id), outcome)
        for source in sources:
            for journey in self._partitions.pop(source, _Partition()).settled:
                yield _ended(journey, outcome)


def _begin(batch: Batch) -> Journey:
    return Journey(
        batch_id=batch.id,
        source=batch.source,
        epoch=batch.epoch,
        offsets=batch.offsets,
        segments=len(batch.segments),
        rejects=len(batch.rejects),
        size_bytes=batch.size_bytes,
        cut_by=batch.cut_by,
        opened_at=batch.opened_at,
        cut_at=batch.cut_at,
    )


def _ended(journey: Journey, outcome: BatchEnd) -> Journey:
    journey.outcome = journey.outcome or outcome
    return journey
