"""Counts the rows of BigQuery's analytics table by event type."""

from __future__ import annotations

from collections import Counter

from ingest.settings import Settings
from tasks.sinks.bigquery.sink import client


def read_facts(settings: Settings) -> Counter[str]:
    """Counts the rows of the analytics table by event type. Each identity counts once."""
    table = f"`{settings.bigquery_project}.{settings.bigquery_dataset}.replay_events`"
    connected = client(settings)
    try:
        answer = connected.query_and_wait(
            "SELECT event_type, COUNT(DISTINCT CONCAT(CAST(project_id AS STRING), '-', row_id)) AS n "
            f"FROM {table} GROUP BY event_type"
        )
        return Counter({row["event_type"]: row["n"] for row in answer})
    finally:
        connected.close()  # type: ignore[no-untyped-call]
