"""Simulates Redis, which contains staged batches with their done marks, and parked batches.

Data can be lost at any time.

A parked entry is a lease: (reader, batch, end time). `generation` counts the restarts in which all data was lost,
including queued tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ingest.testing.simulation.clock import Timeline

PARKED_LEASE_SECONDS = 3.0


class RedisUnavailable(Exception):
    """Raised if the simulated Redis does not respond."""


@dataclass(slots=True)
class Redis:
    """`batches` maps the key of a hash (`tasks.wire.batch_key`) to its fields and values."""

    timeline: Timeline
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    parked: dict[str, Any] = field(default_factory=dict)
    down_until: float = 0.0
    generation: int = 0

    def park(self, batch_id: str, reader: Any, batch: Any) -> None:
        """Adds a parked entry, which is shown until PARKED_LEASE_SECONDS pass without a renewal."""
        self.parked[batch_id] = (reader, batch, self.timeline.now + PARKED_LEASE_SECONDS)

    def live(self) -> dict[str, tuple[Any, Any]]:
        """Maps the batch id of each current lease to (reader, batch)."""
        now = self.timeline.now
        return {key: (reader, batch) for key, (reader, batch, until) in self.parked.items() if until >= now}

    @property
    def unavailable(self) -> bool:
        """True while Redis is unavailable."""
        return self.timeline.now < self.down_until

    def require(self) -> None:
        """Raises RedisUnavailable while Redis is unavailable."""
        if self.unavailable:
            raise RedisUnavailable

    def stage(self, key: str, fields: dict[str, Any]) -> None:
        """Sets payload fields. If the hash exists, its marks are kept."""
        self.require()
        self.batches.setdefault(key, {}).update(fields)

    def wipe(self) -> None:
        """Restarts without data."""
        self.generation += 1
        self.batches.clear()
        self.parked.clear()
