"""Rebuilds the facts and click rows of one stored recording, with the parser that ingestion uses.

Unlike in ingestion, the session's row does not count toward the byte limit on a segment's rows, so a recording
that reaches the limit may get a few more rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.core.parse import ParseRules, RebuiltRows, rows_of_recording
from ingest.core.parse.rows import Identity
from ingest.core.stored_recording import unpack


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment's values in ClickHouse. `object`: the name of the segment's object in the `segment` layout."""

    org_id: int
    project_id: int
    replay_id: str
    segment_id: int
    received: int
    retention_days: int
    partition: int
    offset: int
    object: str
    size_bytes: int
    environment: str = ""

    @property
    def key(self) -> tuple[int, str, int]:
        """The segment's identity, with the replay id without dashes."""
        return self.project_id, self.replay_id, self.segment_id


def rebuild_rows(segment: StoredSegment, content: bytes, rules: ParseRules) -> RebuiltRows:
    """Returns the rows of a recording. Raises BlobError when the content is not a recording."""
    identity = Identity(
        segment.org_id,
        segment.project_id,
        segment.replay_id,
        segment.segment_id,
        segment.retention_days,
        None,
        segment.received,
        segment.partition,
        segment.offset,
    )
    return rows_of_recording(unpack(content).recording, identity, segment.environment or None, rules)
