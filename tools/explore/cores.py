"""The real pipelines of the search: each distinct state once, and its decision on each event, computed once.

A pipeline's state is a number. The decision on an event is computed by the real `Pipeline` the
first time that this event occurs in this state; afterwards it is looked up.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.flight import Flight
from ingest.core.limits import Limits
from ingest.core.model import TopicPartition
from ingest.core.pipeline import Pipeline, Room
from tools.explore.canonical import TICK_SECONDS, Canon

# Late enough that the first decisions do not depend on the start of the clock.
BEGAN_AT = 1000.0
# Every assignment has this epoch: chords of a former one are gone by then, or marked (`Chord.ours`).
EPOCH, FORMER_EPOCH = 1, 0


@dataclass(frozen=True, slots=True)
class Decision:
    """The pipeline's commands and its next state. `error`: the failed assertion, if any.

    `cut`: ids of new batches.
    """

    core: int
    commands: tuple[do.Command, ...]
    cut: frozenset[str] = frozenset()
    error: str = ""

    def is_nothing(self, core: int) -> bool:
        """Whether the state is unchanged and there is no command."""
        return not self.error and not self.commands and self.core == core


class Cores:
    """All states of a pipeline under these limits that were reached so far."""

    def __init__(self, limits: Limits) -> None:
        self._canon = Canon()
        self._states: list[tuple[bytes, float]] = []
        self._positions: list[dict[TopicPartition, int]] = []
        self._flights: list[dict[str, Flight]] = []
        self._known: dict[int, int] = {}
        self._decisions: dict[tuple[int, Hashable], Decision] = {}
        self.fresh = self._keep(Pipeline(limits), BEGAN_AT)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def decisions(self) -> int:
        """Number of runs of a real pipeline."""
        return len(self._decisions)

    def _keep(self, pipeline: Pipeline, now: float) -> int:
        value = self._canon.value(pipeline, now)
        core = self._known.setdefault(value, len(self._states))
        if core == len(self._states):
            self._states.append((self._canon.pack(pipeline), now))
            self._positions.append(positions(pipeline))
            self._flights.append({flight.batch.id: flight for flight in pipeline.in_flight})
        return core

    def step(self, core: int, event: on.Event) -> Decision:
        """The decision on the event. A `Ticked` is one tick after the previous event."""
        key = (core, event)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decisions[key] = self._decide(core, event)
        return decision

    def _decide(self, core: int, event: on.Event) -> Decision:
        packed, now = self._states[core]
        pipeline = self._canon.unpack(packed)
        if isinstance(event, on.Ticked):
            now += TICK_SECONDS
        try:
            commands = tuple(pipeline.handle(event, now))
        except Exception as failure:
            return Decision(core, (), error=f"{type(failure).__name__}: {failure}")
        cut = frozenset(flight.batch.id for flight in pipeline.in_flight).difference(self._flights[core])
        return Decision(self._keep(pipeline, now), commands, cut)

    def flight(self, core: int, batch_id: str) -> Flight | None:
        """The batch of this name, if it is in flight."""
        return self._flights[core].get(batch_id)

    def next_offset(self, core: int, source: TopicPartition) -> int | None:
        """The first offset from which messages of the current assignment would be taken now; None: no message
        would be."""
        return self._positions[core].get(source)


def positions(pipeline: Pipeline) -> dict[TopicPartition, int]:
    """First offset to take now, by partition; partitions that take no messages are left out."""
    takes = [source for source in pipeline.sources if pipeline.room(source, EPOCH) is Room.NOW]
    return {source: pipeline.position(source)[0] for source in takes}
