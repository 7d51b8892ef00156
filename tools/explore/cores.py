"""Holds the real pipelines of the search. Each distinct state is stored once and identified by a number.

The real `Pipeline` computes the decision on an event when the event occurs for the first time in a state; after
that, the decision is looked up.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.flight import Flight
from ingest.core.limits import Limits
from ingest.core.model import TopicPartition
from ingest.core.partition import Partition
from ingest.core.pipeline import Pipeline, Room
from tools.explore.canonical import TICK_SECONDS, Canonicalizer

# This time is late enough that no decision depends on the start of the clock.
BEGAN_AT = 1000.0
# All assignments have the same epoch, because chords of former assignments are not kept (`Readers._stale`).
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

    def has_no_effect(self, core: int) -> bool:
        """Returns True if the state is unchanged and there is no command."""
        return not self.error and not self.commands and self.core == core


class Cores:
    """All states of a pipeline with the given limits that the search has reached so far."""

    def __init__(self, limits: Limits, *, count_misses: bool = True) -> None:
        self._canonicalizer = Canonicalizer(count_misses=count_misses)
        self._states: list[tuple[bytes, float]] = []
        self._positions: list[dict[TopicPartition, int]] = []
        self._taken: list[dict[TopicPartition, int]] = []
        self._features: list[dict[TopicPartition, Hashable]] = []
        self._flights: list[dict[str, Flight]] = []
        self._known: dict[int, int] = {}
        self._decisions: dict[tuple[int, Hashable], Decision] = {}
        self._ignored: dict[tuple[int, Hashable], bool] = {}
        # How each state was first reached, and the equivalent state with the two partitions swapped.
        self._origins: list[tuple[int, on.Event] | None] = []
        self._mirrors: dict[int, int] = {}
        self.fresh = self._keep(Pipeline(limits), BEGAN_AT)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def decisions(self) -> int:
        """Number of decisions computed by a real pipeline."""
        return len(self._decisions)

    def _keep(self, pipeline: Pipeline, now: float) -> int:
        value = self._canonicalizer.value(pipeline, now)
        core = self._known.setdefault(value, len(self._states))
        if core == len(self._states):
            self._states.append((self._canonicalizer.pack(pipeline), now))
            self._origins.append(None)
            self._positions.append(positions(pipeline))
            self._features.append({source: features(pipeline._owned[source]) for source in pipeline.sources})
            self._taken.append({source: pipeline.position(source)[0] for source in pipeline.sources})
            self._flights.append({flight.batch.id: flight for flight in pipeline.in_flight})
        return core

    def step(self, core: int, event: on.Event) -> Decision:
        """Returns the decision on an event. A `Ticked` occurs one tick after the previous event."""
        key = (core, event)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decisions[key] = self._decide(core, event)
        return decision

    def _decide(self, core: int, event: on.Event) -> Decision:
        packed, now = self._states[core]
        pipeline = self._canonicalizer.unpack(packed)
        if isinstance(event, on.Ticked):
            now += TICK_SECONDS
        try:
            commands = tuple(pipeline.handle(event, now))
        except Exception as failure:
            return Decision(core, (), error=f"{type(failure).__name__}: {failure}")
        cut = frozenset(flight.batch.id for flight in pipeline.in_flight).difference(self._flights[core])
        became = self._keep(pipeline, now)
        if became == len(self._origins) - 1 and self._origins[became] is None:
            self._origins[became] = core, event
        return Decision(became, commands, cut)

    def ignores(self, core: int, events: tuple[on.Event, ...]) -> bool:
        """Returns True if none of the given events changes the state or leads to a command."""
        key = (core, events)
        known = self._ignored.get(key)
        if known is None:
            packed, now = self._states[core]
            pipeline = self._canonicalizer.unpack(packed)
            try:
                known = not any(pipeline.handle(event, now) for event in events)
            except Exception:
                known = False
            known = known and self._known.get(self._canonicalizer.value(pipeline, now)) == core
            self._ignored[key] = known
        return known

    def mirrored(self, core: int) -> int:
        """Returns the state that the same events reach if the two partitions are swapped in all of them."""
        path = []
        at = core
        while at not in self._mirrors and (origin := self._origins[at]) is not None:
            path.append((at, origin[1]))
            at = origin[0]
        mirror = self._mirrors.setdefault(at, at)
        for reached, event in reversed(path):
            mirror = self.step(mirror, mirrored(event)).core
            self._mirrors[reached], self._mirrors[mirror] = mirror, reached
        return mirror

    def features(self, core: int, source: TopicPartition) -> Hashable:
        """Returns a summary of a partition's state in the pipeline (see `features` below), without the partition's
        name. Returns None if the partition is not assigned.
        """
        return self._features[core].get(source)

    def flights(self, core: int) -> dict[str, Flight]:
        """Batches in flight, by id."""
        return self._flights[core]

    def taken_until(self, core: int, source: TopicPartition) -> int:
        """Returns the offset after the last message accepted from a partition, or 0 if the partition is not
        assigned.
        """
        return self._taken[core].get(source, 0)

    def flight(self, core: int, batch_id: str) -> Flight | None:
        """Returns the batch with this id, or None if it is not in flight."""
        return self._flights[core].get(batch_id)

    def next_offset(self, core: int, source: TopicPartition) -> int | None:
        """Returns the first offset from which messages would be accepted now, or None if no message would be
        accepted.
        """
        return self._positions[core].get(source)


def mirrored(event: Any) -> Any:
    """Returns the event with the two partitions swapped. Both partitions have the same messages."""
    changes: dict[str, Any] = {}
    for name in event.__dataclass_fields__:
        value = getattr(event, name)
        if name == "batch_id":
            changes[name] = f"t-{1 - int(value[2])}{value[3:]}"
        elif name == "source":
            changes[name] = TopicPartition(value.topic, 1 - value.partition)
        elif name == "sources":
            changes[name] = tuple(sorted(TopicPartition(one.topic, 1 - one.partition) for one in value))
        elif name == "assignments":
            changes[name] = tuple(mirrored(one) for one in value)
    return replace(event, **changes) if changes else event


def features(owned: Partition) -> Hashable:
    """Returns a few attributes of a partition, which suffice to tell most of its states apart."""
    flights = [
        (flight.batch.offsets, flight.phase.value, len(flight.stages), flight.misses)
        for flight in owned.flights.values()
    ]
    builder, commits = owned.builder, owned.commits
    open_batch = len(builder), builder.planned_ends
    return owned.position, tuple(flights), open_batch, commits.idle, commits.committed, owned.end is None


def positions(pipeline: Pipeline) -> dict[TopicPartition, int]:
    """Returns the next offset to accept, by partition. Partitions that accept no messages are left out."""
    takes = [source for source in pipeline.sources if pipeline.room(source, EPOCH) is Room.NOW]
    return {source: pipeline.position(source)[0] for source in takes}
