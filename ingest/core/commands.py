"""Commands: the only output of `Pipeline.handle`. Imperative, frozen, printable."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.core.model import Batch, Stage, TopicPartition


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Stage the batch's bytes and start the chord of this stage.

    FlushSucceeded, FlushFailed or DispatchFailed follows. If none of these events arrives within
    `deadline_seconds`, the core issues the command again with a higher `attempt`.
    """

    batch: Batch
    stage: Stage
    attempt: int
    deadline_seconds: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Store this offset for the group, with `record` as its metadata. Committed or CommitFailed follows."""

    source: TopicPartition
    epoch: int
    offset: int
    record: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop fetching from these partitions, but keep polling."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Resume:
    """Resume fetching from these partitions."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Park:
    """Show operators a batch whose attempt failed. The core retries it in `retry_seconds`."""

    batch: Batch
    stage: Stage
    attempt: int
    error: str
    retry_seconds: float


@dataclass(frozen=True, slots=True)
class Renew:
    """Extend the lease of a parked batch that is still owned and unsettled.

    The batch was parked `age_seconds` ago, and `park.retry_seconds` is the remaining wait.
    """

    park: Park
    age_seconds: float

    @property
    def batch(self) -> Batch:
        """The batch that is parked."""
        return self.park.batch


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete the staged bytes of a settled or abandoned batch, but keep its done marks."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Recut:
    """Delete the Redis entries of a batch that could not be staged and was replaced by the batches `into`."""

    batch: Batch
    into: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Release these partitions: they have no batch in flight, or the drain deadline has passed."""

    sources: tuple[TopicPartition, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop consuming, keep running and report the reason. An operator must decide how to continue."""

    reason: str


@dataclass(frozen=True, slots=True)
class Shed:
    """Report that most messages of this project are being rejected (`shed`), or no longer are."""

    project_id: int
    messages: int
    rejects: int
    shed: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the group and exit, either drained (`clean`) or at the drain deadline."""

    clean: bool


Command = Dispatch | Commit | Pause | Resume | Park | Renew | Discard | Recut | Release | Halt | Shed | Stop
