"""All decisions of one reader: `Pipeline.handle(event, now) -> list[Command]`.

Life of a batch: cut -> boundary recorded in an offset commit -> waits for a slot -> chord of blobs -> chord of
rows -> settled -> offset committed once all earlier batches have settled. A failed chord parks the batch until its
retry; a chord that misses its deadline is started again, and the batch is parked after repeated misses.

See docs/decisions/002-sans-io-core.md (no I/O), docs/decisions/005-deadline-per-batch.md,
docs/decisions/008-blob-before-rows.md, docs/decisions/010-drain-then-fence.md, docs/decisions/014-same-cut.md.

Modules: `partition` (one assigned partition), with `batching` (a batch until its cut), `flight` (a batch after its
cut), `ledger` (which offsets may be committed) and `commits` (when they are committed); `backpressure` (whether to
take messages); `probes` (which parked batch is retried to test whether its sinks work again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum, auto
from typing import Any

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.backpressure import Backpressure, BackpressureChange
from ingest.core.cut_record import Budget
from ingest.core.flight import NO_SINKS, Flight, Phase
from ingest.core.ledger import Ledger
from ingest.core.limits import Limits
from ingest.core.model import Batch, Drop, DropReason, OffsetRange, Reject, TopicPartition
from ingest.core.partition import Partition
from ingest.core.probes import Probes
from ingest.core.rejects import Rejects
from ingest.core.retry import retry_seconds

# Consecutive missed deadlines before a batch is parked; each further miss parks it again.
DEADLINE_MISSES_MAX = 3

# Maximum time between two ticks that counts as idle time; the rest of a longer gap does not count. The normal
# interval between ticks is less than a tenth of this value. A longer gap means that the process was stopped
# (SIGSTOP, suspended machine, blocking call) and fetched nothing.
TICK_SECONDS_MAX = 0.5


class Room(Enum):
    """How the loop handles a fetched message."""

    NOW = auto()  # parse and deliver it
    LATER = auto()  # keep it, and later messages of its partition, until there is room
    NEVER = auto()  # drop it: its assignment has ended or is ending, or the reader has stopped taking messages


class Pipeline:
    """All decisions of one reader process. The pipeline is deterministic: the same events at the same times give
    the same commands.

    `has_room` decides whether the loop polls for messages, and `room` decides whether it takes a message. A
    message is ignored if its partition is not assigned, if its epoch is not that of the current assignment, or if
    a message with its offset has already been taken.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.halted: str | None = None
        self.stopping_by: float | None = None
        self.stopped = False
        self._ticked_at: float | None = None
        self._cut_early_at: float | None = None
        self._renewed_at = -limits.parked_renew_seconds
        self._admitted: TopicPartition | None = None  # fetched even at the byte limit
        self._room_bytes = limits.in_flight_bytes_max  # remaining bytes until the limit, as last computed
        self._owned: dict[TopicPartition, Partition] = {}
        self._ledger = Ledger()
        self._budget = Budget(limits.cut_record_bytes_max)
        self._backpressure = Backpressure(limits)
        self._probes = Probes(limits)
        self.rejects = Rejects(limits)
        self._handlers: dict[type, Callable[[Any, float], Iterable[do.Command]]] = {
            on.MessageParsed: self._on_message,
            on.MessageDeferred: self._on_deferred,
            on.PartitionsAssigned: self._on_assigned,
            on.PartitionsRevoked: self._on_revoked,
            on.PartitionsLost: self._on_lost,
            on.OffsetOutOfRange: self._on_out_of_range,
            on.EndReached: self._on_end_reached,
            on.FlushSucceeded: self._on_succeeded,
            on.FlushFailed: self._on_failed,
            on.DispatchFailed: self._on_dispatch_failed,
            on.Committed: self._on_committed,
            on.CommitFailed: self._on_commit_failed,
            on.RetryRequested: self._on_retry,
            on.BatchAbandoned: self._on_abandoned,
            on.ShutdownRequested: self._on_shutdown,
            on.Ticked: self._on_tick,
        }

    # Read-only state

    @property
    def has_room(self) -> bool:
        """True if messages may be taken now. Otherwise the loop polls the client only while the consumer is
        paused."""
        return self._backpressure.has_room and self.halted is None and self.stopping_by is None

    def room(self, source: TopicPartition, epoch: int) -> Room:
        """Decides whether a message of this partition assignment may be taken. The loop calls this before each
        message."""
        owned = self._owned.get(source)
        if owned is None or owned.epoch != epoch or owned.release_by is not None:
            return Room.NEVER
        if self.halted is not None or self.stopping_by is not None:
            return Room.NEVER
        free = self._backpressure.has_room or source == self._admitted
        return Room.NOW if free and not owned.blocked else Room.LATER

    def is_deferred(self, source: TopicPartition) -> bool:
        """Returns True if a message of this partition is being parsed outside the loop."""
        owned = self._owned.get(source)
        return owned is not None and owned.deferred is not None

    @property
    def paused(self) -> bool:
        """True if the consumer is paused."""
        return self._backpressure.paused or self.halted is not None or self.stopping_by is not None

    @property
    def in_flight(self) -> tuple[Flight, ...]:
        """Every batch that is cut and not settled, by partition, in offset order."""
        return tuple([flight for owned in self._owned.values() for flight in owned.flights.values()])

    @property
    def oldest_opened_at(self) -> float | None:
        """The time at which the oldest open or unsettled batch took its first message; None if there is no such
        batch."""
        opened = [flight.batch.opened_at for flight in self.in_flight]
        opened += [at for owned in self._owned.values() if (at := owned.builder.opened_at) is not None]
        return min(opened, default=None)

    @property
    def held_bytes(self) -> int:
        """Bytes of unsettled and open batches."""
        return sum([owned.held_bytes for owned in self._owned.values()])

    @property
    def sources(self) -> tuple[TopicPartition, ...]:
        """Assigned partitions."""
        return tuple(self._owned)

    @property
    def reject_ratio(self) -> float:
        """Share of rejects among the last `reject_window` messages, 0 to 1."""
        return self.rejects.ratio

    def position(self, source: TopicPartition) -> tuple[int, int | None]:
        """(next offset to take, last acknowledged committed offset or None) of a partition."""
        owned = self._owned[source]
        return owned.position, owned.commits.committed

    def pending(self, source: TopicPartition) -> tuple[OffsetRange, ...]:
        """Returns the ranges that were cut and cannot be committed yet, in order; empty for unassigned
        partitions."""
        return self._ledger.pending(source)

    def failed_starts(self, source: TopicPartition) -> int:
        """Returns the number of consecutive readers that started on a partition and ended before its committed
        offset advanced.

        Readers that exited cleanly do not count. The number is 0 once the committed offset has advanced, and for
        unassigned partitions.
        """
        owned = self._owned.get(source)
        if owned is None:
            return 0
        moved = owned.commits.committed not in (None, owned.began_at)
        return 0 if moved else owned.failed_starts

    # Event handling

    def handle(self, event: on.Event, now: float) -> list[do.Command]:
        """Returns the commands that follow from `event` at `now` (monotonic seconds). Raises only if an invariant
        is broken."""
        if self.stopped:
            return []
        return [*self._handlers[type(event)](event, now)]

    # Assignment and revocation

    def _on_assigned(self, event: on.PartitionsAssigned, now: float) -> Iterable[do.Command]:
        for given in event.assignments:
            assert given.source not in self._owned, given
            owned = Partition(given, self.limits, self._ledger, self._budget)
            self._owned[given.source] = owned
            # Commit the start before reading anything that could crash the process.
            commit = owned.commit(now, stopping=False)
            if commit is not None:
                yield commit
        if self.paused:
            yield do.Pause(tuple(given.source for given in event.assignments))

    def _on_revoked(self, event: on.PartitionsRevoked, now: float) -> Iterable[do.Command]:
        unknown = tuple(source for source in event.sources if source not in self._owned)
        for source in event.sources:
            if source in self._owned:
                self._owned[source].release_by = now + self.limits.drain_deadline_seconds
        if unknown:
            yield do.Release(unknown)
        yield from self._progress(now)

    def _on_lost(self, event: on.PartitionsLost, now: float) -> Iterable[do.Command]:
        for source in event.sources:
            self._forget(source)
        yield from self._progress(now)

    def _on_out_of_range(self, event: on.OffsetOutOfRange, now: float) -> Iterable[do.Command]:
        """If the log resumes at a higher offset, messages have expired. The reader may now hold the only copies of
        the messages that it has already taken, so they are kept.

        If the log resumes at a lower offset, it is a different log with the same name, and the state of the old
        log is discarded.
        """
        owned = self._owned.get(event.source)
        if owned is not None and event.resumed_at >= owned.position:
            owned.resume_at(event)
            if owned.blocked or (self.paused and event.source != self._admitted):
                yield do.Pause((event.source,))
            yield from self._progress(now)
            return
        self._forget(event.source)
        given = on.Assignment(event.source, event.epoch, start=event.resumed_at)
        if owned is not None:
            given = replace(given, topic_id=owned.record.topic_id, partitions_at_start=owned.record.partitions)
        yield from self._on_assigned(on.PartitionsAssigned((given,)), now)

    def _on_end_reached(self, event: on.EndReached, now: float) -> Iterable[do.Command]:
        owned = self._owned.get(event.source)
        if owned is not None and owned.epoch == event.epoch:
            owned.end = event  # handled on the next tick, once the messages before the end have been taken
        return ()

    def _forget(self, source: TopicPartition) -> None:
        if self._owned.pop(source, None) is not None:
            self._ledger.forget(source)

    # Messages become batches

    def _on_message(self, event: on.MessageParsed, now: float) -> Iterable[do.Command]:
        owned = self._accepting_partition(event)
        if owned is None:
            return
        if owned.deferred is not None:
            assert event.offset == owned.deferred.offset, (event, owned.deferred)
            owned.deferred = None
            if not owned.held and (not self.paused or event.source == self._admitted):
                yield do.Resume((event.source,))
        outcome = event.outcome
        rejected = isinstance(outcome, Reject)
        for changed in self.rejects.count(outcome.project_id, rejected=rejected):
            if changed.project_id is not None:
                yield do.Shed(changed.project_id, changed.messages, changed.rejects, changed.shed)
        if rejected and self.rejects.drops(outcome.project_id):
            self.rejects.dropped += 1
            outcome = Drop(DropReason.SHED, outcome.project_id or 0)
        owned.position = event.offset + 1
        batches = owned.builder.add(event.offset, outcome, now)
        self._room_bytes -= outcome.size_bytes
        if batches:
            for batch in batches:
                owned.take(batch, now)
            yield from self._progress(now)
        elif self._room_bytes <= 0:
            yield from self._update_backpressure(now)
        reason = self.rejects.halt_reason() if rejected else None
        if reason is not None:
            yield from self._halt(reason, now)

    def _accepting_partition(self, event: on.MessageParsed | on.MessageDeferred) -> Partition | None:
        """Returns the message's partition if the pipeline accepts the message, otherwise None."""
        owned = self._owned.get(event.source)
        if owned is None or owned.epoch != event.epoch or event.offset < owned.position:
            return None
        if self.halted is not None or self.stopping_by is not None or owned.release_by is not None:
            return None
        return owned

    def _on_deferred(self, event: on.MessageDeferred, now: float) -> Iterable[do.Command]:
        """Holds back later messages of the partition. The partition's open batch is still cut by age if parsing
        takes a long time."""
        owned = self._accepting_partition(event)
        if owned is None:
            return
        assert owned.deferred is None, (event, owned.deferred)
        owned.deferred = event
        yield do.Pause((event.source,))
        yield from self._progress(now)

    def _halt(self, reason: str, now: float) -> Iterable[do.Command]:
        """Stops taking messages. Messages taken earlier are still written to the sinks, and the rejects among them
        become dead letters, which an operator can inspect. A restarted reader continues after these messages."""
        self.halted = reason
        yield do.Halt(reason)
        yield do.Pause(self.sources)
        for owned in self._owned.values():
            batch = owned.builder.halt(now) if owned.release_by is None else None
            if batch is not None:
                owned.take(batch, now)
        yield from self._progress(now)

    # Chord completions

    def _find(self, batch_id: str, epoch: int | None = None) -> tuple[Partition, Flight] | None:
        for owned in self._owned.values():
            flight = owned.flights.get(batch_id)
            if flight is not None and epoch in (None, flight.batch.epoch):
                return owned, flight
        return None

    def _on_succeeded(self, event: on.FlushSucceeded, now: float) -> Iterable[do.Command]:
        found = self._find(event.batch_id, event.epoch)
        if found is None or found[1].stage != event.stage:
            return
        owned, flight = found
        written = flight.unwritten
        for other in self.in_flight:
            if other is not flight:
                other.observe_success(event.stage, written, now)
        if not flight.advance():
            yield owned.settle(flight)
        elif flight.phase is Phase.FLUSHING:
            yield flight.dispatch(now, self.limits.flush_deadline_seconds)  # the batch keeps its slot
        else:
            flight.phase = Phase.WAITING
        yield from self._progress(now)

    def _on_failed(self, event: on.FlushFailed, now: float) -> Iterable[do.Command]:
        flight = self._current(event)
        if flight is not None:
            flight.misses = 0
            failures = flight.fail(event.sinks)
            park = self._park(flight, event.error, now, failures, self.limits.retry_backoff_seconds_max)
            yield flight.show(park, now)
            yield from self._progress(now)

    def _on_dispatch_failed(self, event: on.DispatchFailed, now: float) -> Iterable[do.Command]:
        """No sink was called and operators cannot help: the batch is retried soon and not shown as parked.

        A batch that cannot be staged is split: docs/decisions/032-cut-again-smaller.md.
        """
        flight = self._current(event)
        if flight is None:
            return
        recut = self._owned[flight.batch.source].split(flight, now) if event.too_large else None
        if recut is not None:
            yield recut
        else:
            flight.misses = 0
            flight.failures += 1
            self._park(flight, event.error, now, flight.failures, self.limits.undispatched_seconds_max)
        yield from self._progress(now)

    def _current(self, event: on.FlushFailed | on.DispatchFailed) -> Flight | None:
        """Returns the batch whose chord failed; None if the event is about an older attempt."""
        found = self._find(event.batch_id, event.epoch)
        if found is None:
            return None
        flight = found[1]
        current = (flight.phase, flight.stage, flight.attempt) == (Phase.FLUSHING, event.stage, event.attempt)
        return flight if current else None

    def _park(self, flight: Flight, error: str, now: float, failures: int, cap_seconds: float) -> do.Park:
        """Parks the batch until its retry; parking frees the batch's slot."""
        first_delay_seconds = self.limits.retry_backoff_seconds
        return flight.park(error, now, retry_seconds(flight.batch.id, failures, first_delay_seconds, cap_seconds))

    def _on_retry(self, event: on.RetryRequested, now: float) -> Iterable[do.Command]:
        found = self._find(event.batch_id)
        if found is not None and found[1].phase is Phase.PARKED:
            found[1].until = now
            yield from self._progress(now)

    def _on_abandoned(self, event: on.BatchAbandoned, now: float) -> Iterable[do.Command]:
        found = self._find(event.batch_id)
        if found is not None and found[1].batch.offsets == event.offsets:
            owned, flight = found
            yield owned.settle(flight)
            yield from self._progress(now)

    # Commit responses

    def _on_committed(self, event: on.Committed, now: float) -> Iterable[do.Command]:
        owned = self._owned.get(event.source)
        if owned is not None and owned.commits.acknowledge(event):
            owned.unblock_recorded_batches()
            yield from self._progress(now)

    def _on_commit_failed(self, event: on.CommitFailed, now: float) -> Iterable[do.Command]:
        owned = self._owned.get(event.source)
        if owned is not None and owned.commits.refuse(event, now):
            yield from self._progress(now)

    # Ticks and progress

    def _on_shutdown(self, event: on.ShutdownRequested, now: float) -> Iterable[do.Command]:
        if self.stopping_by is not None:
            return
        self.stopping_by = now + self.limits.drain_deadline_seconds
        yield do.Pause(self.sources)
        if self.halted is None:
            for owned in self._owned.values():
                batch = owned.builder.drain(now) if owned.release_by is None else None
                if batch is not None:
                    owned.take(batch, now)
        yield from self._progress(now)

    def _on_tick(self, event: on.Ticked, now: float) -> Iterable[do.Command]:
        self._count_idle_time(now)
        taking = self.halted is None and self.stopping_by is None
        idle = self._is_idle()
        for owned in self._owned.values():
            if taking and owned.release_by is None:
                batch = owned.builder.cut_if_due(now) or (self._cut_early(owned, now) if idle else None)
                if batch is not None:
                    owned.take(batch, now)
                owned.complete_at_log_end(now)
            owned.skip_gap()
            owned.commits.give_up(now)
        self._probes.release(self.in_flight, now)
        yield from self._renew(now)
        yield from self._progress(now)

    def _is_idle(self) -> bool:
        """Returns True if only a few batches are in flight and none of them is parked, which means that the sinks
        are keeping up."""
        flights = self.in_flight
        few = len(flights) < self.limits.early_cut_in_flight_max
        return few and all(flight.phase is not Phase.PARKED for flight in flights)

    def _cut_early(self, owned: Partition, now: float) -> Batch | None:
        """Cuts the open batch early while the reader is idle, because waiting for more messages only adds delay.

        Early cuts are rate-limited, because each creates a small part in every table. A burst contains at most
        `early_cuts_per_second_max` cuts.
        """
        limits = self.limits
        if limits.batch_age_idle_seconds >= limits.batch_age_seconds_max:
            return None
        interval_seconds = 1.0 / limits.early_cuts_per_second_max
        last = now - 1.0 if self._cut_early_at is None else max(self._cut_early_at, now - 1.0)
        if last + interval_seconds > now:
            return None
        batch = owned.builder.cut_if_due_early(now)
        if batch is not None:
            self._cut_early_at = last + interval_seconds
        return batch

    def _renew(self, now: float) -> Iterable[do.Command]:
        """Renews the leases that keep parked batches visible to operators; the leases expire if their reader
        dies."""
        if now - self._renewed_at >= self.limits.parked_renew_seconds:
            self._renewed_at = now
            yield from filter(None, (flight.renew(now) for flight in self.in_flight))

    def _count_idle_time(self, now: float) -> None:
        """Counts the time since the last tick as idle for each partition that was being fetched, and was at the
        end of its log, at both ticks.

        A held partition is never fetched. While any partition drains, no partition is fetched, because the loop
        waits inside the client's callback. While the reader is paused or at a limit, only the admitted partition
        is fetched.
        """
        elapsed_seconds = 0.0 if self._ticked_at is None else min(now - self._ticked_at, TICK_SECONDS_MAX)
        self._ticked_at = now
        draining = any(owned.release_by is not None for owned in self._owned.values())
        has_room = self.has_room
        for source, owned in self._owned.items():
            taking = has_room or source == self._admitted
            waiting = taking and not draining and not owned.held and owned.at_end
            if waiting and owned.waiting:
                owned.builder.add_idle_seconds(elapsed_seconds)
            owned.waiting = waiting

    def _expire(self, flight: Flight, now: float) -> do.Park | None:
        """Ends a phase that has timed out, so that a lost record or chord delays the batch but loses no segment.

        After a missed deadline, the chord is started again immediately, because it may have been lost in a
        Redis restart. Several missed deadlines in a row mean that no worker is running, or that tasks wait in the
        queue for longer than the deadline. More chords would only lengthen the queue, so the batch is parked.
        """
        if now >= flight.until and flight.phase is not Phase.WAITING:
            flight.misses += flight.phase is Phase.FLUSHING
            if flight.phase is Phase.FLUSHING and flight.misses >= DEADLINE_MISSES_MAX:
                error = self._missed_deadlines_error(flight)
                failures = flight.fail(NO_SINKS)
                park = self._park(flight, error, now, failures, self.limits.retry_backoff_seconds_max)
                return flight.show(park, now)
            flight.phase = Phase.WAITING
        return None

    def _missed_deadlines_error(self, flight: Flight) -> str:
        missed_seconds = flight.misses * self.limits.flush_deadline_seconds
        return (
            f"no completion for {flight.misses} deadlines in a row ({missed_seconds:g} s): check queues, "
            "workers and Redis"
        )

    def _progress(self, now: float) -> Iterable[do.Command]:
        """Starts, commits and releases whatever is due, and pauses or resumes consumption."""
        flushing, waiting, stopping = 0, False, self.stopping_by is not None
        for owned in self._owned.values():
            commit = owned.commit(now, stopping=stopping)
            if commit is not None:
                yield commit
            for flight in owned.flights.values():
                park = self._expire(flight, now)
                if park is not None:
                    yield park
                flushing += flight.phase is Phase.FLUSHING
                waiting = waiting or flight.phase is Phase.WAITING
        if waiting:
            yield from self._dispatch(flushing, now)
        yield from self._release(now)
        yield from self._update_backpressure(now)
        if stopping:
            yield from self._stop(now)

    def _dispatch(self, flushing: int, now: float) -> Iterable[do.Command]:
        """Starts batches that wait for a slot. `flushing`: slots in use."""
        for owned in self._owned.values():
            for flight in owned.flights.values():
                if flight.phase is Phase.WAITING and flushing < self.limits.in_flight_batches_max:
                    flushing += 1
                    self._probes.observe_start(flight, now)
                    yield flight.dispatch(now, self.limits.flush_deadline_seconds)

    def _release(self, now: float) -> Iterable[do.Command]:
        done = [
            source
            for source, owned in self._owned.items()
            if owned.release_by is not None and (now >= owned.release_by or owned.drained)
        ]
        for source in done:
            self._forget(source)
        if done:
            yield do.Release(tuple(done))

    def _update_backpressure(self, now: float) -> Iterable[do.Command]:
        flights = held_bytes = 0
        for owned in self._owned.values():
            flights += len(owned.flights)
            held_bytes += owned.held_bytes
        self._room_bytes = self.limits.in_flight_bytes_max - held_bytes
        change = self._backpressure.update(flights, held_bytes, now)
        if change is BackpressureChange.PAUSE:
            yield do.Pause(self.sources)
        elif change is BackpressureChange.RESUME and not self.paused:
            yield do.Resume(tuple(source for source, owned in self._owned.items() if not owned.blocked))
        for source, owned in self._owned.items():
            held = self._hold(source, owned)
            if held is not None:
                yield held
        stuck = self._backpressure.paused and not flights and self.halted is None
        if stuck or self._admitted is not None:
            yield from self._admit(stuck=stuck)

    def _admit(self, *, stuck: bool) -> Iterable[do.Command]:
        """Allows one partition to be fetched if the byte limit is reached although nothing is in flight.

        In that state, memory holds incomplete planned ranges, which need more messages before they can be cut.
        Ranges are completed one at a time, so the limit is exceeded by at most one batch.
        """
        waiting = [
            (owned.builder.size_bytes, source)
            for source, owned in self._owned.items()
            if stuck
            and self.stopping_by is None
            and owned.release_by is None
            and owned.builder.waits_for_plan
            and not owned.blocked
        ]
        if any(source == self._admitted for _, source in waiting):
            return
        former, self._admitted = self._admitted, max(waiting)[1] if waiting else None
        if former in self._owned and self.paused:
            yield do.Pause((former,))
        if self._admitted is not None:
            yield do.Resume((self._admitted,))

    def _hold(self, source: TopicPartition, owned: Partition) -> do.Pause | do.Resume | None:
        """Limits how far a partition runs ahead of an unsettled batch, because everything after that batch is read
        again after a crash."""
        behind = self._ledger.pending_count(source)
        if not owned.held and behind >= self.limits.pending_ranges_max:
            owned.held = True
            return do.Pause((source,))
        if owned.held and behind <= self.limits.pending_ranges_max // 2:
            owned.held = False
            if not self.paused and not owned.blocked:
                return do.Resume((source,))
        return None

    def _stop(self, now: float) -> Iterable[do.Command]:
        if self.stopping_by is None or self.stopped:
            return
        clean = all(owned.drained for owned in self._owned.values())
        if clean or now >= self.stopping_by:
            self.stopped = True
            yield do.Stop(clean and not self.in_flight)
