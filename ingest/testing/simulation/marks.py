"""The situations that runs must reach: a simulation that never pauses, for example, proves nothing about
resuming.
"""

from __future__ import annotations

from collections.abc import Sequence

from ingest.core import commands as do
from ingest.core import cut_record
from ingest.core import events as on
from ingest.testing.simulation.reader import Reader
from ingest.testing.simulation.trace import Trace

MARKS = {
    "paused": "The consumer was paused, because a limit stayed reached.",
    "resumed": "The consumer was resumed, after both counts had fallen to half of their limits.",
    "held": "One partition was paused, because too many ranges waited behind an unsettled batch.",
    "released_hold": "That partition was resumed, after the batch had settled.",
    "parked": "A batch was parked, because its chord had failed.",
    "retried": "A parked batch was dispatched again.",
    "lease_expired": "A settled batch was still shown as parked, until its lease ended.",
    "undispatched": "A batch could not be staged.",
    "deadline": "A chord missed its deadline and was started again.",
    "commit_refused": "A commit was refused.",
    "commit_given_up": "A commit timed out.",
    "commit_fenced": "The broker refused a commit of a former member or generation.",
    "assigned_with_plan": "A new owner received recorded cuts.",
    "cut_as_planned": "A new owner cut a recorded range.",
    "cut_again": "A recorded range was split, because it had become too large to stage.",
    "recut": "A batch was replaced by its halves, because Redis could never hold it.",
    "deferred": "A message was parsed outside the loop while its partition waited.",
    "record_refused": "The broker refused a record as too long, and the next commit had a shorter one.",
    "failed_start": "A reader ended before the committed offset advanced, and its successor was informed.",
    "partition_added": "The topic got another partition, with messages before the group discovered it.",
    "began_at_beginning": "A partition that was new to the group was read from its beginning.",
    "began_at_end": "A new group started at the end of a partition, by policy.",
    "offsets_unknown": "A member with a stale epoch was refused the committed offsets, and joined again.",
    "offset_contradicted": "A doubtful committed offset was requested again, with a different result.",
    "fetch_restarted": "Fetching of a partition was restarted, because it returned no messages.",
    "commit_repeated": "An acknowledged commit was sent again, because brokers may have lost it.",
    "topic_found_recreated": "A reader detected that the topic had been recreated, and joined again.",
    "began_in_new_topic": "A partition of a recreated topic was read from its beginning.",
    "began_unnamed": "After the topic was recreated, a reader started at a committed offset without a topic id.",
    "plan_given_up": "A planned range was abandoned, because its end was not reached in time.",
    "passed_over": "The end of a log was committed although no message precedes it.",
    "revoked_with_batches_in_flight": "Partitions with batches in flight were revoked.",
    "drain_deadline_passed": "Batches of revoked partitions did not settle before the drain deadline.",
    "lost": "Partitions were lost without a revocation.",
    "rejoined": "A member joined again, because a partition of its stable group had no owner.",
    "stale_completion": "A completion of a former assignment, or a duplicate, was ignored.",
    "out_of_range": "Messages expired before they were read.",
    "halted": "A reader halted, because of too many rejects.",
    "retry_requested": "An operator requested an immediate retry.",
    "abandoned": "An operator abandoned a batch.",
    "stopped_clean": "After SIGTERM, everything settled before the drain deadline.",
    "stopped_unclean": "After SIGTERM, some batches did not settle before the drain deadline.",
    "token_skipped": "ClickHouse skipped a repeated insert.",
    "mark_spared_a_write": "A repeated task found its done mark.",
    "poison_dead_lettered": "A sink refused one row permanently; it became a dead letter, and the others were "
    "written.",
}


class Marks:
    """Records marks from the events and commands of readers."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._sent_at: dict[tuple[str, str], float] = {}
        self._parked: set[tuple[str, str]] = set()
        self._unanswered: set[tuple[str, str, int]] = set()
        self._acknowledged: dict[tuple[str, str, int], tuple[int, str]] = {}
        self._full: set[str] = set()
        self._trailing: set[tuple[str, int]] = set()

    def observe(self, reader: Reader, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        """Records the marks that are visible after a decision of a reader."""
        if not commands and type(event) is on.Ticked:
            return
        mark = self._trace.mark
        match event:
            case on.PartitionsAssigned():
                if any(cut_record.decode(given.committed or 0, given.record).stops for given in event.assignments):
                    mark("assigned_with_plan")
                if any(reader.pipeline.failed_starts(given.source) for given in event.assignments):
                    mark("failed_start")
            case on.PartitionsLost():
                mark("lost")
            case on.OffsetOutOfRange():
                mark("out_of_range")
            case on.CommitFailed():
                self._unanswered.discard((reader.name, str(event.source), event.epoch))
                mark("commit_refused")
                if event.record_too_long:
                    mark("record_refused")
            case on.EndReached() if event.end > event.position:
                self._trailing.add((str(event.source), event.end))
            case on.Committed():
                key = (reader.name, str(event.source), event.epoch)
                self._unanswered.discard(key)
                self._acknowledged[key] = (event.offset, event.record)
                if (str(event.source), event.offset) in self._trailing:
                    mark("passed_over")
            case on.DispatchFailed():
                mark("undispatched")
            case on.RetryRequested() if commands:
                mark("retry_requested")
            case on.BatchAbandoned() if commands:
                mark("abandoned")
            case on.FlushSucceeded() if not commands:
                mark("stale_completion")
        for command in commands:
            waits = isinstance(event, on.MessageDeferred) and isinstance(command, do.Pause)
            goes_on = isinstance(event, on.MessageParsed) and isinstance(command, do.Resume)
            if not waits and not goes_on:  # these commands concern only the partition of a deferred message
                self._mark_command(reader, command, now)

    def _mark_command(self, reader: Reader, command: do.Command, now: float) -> None:
        mark, name = self._trace.mark, reader.name
        pipeline = reader.pipeline
        match command:
            case do.Pause() if pipeline.paused and pipeline.halted is None and pipeline.stopping_by is None:
                self._full.add(name)
                mark("paused")
            case do.Pause() if not pipeline.paused:
                mark("held")
            case do.Resume():
                mark("resumed" if name in self._full else "released_hold")
                self._full.discard(name)
            case do.Park():
                self._parked.add((name, command.batch.id))
                mark("parked")
            case do.Halt():
                mark("halted")
            case do.Commit():
                key = (name, str(command.source), command.epoch)
                if key in self._unanswered:
                    mark("commit_given_up")
                elif self._acknowledged.get(key) == (command.offset, command.record):
                    mark("commit_repeated")
                self._unanswered.add(key)
            case do.Dispatch():
                deadline_seconds = pipeline.limits.flush_deadline_seconds
                self._dispatched((name, command.batch.id), command.attempt, deadline_seconds, now)

    def _dispatched(self, key: tuple[str, str], attempt: int, deadline_seconds: float, now: float) -> None:
        last = self._sent_at.get(key)
        self._sent_at[key] = now
        if key in self._parked:
            self._parked.discard(key)
            self._trace.mark("retried")
        elif attempt > 1 and last is not None and now - last >= deadline_seconds:
            self._trace.mark("deadline")
