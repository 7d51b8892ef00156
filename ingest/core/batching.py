"""Cuts a batch when it reaches a message count, byte size or age, or a boundary recorded by the previous owner.

A batch stages at most `staged_bytes_max` bytes, even in a planned range: the batch ends before the message that
would exceed the limit. Only a batch of a single message may be larger.

docs/decisions/001-batch-is-an-offset-range.md, docs/decisions/014-same-cut.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ingest.core.limits import Limits
from ingest.core.model import Batch, CutReason, Drop, OffsetRange, Outcome, Reject, Segment, TopicPartition


class Builder:
    """The open batch of one partition in one epoch.

    `plan` holds the ends of batches that the previous owner had cut above its committed offset. While `plan` is
    not empty, batches are not cut by count, bytes or age, so that the same ranges get the same ids. If the last
    messages of a planned range are missing, the range is cut without them once the log continues past the end of
    the range (`add`, `handle_log_end`). If the end of the log stays inside the range for too long, the plan is
    abandoned (`add_idle_seconds`). A planned range that would exceed `staged_bytes_max` is cut early; the
    rest of the range is then cut at the planned end.
    """

    def __init__(self, source: TopicPartition, epoch: int, limits: Limits, plan: Iterable[int] = ()) -> None:
        self.source = source
        self.epoch = epoch
        self.size_bytes = 0
        self._limits = limits
        self._plan = deque(plan)
        self._start = -1
        self._stop = -1
        self._started_at = 0.0
        self._waited_seconds = 0.0
        self._messages = 0
        self._segments: list[Segment] = []
        self._rejects: list[Reject] = []

    def __len__(self) -> int:
        """Returns the number of messages in the open batch."""
        return self._messages

    @property
    def planned_ends(self) -> tuple[int, ...]:
        """Ends of the previous owner's batches that have not been reached yet."""
        return tuple(self._plan)

    @property
    def opened_at(self) -> float | None:
        """The time at which the open batch took its first message; None while the batch is empty."""
        return self._started_at if self._messages else None

    @property
    def waits_for_plan(self) -> bool:
        """True if the open batch is the first part of a planned range; only the remaining messages of that
        range can complete the batch."""
        return bool(self._messages and self._plan)

    def add(self, offset: int, outcome: Outcome, now: float) -> list[Batch]:
        """Takes one message, in offset order, and returns the batches that it completes (zero to three)."""
        assert offset >= self._stop, (self.source, offset, self._stop)
        cut: list[Batch] = []
        while self._plan and offset >= self._plan[0]:
            self._plan.popleft()  # the rest of that range is no longer in the log: cut what is available
            if self._messages:
                cut.append(self._cut(CutReason.PLANNED, now))
        if self._messages and self.size_bytes + outcome.size_bytes > self._limits.staged_bytes_max:
            cut.append(self._cut(CutReason.BYTES, now))
        if not self._messages:
            self._start, self._started_at = offset, now
        self._stop = offset + 1
        self._waited_seconds = 0.0
        self._messages += 1
        self.size_bytes += outcome.size_bytes
        if isinstance(outcome, Segment):
            self._segments.append(outcome)
        elif not isinstance(outcome, Drop):
            self._rejects.append(outcome)
        reason = self._full()
        if reason:
            cut.append(self._cut(reason, now))
        return cut

    def _full(self) -> CutReason | None:
        if self._plan:
            if self._stop != self._plan[0]:
                return None
            self._plan.popleft()
            return CutReason.PLANNED
        if self._messages >= self._limits.batch_messages_max:
            return CutReason.COUNT
        return CutReason.BYTES if self.size_bytes >= self._limits.batch_bytes_max else None

    def handle_log_end(self, end: int, now: float) -> Batch | None:
        """Handles a gap at the end of the log: there is no message between the last message added and `end`.
        Returns the batch whose planned range the gap completes, if any."""
        batch = None
        while self._plan and self._plan[0] <= end:
            self._plan.popleft()
            if self._messages:
                batch = self._cut(CutReason.PLANNED, now)
        return batch

    def add_idle_seconds(self, seconds: float) -> None:
        """Counts time during which the partition was being fetched but was at the end of its log.

        After `plan_seconds_max` the rest of the planned range is abandoned: different batch ids are harmless, but
        waiting indefinitely is not.
        """
        if not self.waits_for_plan:
            return
        self._waited_seconds += seconds
        if self._waited_seconds >= self._limits.plan_seconds_max:
            self._plan.clear()

    def cut_if_due(self, now: float) -> Batch | None:
        """Cuts the open batch if it has reached its maximum age and is not part of a planned range."""
        return self._cut(CutReason.AGE, now) if self._is_old(now, self._limits.batch_age_seconds_max) else None

    def cut_if_due_early(self, now: float) -> Batch | None:
        """Like `cut_if_due`, with the lower age limit that applies while nothing is in flight."""
        return self._cut(CutReason.IDLE, now) if self._is_old(now, self._limits.batch_age_idle_seconds) else None

    def _is_old(self, now: float, age_seconds: float) -> bool:
        return bool(self._messages and not self._plan) and now - self._started_at >= age_seconds

    def halt(self, now: float) -> Batch | None:
        """Cuts the open batch when the reader halts, because no more messages will arrive. If the batch is part of
        a planned range, the planned end of that range is kept."""
        return self._cut(CutReason.DRAIN, now) if self._messages else None

    def drain(self, now: float) -> Batch | None:
        """Cuts the open batch at shutdown, unless it is part of a planned range, which is left to the next
        owner."""
        return self._cut(CutReason.DRAIN, now) if self._messages and not self._plan else None

    def _cut(self, reason: CutReason, now: float) -> Batch:
        batch = Batch(
            source=self.source,
            epoch=self.epoch,
            offsets=OffsetRange(self._start, self._stop),
            segments=tuple(self._segments),
            rejects=tuple(self._rejects),
            size_bytes=self.size_bytes,
            cut_by=reason,
            opened_at=self._started_at,
            cut_at=now,
        )
        self._messages = self.size_bytes = 0
        self._segments, self._rejects = [], []
        return batch
