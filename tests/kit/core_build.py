"""Small things that the core's tests are made of."""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.model import (
    Blob,
    DeadLetter,
    Drop,
    Metric,
    Outcome,
    Reject,
    Row,
    Segment,
    TopicPartition,
)
from ingest.testing.runtime import PARTITION, MockRuntime

OTHER = TopicPartition(PARTITION.topic, 1)


def segment(offset: int = 0, *, blob: bool = True, rows: bool = True, size_bytes: int = 100) -> Segment:
    """A segment with one blob and one row a sink."""
    return Segment(
        org_id=1,
        project_id=2,
        replay_id=f"{offset:032x}",
        segment_id=0,
        retention_days=30,
        received=0,
        blobs=(Blob(f"30/2/{offset}/0", b"z", offset),) if blob else (),
        clickhouse=(Row("replays", f"c{offset}", b"{}", offset),) if rows else (),
        bigquery=(Row("facts", f"b{offset}", b"{}", offset),) if rows else (),
        metrics=(Metric("c", "m", 1.0),) if rows else (),
        warnings=(),
        size_bytes=size_bytes,
    )


def reject(offset: int = 0, value: bytes = b"junk") -> Reject:
    """A message that will never parse."""
    return Reject("not_msgpack", "boom", DeadLetter(None, value, (), "not_msgpack", "boom", offset, 0))


def shed() -> Drop:
    """A message of a project that is switched off."""
    return Drop("killed", 2)


def limits(**changed: float) -> Limits:
    """Small bounds, so that a test sees them."""
    values: dict[str, float] = {
        "batch_messages_max": 2,
        "in_flight_batches_max": 4,
        "reject_window": 10,
        **changed,
    }
    return Limits(**values)  # type: ignore[arg-type]


class Reader(MockRuntime):
    """A MockRuntime that takes parsed messages, and that says in a word what it was told to do."""

    def parsed(
        self, *outcomes: Outcome, source: TopicPartition = PARTITION, at: int | None = None
    ) -> list[do.Command]:
        """Messages arrive at the next offsets (from `at` on), parsed."""
        commands: list[do.Command] = []
        for outcome in outcomes:
            offset = self._offsets.get(source, 0) if at is None else at
            at = None
            self._offsets[source] = offset + 1
            commands += self.publish(on.MessageParsed(source, self._epochs[source], offset, outcome))
        return commands

    def segments(self, count: int, source: TopicPartition = PARTITION, at: int | None = None) -> list[do.Command]:
        """So many segments arrive."""
        commands: list[do.Command] = []
        for _ in range(count):
            offset = self._offsets.get(source, 0) if at is None else at
            commands += self.parsed(segment(offset), source=source, at=at)
            at = None
        return commands

    def settle_stages(self, dispatch: do.Dispatch) -> None:
        """All chords of this dispatch's batch complete; what else starts meanwhile is not taken."""
        for stage in dispatch.batch.stages:
            self.publish(on.FlushSucceeded(dispatch.batch.id, dispatch.batch.epoch, stage))

    def flush(self, dispatch: do.Dispatch) -> None:
        """The same, and every dispatch until then is taken."""
        self.settle_stages(dispatch)
        self.take(do.Dispatch)

    def dispatches(self) -> list[do.Dispatch]:
        """Records what was cut, so that it may start, and takes what started."""
        self.acknowledge_commits()
        return self.take(do.Dispatch)

    def epoch(self, source: TopicPartition = PARTITION) -> int:
        """The current one."""
        return self._epochs[source]


def reader(**changed: float) -> Reader:
    """A reader with small bounds that owns PARTITION."""
    made = Reader(limits(**changed))
    made.assign(PARTITION)
    return made


def ids(dispatches: list[do.Dispatch]) -> list[str]:
    """`start-stop/stage#attempt` of each."""
    return [f"{d.batch.offsets.start}-{d.batch.offsets.stop}/{d.stage}#{d.attempt}" for d in dispatches]
