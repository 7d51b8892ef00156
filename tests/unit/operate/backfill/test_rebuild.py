"""Rows rebuilt from stored data equal the rows that were written at ingestion, byte for byte."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from ingest.core.model import Message, Row, Segment, TopicPartition
from ingest.core.parse import ParseRules, parse
from ingest.core.parse.rows import hashed
from ingest.core.stored_recording import BlobError
from ingest.local.load.produce import PROFILES, values
from ingest.operate.backfill.rebuild import StoredSegment, rebuild_rows

RULES = ParseRules()
NOW = 1_780_000_000


def segments(count: int) -> list[Segment]:
    messages = [
        Message(TopicPartition("t", 3), 1, offset, value, timestamp_ms=NOW * 1000)
        for offset, value in enumerate(values(PROFILES["small"], count, 4, NOW - 3600))
    ]
    return [found for found in (parse(message, RULES) for message in messages) if isinstance(found, Segment)]


def stored(segment: Segment) -> StoredSegment:
    """Returns the contents of ClickHouse, made from the rows that ingestion writes."""
    rows = [(row, msgspec.json.decode(row.json)) for row in segment.clickhouse]
    facts = next(fields for row, fields in rows if row.table == "replay_segments")
    environments = [fields.get("environment", "") for row, fields in rows if is_session(segment, row)]
    return StoredSegment(
        facts["org_id"],
        facts["project_id"],
        segment.replay_id,
        facts["segment_id"],
        facts["received"],
        facts["retention_days"],
        facts["partition"],
        facts["offset"],
        facts["object"],
        facts["size_compressed"],
        *environments,
    )


def is_session(segment: Segment, row: Row) -> bool:
    return row.id == hashed(f"{segment.replay_id}/segment/{segment.segment_id}")


def test_rebuilt_clicks_taps_and_facts_equal_the_originals() -> None:
    """For web and mobile recordings, rebuilt rows equal the originals in identity, content, Kafka position and
    environment.
    """
    made = segments(80)

    for segment in made:
        found = rebuild_rows(stored(segment), bytes(segment.blobs[0].content), RULES)

        events = [row for row in segment.clickhouse if row.table == "replays" and not is_session(segment, row)]
        assert list(found.clickhouse) == events
        assert list(found.bigquery) == list(segment.bigquery)
    assert sum(len(segment.clickhouse) > 3 for segment in made) > 5
    assert any(stored(segment).environment for segment in made)


def test_invalid_json_has_no_rows_and_an_invalid_recording_is_reported() -> None:
    segment = stored(segments(1)[0])

    assert rebuild_rows(segment, zlib.compress(b"[{]"), RULES).bigquery == ()
    with pytest.raises(BlobError, match="not a zlib stream"):
        rebuild_rows(segment, b"something else", RULES)
