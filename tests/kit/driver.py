"""A pipeline with its observers, driven one event at a time; the clock is a number."""

from __future__ import annotations

from typing import TypeVar

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.model import Blob, DeadLetter, Drop, Outcome, Reject, Row, Segment, TopicPartition
from ingest.core.pipeline import Pipeline
from ingest.observe.journal import Journey
from ingest.observe.metrics import Metrics
from ingest.settings import Settings

PARTITION = TopicPartition("ingest-replay-recordings", 0)
WALL = 1_700_000_000.0
CommandT = TypeVar("CommandT", bound=do.Command)


def segment(offset: int = 0, received: int = int(WALL) - 3, warnings: tuple[str, ...] = ()) -> Segment:
    """The smallest segment that needs both stages."""
    return Segment(
        org_id=1,
        project_id=2,
        replay_id="a" * 32,
        segment_id=offset,
        retention_days=30,
        received=received,
        blobs=(Blob(f"30/2/{'a' * 32}/{offset}", b"x" * 100, offset),),
        clickhouse=(Row("replays", f"row-{offset}", b"{}", offset),),
        bigquery=(),
        metrics=(),
        warnings=warnings,
        size_bytes=102,
    )


def reject(offset: int = 0, reason: str = "not_msgpack") -> Reject:
    return Reject(reason, "said the parser", DeadLetter(None, b"?", (), reason, "said the parser", offset, 0))


class Driver:
    """`publish` is one turn of the loop: the pipeline decides, the metrics look on."""

    def __init__(self, **limits: float) -> None:
        self.now = 100.0
        self.journeys: list[Journey] = []
        self.pipeline = Pipeline(Limits(**limits))  # type: ignore[arg-type]
        self.metrics = Metrics(Settings(), ("not_msgpack",), tell=self.journeys.append, wall=lambda: WALL)
        self.high = 0
        self.metrics.watch(self.pipeline, self)
        self.commands: list[do.Command] = []
        self.offset = 0

    def log_ranges(self) -> dict[TopicPartition, tuple[int, int]]:
        return {PARTITION: (0, self.high)}

    def ask_log_ranges(self) -> dict[TopicPartition, tuple[int, int]]:
        return self.log_ranges()

    def publish(self, event: on.Event) -> None:
        commands = self.pipeline.handle(event, self.now)
        self.commands += commands
        self.metrics.observe(event, commands, self.now)

    def assign(self, committed: int | None = 0) -> None:
        self.publish(on.PartitionsAssigned((on.Assignment(PARTITION, 1, committed),)))

    def message(self, outcome: Outcome | None = None) -> None:
        self.publish(on.MessageParsed(PARTITION, 1, self.offset, outcome or segment(self.offset)))
        self.offset += 1

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.publish(on.Ticked())

    def take(self, kind: type[CommandT]) -> list[CommandT]:
        taken = [command for command in self.commands if isinstance(command, kind)]
        self.commands = [command for command in self.commands if not isinstance(command, kind)]
        return taken

    def acknowledge(self, seconds: float = 0.0) -> None:
        """The broker stores every offset that it was sent."""
        self.now += seconds
        while commits := self.take(do.Commit):
            for commit in commits:
                self.publish(on.Committed(commit.source, commit.epoch, commit.offset, commit.record))

    def succeed(self, seconds: float = 0.0) -> None:
        """Every chord that is out completes."""
        self.now += seconds
        for dispatch in self.take(do.Dispatch):
            self.publish(on.FlushSucceeded(dispatch.batch.id, dispatch.batch.epoch, dispatch.stage))

    def fail(self, error: str = "sink said no") -> None:
        for out in self.take(do.Dispatch):
            self.publish(on.FlushFailed(out.batch.id, out.batch.epoch, out.stage, out.attempt, error))

    def value(self, name: str, **labels: str) -> float | None:
        """A sample as Prometheus would scrape it."""
        return self.metrics.registry.get_sample_value(name, labels)


__all__ = ["PARTITION", "WALL", "Driver", "Drop", "reject", "segment"]
