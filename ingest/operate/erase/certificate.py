"""The record of an erasure: lists of objects, packed parts and dead letters, and the numbers of rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ingest.operate.erase.holdings import Holdings

VERSION = 1


def certificate(found: Holdings, left: Sequence[str], *, by: str, at: float) -> dict[str, Any]:
    """Returns the record as JSON values. The record lists dead letters, because they cannot be removed from their
    topic; they are not replayed, and they expire.

    `at`: end of the erasure, Unix seconds.
    """
    return {
        "version": VERSION,
        "project_id": found.project_id,
        "replay_id": found.replay_id,
        "erased_by": by,
        "erased_at": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        "complete": not left,
        "objects": [{"name": generation.name, "generation": generation.number} for generation in found.objects],
        "packed_parts": [
            {"object": name, "start_bytes": start, "length_bytes": length}
            for name, spans in sorted(found.ranges.items())
            for start, length in spans
        ],
        "clickhouse_rows": dict(found.rows),
        "bigquery_rows": found.facts,
        "letters": list(found.letters),
        "left": list(left),
    }
