"""Invariants of every world, one class per invariant. The docstring of a class states the invariant.

Checkers read the broker, the sinks and the commands, but never the private state of the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ingest.core import commands as do
from ingest.core import cut_record
from ingest.core import events as on
from ingest.core.flight import Phase
from ingest.core.model import DEAD_LETTER_BYTES, Batch, CutReason, TopicPartition
from ingest.core.ownership import GroupView
from ingest.testing.simulation.kafka import Broker, Kind, Log
from ingest.testing.simulation.reader import TURN_SECONDS, UNOWNED_SECONDS_MAX, Reader
from ingest.testing.simulation.redis import PARKED_LEASE_SECONDS
from ingest.testing.simulation.shape import SINKS, Shape
from ingest.testing.simulation.sinks import Item, Sinks
from ingest.testing.simulation.trace import Trace, Violation

MESSAGE_BYTES_MAX = DEAD_LETTER_BYTES + 50
CUTS_PER_MESSAGE_MAX = 3
# Longest time that a settled batch may be shown as parked: the length of the lease, plus the longest time for a
# renewal in flight and for one step between two checks.
STALE_STATUS_SECONDS_MAX = PARKED_LEASE_SECONDS + 1.0
# Longest time that a partition may have no owner: the members' own limit, plus the duration of three loop steps
# and the longest time for which all members may be frozen.
OBSERVED_UNOWNED_SECONDS_MAX = UNOWNED_SECONDS_MAX + 3 * TURN_SECONDS + 12.0


@lru_cache(maxsize=1024)
def _ends(offset: int, record: str) -> tuple[int, ...]:
    """Returns the end offsets of the batches in the cut record of a commit."""
    return cut_record.decode(offset, record).stops


@lru_cache(maxsize=1024)
def _topic_of(offset: int, record: str) -> str:
    """Returns the topic id in the cut record of a commit; empty if the record has none."""
    return cut_record.decode(offset, record).topic_id


class Durability:
    """Every message before a committed offset is durable in every sink, unless its loss was announced."""

    def __init__(self, broker: Broker, sinks: Sinks, trace: Trace) -> None:
        self._trace = trace
        self.announced: dict[int, list[tuple[int, int]]] = {}
        self._broker = broker
        self._sinks = sinks
        self._checked: dict[int, int] = {}
        self._skipped: dict[int, int] = {}
        self._committed: set[int] = set()

    def missing(self, log: Log, offset: int) -> list[str]:
        """Returns the sinks in which this message is not durable."""
        record = log.records[offset]
        at = (log.source.partition, offset, log.generation)
        if at in self._sinks.dead_letters or at in self._broker.shed:
            return []  # the message is a dead letter, or was dropped on purpose
        if record.kind is Kind.REJECT:
            return ["dead_letter"]
        wanted = [sink for sink in SINKS if not (sink == "gcs" and record.kind is Kind.ROWS_ONLY)]
        return [sink for sink in wanted if f"{sink}/{record.identity}" not in self._sinks.stored[sink]]

    def is_loss_excused(self, log: Log, offset: int) -> bool:
        """Returns whether the expiry of the message was announced, or the message precedes the start offset that
        the reset policy chose.
        """
        if offset < self._skipped.get(log.source.partition, 0):
            return True
        spans = self.announced.get(log.source.partition, ())
        return offset < log.low and any(start <= offset < stop for start, stop in spans)

    def check_new_start(self, partition: int, start: int) -> None:
        """Checks the start of a partition without a committed offset, which must be at the oldest message unless
        the group is new.

        Raises Violation.
        """
        log = self._broker.logs[partition]
        self.announced.setdefault(partition, []).append((0, log.low))
        if start > log.low:
            if partition in self._committed or self._added(partition) or self._follows_another_topic():
                raise Violation(
                    "durability", f"{log.source} starts at {start} although it is not new to the group"
                )
            self._skipped[partition] = max(start, self._skipped.get(partition, 0))

    def recreated(self) -> None:
        """Resets the state after the topic was recreated, which deleted messages that were not durable."""
        self.announced.clear()
        self._checked.clear()
        self._skipped.clear()
        self._committed.clear()

    def _added(self, partition: int) -> bool:
        """Returns whether, according to its stored commits, the group started before the topic had this
        partition.
        """
        partitions_at_start = [cut_record.decode(*found).partitions for found in self._group_commits()]
        return bool(partitions_at_start) and partition >= min(partitions_at_start)

    def _follows_another_topic(self) -> bool:
        """Returns whether a stored commit contains the id of a deleted topic, which means that the current topic
        is new to the whole group.
        """
        return any(_topic_of(*found) not in ("", self._broker.topic_id) for found in self._group_commits())

    def _group_commits(self) -> list[tuple[int, str]]:
        return list(self._broker.group.committed.values())

    def resumed(self, partition: int, offset: int, record: str) -> None:
        """Checks the committed offset at which a partition is resumed. Raises Violation if the offset belongs to a
        deleted topic.

        A commit whose cut record was lost or refused contains no topic id. Such a commit for the deleted topic
        cannot be distinguished from a commit for the current topic, unless another commit of the group contains
        the deleted topic's id, or the process has read from the deleted topic (`ingest.core.starting`).
        """
        topic_id = _topic_of(offset, record)
        if topic_id not in ("", self._broker.topic_id):
            raise Violation(
                "durability", f"partition {partition} resumes at {offset} of {topic_id}, a deleted topic"
            )
        if not topic_id and self._broker.former:
            self._trace.mark("began_unnamed")
            self._skipped[partition] = max(offset, self._skipped.get(partition, 0))

    def committed(self, partition: int, offset: int, topic_id: str) -> None:
        """Checks an offset that the broker stored.

        `topic_id` is the id of the topic that the committing reader was assigned. Raises Violation.
        """
        if topic_id != self._broker.topic_id:
            return  # the offset belongs to another topic; see `resumed`
        log = self._broker.logs[partition]
        if log.high < offset <= self._skipped.get(partition, 0):
            return
        if offset > log.high:
            raise Violation("durability", f"{log.source} committed {offset}, the log ends at {log.high}")
        checked = self._checked.get(partition, 0)
        self._committed.add(partition)
        for at in log.between(checked, offset):
            missing = self.missing(log, at)
            if missing and not self.is_loss_excused(log, at):
                raise Violation("durability", f"{log.source} committed {offset}, offset {at} is not in {missing}")
        self._checked[partition] = max(checked, offset)

    def at_end(self) -> None:
        """Checks that every message is durable or was announced as lost. Raises Violation."""
        loss = self.loss()
        if loss is not None:
            raise Violation("eventually_durable", loss)

    def loss(self) -> str | None:
        """Describes a message that is neither durable nor announced as lost. Returns None if there is none."""
        for log in self._broker.logs:
            for at in log.offsets:
                if self.missing(log, at) and not self.is_loss_excused(log, at):
                    return f"{log.source} offset {at} is not in {self.missing(log, at)}"
        return None

    def lag(self) -> int:
        """Returns the number of uncommitted offsets, including those without a message at the end of a log."""
        group = self._broker.group
        behind = 0
        for log in self._broker.logs:
            committed, record = group.committed.get(log.source.partition, (0, ""))
            if self._broker.former and _topic_of(committed, record) not in ("", self._broker.topic_id):
                committed = 0
            behind += max(0, log.high - max(committed, log.low))
        return behind


class BlobBeforeRows:
    """No row is written before the blob of its segment, because a user must not find a replay that is not
    stored."""

    def __init__(self, broker: Broker, sinks: Sinks) -> None:
        self._broker = broker
        self._sinks = sinks

    def check_write(self, sink: str, items: Sequence[Item]) -> None:
        """Checks the items of a write before it starts. Raises Violation."""
        if sink not in ("clickhouse", "bigquery", "datadog"):
            return
        for item in items:
            record = self._broker.log_of(item.partition, item.generation).records[item.offset]
            durable = f"gcs/{record.identity}" in self._sinks.stored["gcs"]
            refused = item.message in self._sinks.dead_letters
            if record.kind is not Kind.ROWS_ONLY and not durable and not refused:
                raise Violation("blob_before_rows", f"{sink} receives {item} before its blob")


class NoDuplicates:
    """After deduplication, nothing is stored twice, and nothing is stored that was not sent.

    Sinks keep one copy per identity, so a second copy can exist only under an identity that no message has.
    """

    def __init__(self, broker: Broker, sinks: Sinks) -> None:
        self._broker = broker
        self._sinks = sinks

    def at_end(self) -> None:
        """Compares stored items with sent messages. Raises Violation."""
        logs = self._broker.all_logs()
        known = {record.identity for log in logs for record in log.records.values()}
        for sink, stored in self._sinks.stored.items():
            unexplained = sorted(stored - {f"{sink}/{identity}" for identity in known})
            if unexplained:
                raise Violation("nothing_twice", f"{sink} holds {unexplained}, which are of no message")
        sent = {(log.source.partition, at, log.generation) for log in logs for at in log.offsets}
        if not self._sinks.dead_letters <= sent:
            raise Violation("nothing_twice", "a dead letter of no message")


class CommitsAreMonotonic:
    """Within one assignment, the committed offset never decreases, no commit is sent for a partition that is not
    assigned, and a refused commit is not repeated immediately."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, TopicPartition, int], do.Commit] = {}
        self._sent_at: dict[tuple[str, TopicPartition, int], float] = {}
        self._refused_at: dict[tuple[str, TopicPartition, int], float] = {}
        self._known: dict[tuple[str, TopicPartition], int] = {}

    def resumed(self, reader: Reader, event: on.OffsetOutOfRange) -> None:
        """Records that the core handled a new position. The core must not use an earlier epoch afterwards."""
        self._known[reader.name, event.source] = event.epoch

    def check(self, reader: Reader, command: do.Commit, now: float) -> None:
        """Checks a commit that a reader sends. Raises Violation."""
        key = (reader.name, command.source, command.epoch)
        partition = command.source.partition
        epoch = reader.source.epochs.get(partition)
        # The core handles a new position only after the messages that were fetched before it.
        known = self._known.get((reader.name, command.source), 0)
        behind = epoch is not None and known <= command.epoch < epoch == reader.source.resumed.get(partition)
        if epoch != command.epoch and not behind:
            raise Violation("commits_rise", f"{reader.name} commits {command}, which is not assigned to it")
        last = self._last.get(key)
        if last is not None and command.offset < last.offset:
            raise Violation("commits_rise", f"{reader.name} commits {command} after {last}")
        refused_at = self._refused_at.pop(key, None)
        interval_seconds = reader.pipeline.limits.commit_interval_seconds
        if refused_at is not None and now - refused_at < interval_seconds - 1e-9:
            raise Violation(
                "no_hot_loop", f"{reader.name} repeats a refused commit after {now - refused_at:.3f} s"
            )
        self._last[key], self._sent_at[key] = command, now

    def answered(self, reader: Reader, event: on.Committed | on.CommitFailed, now: float) -> None:
        """Records the response to a commit."""
        key = (reader.name, event.source, event.epoch)
        last = self._last.get(key)
        if last is None or key not in self._sent_at or (last.offset, last.record) != (event.offset, event.record):
            return  # the response to an abandoned commit
        waited_seconds = now - self._sent_at.pop(key)
        self._refused_at.pop(key, None)
        if (
            isinstance(event, on.CommitFailed)
            and not event.record_too_long  # a shorter record follows immediately
            and waited_seconds < reader.pipeline.limits.commit_answer_seconds_max
        ):
            self._refused_at[key] = now


