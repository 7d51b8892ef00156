"""Decides when to pause and resume consumption.

At a limit, the reader first stops taking messages. The reader pauses the consumer only after `pause_after_seconds`
at the limit, because a pause makes the client discard prefetched messages. To avoid flapping, consumption resumes
only when the number and the total size of the batches have both fallen to half of their limits.
"""

from __future__ import annotations

from enum import Enum, auto

from ingest.core.limits import Limits


class BackpressureChange(Enum):
    """The action that the consumer must take."""

    PAUSE = auto()
    RESUME = auto()


class Backpressure:
    """Backpressure state of the process, across all partitions."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._full_since: float | None = None
        self.paused = False

    @property
    def has_room(self) -> bool:
        """True if messages may be taken now."""
        return self._full_since is None

    def update(self, batches: int, size_bytes: int, now: float) -> BackpressureChange | None:
        """Updates the state from the number of unsettled batches and the bytes of open and unsettled batches."""
        limits = self._limits
        if self._full_since is None:
            if batches >= limits.in_flight_batches_max or size_bytes >= limits.in_flight_bytes_max:
                self._full_since = now
            return None
        if batches <= limits.in_flight_batches_max // 2 and size_bytes <= limits.in_flight_bytes_max // 2:
            self._full_since = None
            if self.paused:
                self.paused = False
                return BackpressureChange.RESUME
            return None
        if not self.paused and now - self._full_since >= limits.pause_after_seconds:
            self.paused = True
            return BackpressureChange.PAUSE
        return None
