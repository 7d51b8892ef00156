"""Up to which decision this reader's work is settled: nothing that it took before is unsettled any more.

An erasure deletes what is stored; a batch that was parsed before the erasure was known would bring it back. So
`replays-ingest erase` waits until every reader reports, in its heartbeat, that all it parsed earlier has settled.
"""

from __future__ import annotations

from ingest.core.pipeline import Pipeline
from ingest.reader.tenant_gate import TenantGate

UNKNOWN = -1
"""What a reader of an earlier release reports."""


class Settled:
    """Looked at by the loop's thread on each tick, between polls: then no message is being parsed.

    `offset`: every batch in flight or open was made under all decisions before this offset of their topic.
    """

    def __init__(self, pipeline: Pipeline, gate: TenantGate) -> None:
        self.offset = 0
        self._pipeline = pipeline
        self._gate = gate
        self._pending: tuple[int, float] | None = None

    def tick(self, now: float) -> None:
        """`now` in the loop's monotonic seconds. What is parsed and waits is screened before it is batched."""
        decided_until = self._gate.decided_until
        if self._pending is None and decided_until > self.offset:
            self._pending = (decided_until, now)
        if self._pending is None:
            return
        offset, since = self._pending
        oldest = self._pipeline.oldest_opened_at
        if oldest is None or oldest > since:
            self.offset, self._pending = offset, None