class UsageIsBounded:
    """Running chords, held batches, held bytes and pending ranges exceed their limits by at most one poll.

    The held bytes may also exceed their limit by one batch, because a reader completes a range that its
    predecessor recorded.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._recut = 0

    def recut(self) -> None:
        """Records that a range was replaced by two ranges."""
        self._recut += 1

    def check(self, reader: Reader) -> None:
        """Checks the limits of a reader after a decision. Raises Violation."""
        limits, pipeline = reader.pipeline.limits, reader.pipeline
        flights = pipeline.in_flight
        flushing = [flight.phase for flight in flights].count(Phase.FLUSHING)
        if flushing > limits.in_flight_batches_max:
            raise Violation("bounded", f"{reader.name} has {flushing} running chords")
        # The number of batches may exceed the limit after cuts triggered by age, after several cuts caused by a
        # single message, and after splits.
        slack = self._shape.partitions + CUTS_PER_MESSAGE_MAX + self._recut
        if len(flights) > limits.in_flight_batches_max + slack:
            raise Violation("bounded", f"{reader.name} holds {len(flights)} batches")
        # One planned range may exceed the limit; its bytes are limited only by what can be staged. One message per
        # partition may be parsed outside the loop; until the message's rows are known, the size of the message
        # itself is counted.
        held_bytes = pipeline.held_bytes
        if held_bytes <= limits.in_flight_bytes_max:
            return
        batch_bytes_max = min(limits.staged_bytes_max, MESSAGE_BYTES_MAX * limits.batch_messages_max)
        bytes_max = limits.in_flight_bytes_max + batch_bytes_max + MESSAGE_BYTES_MAX * (1 + self._shape.partitions)
        if held_bytes > bytes_max:
            raise Violation("bounded", f"{reader.name} holds {held_bytes} bytes, more than {bytes_max}")

    def check_commit(self, reader: Reader, command: do.Commit) -> None:
        """Checks the number of pending ranges in the cut record of a commit.

        Batch ends above the reader's position are not counted: a predecessor recorded them, and the reader has not
        reached them yet. Raises Violation.
        """
        if command.source not in reader.pipeline.sources:
            return  # the partition was released by the same decision
        position, _ = reader.pipeline.position(command.source)
        ends = sum(end <= position for end in _ends(command.offset, command.record))
        if ends > reader.pipeline.limits.pending_ranges_max + CUTS_PER_MESSAGE_MAX + self._recut:
            raise Violation("bounded", f"{reader.name} has {ends} ranges pending on {command.source}")


class EndIsRecordedFirst:
    """The end of a batch is stored before its first chord starts, unless storing it has timed out.

    See docs/decisions/014-same-cut.md.
    """

    def __init__(self) -> None:
        self._stored: dict[tuple[str, TopicPartition], set[int]] = {}
        self._short: set[str] = set()

    def assigned(self, reader: Reader, given: on.Assignment) -> None:
        """Starts with the batch ends that the partition's previous owner stored."""
        ends = _ends(given.committed or 0, given.record)
        self._stored[reader.name, given.source] = set(ends)

    def stored(self, reader: Reader, event: on.Committed) -> None:
        """Adds the end offsets of the batches in the cut record of a commit that the broker has stored."""
        ends = self._stored.setdefault((reader.name, event.source), set())
        ends.update(_ends(event.offset, event.record))

    def refused(self, reader: Reader, event: on.CommitFailed) -> None:
        """Notes that the broker refuses long cut records.

        Batch ends that do not fit into a short record need not be stored.
        """
        if event.record_too_long:
            self._short.add(reader.name)

    def check(self, reader: Reader, command: do.Dispatch, now: float) -> None:
        """Checks a chord before a reader starts it. Raises Violation."""
        batch = command.batch
        ends = self._stored.get((reader.name, batch.source), set())
        waited = (
            now + reader.clock_ahead_seconds - batch.cut_at >= reader.pipeline.limits.cut_record_seconds_max - 1e-9
        )
        if reader.name in self._short:
            return
        if command.attempt == 1 and batch.offsets.stop not in ends and not waited:
            raise Violation("recorded_first", f"{reader.name} starts {batch} before its end was stored")


