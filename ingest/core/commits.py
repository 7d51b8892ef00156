"""Offset commits of one partition: the commit in progress (at most one), and what the broker has stored.

A commit contains the offset and the cut record (the ends of later batches), and is due when either has changed.
This module decides when to send; which offset may be committed is decided by `ingest.core.ledger` alone.
"""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.cut_record import Budget, Record, encode
from ingest.core.limits import Limits
from ingest.core.model import TopicPartition


class Commits:
    """`committed` is the offset that the broker last acknowledged, or None before the group's first commit.

    `recorded_until`: the end of the last batch included in a sent record. Whether that record was stored is known
    once no commit is in progress.
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
        """True if no commit is in progress."""
        return self._sent is None

    def may_send(self, taken_until: int, now: float, *, urgent: bool) -> bool:
        """Returns True if a commit may be sent: one per interval, unless a new cut must be recorded or the commit
        is `urgent`."""
        interval_seconds = self._limits.commit_interval_seconds
        if self._sent is not None:
            return False
        if self._refused_at is not None:
            return now - self._refused_at >= interval_seconds
        return urgent or taken_until > self.recorded_until or self.is_interval_over(now)

    def is_interval_over(self, now: float) -> bool:
        """Returns True if the last commit was sent at least one interval ago."""
        return now - self._sent_at >= self._limits.commit_interval_seconds

    def send(self, epoch: int, offset: int, record: Record, taken_until: int, now: float) -> do.Commit | None:
        """Returns the commit of this offset with its record; None if the broker already has both.

        An acknowledged commit is nevertheless repeated periodically, because brokers have lost acknowledged
        commits, and for an idle partition no later commit would replace a lost one.
        """
        text = encode(offset, record, self._budget.bytes_max)
        self.recorded_until = taken_until
        repeats = self._acknowledged and now - self._sent_at >= self._limits.commit_repeat_seconds
        if self._stored == (offset, text) and not repeats:
            return None
        self._sent, self._sent_at = do.Commit(self._source, epoch, offset, text), now
        return self._sent

    def record_again(self, start: int) -> None:
        """Makes the next commit due immediately, because the ends above `start` have changed since the last
        record."""
        self.recorded_until = min(self.recorded_until, start)

    def acknowledge(self, event: on.Committed) -> bool:
        """Handles a commit that the broker stored.

        Returns False if the stored commit is not the one in progress. In that case, a timed-out commit was stored
        after all, possibly over a newer commit, so the newer commit is resent.
        """
        if not self._end_commit(event):
            self._stored = None
            return False
        self._refused_at = None
        self.committed, self._acknowledged = event.offset, True
        self._stored = (event.offset, event.record)
        return True

    def refuse(self, event: on.CommitFailed, now: float) -> bool:
        """Handles a commit that the broker refused. Returns False if the refused commit is not the one in
        progress. If the record was too long, the next commit is sent immediately with at most half of the record.
        After further refusals, a commit is sent without a record.
        """
        if not self._end_commit(event):
            return False
        if event.record_too_long and event.record:
            self._budget.lower_maximum(event.record)
            self.recorded_until = 0
        else:
            self._refused_at = now
        return True

    def give_up(self, now: float) -> None:
        """Drops a commit that has timed out, so that the next one can be sent. The pipeline calls this on every
        tick."""
        if self._sent is not None and now - self._sent_at >= self._limits.commit_answer_seconds_max:
            self._sent = None

    def _end_commit(self, event: on.Committed | on.CommitFailed) -> bool:
        sent = self._sent
        if sent is None or (sent.epoch, sent.offset, sent.record) != (event.epoch, event.offset, event.record):
            return False
        self._sent = None
        return True
