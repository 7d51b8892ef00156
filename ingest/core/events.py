"""Events: the only input of `Pipeline.handle`. Event names are in the past tense, and events are immutable and
printable."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingest.core.model import OffsetRange, Outcome, Stage, TopicPartition
from tasks.wire import SinkName


@dataclass(frozen=True, slots=True)
class Assignment:
    """One newly assigned partition.

    `committed` is the group's committed offset, and `record` is the metadata string that the previous owner stored
    with it (docs/decisions/014-same-cut.md). If there is no committed offset for the current topic (None),
    consumption starts at `start`. `topic_id` (empty if unknown) and `partitions_at_start` (0 if unknown) are
    written to the record. `replaced`: id of the previous topic, if the topic has been recreated since the last
    commit.
    """

    source: TopicPartition
    epoch: int
    committed: int | None = None
    record: str = ""
    start: int | None = None
    topic_id: str = ""
    partitions_at_start: int = 0
    replaced: str = ""


@dataclass(frozen=True, slots=True)
class PartitionsAssigned:
    """Partitions were assigned, each with a new epoch."""

    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class PartitionsRevoked:
    """The group revokes partitions; they are still owned until `Release`."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class PartitionsLost:
    """Partitions were lost and may already have another owner: no commit is allowed."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class OffsetOutOfRange:
    """The wanted offset is not in the log (expired, or the topic was recreated); consumption resumes at another
    offset.

    If `resumed_at` is higher, messages [wanted, resumed_at) were never read. This event starts a new epoch; all
    messages fetched earlier must have been delivered before it.
    """

    source: TopicPartition
    epoch: int
    wanted: int
    resumed_at: int


@dataclass(frozen=True, slots=True)
class EndReached:
    """The client reached the end of the partition: it has fetched every message before `end`.

    `position` is one past the last fetched message, or where fetching began. `end` is higher when the last offsets
    of the log hold no message (transaction markers, compacted messages). The event may arrive earlier than
    the last fetched messages; it takes effect once the pipeline has accepted all messages before `position`.
    """

    source: TopicPartition
    epoch: int
    position: int
    end: int


@dataclass(frozen=True, slots=True)
class MessageParsed:
    """One message arrived and was parsed, dropped or rejected. Offsets ascend within an epoch."""

    source: TopicPartition
    epoch: int
    offset: int
    outcome: Outcome = field(repr=False)


@dataclass(frozen=True, slots=True)
class MessageDeferred:
    """One message is being parsed outside the loop. The partition waits for the MessageParsed of this message.

    `size_bytes`: memory that the message uses until it is parsed.
    """

    source: TopicPartition
    epoch: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FlushSucceeded:
    """Every flush task of this stage of the batch has made its items durable."""

    batch_id: str
    epoch: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class FlushFailed:
    """The stage's tasks were started and failed. `error` is one line for operators. `sinks`: the sinks whose tasks
    are unfinished; empty if unknown (workers of an older release)."""

    batch_id: str
    epoch: int
    stage: Stage
    attempt: int
    error: str
    sinks: frozenset[SinkName] = frozenset()


@dataclass(frozen=True, slots=True)
class DispatchFailed:
    """The stage was not started, or was started only in part, because Redis is unreachable or full.

    `error` is one line for operators. `too_large`: the batch does not fit into Redis as configured, so waiting
    does not help.
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
    """The broker refused the commit or did not respond. `record_too_long`: the record is too long for the
    broker."""

    source: TopicPartition
    epoch: int
    offset: int
    record: str
    error: str
    record_too_long: bool = False


@dataclass(frozen=True, slots=True)
class RetryRequested:
    """An operator requested an immediate retry of this parked batch."""

    batch_id: str


@dataclass(frozen=True, slots=True)
class BatchAbandoned:
    """An operator abandoned this batch; its messages are already durable dead letters."""

    batch_id: str
    offsets: OffsetRange
    reason: str


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """SIGTERM was received: settle what is in flight within the drain deadline, commit, and stop."""


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
