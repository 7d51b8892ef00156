"""Derives the steps of the commit protocol that the reader takes, from events and commands.

With `REPLAYS_LOG_LEVEL=debug` a reader logs each step as one line (`protocol_step`). `python -m tools.spec` checks
these lines against the specification (docs/specification.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ingest.core import commands as do
from ingest.core import cut_record
from ingest.core import events as on
from ingest.core.flight import Phase
from ingest.core.model import CutReason, Drop, OffsetRange, Stage, TopicPartition
from ingest.core.pipeline import Pipeline

ROUNDING_SECONDS = 1e-6

Step = dict[str, Any]
"""The event (`step`), its `partition`, and offsets.

`late`: the deadline that permits the step had passed. `short`: brokers refused a record of this reader as too
long.
"""


class _PartitionSteps:
    """State of one partition: ranges in the order in which they were cut, and unsettled batches."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.content_until = position
        self.pending: tuple[OffsetRange, ...] = ()
        self.revoked_at = 0.0
        self.sent_at = 0.0
        self.flights: dict[str, tuple[int, Phase, Stage, int]] = {}  # epoch, phase, stage, attempt
        self.dispatched_at: dict[str, float] = {}


class Steps:
    """Derives the steps of one reader. Memory use is bounded by the number of batches in flight."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._short = False
        self._stopped = False
        self._seen: dict[TopicPartition, _PartitionSteps] = {}

    def observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> list[Step]:
        """Returns the steps that one event and its commands represent, in order. `now`: monotonic seconds.

        A stopped reader takes no more steps, because its pipeline ignores later events.
        """
        if self._stopped:
            return []
        steps = [*self._event_steps(event, now), *self._cut_steps(commands)]
        steps += self._completion_steps(event, commands)
        for command in commands:
            steps += self._command_steps(event, command, now)
        for flight in self._pipeline.in_flight:
            seen = self._seen[flight.batch.source]
            seen.flights[flight.batch.id] = (flight.batch.epoch, flight.phase, flight.stage, flight.attempt)
        return steps

    def _event_steps(self, event: on.Event, now: float) -> Iterator[Step]:
        match event:
            case on.PartitionsAssigned():
                for given in event.assignments:
                    yield self._assigned_step(given)
            case on.MessageParsed() if event.source in self._seen:
                yield from self._taken_steps(event)
            case on.PartitionsRevoked():
                for source in set(event.sources) & self._seen.keys():
                    self._seen[source].revoked_at = now
                    yield _step("revoked", source)
            case on.PartitionsLost():
                for source in event.sources:
                    if self._seen.pop(source, None) is not None:
                        yield _step("lost", source)
            case on.OffsetOutOfRange() if event.source in self._seen:
                yield from self._resumed_steps(event)
            case on.EndReached() if event.source in self._seen:
                yield _step("ended", event.source, start=event.position, stop=event.end)
            case on.Committed() | on.CommitFailed() if event.source in self._seen:
                stored = isinstance(event, on.Committed)
                self._short = self._short or (isinstance(event, on.CommitFailed) and event.record_too_long)
                yield self._commit_step("committed" if stored else "refused", event)
            case _:
                pass

    def _assigned_step(self, given: on.Assignment) -> Step:
        offset = given.start if given.committed is None else given.committed
        self._seen[given.source] = _PartitionSteps(offset or 0)
        ends = cut_record.decode(given.committed, given.record).stops if given.committed is not None else ()
        new = given.committed is None
        return _step("assigned", given.source, offset=offset or 0, ends=[*ends], new=new)

    def _taken_steps(self, event: on.MessageParsed) -> Iterator[Step]:
        """Yields a step for a run of messages that need no write, and another step each time the run grows."""
        seen = self._seen[event.source]
        if event.offset < seen.position or self._pipeline.position(event.source)[0] <= event.offset:
            return  # the pipeline did not take the message
        seen.position = event.offset + 1
        if isinstance(event.outcome, Drop):
            yield _step("nothing", event.source, start=seen.content_until, stop=seen.position)
        else:
            seen.content_until = seen.position

    def _resumed_steps(self, event: on.OffsetOutOfRange) -> Iterator[Step]:
        seen = self._seen[event.source]
        if event.resumed_at < seen.position:
            self._seen[event.source] = _PartitionSteps(event.resumed_at)
            yield _step("lost", event.source)
            yield _step("assigned", event.source, offset=event.resumed_at, ends=[], new=True)
        else:
            yield _step("nothing", event.source, start=seen.content_until, stop=event.resumed_at)
            seen.position = event.resumed_at

    def _cut_steps(self, commands: Sequence[do.Command]) -> Iterator[Step]:
        """Yields the ranges that were cut and the batches that were split by these commands."""
        flights = {flight.batch.id: flight for flight in self._pipeline.in_flight}
        for command in commands:
            if isinstance(command, do.Recut):
                parts = [flights[batch_id] for batch_id in command.into]
                into = [_range(part.batch.offsets, stages=[*part.stages]) for part in parts]
                yield _step("split", command.batch.source, stop=command.batch.offsets.stop, into=into)
                self._forget(command.batch.source, command.batch.id)
        for source, seen in self._seen.items():
            pending = self._pipeline.pending(source)
            former = seen.pending[-1].stop if seen.pending else -1
            known = set(seen.pending)
            for offsets in pending:
                if offsets in known or offsets.start < former:
                    continue
                flight = flights.get(f"{source}-{offsets.start}-{offsets.stop}")
                stages = [*flight.stages] if flight is not None else []
                cut_by = flight.batch.cut_by if flight is not None else CutReason.AGE
                yield _step("cut", source, **_range(offsets, stages=stages), cut_by=str(cut_by))
            seen.pending = pending

    def _completion_steps(self, event: on.Event, commands: Sequence[do.Command]) -> Iterator[Step]:
        """Yields the completion or the failed dispatch of the current chord."""
        if not isinstance(event, on.FlushSucceeded | on.DispatchFailed):
            return
        for source, seen in self._seen.items():
            known = seen.flights.get(event.batch_id)
            if known is None or known[0] != event.epoch or known[2] is not event.stage:
                continue
            if isinstance(event, on.FlushSucceeded):
                yield _step("flushed", source, stop=_stop(event.batch_id), stage=str(event.stage))
            elif known[1::2] == (Phase.FLUSHING, event.attempt) and not _recut(commands):
                yield _step("parked", source, stop=_stop(event.batch_id))

    def _command_steps(self, event: on.Event, command: do.Command, now: float) -> Iterator[Step]:
        limits = self._pipeline.limits
        match command:
            case do.Commit():
                self._seen[command.source].sent_at = now
                yield self._commit_step("commit", command)
            case do.Dispatch():
                batch, seen = command.batch, self._seen[command.batch.source]
                waited_seconds = now - seen.dispatched_at.get(batch.id, batch.cut_at)
                first = batch.id not in seen.dispatched_at
                deadline_seconds = limits.cut_record_seconds_max if first else limits.flush_deadline_seconds
                seen.dispatched_at[batch.id] = now
                yield _step(
                    "dispatch",
                    batch.source,
                    stop=batch.offsets.stop,
                    stage=str(command.stage),
                    late=waited_seconds >= deadline_seconds - ROUNDING_SECONDS,
                    short=self._short,
                )
            case do.Park():
                yield _step("parked", command.batch.source, stop=command.batch.offsets.stop)
            case do.Discard():
                by = "operator" if isinstance(event, on.BatchAbandoned) else "sinks"
                self._forget(command.batch.source, command.batch.id)
                yield _step("settled", command.batch.source, stop=command.batch.offsets.stop, by=by)
            case do.Release():
                for source in command.sources:
                    known = self._seen.pop(source, None)
                    if known is not None:
                        late = now - known.revoked_at >= limits.drain_deadline_seconds - ROUNDING_SECONDS
                        gave_up = now - known.sent_at >= limits.commit_answer_seconds_max - ROUNDING_SECONDS
                        yield _step("released", source, late=late, gave_up=gave_up)
            case do.Stop():
                self._stopped = True
                yield from (_step("stopped", source, clean=command.clean) for source in self._seen)
            case _:
                pass

    def _commit_step(self, name: str, commit: do.Commit | on.Committed | on.CommitFailed) -> Step:
        ends = [*cut_record.decode(commit.offset, commit.record).stops]
        return _step(name, commit.source, offset=commit.offset, ends=ends, short=self._short)

    def _forget(self, source: TopicPartition, batch_id: str) -> None:
        seen = self._seen[source]
        seen.flights.pop(batch_id, None)
        seen.dispatched_at.pop(batch_id, None)


def _step(name: str, source: TopicPartition, **facts: Any) -> Step:
    return {"step": name, "partition": source.partition, **facts}


def _recut(commands: Sequence[do.Command]) -> bool:
    return any(isinstance(command, do.Recut) for command in commands)


def _range(offsets: OffsetRange, stages: list[Stage]) -> dict[str, Any]:
    return {"start": offsets.start, "stop": offsets.stop, "stages": [str(stage) for stage in stages]}


def _stop(batch_id: str) -> int:
    return int(batch_id.rsplit("-", 1)[1])
