"""Situations that a run reached. A simulation that never pauses proves nothing about resuming."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.core import commands as do
from ingest.core import cut_record
from ingest.core import events as on
from ingest.testing.simulation.reader import Reader
from ingest.testing.simulation.story import Story

MARKS = {
    "paused": "Backpressure lasted: the consumer was told to stop fetching.",
    "resumed": "It fell to half of the bounds: the consumer fetches again.",
    "held": "Too many ranges behind one unsettled batch: that partition alone is paused.",
    "released_hold": "It settled, the partition goes on.",
    "parked": "A chord failed: the batch waits for its retry.",
    "retried": "A parked batch was dispatched again.",
    "lease_expired": "A settled batch was still shown as parked, until its lease ended.",
    "undispatched": "A batch could not be staged.",
    "deadline": "A chord was not heard of and was started again.",
    "commit_refused": "A commit was refused.",
    "commit_given_up": "A commit got no answer.",
    "commit_fenced": "A commit of a former member or generation was refused by the broker.",
    "assigned_with_plan": "A new owner found recorded cuts.",
    "cut_as_planned": "It cut the same ranges.",
    "cut_again": "One that was too large to be staged by now was cut in between.",
    "recut": "Redis could never hold a batch: its halves took its place.",
    "deferred": "A message was parsed beside the loop while its partition waited.",
    "record_refused": "The broker does not store so long a record: the next commit had a shorter one.",
    "failed_start": "A reader ended before the offset moved, and its successor knows.",
    "partition_added": "The topic got a partition, with messages before anybody knew of it.",
    "began_at_beginning": "A partition that was new to the group was read from its beginning.",
    "began_at_end": "A new group began at the end of a partition, by policy.",
    "offsets_unknown": "Committed offsets were refused to a member of an old epoch: it joined again.",
    "offset_contradicted": "A doubtful committed offset was asked for again, and the answer was another one.",
    "fetch_restarted": "Nothing came of a partition that has messages: it was fetched anew.",
    "commit_repeated": "An acknowledged commit was sent again, because brokers may have lost it.",
    "topic_found_recreated": "A reader noticed another topic under the same name, and joined again.",
    "began_in_new_topic": "A partition of a topic that was created again was read from its beginning.",
    "began_unnamed": "A committed offset named no topic after the topic was created again: it was believed.",
    "plan_given_up": "A planned range did not come to its end in time.",
    "passed_over": "The end of the log held no message and was committed.",
    "revoked_with_batches_in_flight": "Partitions were taken back while batches of them were in flight.",
    "drain_deadline_passed": "And they did not settle in time.",
    "lost": "Partitions were lost without asking.",
    "rejoined": "A partition had no owner in a stable group: a member joined again.",
    "stale_completion": "A completion of a former assignment, or a second one, was ignored.",
    "out_of_range": "Messages had expired before they were read.",
    "halted": "Too many rejects.",
    "retry_requested": "An operator did not want to wait.",
    "abandoned": "An operator gave a batch up.",
    "stopped_clean": "SIGTERM: everything settled in time.",
    "stopped_unclean": "SIGTERM: something did not.",
    "token_skipped": "ClickHouse knew the batch already.",
    "mark_spared_a_write": "A repeated task found its done mark.",
    "poison_dead_lettered": "A sink refused one row for good; it was kept as a dead letter, the rest written.",
}


class Marks:
    """Records marks from the events and commands of readers."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._sent_at: dict[tuple[str, str], float] = {}
        self._parked: set[tuple[str, str]] = set()
        self._unanswered: set[tuple[str, str, int]] = set()
        self._acknowledged: dict[tuple[str, str, int], tuple[int, str]] = {}
        self._full: set[str] = set()
        self._trailing: set[tuple[str, int]] = set()

    def saw(self, reader: Reader, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        """Called after each decision of a reader."""
        if not commands and type(event) is on.Ticked:
            return
        mark = self._story.mark
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
            if not waits and not goes_on:  # the pauses concern one message's partition, not a bound
                self._ordered(reader, command, now)

    def _ordered(self, reader: Reader, command: do.Command, now: float) -> None:
        mark, name = self._story.mark, reader.name
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
            self._story.mark("retried")
        elif attempt > 1 and last is not None and now - last >= deadline_seconds:
            self._story.mark("deadline")
