"""What happened: the only input of `Pipeline.handle`. Past tense, frozen, printable."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingest.core.model import OffsetRange, Outcome, Stage, TopicPartition


@dataclass(frozen=True, slots=True)
class Assignment:
    """One partition that is ours from now on.

    `committed` is the group's committed offset and `record` the metadata string stored with it: what the previous
    owner left (docs/decisions/014-same-cut.md). Without a committed offset for the topic as it is now (None),
    consumption starts at `start`. `topic_id` (empty: unknown) and `began_with` (0: unknown) are to be recorded.
    `replaced`: the id of the topic that was deleted and created again since the last commit.
    """

    source: TopicPartition
    epoch: int
    committed: int | None = None
    record: str = ""
    start: int | None = None
    topic_id: str = ""
    began_with: int = 0
    replaced: str = ""


@dataclass(frozen=True, slots=True)
class PartitionsAssigned:
    """The group gave us partitions; each comes with a new epoch."""

    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class PartitionsRevoked:
    """The group wants partitions back; we still own them until we answer `Release`."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class PartitionsLost:
    """Partitions are no longer ours and may already be somebody else's: no commit is allowed."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class OffsetOutOfRange:
    """The offset we wanted is not in the log (expired, or the topic was made anew); consumption goes on elsewhere.

    Messages [wanted, resumed_at) were never seen when `resumed_at` is the higher one. Comes with a new epoch;
    every message fetched before must have been handed over before.
    """

    source: TopicPartition
    epoch: int
    wanted: int
    resumed_at: int


@dataclass(frozen=True, slots=True)
class EndReached:
    """Nothing is left to fetch of this partition: every message before `end` was handed over.

    `position` is one past the last message that was handed over, or where fetching began. `end` is higher when
    the last offsets of the log hold no message (transaction markers, what compaction removed). The event may
    arrive before those messages do; it is true once the pipeline took everything before `position`.
    """

    source: TopicPartition
    epoch: int
    position: int
    end: int


@dataclass(frozen=True, slots=True)
class MessageParsed:
    """One message arrived and was parsed, dropped or rejected. Ascending offsets within an epoch."""

    source: TopicPartition
    epoch: int
    offset: int
    outcome: Outcome = field(repr=False)


@dataclass(frozen=True, slots=True)
class MessageDeferred:
    """One message is parsed beside the loop. Its MessageParsed follows; until then its partition waits.

    `size_bytes` is what it holds meanwhile.
    """

    source: TopicPartition
    epoch: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FlushSucceeded:
    """Every flush task of this stage of this batch is durable."""

    batch_id: str
    epoch: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class FlushFailed:
    """The stage's tasks were started and gave up. `error` is one line for a person."""

    batch_id: str
    epoch: int
    stage: Stage
    attempt: int
    error: str


@dataclass(frozen=True, slots=True)
class DispatchFailed:
    """The stage could not be started (Redis away or full); at most some of its tasks were. `error` as above.

    `too_large`: Redis as it is configured leaves no room for it, however long one waits.
    """

    batch_id: str
    epoch: int
    stage: Stage
    attempt: int
    error: str
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """The broker stored the offset and its metadata."""

    source: TopicPartition
    epoch: int
    offset: int
    record: str


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The broker refused or did not answer. `record_too_long`: because of the length of the record."""

    source: TopicPartition
    epoch: int
    offset: int
    record: str
    error: str
    record_too_long: bool = False


@dataclass(frozen=True, slots=True)
class RetryRequested:
    """An operator wants this parked batch tried now."""

    batch_id: str


@dataclass(frozen=True, slots=True)
class BatchAbandoned:
    """An operator gave this batch up; its messages are dead letters already, durably."""

    batch_id: str
    offsets: OffsetRange
    reason: str


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """SIGTERM: settle what is in flight within the drain deadline, commit, stop."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed and nothing else happened."""


Event = (
    PartitionsAssigned
    | PartitionsRevoked
    | PartitionsLost
    | OffsetOutOfRange
    | EndReached
    | MessageParsed
    | MessageDeferred
    | FlushSucceeded
    | FlushFailed
    | DispatchFailed
    | Committed
    | CommitFailed
    | RetryRequested
    | BatchAbandoned
    | ShutdownRequested
    | Ticked
)