class SameCut:
    """Ranges that a predecessor recorded are cut identically, and stay recorded until they settle.

    A range may be split if it has become too large to stage, or if the reader halts within it. The recorded end of
    a range may be ignored only if the range's last message has expired, or if the end of the log has stayed below
    the range's end for long enough. Time during which the reader was paused, held, frozen or draining is not
    counted. See docs/decisions/014-same-cut.md.
    """

    def __init__(self, broker: Broker, trace: Trace) -> None:
        self._plans: dict[tuple[str, TopicPartition], tuple[int, ...]] = {}
        self._topic_ids: dict[tuple[str, TopicPartition], str] = {}
        self._ended_early: dict[tuple[str, TopicPartition], float] = {}
        self._recut: set[str] = set()
        self._short: set[str] = set()
        self._broker = broker
        self._trace = trace

    def assigned(self, reader: Reader, given: on.Assignment) -> None:
        """Records the plan of a new owner, which is the list of batch ends that it received."""
        ends = _ends(given.committed or 0, given.record)
        self._plans[reader.name, given.source] = ends
        self._topic_ids[reader.name, given.source] = given.topic_id
        self._ended_early.pop((reader.name, given.source), None)

    def refused(self, reader: Reader, event: on.CommitFailed) -> None:
        """Notes that the broker refuses long cut records, so that commits need not contain all batch ends."""
        if event.record_too_long:
            self._short.add(reader.name)

    def ended(self, reader: Reader, event: on.EndReached, now: float) -> None:
        if any(end > event.end for end in self._plans[reader.name, event.source]):
            self._ended_early.setdefault((reader.name, event.source), now)

    def check(self, reader: Reader, command: do.Dispatch, now: float) -> None:
        """Checks that the range of a chord fits the plan. Raises Violation."""
        batch = command.batch
        plan = self._plans[reader.name, batch.source]
        if not plan or command.attempt > 1 or batch.id in self._recut:
            return
        start, stop = batch.offsets.start, batch.offsets.stop
        if batch.cut_by is CutReason.PLANNED:
            self._trace.mark("cut_as_planned")
        if start >= plan[-1] or stop in plan:
            return
        if batch.cut_by is CutReason.DRAIN and reader.pipeline.halted is not None:
            return  # after a halt, all messages read before it still become durable
        end = min(end for end in plan if end > start)
        full = batch.size_bytes + MESSAGE_BYTES_MAX > reader.pipeline.limits.staged_bytes_max
        if batch.cut_by is CutReason.BYTES and stop < end and full:
            self._trace.mark("cut_again")
            return
        if not self._gone(reader, batch.source, end, now) or (end < stop and batch.cut_by is CutReason.PLANNED):
            raise Violation("same_cut", f"{reader.name} cut {batch}, the plan was {plan}")
        if batch.cut_by in (CutReason.AGE, CutReason.IDLE):
            self._trace.mark("plan_given_up")

    def recut(self, command: do.Recut) -> None:
        """Records the batches that replaced a batch that could not be staged."""
        self._recut.update(command.into)
        self._trace.mark("recut")

    def _gone(self, reader: Reader, source: TopicPartition, end: int, now: float) -> bool:
        """Returns whether the last message of the range that ends at `end` cannot be fetched, either
        permanently or for at least `plan_seconds_max`.

        Messages of a deleted topic cannot be fetched.
        """
        topic_id = self._topic_ids.get((reader.name, source), "")
        if topic_id not in ("", self._broker.topic_id):
            return True
        ended_early = self._ended_early.get((reader.name, source))
        waited = ended_early is not None and now - ended_early >= reader.pipeline.limits.plan_seconds_max
        return waited or end - 1 < self._broker.logs[source.partition].low

    def committed(self, reader: Reader, command: do.Commit, now: float) -> None:
        """Checks that a commit still contains the planned batch ends. Raises Violation."""
        plan = self._plans[reader.name, command.source]
        kept = _ends(command.offset, command.record)
        forgotten = [
            end
            for end in plan
            if end > command.offset and end not in kept and not self._gone(reader, command.source, end, now)
        ]
        if forgotten and reader.name not in self._short:
            raise Violation("same_cut", f"{reader.name} commits {command} without the ends {forgotten}")


