"""Compares facts in BigQuery by identity and content.

An insert never replaces a stored fact: both are kept, and the view with one row per identity could return either
of them. Therefore, a fact that differs is deleted before it is written again. BigQuery cannot delete rows streamed
in the last 90 minutes: these rows are reported, and a later run replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from google.cloud import bigquery as official_bigquery

from ingest.operate.reconcile.presence import (
    REDELIVERY_SECONDS_MAX,
    FactKey,
    Facts,
    decoded,
    fact_key,
    fact_seconds,
    to_datetime,
)
from ingest.operate.reconcile.problem import Problem
from ingest.settings import Settings
from tasks.sinks.google import errors as google_errors
from tasks.wire import Row, chunks

COMPARED_COLUMNS = ("event_type", "org_id", "replay_id", "segment_id", "attributes")
ROWS_MAX = 2000


class StoredFacts(Facts):
    """Compares facts and deletes those that differ. Methods raise SinkError."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._table = f"`{self._dataset}.replay_events`"

    def compare(self, items: Sequence[Row]) -> dict[int, tuple[Problem, str]]:
        """Returns the problem and the columns that differ, by position in `items`."""
        found = {position: (problem, "no such row") for position, problem in self.find_problems(items).items()}
        present = [position for position in range(len(items)) if position not in found]
        for chunk in chunks(present, ROWS_MAX):
            stored = self._contents([items[position] for position in chunk])
            for position in chunk:
                wanted = decoded(items[position])
                for row in stored.get(fact_key(items[position]), []):
                    columns = [name for name in COMPARED_COLUMNS if not _is_equal(wanted[name], row[name])]
                    if columns:
                        found[position] = (Problem.DIFFERS, f"differs in {', '.join(columns)}")
        return found

    def _contents(self, items: Sequence[Row]) -> dict[FactKey, list[dict[str, Any]]]:
        columns = ", ".join(("project_id", "row_id", *COMPARED_COLUMNS))
        found: dict[FactKey, list[dict[str, Any]]] = {}
        for row in self._run(f"SELECT {columns} FROM {self._table}", items):
            found.setdefault((int(row["project_id"]), str(row["row_id"])), []).append(dict(row.items()))
        return found

    def delete(self, items: Sequence[Row]) -> None:
        """Deletes every stored row with the identities of these facts."""
        for chunk in chunks(items, ROWS_MAX):
            self._run(f"DELETE FROM {self._table}", chunk)

    def _run(self, what: str, items: Sequence[Row]) -> Any:
        """Runs one statement on the rows with these identities, limited to the days around the times of the
        facts."""
        times = [fact_seconds(item) for item in items]
        keys = [fact_key(item) for item in items]
        margin_seconds = REDELIVERY_SECONDS_MAX
        config = official_bigquery.QueryJobConfig(
            query_parameters=[
                official_bigquery.ArrayQueryParameter(
                    "keys", "STRING", [f"{project}-{row_id}" for project, row_id in keys]
                ),
                official_bigquery.ArrayQueryParameter("ids", "STRING", [row_id for _, row_id in keys]),
                official_bigquery.ScalarQueryParameter(
                    "low", "TIMESTAMP", to_datetime(min(times) - margin_seconds)
                ),
                official_bigquery.ScalarQueryParameter(
                    "high", "TIMESTAMP", to_datetime(max(times) + margin_seconds)
                ),
            ]
        )
        where = (
            "timestamp BETWEEN @low AND @high AND row_id IN UNNEST(@ids) "
            "AND CONCAT(CAST(project_id AS STRING), '-', row_id) IN UNNEST(@keys)"
        )
        try:
            return self._client.query_and_wait(
                f"{what} WHERE {where}", job_config=config, wait_timeout=10 * self._seconds
            )
        except Exception as error:
            raise google_errors.classify(error).error() from error


def _is_equal(wanted: Any, stored: Any) -> bool:
    if wanted == stored:
        return True
    try:  # a JSON column may format the same value differently
        as_text = stored if isinstance(stored, str) else msgspec.json.encode(stored)
        return bool(msgspec.json.decode(wanted) == msgspec.json.decode(as_text))
    except (msgspec.MsgspecError, TypeError, ValueError):
        return False
