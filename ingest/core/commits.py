"""One partition's commits: at most one is on its way, and what the broker is known to have stored.

A commit carries the offset and the cut record (the ends of the batches above it), so it is due when either says
something new. It decides when to send; what may be committed is decided by `ingest.core.ledger` alone.
"""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.cut_record import Budget, Record, encode
from ingest.core.limits import Limits
from ingest.core.model import TopicPartition


class Commits:
    """`committed` is the offset that the broker last acknowledged, None before the first one of the group.

    `recorded_until`: the end of the last batch that was in a record when it was sent. Whether that record was
    stored is known once nothing is on its way.
    """

    def __init__(
        self, source: TopicPartition, limits: Limits, budget: Budget, committed: int | None, text: str
    ) -> None:
        self.committed = committed
        self.recorded_until = 0
        self._source = source
        self._limits = limits
        self._budget = budget
        self._stored = (committed, text) if committed is not None else None
        self._sent: do.Commit | None = None
        self._sent_at = 0.0
        self._acknowledged = False
        self._refused_at: float | None = None

    @property
    def idle(self) -> bool:
        """Whether no commit is on its way."""
        return self._sent is None

    def may_send(self, taken_until: int, now: float, *, urgent: bool) -> bool:
        """One commit per interval, except for the record of a new cut, or when the caller says `urgent`."""
        interval_seconds = self._limits.commit_interval_seconds
        if self._sent is not None:
            return False
        if self._refused_at is not None:
            return now - self._refused_at >= interval_seconds
        return urgent or taken_until > self.recorded_until or self.interval_over(now)

    def interval_over(self, now: float) -> bool:
        """Whether the last commit was sent at least one interval ago."""
        return now - self._sent_at >= self._limits.commit_interval_seconds

    def send(self, epoch: int, offset: int, record: Record, taken_until: int, now: float) -> do.Commit | None:
        """The commit of this offset with its record; None when the broker has just that.

        What this process committed is repeated from time to time all the same: brokers lost commits that they had
        acknowledged, and an idle partition would never make up for one.
        """
        text = encode(offset, record, self._budget.bytes_max)
        self.recorded_until = taken_until
        repeats = self._acknowledged and now - self._sent_at >= self._limits.commit_repeat_seconds
        if self._stored == (offset, text) and not repeats:
            return None
        self._sent, self._sent_at = do.Commit(self._source, epoch, offset, text), now
        return self._sent

    def record_again(self, start: int) -> None:
        """The ends above `start` changed: they are in no record yet, and the next one is due at once."""
        self.recorded_until = min(self.recorded_until, start)

    def acknowledge(self, event: on.Committed) -> bool:
        """The broker stored it. False: not the commit that is on its way.

        Then one that was given up was stored after all, perhaps over a later one, which must be sent again.
        """
        if not self._answered(event):
            self._stored = None
            return False
        self._refused_at = None
        self.committed, self._acknowledged = event.offset, True
        self._stored = (event.offset, event.record)
        return True

    def refuse(self, event: on.CommitFailed, now: float) -> bool:
        """The broker refused it. False: not the commit that is on its way.

        One whose record was too long is followed at once by one with at most half of it, in the end with none.
        """
        if not self._answered(event):
            return False
        if event.record_too_long and event.record:
            self._budget.refused(event.record)
            self.recorded_until = 0
        else:
            self._refused_at = now
        return True

    def give_up(self, now: float) -> None:
        """Called with every tick: a commit that is not answered in time is followed by one that says as much."""
        if self._sent is not None and now - self._sent_at >= self._limits.commit_answer_seconds_max:
            self._sent = None

    def _answered(self, event: on.Committed | on.CommitFailed) -> bool:
        sent = self._sent
        if sent is None or (sent.epoch, sent.offset, sent.record) != (event.epoch, event.offset, event.record):
            return False
        self._sent = None
        return True
