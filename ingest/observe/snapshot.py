"""A snapshot of the reader's state for probes, metrics and operators, taken by the loop's thread.

Other threads must not iterate over the pipeline's dictionaries, so they use this copy.
"""

from __future__ import annotations

import msgspec

from ingest.core.flight import Phase
from ingest.core.model import Stage
from ingest.core.pipeline import Pipeline
from ingest.core.rejects import Rejects


class PartitionState(msgspec.Struct, frozen=True):
    """One partition. `position`: next offset to take; `committed`: None before the first commit; `high`: end of
    the log, -1 if unknown."""

    partition: int
    position: int
    committed: int | None
    high: int = -1
    lag_messages: int = 0
    lag_seconds: float = 0.0


class FlightState(msgspec.Struct, frozen=True):
    """One batch that has been cut but has not settled. `age_seconds`: time since the cut; `phase_seconds`: time in
    the current phase."""

    batch_id: str
    partition: int
    phase: Phase
    stage: Stage
    attempt: int
    failures: int
    messages: int
    size_bytes: int
    age_seconds: float
    phase_seconds: float
    retry_seconds: float
    error: str


class ProjectRejects(msgspec.Struct, frozen=True):
    """Rejects of one project in the reject window. `shed`: whether most of the project's messages are rejects."""

    project_id: int
    messages: int
    rejects: int
    shed: bool


class RejectState(msgspec.Struct, frozen=True):
    """Rejects in the reject window: for the projects with the most rejects, for all other projects, and without a
    project.

    `shed`: number of shed projects; `dropped`: rejects dropped by policy since startup.
    """

    worst: tuple[ProjectRejects, ...] = ()
    other: int = 0
    unattributed: int = 0
    shed: int = 0
    dropped: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """State of the whole reader. `now`: monotonic seconds; `held_bytes`: bytes of open and unsettled batches."""

    now: float
    partitions: tuple[PartitionState, ...] = ()
    flights: tuple[FlightState, ...] = ()
    held_bytes: int = 0
    has_room: bool = True
    paused: bool = False
    stopping: bool = False
    halted: str | None = None
    reject_ratio: float = 0.0
    rejects: RejectState = RejectState()

    def in_phase(self, phase: Phase) -> tuple[FlightState, ...]:
        """Returns the batches in one phase."""
        return tuple(flight for flight in self.flights if flight.phase is phase)


def take(pipeline: Pipeline, now: float) -> Snapshot:
    """Takes a snapshot. Must be called by the loop's thread."""
    return Snapshot(
        now=now,
        partitions=tuple(
            PartitionState(source.partition, *pipeline.position(source)) for source in pipeline.sources
        ),
        flights=tuple(
            FlightState(
                batch_id=flight.batch.id,
                partition=flight.batch.source.partition,
                phase=flight.phase,
                stage=flight.stage,
                attempt=flight.attempt,
                failures=flight.failures,
                messages=len(flight.batch.segments) + len(flight.batch.rejects),
                size_bytes=flight.batch.size_bytes,
                age_seconds=now - flight.batch.cut_at,
                phase_seconds=now - flight.since,
                retry_seconds=max(0.0, flight.until - now) if flight.phase is Phase.PARKED else 0.0,
                error=flight.error[:500],
            )
            for flight in pipeline.in_flight
        ),
        held_bytes=pipeline.held_bytes,
        has_room=pipeline.has_room,
        paused=pipeline.paused,
        stopping=pipeline.stopping_by is not None,
        halted=pipeline.halted,
        reject_ratio=pipeline.reject_ratio,
        rejects=_rejects(pipeline.rejects),
    )


def _rejects(rejects: Rejects) -> RejectState:
    worst = tuple(
        ProjectRejects(project.project_id, project.messages, project.rejects, project.shed)
        for project in rejects.most_rejected_projects()
        if project.project_id is not None
    )
    return RejectState(
        worst=worst,
        other=rejects.total - rejects.unattributed - sum(project.rejects for project in worst),
        unattributed=rejects.unattributed,
        shed=rejects.shed,
        dropped=rejects.dropped,
    )
