"""Simulates Kafka: logs with gaps and retention, a consumer group that fences by generation, and the reader's
source.

The group follows the classic protocol from the consumer's point of view: members join, the last one to join
completes the rebalance, and all sync at the next poll. Eager members first revoke all their partitions, and
cooperative members only those that move. A partition that a live member holds is not assigned to another member.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Message, TopicPartition
from ingest.core.ownership import GroupView
from ingest.core.stalls import Stalls
from ingest.core.starting import StartPosition, StoredCommit, TopicView, is_doubtful, start
from ingest.testing.simulation.clock import Timeline
from ingest.testing.simulation.faults import Dice, Fault
from ingest.testing.simulation.trace import Trace

TOPIC = "replays"
REBALANCE_SECONDS_MAX = 6.0
POLL_MESSAGES_MAX = 6
REPLICA_MESSAGES_MAX = 8
STALLED_SECONDS_MAX = 2.0
STALL_CHECK_SECONDS = 0.5
SHORT_RECORD_BYTES_MAX = 12
RECORD_TOO_LONG = "OFFSET_METADATA_TOO_LARGE"


class Kind(StrEnum):
    """The simulated result of parsing a message."""

    SEGMENT = "segment"
    ROWS_ONLY = "rows_only"  # a segment without a blob
    REJECT = "reject"
    SHEDDABLE = "sheddable"  # a message of a project that some readers drop on purpose


class Record(NamedTuple):
    """A message in the log, with its parse result and the identity of its segment."""

    kind: Kind
    identity: str


class Log:
    """The log of one partition. Expired messages cannot be fetched, but stay visible to the checkers."""

    def __init__(self, partition: int, generation: int = 0) -> None:
        self.generation = generation  # number of earlier topics of this name
        self.source = TopicPartition(TOPIC, partition)
        self.offsets: list[int] = []
        self.records: dict[int, Record] = {}
        self.low = 0
        self.high = 0
        self._behind: tuple[float, int] = (0.0, 0)

    def append(self, record: Record, skipped: int = 0) -> None:
        """Appends at the next offset, or after a gap (compaction, transaction markers)."""
        offset = self.high + skipped
        self.offsets.append(offset)
        self.records[offset] = record
        self.high = offset + 1

    def mark(self) -> None:
        """Appends a transaction marker, which occupies an offset but contains no message."""
        self.high += 1

    def first_at(self, offset: int) -> int | None:
        """Returns the offset of the first message at or after this offset, or None."""
        at = bisect_left(self.offsets, offset)
        return self.offsets[at] if at < len(self.offsets) else None

    def end_at(self, now: float) -> int:
        """Returns the offset at which fetching ends: the high watermark, or an earlier offset while the replica
        being read lags.
        """
        until, end = self._behind
        return min(end, self.high) if now < until else self.high

    def hide_messages(self, end: int, until: float) -> None:
        """Hides the messages at offset `end` and later until the time `until`, as if the replica being read
        lagged.
        """
        self._behind = (until, end)

    def between(self, start: int, stop: int) -> Sequence[int]:
        """Returns the offsets of the messages in [start, stop)."""
        return self.offsets[bisect_left(self.offsets, start) : bisect_left(self.offsets, stop)]


@dataclass(slots=True)
class Member:
    """The coordinator's state for one member.

    `owned` contains the partitions that the member reported when it joined.
    """

    instance: str
    beat_at: float
    joined: bool = False
    generation: int = -1
    owned: tuple[int, ...] = ()


@dataclass(slots=True)
class Group:
    """The coordinator: members, their assignment, and committed offsets with metadata."""

    timeline: Timeline
    partitions: int
    cooperative: bool
    session_seconds: float
    stored: Callable[[int, int, str, str], None]
    generation: int = 0
    preparing_since: float | None = None
    members: dict[str, Member] = field(default_factory=dict)
    assignment: dict[str, tuple[int, ...]] = field(default_factory=dict)
    committed: dict[int, tuple[int, str]] = field(default_factory=dict)
    record_bytes_max: int = 4095
    _view: GroupView | None = None

    def add_member(self, member_id: str, instance: str) -> None:
        """Adds a member.

        A static member replaces the earlier member with the same instance id, which is then fenced.
        """
        self._view = None
        member = Member(instance, self.timeline.now)
        for former in [name for name, other in self.members.items() if instance and other.instance == instance]:
            del self.members[former]
            if self.preparing_since is None and former in self.assignment:
                self.assignment[member_id] = self.assignment.pop(former)
                self.members[member_id] = member
                member.joined = True
                return
        self.members[member_id] = member
        self.rebalance()

    def remove_member(self, member_id: str) -> None:
        """Removes a member that left or whose session timed out."""
        if self.members.pop(member_id, None) is not None:
            self._view = None
            self.rebalance()

    def record_heartbeat(self, member_id: str) -> None:
        """Records a heartbeat of the member's background thread."""
        member = self.members.get(member_id)
        if member is not None:
            member.beat_at = self.timeline.now

    def remove_inactive_members(self) -> None:
        """Removes members that send no heartbeats or do not join in time."""
        now = self.timeline.now
        for name in [n for n, m in self.members.items() if now - m.beat_at > self.session_seconds]:
            self.remove_member(name)
        if self.preparing_since is not None and now - self.preparing_since > REBALANCE_SECONDS_MAX:
            for name in [n for n, member in self.members.items() if not member.joined]:
                del self.members[name]
                self._view = None
            self._complete_if_all_joined()

    def rebalance(self) -> None:
        """Starts a rebalance, in which all members must join again."""
        if self.preparing_since is None:
            self._view = None
            self.preparing_since = self.timeline.now
            for member in self.members.values():
                member.joined = False
        self._complete_if_all_joined()

    def add_partition(self) -> None:
        """Adds a partition to the topic and to the members' metadata."""
        self.partitions += 1
        self._view = None
        self.rebalance()

    def join(self, member_id: str, owned: tuple[int, ...]) -> None:
        """Lets a member join the next generation. `owned` contains the partitions that the member still holds."""
        member = self.members[member_id]
        member.joined, member.owned = True, owned
        self._complete_if_all_joined()

    def _complete_if_all_joined(self) -> None:
        if self.preparing_since is None or not all(member.joined for member in self.members.values()):
            return
        self._view = None
        self.preparing_since = None
        self.generation += 1
        self.assignment = {}
        if not self.members:
            return
        names = list(self.members)
        wanted: dict[str, list[int]] = {name: [] for name in names}
        if self.cooperative:
            self._assign_sticky(wanted)
        else:
            for partition in range(self.partitions):
                wanted[names[(partition + self.generation) % len(names)]].append(partition)
        holder = {p: name for name, member in self.members.items() for p in member.owned}
        for name, partitions in wanted.items():
            self.assignment[name] = tuple(p for p in partitions if holder.get(p, name) == name)

    def _assign_sticky(self, wanted: dict[str, list[int]]) -> None:
        """Adds a balanced assignment that moves as few partitions as possible."""
        quota = -(-self.partitions // len(wanted))
        free = []
        for partition in range(self.partitions):
            for name in wanted:
                if partition in self.members[name].owned and len(wanted[name]) < quota:
                    wanted[name].append(partition)
                    break
            else:
                free.append(partition)
        for partition in free:
            min(wanted.values(), key=len).append(partition)

    def view(self) -> GroupView:
        """Returns the group as described to an admin client.

        The result is the same object until the group changes.
        """
        if self._view is None:
            members = {name: frozenset(self.assignment.get(name, ())) for name in self.members}
            self._view = GroupView(self.partitions, members, self.preparing_since is None)
        return self._view

    def refusal(self, member_id: str, generation: int, record: str) -> str:
        """Returns the reason why the coordinator refuses this commit; empty if the commit is accepted.

        Like a real coordinator, checks the generation but not the partition.
        """
        member = self.members.get(member_id)
        if member is None:
            return "UNKNOWN_MEMBER_ID"
        if generation != self.generation:
            return "ILLEGAL_GENERATION"
        if len(record) > self.record_bytes_max:
            return RECORD_TOO_LONG
        return ""

    def store(self, partition: int, offset: int, record: str, topic_id: str) -> None:
        """Stores a commit.

        `topic_id` is the id of the topic that the member read. The coordinator ignores this id, because it
        compares only names of topics.
        """
        self.committed[partition] = (offset, record)
        self.stored(partition, offset, record, topic_id)


@dataclass(slots=True)
class Broker:
    """The broker, with its logs and the group. `former` contains the logs of deleted topics of the same name."""

    logs: list[Log]
    group: Group
    former: list[list[Log]] = field(default_factory=list)
    shed: set[tuple[int, int, int]] = field(default_factory=set)  # messages that readers dropped on purpose
    latest: bool = False  # the readers' reset policy
    began: Callable[[int, int], None] = lambda partition, offset: (
        None
    )  # called when a reader starts without a committed offset
    # Called when a reader starts at a committed offset.
    resumed: Callable[[int, int, str], None] = lambda partition, offset, record: None

    @property
    def topic_id(self) -> str:
        """The id of the current topic."""
        return f"t{len(self.former) + 1}"

    def recreate(self, logs: list[Log]) -> None:
        """Deletes the topic and creates it again, with these logs."""
        self.former.append(self.logs)
        self.logs = logs

    def log_of(self, partition: int, generation: int) -> Log:
        """Returns a log of the current topic or of a former topic."""
        return (self.former[generation] if generation < len(self.former) else self.logs)[partition]

    def all_logs(self) -> list[Log]:
        """Returns all logs, including those of former topics."""
        return [log for logs in (*self.former, self.logs) for log in logs]


class SimulatedSource:
    """Simulates `ingest.reader.kafka.KafkaSource` for the runtime, with faults.

    Rebalances happen inside `poll`.
    """

    def __init__(
        self, broker: Broker, dice: Dice, trace: Trace, timeline: Timeline, member_id: str, instance: str
    ) -> None:
        self.epochs: dict[int, int] = {}
        self.resumed: dict[int, int] = {}
        """Partition -> its last epoch that began because an offset was out of range."""
        self.inbox: Callable[[on.Event], None] = lambda event: None
        self.emit: Callable[[on.Event], None] = lambda event: None
        self.drain: Callable[[tuple[TopicPartition, ...]], None] = lambda sources: None
        self.die: Callable[[], None] = lambda: None
        self.member_id = member_id
        self.topic_id = ""
        self._topic_ids: dict[int, str] = {}  # by epoch
        self._empty: set[int] = set()
        self._stalls = Stalls(STALLED_SECONDS_MAX, 2 * STALL_CHECK_SECONDS)
        self._stalls_at = 0.0
        self._instance = instance
        self._broker = broker
        self._group = broker.group
        self._dice = dice
        self._trace = trace
        self._timeline = timeline
        self._lives = 0
        self._epoch = 0
        self._generation = -1
        self._rebalancing = False
        self._must_rejoin = False
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()
        self._ends: dict[int, on.EndReached] = {}
        self._answers: deque[on.Event] = deque()

    # Calls of the runtime

    def poll(self, timeout_seconds: float) -> Sequence[Message]:
        """Returns at most POLL_MESSAGES_MAX messages."""
        while self._answers:
            self.inbox(self._answers.popleft())
        if not self._serve_group():
            return ()
        self._restart_stalled()
        messages: list[Message] = []
        for partition in [*self._positions]:
            if partition not in self._paused and len(messages) < POLL_MESSAGES_MAX:
                self._fetch(partition, messages)
        return messages

    def _fetch(self, partition: int, messages: list[Message]) -> None:
        log = self._broker.logs[partition]
        wanted = self._positions[partition]
        if partition in self._empty:
            return
        if not log.low <= wanted <= log.high:
            if self._must_rejoin or self.topic_id != self._broker.topic_id:
                self._must_rejoin = True
                return
            self._epoch += 1
            self.epochs[partition] = self._epoch
            self._topic_ids[self._epoch] = self.topic_id
            self._positions[partition] = log.low
            self.resumed[partition] = self._epoch
            self.emit(on.OffsetOutOfRange(log.source, self._epoch, wanted, log.low))
            return
        end = log.end_at(self._timeline.now)
        for _ in range(1 + int(self._dice.uniform(0, POLL_MESSAGES_MAX))):
            offset = log.first_at(self._positions[partition])
            if offset is None or offset >= end:
                self._reach_end(partition, end)
                return
            if len(messages) >= POLL_MESSAGES_MAX:
                return
            self._positions[partition] = offset + 1
            epoch = self.epochs[partition]
            messages.append(Message(log.source, epoch, offset, b"", timestamp_ms=log.generation))

    def _reach_end(self, partition: int, end: int) -> None:
        """Reports the end of each partition once, before the messages of the same poll, as the client does."""
        position = self._positions[partition]
        if end < position:
            return
        source, epoch = self._broker.logs[partition].source, self.epochs[partition]
        event = on.EndReached(source, epoch, position, end)
        if self._ends.get(partition) != event:
            self._ends[partition] = event
            self.emit(event)

    def _restart_stalled(self) -> None:
        """Restarts stalled partitions, as `ingest.reader.kafka` does."""
        now = self._timeline.now
        if now < self._stalls_at:
            return
        self._stalls_at = now + STALL_CHECK_SECONDS
        fetched = {}
        for partition, position in self._positions.items():
            if partition not in self._paused:
                end = self._ends.get(partition)
                reached = end.end if end is not None and end.epoch == self.epochs[partition] else 0
                fetched[partition] = (max(position, reached), self._broker.logs[partition].high)
        for partition in self._stalls.check(fetched, now):
            if partition in self._empty:
                self._empty.discard(partition)
                self._trace.mark("fetch_restarted")

    def commit(self, command: do.Commit) -> None:
        """Commits an offset. The response arrives in a later poll, or immediately inside a rebalance callback."""
        dice, generation = self._dice, self._generation
        if self._rebalancing:
            refused = dice.occurs(Fault.COMMIT_REFUSED)
            self.inbox(self._answer(command, "not coordinator" if refused else self._store(command, generation)))
        elif not dice.occurs(Fault.COMMIT_VANISHED):
            slow = dice.occurs(Fault.COMMIT_SLOW)
            seconds = dice.uniform(1.0, 4.0) if slow else dice.uniform(0.005, 0.1)
            self._timeline.after(seconds, partial(self._arrived, command, generation, slow=slow))

    def _arrived(self, command: do.Commit, generation: int, *, slow: bool) -> None:
        if self._dice.occurs(Fault.COMMIT_REFUSED):
            self._answers.append(self._answer(command, "not coordinator"))
            return
        error = self._store(command, generation)
        if slow or not self._dice.occurs(Fault.COMMIT_UNANSWERED):
            self._answers.append(self._answer(command, error))

    def _store(self, command: do.Commit, generation: int) -> str:
        partition = command.source.partition
        record = "" if self._dice.occurs(Fault.RECORD_LOST) else command.record
        if self._dice.occurs(Fault.COMMIT_STALE_EPOCH):
            return "STALE_MEMBER_EPOCH"
        error = self._group.refusal(self.member_id, generation, record)
        if error and error != RECORD_TOO_LONG:
            self._trace.mark("commit_fenced")
        elif not error and not self._dice.occurs(Fault.COMMIT_LOST):
            self._group.store(partition, command.offset, record, self._topic_ids[command.epoch])
        return error

    def _answer(self, command: do.Commit, error: str) -> on.Event:
        fields = (command.source, command.epoch, command.offset, command.record)
        return on.CommitFailed(*fields, error, error == RECORD_TOO_LONG) if error else on.Committed(*fields)

    def pause(self, sources: tuple[TopicPartition, ...]) -> None:
        """Stops fetching from these partitions until `resume`."""
        self._paused.update(source.partition for source in sources if source.partition in self.epochs)

    def resume(self, sources: tuple[TopicPartition, ...]) -> None:
        """Resumes fetching from these partitions."""
        self._paused.difference_update(source.partition for source in sources)

    def rejoin(self) -> None:
        """Makes the next poll revoke all partitions and join again, so that the group reassigns all partitions."""
        self._must_rejoin = True

    def close(self) -> None:
        """Leaves the group.

        A static member stays in the group, because the coordinator waits for its instance to return.
        """
        if not self._instance:
            self._group.remove_member(self.member_id)

    # Group protocol

    def _serve_group(self) -> bool:
        """Performs the member's part of the group protocol. Returns False if there is no partition to fetch
        from."""
        group = self._group
        group.remove_inactive_members()
        member = group.members.get(self.member_id)
        if member is None:
            self._lose()
            self._lives += 1
            self.member_id = f"{self.member_id.split('#')[0]}#{self._lives}"
            group.add_member(self.member_id, self._instance)
        elif self._must_rejoin:
            self._must_rejoin = False
            self._trace.mark("rejoined")
            self._revoke(tuple(self.epochs))
            if self.member_id in group.members:
                group.rebalance()
        elif group.preparing_since is not None:
            if not member.joined:
                if not group.cooperative:
                    self._revoke(tuple(self.epochs))
                if self.member_id in group.members:
                    group.join(self.member_id, tuple(self.epochs))
        elif member.generation != group.generation:
            self._sync(member)
        return bool(self.epochs)

    def _sync(self, member: Member) -> None:
        group = self._group
        self._generation = member.generation = group.generation
        given = group.assignment.get(self.member_id, ())
        moved = tuple(partition for partition in self.epochs if partition not in given)
        if moved:
            self._revoke(moved)
            if self.member_id not in group.members or group.generation != member.generation:
                return
        self._assign(tuple(partition for partition in given if partition not in self.epochs))
        if moved:
            group.rebalance()

    def _assign(self, partitions: tuple[int, ...]) -> None:
        if partitions and self._dice.occurs(Fault.FETCH_STALE_EPOCH):
            self._trace.mark("offsets_unknown")
            self._must_rejoin = True
            return
        former, self.topic_id = self.topic_id, self._broker.topic_id
        if former and former != self.topic_id and self.epochs:
            self._must_rejoin = True
        if not partitions:
            return
        given = [self._start(partition, former) for partition in partitions]
        self._rebalancing = any(assignment.committed is None for assignment in given)
        try:
            self.emit(on.PartitionsAssigned(tuple(given)))
        finally:
            self._rebalancing = False

    def _committed(self, partition: int) -> dict[int, StoredCommit]:
        """Returns the committed offsets as reported by the broker.

        A doubtful response for this partition is verified by a second request.
        """
        stored = {number: StoredCommit(*found) for number, found in self._group.committed.items()}
        actual = reported = stored.get(partition, StoredCommit())
        if actual.offset is not None and self._dice.occurs(Fault.OFFSET_READ_NONE):
            reported = StoredCommit()
        elif actual.offset is not None and self._dice.occurs(Fault.OFFSET_READ_ZERO):
            reported = StoredCommit(0, "")
        if reported != actual and is_doubtful(reported):
            self._trace.mark("offset_contradicted")
        elif reported != actual:
            stored[partition] = reported
        return stored

    def _start(self, partition: int, former: str) -> on.Assignment:
        """Starts a partition as `ingest.reader.kafka` does, at the offset that `ingest.core.starting` chooses."""
        self._epoch += 1
        self.epochs[partition] = self._epoch
        self._topic_ids[self._epoch] = self.topic_id
        log, topic = self._broker.logs[partition], TopicView(self.topic_id, self._group.partitions)
        stored = self._committed(partition)
        begin = start(partition, stored, topic, former)
        if begin.replaced:
            self._trace.mark("began_in_new_topic")
        if self._dice.occurs(Fault.FETCH_EMPTY):
            self._empty.add(partition)
        found = stored.get(partition, StoredCommit())
        if begin.position is StartPosition.COMMITTED and found.offset is not None:
            offset, text = found.offset, found.text
            self._broker.resumed(partition, offset, text)
            given = on.Assignment(log.source, self._epoch, offset, text, None, topic.id, begin.partitions_at_start)
        else:
            latest = begin.position is StartPosition.POLICY and self._broker.latest
            offset = log.high if latest else log.low
            self._trace.mark("began_at_end" if latest else "began_at_beginning")
            self._broker.began(partition, offset)
            given = on.Assignment(log.source, self._epoch, None, "", offset, topic.id, begin.partitions_at_start)
        self._positions[partition] = offset
        self._read_replica(log)
        return given

    def _read_replica(self, log: Log) -> None:
        """Makes a new owner read from a replica that lags behind the replica that its predecessor read."""
        if self._dice.occurs(Fault.REPLICA_BEHIND):
            position = self._positions[log.source.partition]
            end = position + int(min(log.high - position, REPLICA_MESSAGES_MAX) * self._dice.uniform(0.0, 1.0))
            log.hide_messages(
                end, min(self._dice.faults_end_at, self._timeline.now + self._dice.uniform(1.0, 6.0))
            )

    def _revoke(self, partitions: tuple[int, ...]) -> None:
        if not partitions:
            return
        if self._dice.occurs(Fault.KILLED_AMID_REBALANCE):
            self.die()
        self._rebalancing = True
        self.drain(self._named(partitions))
        self._rebalancing = False
        self._forget(partitions)

    def _lose(self) -> None:
        lost = tuple(self.epochs)
        if lost:
            self._forget(lost)
            self.emit(on.PartitionsLost(self._named(lost)))

    def _forget(self, partitions: tuple[int, ...]) -> None:
        for partition in partitions:
            self.epochs.pop(partition, None)
            self._positions.pop(partition, None)
            self._paused.discard(partition)
            self._empty.discard(partition)

    def _named(self, partitions: tuple[int, ...]) -> tuple[TopicPartition, ...]:
        return tuple(self._broker.logs[partition].source for partition in partitions)
