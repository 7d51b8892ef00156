"""Rebuilds facts and click rows of stored recordings, after a parser fix or the loss of a table.

    replays-ingest backfill --project 11 --since 3d --dry-run

    selection.py  which stored segments, and which of the bucket's recordings have no row
    rebuild.py    a stored recording -> its rows, with the parser of ingestion
    facts.py      facts in BigQuery by identity and content; those that differ are deleted before they are written
    outcome.py    what came of it, for machines and people
    run.py        a page of segments at a time: rebuilt, compared, written, compared again

What the recording itself does not say (organisation, retention, time of arrival, environment, place in Kafka) is
copied from the rows that ClickHouse has. Rows get the identities that ingestion gives them, so a second run finds
nothing to write.
"""

from ingest.operate.backfill.outcome import Outcome, render
from ingest.operate.backfill.run import Backfill, BackfillFailed
from ingest.operate.backfill.selection import Selection

__all__ = ["Backfill", "BackfillFailed", "Outcome", "Selection", "render"]
