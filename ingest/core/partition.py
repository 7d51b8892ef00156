"""One assigned partition: its open batch, batches in flight, position and commits.

A partition does not depend on other partitions. Decisions across partitions (slots, bounds, halting, stopping) are
made in `ingest.core.pipeline`.
"""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.batching import Builder
from ingest.core.commits import Commits
from ingest.core.cut_record import Budget, Record, decode
from ingest.core.flight import Flight, Phase
from ingest.core.ledger import Ledger
from ingest.core.limits import Limits
from ingest.core.model import Batch
from ingest.core.starting import first_record


class Partition:
    """A partition from its assignment to its release. Times are monotonic seconds.

    `position` is the next offset to take. `began_at`: where consumption began; None if unknown. `failed_starts`:
    number of readers that started here since the committed offset last advanced, and exited uncleanly.
    `release_by`: time by which a revoked partition is released; None if it is not revoked. `end`: the log end as
    last reported. `held`: too many ranges wait behind an unsettled range, so fetching is stopped. `deferred`: the
    message being parsed outside the loop; later messages wait. `waiting`: at the last tick the partition was being
    fetched and was at the end of its log.
    """

    def __init__(self, given: on.Assignment, limits: Limits, ledger: Ledger, budget: Budget) -> None:
        committed = given.committed
        found = decode(committed, given.record) if committed is not None else Record()
        self.source = given.source
        self.epoch = given.epoch
        self.builder = Builder(given.source, given.epoch, limits, found.stops)
        self.commits = Commits(given.source, limits, budget, committed, given.record)
        self.began_at = given.start if committed is None else committed
        self.position = self.began_at or 0
        self.record = first_record(found, given.topic_id, given.partitions_at_start)
        self.failed_starts = found.starts
        self.flights: dict[str, Flight] = {}
        self.release_by: float | None = None
        self.end: on.EndReached | None = None
        self.held = False
        self.deferred: on.MessageDeferred | None = None
        self.waiting = False
        self._limits = limits
        self._ledger = ledger
        self._flights_bytes = 0
        self._gap_until = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the unsettled batches, the open batch, and the message being parsed outside the loop."""
        deferred_bytes = self.deferred.size_bytes if self.deferred is not None else 0
        return self._flights_bytes + self.builder.size_bytes + deferred_bytes

    @property
    def blocked(self) -> bool:
        """True if no message of this partition can be taken, regardless of the global bounds."""
        return self.held or self.deferred is not None

    @property
    def at_end(self) -> bool:
        """True if the reader has taken every message before the last reported log end."""
        return self.end is not None and self.end.position <= self.position <= self.end.end

    @property
    def drained(self) -> bool:
        """True if there is nothing left to wait for. Parked batches do not count: the next owner retries them."""
        working = any(flight.phase is not Phase.PARKED for flight in self.flights.values())
        committable = self._ledger.committable(self.source)
        return not working and self.commits.idle and committable in (None, self.commits.committed)

    # Batches

    def take(self, batch: Batch, now: float) -> None:
        """Tracks a new batch until it is durable. A batch with nothing to write is durable immediately."""
        self._ledger.take(batch.source, batch.offsets)
        stages = batch.stages
        if not stages:
            self._ledger.settle(batch.source, batch.offsets)
            return
        self._flights_bytes += batch.size_bytes
        until = now + self._limits.cut_record_seconds_max
        self.flights[batch.id] = Flight(batch, stages, Phase.RECORDING, since=now, until=until)

    def split(self, flight: Flight, now: float) -> do.Recut | None:
        """Replaces a batch that cannot be staged with two halves. The new boundary is recorded in a commit before
        either half is staged. Returns None if the batch cannot be split."""
        halves = flight.batch.halves()
        if halves is None:
            return None
        first, second = halves
        self._ledger.split(self.source, flight.batch.offsets, first.offsets, second.offsets)
        self.commits.record_again(first.offsets.start)
        flights, self.flights = self.flights, {}
        self._flights_bytes += first.size_bytes + second.size_bytes - flight.batch.size_bytes
        until = now + self._limits.cut_record_seconds_max
        for other in flights.values():
            parts = halves if other is flight else ()
            for part in parts:
                self.flights[part.id] = Flight(part, part.stages, Phase.RECORDING, since=now, until=until)
            if not parts:
                self.flights[other.batch.id] = other
        return do.Recut(flight.batch, (first.id, second.id))

    def settle(self, flight: Flight) -> do.Discard:
        """Stops tracking a batch that is durable in every sink or was abandoned by an operator."""
        del self.flights[flight.batch.id]
        self._flights_bytes -= flight.batch.size_bytes
        self._ledger.settle(flight.batch.source, flight.batch.offsets)
        return do.Discard(flight.batch)

    def complete_at_log_end(self, now: float) -> None:
        """Completes planned ranges at the end of the log, and skips offsets there that have no message."""
        if not self.at_end or self.end is None:
            return
        batch = self.builder.handle_log_end(self.end.end, now)
        if batch is not None:
            self.take(batch, now)
        idle = not len(self.builder) and self.end.end > self.position
        # Skipping to the log end is rate-limited, because each skip costs a commit.
        may_pass = idle and self.commits.is_interval_over(now)
        if may_pass and self._ledger.skip_gap(self.source, self.end.end):
            self.position = self.end.end

    def resume_at(self, event: on.OffsetOutOfRange) -> None:
        """Continues after a gap in the log: messages before `resumed_at` have expired. Batches already cut are
        kept."""
        self.epoch = self.builder.epoch = event.epoch
        self.position, self.end = event.resumed_at, None
        self._gap_until = event.resumed_at
        self.skip_gap()

    def skip_gap(self) -> None:
        """Makes the end of a gap committable once every batch before it has settled, so that the gap is not
        handled again after a crash."""
        if self._gap_until and not len(self.builder) and not self.flights:
            self._ledger.skip_gap(self.source, self._gap_until)
            self._gap_until = 0

    # Commits

    def commit(self, now: float, *, stopping: bool) -> do.Commit | None:
        """Commits the committable offset, with the ends of later batches in the commit's metadata, if anything
        changed.

        Ends that the previous owner recorded and that have not been reached yet stay in the record, so that they
        survive a second crash.
        """
        if not self.commits.idle:
            return None
        taken_until = self._ledger.taken_until(self.source)
        # A drain waits for its commit, and an idle reader would otherwise not send one.
        idle = not self.flights and not len(self.builder)
        urgent = idle or stopping or self.release_by is not None
        if not self.commits.may_send(taken_until, now, urgent=urgent):
            return None
        pending = self._ledger.pending(self.source)
        offset = self._ledger.committable(self.source)
        if offset is None:
            offset = self.commits.committed
        if offset is None:
            offset = self.began_at
        if offset is None:
            if not pending:
                return None
            offset = self.began_at = pending[0].start
        # Planned ends up to `offset` are in a gap that was skipped.
        planned = (stop for stop in self.builder.planned_ends if stop > offset)
        stops = (*(offsets.stop for offsets in pending), *planned)
        known = self.record
        record = Record(known.topic_id, known.partitions, self._starts(offset, stopping=stopping), stops)
        command = self.commits.send(self.epoch, offset, record, taken_until, now)
        if command is None:
            self.unblock_recorded_batches()  # the previous owner recorded exactly these ends
        return command

    def _starts(self, offset: int, *, stopping: bool) -> int:
        """Returns the number of starts to record. A clean exit does not count as a failed start."""
        if offset != self.began_at:
            return 0
        orderly = stopping or self.release_by is not None
        return self.failed_starts if orderly else self.record.starts

    def unblock_recorded_batches(self) -> None:
        """Unblocks batches whose ends are in the record that was stored."""
        for flight in self.flights.values():
            if flight.phase is Phase.RECORDING and flight.batch.offsets.stop <= self.commits.recorded_until:
                flight.phase = Phase.WAITING
