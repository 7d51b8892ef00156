"""Tracks the position in the operators' topic up to which decisions apply to all unsettled batches of this reader.

A batch parsed before an erasure was known could restore erased data. `replays-ingest erase` therefore waits until
every reader reports, in its heartbeat, that all earlier batches have settled.
"""

from __future__ import annotations

from ingest.core.pipeline import Pipeline
from ingest.reader.tenant_gate import TenantGate

UNKNOWN_OFFSET = -1
"""The value reported by readers of earlier releases."""


class SettledOffset:
    """The loop's thread updates this object on each tick, between polls, when no message is being parsed.

    `offset`: position in the operators' topic. All decisions before this position were applied to every open or
    unsettled batch.
    """

    def __init__(self, pipeline: Pipeline, gate: TenantGate) -> None:
        self.offset = 0
        self._pipeline = pipeline
        self._gate = gate
        self._pending: tuple[int, float] | None = None

    def update_offset(self, now: float) -> None:
        """Updates `offset`. `now`: monotonic time of the reader's loop, in seconds. Parsed messages that are
        waiting need not be considered, because they are screened before they are batched."""
        decided_until = self._gate.decided_until
        if self._pending is None and decided_until > self.offset:
            self._pending = (decided_until, now)
        if self._pending is None:
            return
        offset, since = self._pending
        oldest = self._pipeline.oldest_opened_at
        if oldest is None or oldest > since:
            self.offset, self._pending = offset, None
