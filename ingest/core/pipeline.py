"""The one place where everything meets: `Pipeline.handle(event, now) -> list[Command]`.

A batch's life: cut -> its boundary recorded with the partition (D14) -> waits for a slot -> the chord of its
blobs -> the chord of its rows -> settled -> its offset committed once all before it settled too.
A chord that fails parks the batch until its retry; one that is not heard of is started again at its deadline,
and parked too when that happens again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core import record
from ingest.core.backpressure import Backpressure, Change
from ingest.core.batching import Builder
from ingest.core.ledger import Ledger
from ingest.core.limits import Limits
from ingest.core.model import Batch, OffsetRange, Reject, Stage, TopicPartition
from ingest.core.retry import RejectRatio, retry_seconds

# So many deadlines in a row that pass without a word park a batch, and from then on each one does.
DEADLINE_MISSES_MAX = 3


class Phase(StrEnum):
    """Where a batch is between its cut and its settlement."""

    RECORDING = "recording"  # its boundary is on its way to the broker
    WAITING = "waiting"  # for a slot
    FLUSHING = "flushing"  # its chord is out
    PARKED = "parked"  # its chord failed, or could not be started; it is tried again at `until`


@dataclass(slots=True)
class Flight:
    """One batch that is cut and not settled."""

    batch: Batch
    stages: tuple[Stage, ...]
    phase: Phase
    since: float
    until: float
    attempt: int = 0
    failures: int = 0
    error: str = ""
    misses: int = 0
    """Deadlines in a row that passed without a word of its chord."""

    @property
    def stage(self) -> Stage:
        """The chord that is next or out."""
        return self.stages[0]


@dataclass(slots=True)
class _Owned:
    """One partition that is assigned to us."""

    epoch: int
    builder: Builder
    position: int
    committed: int | None
    flights: dict[str, Flight] = field(default_factory=dict)
    sent: on.Committed | None = None  # the commit that is on its way; at most one a partition
    sent_at: float = 0.0
    refused_at: float | None = None
    recorded_until: int = 0
    stored: tuple[int, str] | None = None
    release_by: float | None = None
    held: bool = False  # too many ranges wait behind an unsettled one: nothing more is fetched of it


class Pipeline:
    """All decisions of one reader process. Deterministic: same events at the same times, same commands.

    `has_room` tells the loop whether to take messages. Messages of partitions that are not ours, of older
    epochs, or at offsets that were taken already are ignored: they are, or will be, handled elsewhere.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.halted: str | None = None
        self.stopping_by: float | None = None
        self.stopped = False
        self._owned: dict[TopicPartition, _Owned] = {}
        self._ledger = Ledger()
        self._backpressure = Backpressure(limits)
        self._rejects = RejectRatio(limits)
        self._in_flight_bytes = 0
        self._handlers: dict[type, Callable[[Any, float], Iterable[do.Command]]] = {
            on.MessageParsed: self._on_message,
            on.PartitionsAssigned: self._on_assigned,
            on.PartitionsRevoked: self._on_revoked,
            on.PartitionsLost: self._on_lost,
            on.OffsetOutOfRange: self._on_out_of_range,
            on.FlushSucceeded: self._on_succeeded,
            on.FlushFailed: self._on_failed,
            on.Committed: self._on_committed,
            on.CommitFailed: self._on_commit_failed,
            on.RetryRequested: self._on_retry,
            on.BatchAbandoned: self._on_abandoned,
            on.ShutdownRequested: self._on_shutdown,
            on.Ticked: self._on_tick,
        }

    # What others may look at

    @property
    def has_room(self) -> bool:
        """Whether messages may be taken now. While this is False the loop polls only what it must."""
        return self._backpressure.has_room and self.halted is None and self.stopping_by is None

    @property
    def paused(self) -> bool:
        """Whether the consumer was told to pause."""
        return self._backpressure.paused or self.halted is not None or self.stopping_by is not None

    @property
    def in_flight(self) -> tuple[Flight, ...]:
        """Every batch that is cut and not settled, a partition after the other, in offset order."""
        return tuple(flight for owned in self._owned.values() for flight in owned.flights.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of unsettled and open batches."""
        return self._in_flight_bytes + sum(owned.builder.size_bytes for owned in self._owned.values())

    @property
    def sources(self) -> tuple[TopicPartition, ...]:
        """Partitions that are ours."""
        return tuple(self._owned)

    @property
    def reject_ratio(self) -> float:
        """Rejects among the last `reject_window` messages, 0 to 1."""
        return self._rejects.ratio

    def position(self, source: TopicPartition) -> tuple[int, int | None]:
        """(next offset to take, last offset that Kafka acknowledged as committed or None) of a partition."""
        owned = self._owned[source]
        return owned.position, owned.committed

    # The door

    def handle(self, event: on.Event, now: float) -> list[do.Command]:
        """Decides what follows from `event` at `now` (monotonic seconds). Raises only on a broken invariant."""
        if self.stopped:
            return []
        return [*self._handlers[type(event)](event, now)]

    # Partitions come and go

    def _on_assigned(self, event: on.PartitionsAssigned, now: float) -> Iterable[do.Command]:
        for given in event.assignments:
            assert given.source not in self._owned, given
            committed = given.committed
            plan = record.decode(committed, given.record) if committed is not None else ()
            self._owned[given.source] = _Owned(
                epoch=given.epoch,
                builder=Builder(given.source, given.epoch, self.limits, plan),
                position=committed or 0,
                committed=committed,
                stored=(committed, given.record) if committed is not None else None,
            )
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
        """Messages that expired are a gap in the log; those that we hold are then the only copy and stay ours.

        Going back means another log under the same name: nothing that we know of the old one is true there.
        """
        owned = self._owned.get(event.source)
        if owned is not None and event.resumed_at >= owned.position:
            owned.epoch = owned.builder.epoch = event.epoch
            owned.position = event.resumed_at
            if self.paused or owned.held:
                yield do.Pause((event.source,))
            return
        self._forget(event.source)
        yield from self._on_assigned(on.PartitionsAssigned((on.Assignment(event.source, event.epoch),)), now)

    def _forget(self, source: TopicPartition) -> None:
        owned = self._owned.pop(source, None)
        if owned is not None:
            self._in_flight_bytes -= sum(flight.batch.size_bytes for flight in owned.flights.values())
            self._ledger.forget(source)

    # Messages become batches

    def _on_message(self, event: on.MessageParsed, now: float) -> Iterable[do.Command]:
        owned = self._owned.get(event.source)
        if owned is None or owned.epoch != event.epoch or event.offset < owned.position:
            return
        if self.halted is not None or self.stopping_by is not None or owned.release_by is not None:
            return
        if self._rejects.exceeded(isinstance(event.outcome, Reject)):
            yield from self._halt(
                f"{self._rejects.ratio:.0%} of the last {self.limits.reject_window} messages are rejects"
            )
            return
        owned.position = event.offset + 1
        batches = owned.builder.add(event.offset, event.outcome, now)
        if batches:
            for batch in batches:
                self._take(owned, batch, now)
            yield from self._progress(now)

    def _halt(self, reason: str) -> Iterable[do.Command]:
        self.halted = reason
        yield do.Halt(reason)
        yield do.Pause(self.sources)

    def _take(self, owned: _Owned, batch: Batch, now: float) -> None:
        """The batch is ours to make durable from here on."""
        self._ledger.take(batch.source, batch.offsets)
        stages = batch.stages
        if not stages:
            self._ledger.settle(batch.source, batch.offsets)
            return
        self._in_flight_bytes += batch.size_bytes
        until = now + self.limits.cut_record_seconds_max
        owned.flights[batch.id] = Flight(batch, stages, Phase.RECORDING, since=now, until=until)

    # Chords end

    def _find(self, batch_id: str, epoch: int | None = None) -> tuple[_Owned, Flight] | None:
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
        if len(flight.stages) > 1:
            flight.stages = flight.stages[1:]
            flight.failures, flight.misses, flight.error = 0, 0, ""
            if flight.phase is Phase.FLUSHING:
                yield self._dispatch(flight, now)  # keeps its slot
            else:
                flight.phase = Phase.WAITING
        else:
            yield from self._settle(owned, flight)
        yield from self._progress(now)

    def _settle(self, owned: _Owned, flight: Flight) -> Iterable[do.Command]:
        del owned.flights[flight.batch.id]
        self._in_flight_bytes -= flight.batch.size_bytes
        self._ledger.settle(flight.batch.source, flight.batch.offsets)
        yield do.Discard(flight.batch)

    def _on_failed(self, event: on.FlushFailed, now: float) -> Iterable[do.Command]:
        found = self._find(event.batch_id, event.epoch)
        if found is None:
            return
        flight = found[1]
        current = (flight.phase, flight.stage, flight.attempt) == (Phase.FLUSHING, event.stage, event.attempt)
        if not current:
            return  # an older attempt's failure says nothing about the one that is out
        flight.misses = 0
        yield from self._park(flight, event.error, now, dispatched=event.dispatched)
        yield from self._progress(now)

    def _park(self, flight: Flight, error: str, now: float, *, dispatched: bool) -> Iterable[do.Command]:
        """It waits without a slot until its retry; operators see those that were started."""
        flight.failures += 1
        flight.error = error
        wait_seconds = retry_seconds(flight.batch.id, flight.failures, self.limits, dispatched=dispatched)
        flight.phase, flight.since, flight.until = Phase.PARKED, now, now + wait_seconds
        if dispatched:
            yield do.Park(flight.batch, flight.stage, flight.attempt, error, wait_seconds)

    def _on_retry(self, event: on.RetryRequested, now: float) -> Iterable[do.Command]:
        found = self._find(event.batch_id)
        if found is not None and found[1].phase is Phase.PARKED:
            found[1].until = now
            yield from self._progress(now)

    def _on_abandoned(self, event: on.BatchAbandoned, now: float) -> Iterable[do.Command]:
        found = self._find(event.batch_id)
        if found is not None and found[1].batch.offsets == event.offsets:
            yield from self._settle(*found)
            yield from self._progress(now)

    # Commits are answered

    def _on_committed(self, event: on.Committed, now: float) -> Iterable[do.Command]:
        owned = self._answered(event)
        if owned is None:
            self._doubt(event.source)
            return
        owned.refused_at = None
        owned.committed = event.offset
        owned.stored = (event.offset, event.record)
        self._let_recorded_go(owned)
        yield from self._progress(now)

    def _doubt(self, source: TopicPartition) -> None:
        """A commit that was given up was stored after all, perhaps over a later one: say the later one again."""
        if source in self._owned:
            self._owned[source].stored = None

    def _on_commit_failed(self, event: on.CommitFailed, now: float) -> Iterable[do.Command]:
        owned = self._answered(event)
        if owned is not None:
            owned.refused_at = now
            yield from self._progress(now)

    def _answered(self, event: on.Committed | on.CommitFailed) -> _Owned | None:
        owned = self._owned.get(event.source)
        sent = owned.sent if owned else None
        if owned is None or sent is None:
            return None
        if (sent.epoch, sent.offset, sent.record) != (event.epoch, event.offset, event.record):
            return None
        owned.sent = None
        return owned

    # Time, and what follows from everything

    def _on_shutdown(self, event: on.ShutdownRequested, now: float) -> Iterable[do.Command]:
        if self.stopping_by is not None:
            return
        self.stopping_by = now + self.limits.drain_deadline_seconds
        yield do.Pause(self.sources)
        if self.halted is None:
            for owned in self._owned.values():
                batch = owned.builder.drain(now) if owned.release_by is None else None
                if batch is not None:
                    self._take(owned, batch, now)
        yield from self._progress(now)

    def _on_tick(self, event: on.Ticked, now: float) -> Iterable[do.Command]:
        for owned in self._owned.values():
            batch = None
            if self.halted is None and self.stopping_by is None and owned.release_by is None:
                batch = owned.builder.due(now)
            if batch is not None:
                self._take(owned, batch, now)
            if owned.sent is not None and now - owned.sent_at >= self.limits.commit_answer_seconds_max:
                owned.sent = None  # no answer: the next commit says the same or more
        yield from self._progress(now)

    def _expire(self, flight: Flight, now: float) -> Iterable[do.Command]:
        """A phase that is over by the clock leads to the next one; losing a record or a chord costs no segment.

        One chord may be lost in a restart of Redis, and is started again at once. Several in a row say that
        nobody flushes, or that queues are longer than the deadline, and more chords make that worse.
        """
        if now >= flight.until and flight.phase is not Phase.WAITING:
            flight.misses += flight.phase is Phase.FLUSHING
            if flight.phase is Phase.FLUSHING and flight.misses >= DEADLINE_MISSES_MAX:
                yield from self._park(flight, self._silence(flight), now, dispatched=True)
            else:
                flight.phase = Phase.WAITING

    def _silence(self, flight: Flight) -> str:
        silent_seconds = flight.misses * self.limits.flush_deadline_seconds
        return (
            f"not heard of for {flight.misses} deadlines in a row ({silent_seconds:g} s): queues, workers, Redis?"
        )

    def _progress(self, now: float) -> Iterable[do.Command]:
        """Start what may start, commit what may be committed, release what is drained, pause or resume."""
        flushing = 0
        for owned in self._owned.values():
            yield from self._commit(owned, now)
            for flight in owned.flights.values():
                yield from self._expire(flight, now)
                flushing += flight.phase is Phase.FLUSHING
        for owned in self._owned.values():
            for flight in owned.flights.values():
                if flight.phase is Phase.WAITING and flushing < self.limits.in_flight_batches_max:
                    flushing += 1
                    yield self._dispatch(flight, now)
        yield from self._release(now)
        yield from self._press(now)
        yield from self._stop(now)

    def _dispatch(self, flight: Flight, now: float) -> do.Command:
        deadline_seconds = self.limits.flush_deadline_seconds
        flight.attempt += 1
        flight.phase, flight.since, flight.until = Phase.FLUSHING, now, now + deadline_seconds
        return do.Dispatch(flight.batch, flight.stage, flight.attempt, deadline_seconds)

    def _commit(self, owned: _Owned, now: float) -> Iterable[do.Command]:
        """The committable offset with the ends of all batches above it, when that says something new.

        The ends that a predecessor recorded and that were not reached yet stay in the record: a second
        crash must not forget what the first one handed over.
        """
        source = owned.builder.source
        if owned.sent is not None or not self._may_commit(owned, self._ledger.taken_until(source), now):
            return
        pending = self._ledger.pending(source)
        offset = self._ledger.committable(source)
        if offset is None:
            offset = owned.committed
        if offset is None:
            if not pending:
                return
            offset = pending[0].start  # nothing was ever committed here: this is where consumption began
        stops = [offsets.stop for offsets in pending] + [*owned.builder.planned]
        text = record.encode(offset, stops, self.limits.cut_record_bytes_max)
        owned.recorded_until = self._ledger.taken_until(source)
        if owned.stored == (offset, text):
            self._let_recorded_go(owned)  # a predecessor recorded just these ends
            return
        owned.sent = on.Committed(source, owned.epoch, offset, text)
        owned.sent_at = now
        yield do.Commit(source, owned.epoch, offset, text)

    def _let_recorded_go(self, owned: _Owned) -> None:
        for flight in owned.flights.values():
            if flight.phase is Phase.RECORDING and flight.batch.offsets.stop <= owned.recorded_until:
                flight.phase = Phase.WAITING

    def _may_commit(self, owned: _Owned, taken_until: int, now: float) -> bool:
        """One commit an interval, unless somebody waits for it: the record of a cut, a drain, an idle reader."""
        interval_seconds = self.limits.commit_interval_seconds
        if owned.refused_at is not None:
            return now - owned.refused_at >= interval_seconds
        cut = taken_until > owned.recorded_until
        draining = owned.release_by is not None or self.stopping_by is not None
        idle = not owned.flights and not len(owned.builder)
        return cut or draining or idle or now - owned.sent_at >= interval_seconds

    def _release(self, now: float) -> Iterable[do.Command]:
        done = tuple(
            source
            for source, owned in self._owned.items()
            if owned.release_by is not None and (now >= owned.release_by or self._drained(owned))
        )
        for source in done:
            self._forget(source)
        if done:
            yield do.Release(done)

    def _drained(self, owned: _Owned) -> bool:
        """Nothing is to be waited for: parked batches are not, their retry is the next owner's."""
        working = any(flight.phase is not Phase.PARKED for flight in owned.flights.values())
        committable = self._ledger.committable(owned.builder.source)
        return not working and owned.sent is None and committable in (None, owned.committed)

    def _press(self, now: float) -> Iterable[do.Command]:
        flights = sum(len(owned.flights) for owned in self._owned.values())
        change = self._backpressure.update(flights, self.held_bytes, now)
        if change is Change.PAUSE:
            yield do.Pause(self.sources)
        elif change is Change.RESUME and not self.paused:
            yield do.Resume(tuple(source for source, owned in self._owned.items() if not owned.held))
        for source, owned in self._owned.items():
            yield from self._hold(source, owned)

    def _hold(self, source: TopicPartition, owned: _Owned) -> Iterable[do.Command]:
        """A batch that never settles lets its partition run ahead only so far: a crash reads all of it again."""
        behind = self._ledger.pending_count(source)
        if not owned.held and behind >= self.limits.pending_ranges_max:
            owned.held = True
            yield do.Pause((source,))
        elif owned.held and behind <= self.limits.pending_ranges_max // 2:
            owned.held = False
            if not self.paused:
                yield do.Resume((source,))

    def _stop(self, now: float) -> Iterable[do.Command]:
        if self.stopping_by is None or self.stopped:
            return
        clean = all(self._drained(owned) for owned in self._owned.values())
        if clean or now >= self.stopping_by:
            self.stopped = True
            yield do.Stop(clean and not self.in_flight)

    def range_of(self, batch_id: str) -> OffsetRange | None:
        """The offsets of a batch in flight; None when it is not (or no longer) ours."""
        found = self._find(batch_id)
        return found[1].batch.offsets if found else None
