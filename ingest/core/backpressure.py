"""When to pause and resume.

At a bound the reader first just stops taking messages, since a pause makes the client throw its prefetched
messages away and fetch them again; only when that lasts does it pause. It takes messages again when both
counts fell to half of their bounds, so that it does not flap.
"""

from __future__ import annotations

from enum import Enum, auto

from ingest.core.limits import Limits


class Change(Enum):
    """What to tell the consumer."""

    PAUSE = auto()
    RESUME = auto()


class Backpressure:
    """Over all partitions of the process."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._full_since: float | None = None
        self.paused = False

    @property
    def has_room(self) -> bool:
        """Whether messages may be taken now."""
        return self._full_since is None

    def update(self, batches: int, size_bytes: int, now: float) -> Change | None:
        """Given what is held now (batches cut and unsettled; bytes of those and of open batches)."""
        limits = self._limits
        if self._full_since is None:
            if batches >= limits.in_flight_batches_max or size_bytes >= limits.in_flight_bytes_max:
                self._full_since = now
            return None
        if batches <= limits.in_flight_batches_max // 2 and size_bytes <= limits.in_flight_bytes_max // 2:
            self._full_since = None
            if self.paused:
                self.paused = False
                return Change.RESUME
            return None
        if not self.paused and now - self._full_since >= limits.pause_after_seconds:
            self.paused = True
            return Change.PAUSE
        return None
