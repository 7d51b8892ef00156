"""Provides the steps to replay, from simulated worlds or from the logs of real readers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ingest.core import commands as do
from ingest.core import events as on
from ingest.observe.steps import Step, Steps
from ingest.testing.simulation.faults import Fault
from ingest.testing.simulation.reader import Reader
from ingest.testing.simulation.shape import Shape
from ingest.testing.simulation.world import World

LOG_EVENT = "protocol_step"

# Faults that are excluded from these worlds. If a reader dies between two commands of one decision, it has
# performed steps that were not observed. Steps have timestamps from the clock of the simulated world, so the
# readers' clocks must agree with it. The specification covers neither brokers that respond incorrectly nor
# recreated topics.
EXCLUDED_FAULTS = frozenset(
    {
        Fault.READER_CRASH_MIDWAY,
        Fault.CLOCK_SKEW,
        Fault.OFFSET_READ_NONE,
        Fault.OFFSET_READ_ZERO,
        Fault.COMMIT_LOST,
        Fault.TOPIC_RECREATED,
    }
)


class _RecordedWorld(World):
    """A simulated world that records the steps of its readers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.steps: list[Step] = []
        self._followed: dict[str, Steps] = {}

    def observe(self, reader: Reader, event: on.Event, commands: Sequence[do.Command]) -> None:
        follow = self._followed.setdefault(reader.name, Steps(reader.pipeline))
        steps = follow.observe(event, commands, self.timeline.now)
        self.steps += [{"reader": reader.name, **step} for step in steps]
        super().observe(reader, event, commands)


def simulated(seed: int) -> list[Step]:
    """Returns the steps of every reader in the simulated world of the given seed. Raises Violation."""
    shape = Shape.draw(seed)
    world = _RecordedWorld(
        replace(shape, faults=tuple(fault for fault in shape.faults if fault not in EXCLUDED_FAULTS))
    )
    world.run()
    return world.steps


def logged(directory: Path) -> list[Step]:
    """Returns the steps in the logs below a directory, in chronological order."""
    lines = [line for path in sorted(directory.rglob("*.log")) for line in _lines(path)]
    # If times were sorted as text, a time without a fraction would follow the other times of the same second.
    lines.sort(key=lambda line: datetime.fromisoformat(str(line["timestamp"])))
    return lines


def _lines(path: Path) -> Iterable[Step]:
    yield from _parsed(path.read_bytes().splitlines())


def _parsed(lines: Sequence[bytes]) -> Iterator[Step]:
    for line in lines:
        if LOG_EVENT.encode() not in line:
            continue
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("event") == LOG_EVENT:
            yield found
