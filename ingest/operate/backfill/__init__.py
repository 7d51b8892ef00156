"""Rebuilds facts and click rows of stored recordings, after a parser fix or the loss of a table.

    replays-ingest backfill --project 11 --since 3d --dry-run

    selection.py  selects stored segments, and lists recordings in the bucket without a row
    rebuild.py    a stored recording -> its rows, with the parser of ingestion
    facts.py      facts in BigQuery by identity and content; those that differ are deleted before they are written
    outcome.py    the result, for machines and people
    run.py        one page of segments at a time: rebuilt, compared, written, compared again

Values that the recording does not contain (organisation, retention, time of arrival, environment, Kafka position)
are copied from the rows in ClickHouse. Rows get the same identities as in ingestion, so a second run finds
nothing to write.
"""

from ingest.operate.backfill.outcome import Outcome, render
from ingest.operate.backfill.run import Backfill, BackfillFailed
from ingest.operate.backfill.selection import Selection

__all__ = ["Backfill", "BackfillFailed", "Outcome", "Selection", "render"]
