"""The core with its observers, driven one event at a time with a simulated clock."""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.model import Outcome, TopicPartition
from ingest.observe.journal import Journey
from ingest.observe.metrics import Metrics
from ingest.settings import Settings
from ingest.testing.runtime import PARTITION
from tests.kit.batches import RECEIVED, segment
from tests.kit.core_reader import Reader

WALL_TIME = RECEIVED + 3.0
"""Unix seconds now: each segment was received three seconds ago."""


class Driver(Reader):
    """Drives the reader.

    `handle_event` is one step of the loop: the core handles the event, then the metrics observe it. `high`
    is the offset at the end of the log.
    """

    def __init__(self, **limits: float) -> None:
        super().__init__(Limits(**limits))  # type: ignore[arg-type]
        self.now = 100.0
        self.journeys: list[Journey] = []
        self.metrics = Metrics(
            Settings(), ("not_msgpack",), on_end=self.journeys.append, wall_clock=lambda: WALL_TIME
        )
        self.high = 0
        self.metrics.watch(self.pipeline, self)

    def log_ranges(self) -> dict[TopicPartition, tuple[int, int]]:
        """Returns the log ranges that the consumer has cached."""
        return {PARTITION: (0, self.high)}

    def query_log_ranges(self) -> dict[TopicPartition, tuple[int, int]]:
        """Returns the log ranges as the broker reports them."""
        return self.log_ranges()

    def handle_event(self, event: on.Event) -> list[do.Command]:
        commands = super().handle_event(event)
        self.metrics.observe(event, commands, self.now)
        return commands

    def message(self, outcome: Outcome | None = None) -> None:
        """Publishes one message, a segment by default."""
        self.parsed(outcome or segment(self._offsets[PARTITION]))

    def acknowledge(self, seconds: float = 0.0) -> None:
        """Advances the clock by `seconds`, then acknowledges every pending commit."""
        self.now += seconds
        self.acknowledge_commits()

    def complete(self, seconds: float = 0.0) -> None:
        """Advances the clock by `seconds`, then completes every running chord."""
        self.now += seconds
        for dispatch in self.take(do.Dispatch):
            self.succeed(dispatch)

    def fail_all(self, error: str = "sink said no") -> None:
        """Fails every running chord."""
        for dispatch in self.take(do.Dispatch):
            self.fail(dispatch, error)

    def value(self, name: str, **labels: str) -> float | None:
        """Returns the value of a sample as Prometheus would scrape it."""
        return self.metrics.registry.get_sample_value(name, labels)
