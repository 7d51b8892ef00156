"""The core without a parser: a MockRuntime for parsed messages, with limits that a test can easily reach."""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.model import Outcome, TopicPartition
from ingest.testing.runtime import PARTITION, MockRuntime
from tests.kit.batches import segment

OTHER_PARTITION = TopicPartition(PARTITION.topic, 1)


def limits(**changed: float) -> Limits:
    """Returns limits with the given values; all other limits suit small tests. Batches are not cut early unless a
    test requests it.
    """
    values: dict[str, float] = {
        "batch_messages_max": 2,
        "batch_age_idle_seconds": 600.0,
        "in_flight_batches_max": 4,
        "reject_window": 10,
        **changed,
    }
    return Limits(**values)  # type: ignore[arg-type]


class Reader(MockRuntime):
    """A MockRuntime whose messages arrive already parsed."""

    def parsed(
        self, *outcomes: Outcome, source: TopicPartition = PARTITION, at: int | None = None
    ) -> list[do.Command]:
        """Publishes the given messages at the next offsets, starting at `at` if it is given."""
        commands: list[do.Command] = []
        for outcome in outcomes:
            offset = self._offsets.get(source, 0) if at is None else at
            at = None
            self._offsets[source] = offset + 1
            commands += self.handle_event(on.MessageParsed(source, self._epochs[source], offset, outcome))
        return commands

    def segments(self, count: int, source: TopicPartition = PARTITION, at: int | None = None) -> list[do.Command]:
        """Publishes `count` segments."""
        commands: list[do.Command] = []
        for _ in range(count):
            offset = self._offsets.get(source, 0) if at is None else at
            commands += self.parsed(segment(offset), source=source, at=at)
            at = None
        return commands

    def settle_stages(self, dispatch: do.Dispatch) -> None:
        """Completes all chords of this dispatch's batch; the resulting dispatches stay in `commands`."""
        for stage in dispatch.batch.stages:
            self.handle_event(on.FlushSucceeded(dispatch.batch.id, dispatch.batch.epoch, stage))

    def flush(self, dispatch: do.Dispatch) -> None:
        """Completes all chords of the batch like `settle_stages`, and removes the resulting dispatches from
        `commands`.
        """
        self.settle_stages(dispatch)
        self.take(do.Dispatch)

    def dispatches(self) -> list[do.Dispatch]:
        """Acknowledges the cut records so that batches start, and returns their dispatches."""
        self.acknowledge_commits()
        return self.take(do.Dispatch)

    def epoch(self, source: TopicPartition = PARTITION) -> int:
        """Returns the current epoch."""
        return self._epochs[source]


def reader(**changed: float) -> Reader:
    """Returns a reader with small limits that owns PARTITION."""
    made = Reader(limits(**changed))
    made.assign(PARTITION)
    return made


def ids(dispatches: list[do.Dispatch]) -> list[str]:
    """Returns each dispatch as `start-stop/stage#attempt`."""
    return [f"{d.batch.offsets.start}-{d.batch.offsets.stop}/{d.stage}#{d.attempt}" for d in dispatches]