class OwnedInTime:
    """No partition stays without an owner for long in a stable group."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._since: dict[int, float] = {}
        self._owned: GroupView | None = None

    def check(self, now: float) -> None:
        view = self._broker.group.view()
        if view is self._owned:
            return
        unowned = view.unowned if view.members else ()
        self._owned = None if unowned else view
        self._since = {partition: self._since.get(partition, now) for partition in unowned}
        late = [
            partition for partition, since in self._since.items() if now - since > OBSERVED_UNOWNED_SECONDS_MAX
        ]
        if late:
            raise Violation("owned_in_time", f"partitions {late} have no owner among {dict(view.members)}")


class ParkedStatusIsAccurate:
    """A batch shown as parked is unsettled in a live reader, or its lease is about to expire."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._since: dict[tuple[str, str, int], float] = {}

    def check(self, parked: Mapping[str, tuple[Any, Any]], now: float) -> None:
        """Checks the batches that are shown as parked. `parked` maps the batch id to reader and batch. Raises
        Violation.

        A batch of a later assignment may have the same id, and its entry replaces the earlier one.
        """
        shown = {
            (batch_id, reader.name, batch.epoch): (reader, batch) for batch_id, (reader, batch) in parked.items()
        }
        untrue = {entry for entry, (reader, batch) in shown.items() if not _holds(reader, batch)}
        for batch_id, _, _ in self._since:
            if batch_id not in parked:
                self._trace.mark("lease_expired")
        self._since = {entry: self._since.get(entry, now) for entry in sorted(untrue)}
        late = [entry[0] for entry, since in self._since.items() if now - since > STALE_STATUS_SECONDS_MAX]
        if late:
            raise Violation("parked_is_true", f"{late} are shown as parked, but no reader holds them")


