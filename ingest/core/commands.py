"""What is to be done: the only output of `Pipeline.handle`. Imperative, frozen, printable."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.core.model import Batch, Stage, TopicPartition


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Stage the batch's bytes and start the chord of this stage.

    Answered by FlushSucceeded, FlushFailed or DispatchFailed, or by nothing: then the deadline passes and the core
    orders it again with a higher `attempt`. `deadline_seconds` is how long the core will wait.
    """

    batch: Batch
    stage: Stage
    attempt: int
    deadline_seconds: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Store this offset for the group, with `record` as its metadata. Answered by Committed or CommitFailed."""

    source: TopicPartition
    epoch: int
    offset: int
    record: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop fetching from these partitions, keep polling."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Resume:
    """Fetch from these partitions again."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Park:
    """Show operators a batch whose attempt failed. `retry_seconds` from now the core tries again by itself."""

    batch: Batch
    stage: Stage
    attempt: int
    error: str
    retry_seconds: float


@dataclass(frozen=True, slots=True)
class Renew:
    """The batch of this Park is still ours and unsettled: what operators see of it stays valid a while longer.

    `age_seconds` ago it was parked; `park.retry_seconds` is what is left of its wait.
    """

    park: Park
    age_seconds: float

    @property
    def batch(self) -> Batch:
        """The batch that is parked."""
        return self.park.batch


@dataclass(frozen=True, slots=True)
class Discard:
    """The batch settled (or was abandoned): its staged bytes are no longer needed, its done marks are."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Recut:
    """The batch could never be staged, and the batches `into` took its place: what is kept of it is not needed."""

    batch: Batch
    into: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Nothing of these partitions is in flight any more (or the drain deadline passed): give them back."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """Something is wrong that only a person can judge: consume nothing more, stay up, say so loudly."""

    reason: str


@dataclass(frozen=True, slots=True)
class Shed:
    """Report that this project is mostly rejects from now on (`shed`), or no longer."""

    project_id: int
    messages: int
    rejects: int
    shed: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Drained (`clean`) or out of time: leave the group and exit."""

    clean: bool


Command = Dispatch | Commit | Pause | Resume | Park | Renew | Discard | Recut | Release | Halt | Shed | Stop
