"""One batch between its cut and its settlement: its phase and its transitions.

RECORDING ─▶ WAITING ─▶ FLUSHING ─▶ settled
                ▲           │ failed, or missed too many deadlines
                └── PARKED ◀┘
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from ingest.core import commands as do
from ingest.core.model import Batch, Stage
from tasks.wire import SinkName

NO_SINKS: frozenset[SinkName] = frozenset()


class Phase(StrEnum):
    """Phase of a batch between its cut and its settlement."""

    RECORDING = "recording"  # the boundary is being committed to the broker
    WAITING = "waiting"  # for a slot
    FLUSHING = "flushing"  # the chord is running
    PARKED = "parked"  # the chord failed or could not be started; it is retried at `until`


@dataclass(slots=True)
class Flight:
    """One batch that has been cut but not yet settled. Times are monotonic seconds.

    `since`: start of its phase; `until`: time at which its phase expires. `attempt` counts its chords, `failures`
    counts the failed chords of this stage, `own_failures` counts those that failed while other batches
    succeeded, and `misses` counts the consecutive deadlines that passed without a completion. `failed_sinks`: the
    sinks that had not written the batch when this stage last failed; empty if unknown. `proven`: sinks that
    are known to work, because other batches have been written to them since this batch was last parked or first
    started. `own_cause`: True if every sink that did not write the batch at its last failure was known to work, so
    the batch itself is the cause. `shown`: the last Park shown to operators, at `shown_at`; None once the stage is
    durable.
    """

    batch: Batch
    stages: tuple[Stage, ...]
    phase: Phase
    since: float
    until: float
    attempt: int = 0
    failures: int = 0
    error: str = ""
    own_failures: int = 0
    misses: int = 0
    failed_sinks: frozenset[SinkName] = NO_SINKS
    proven: frozenset[SinkName] = NO_SINKS
    own_cause: bool = False
    shown: do.Park | None = None
    shown_at: float = 0.0

    @property
    def stage(self) -> Stage:
        """The stage whose chord is running or will be started next."""
        return self.stages[0]

    @property
    def unwritten(self) -> frozenset[SinkName]:
        """The sinks to which the batch must still be written before its stage is durable; all sinks of the stage
        if the failed sinks are unknown."""
        return self.failed_sinks or self.batch.sinks(self.stage)

    def dispatch(self, now: float, deadline_seconds: float) -> do.Dispatch:
        """Starts the next chord, with a deadline."""
        self.attempt += 1
        self.own_cause = False
        self.phase, self.since, self.until = Phase.FLUSHING, now, now + deadline_seconds
        return do.Dispatch(self.batch, self.stage, self.attempt, deadline_seconds)

    def advance(self) -> bool:
        """Moves to the next stage, once the current stage is durable. Returns False if there is no next stage."""
        if len(self.stages) > 1:
            self.stages = self.stages[1:]
            self.failures, self.misses, self.error, self.shown = 0, 0, "", None
            self.own_failures, self.failed_sinks, self.proven = 0, NO_SINKS, NO_SINKS
            return True
        return False

    def park(self, error: str, now: float, wait_seconds: float) -> do.Park:
        """Parks the batch, which frees its slot. Returns the command that shows the batch to operators."""
        self.error = error
        self.phase, self.since, self.until = Phase.PARKED, now, now + wait_seconds
        return do.Park(self.batch, self.stage, self.attempt, error, wait_seconds)

    def fail(self, sinks: frozenset[SinkName]) -> int:
        """Records that `sinks` did not write the batch; an empty set means that the failed sinks are unknown.

        Returns the number of failures that determines the backoff. If other batches have been written to all of
        these sinks in the meantime, this batch itself is the cause, and only failures of this kind are counted.
        Otherwise the sinks are considered unavailable.
        """
        self.failed_sinks = sinks
        self.own_cause = self.unwritten <= self.proven
        self.proven = NO_SINKS
        self.failures += 1
        self.own_failures += self.own_cause
        return self.own_failures if self.own_cause else self.failures

    def observe_success(self, stage: Stage, sinks: frozenset[SinkName], now: float) -> None:
        """Records that another batch has completed `stage` and was written to `sinks`. If this batch was parked
        because these sinks were unavailable, it is now due.

        A batch that failed while other batches succeeded has its own cause and keeps its backoff.
        """
        if self.stage is not stage or self.phase not in (Phase.FLUSHING, Phase.PARKED):
            return
        self.proven |= sinks
        if self.phase is Phase.PARKED and not self.own_cause and self.unwritten <= self.proven:
            self.until = now

    def show(self, park: do.Park, now: float) -> do.Park:
        """Records that the batch is shown to operators."""
        self.shown, self.shown_at = park, now
        return park

    def renew(self, now: float) -> do.Renew | None:
        """Returns the command that keeps the batch visible to operators; None if it is not shown."""
        if self.shown is None:
            return None
        age_seconds = now - self.shown_at
        remaining_seconds = max(0.0, self.shown.retry_seconds - age_seconds)
        return do.Renew(replace(self.shown, retry_seconds=remaining_seconds), age_seconds)