def _holds(reader: Reader, batch: Batch) -> bool:
    flying = ((flight.batch.id, flight.batch.epoch) for flight in reader.pipeline.in_flight)
    return reader.alive and (batch.id, batch.epoch) in flying


class Checkers:
    """All checkers behind one interface for the world."""

    def __init__(self, shape: Shape, broker: Broker, sinks: Sinks, trace: Trace) -> None:
        self.durability = Durability(broker, sinks, trace)
        self._blob_first = BlobBeforeRows(broker, sinks)
        self._twice = NoDuplicates(broker, sinks)
        self._rise = CommitsAreMonotonic()
        self._bounded = UsageIsBounded(shape)
        self._recorded = EndIsRecordedFirst()
        self._same_cut = SameCut(broker, trace)
        self.owned = OwnedInTime(broker)
        self.parked = ParkedStatusIsAccurate(trace)
        self._trace = trace

    def check_write(self, sink: str, items: tuple[Item, ...], key: str, name: str) -> None:
        """Checks a write before it starts."""
        self._blob_first.check_write(sink, items)

    def stored(self, partition: int, offset: int, topic_id: str) -> None:
        """Checks a commit that the broker stored."""
        self.durability.committed(partition, offset, topic_id)

    def observe(self, reader: Reader, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        """Checks a decision of a reader."""
        if commands or type(event) is not on.Ticked:
            self._check_event(reader, event, now)
            for command in commands:
                self._check_command(reader, command, now)
        self._bounded.check(reader)

    def _check_event(self, reader: Reader, event: on.Event, now: float) -> None:
        match event:
            case on.PartitionsAssigned():
                for given in event.assignments:
                    self._recorded.assigned(reader, given)
                    self._same_cut.assigned(reader, given)
            case on.OffsetOutOfRange():
                self._rise.resumed(reader, event)
                span = (event.wanted, event.resumed_at)
                self.durability.announced.setdefault(event.source.partition, []).append(span)
            case on.EndReached():
                self._same_cut.ended(reader, event, now)
            case on.Committed():
                self._rise.answered(reader, event, now)
                self._recorded.stored(reader, event)
            case on.CommitFailed():
                self._rise.answered(reader, event, now)
                self._recorded.refused(reader, event)
                self._same_cut.refused(reader, event)

    def _check_command(self, reader: Reader, command: do.Command, now: float) -> None:
        match command:
            case do.Commit():
                self._rise.check(reader, command, now)
                self._bounded.check_commit(reader, command)
                self._same_cut.committed(reader, command, now)
            case do.Recut():
                self._same_cut.recut(command)
                self._bounded.recut()
            case do.Dispatch():
                self._recorded.check(reader, command, now)
                self._same_cut.check(reader, command, now)

    def at_end(self) -> None:
        """Runs the final checks, long after the last fault."""
        self.durability.at_end()
        self._twice.at_end()
