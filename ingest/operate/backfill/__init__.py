"""Rebuilds facts and click rows of stored recordings, after a parser fix or the loss of a table.

    replays-ingest backfill --project 11 --since 3d --dry-run

    selection.py  selects stored segments, and lists recordings in the bucket that have no row
    rebuild.py    rebuilds the rows of a stored recording, with the parser that ingestion uses
    facts.py      compares facts in BigQuery; facts that differ are deleted before they are written again
    outcome.py    the result, as JSON and as text
    run.py        rebuilds, compares, writes and compares again, one page of segments at a time

Values that the recording does not contain (organization, retention, time of arrival, environment, Kafka position)
are copied from the rows in ClickHouse. Rows get the same identities as in ingestion, so a second run has nothing
to write.
"""

from ingest.operate.backfill.outcome import Outcome, render
from ingest.operate.backfill.run import Backfill, BackfillFailed
from ingest.operate.backfill.selection import Selection

__all__ = ["Backfill", "BackfillFailed", "Outcome", "Selection", "render"]
