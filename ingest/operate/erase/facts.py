"""Counts a replay's facts in BigQuery and deletes them with DML."""

from __future__ import annotations

import contextlib
from typing import Any

from google.api_core.exceptions import BadRequest
from google.cloud import bigquery as official_bigquery
from google.cloud.bigquery.retry import DEFAULT_RETRY

from ingest.settings import Settings
from tasks.sinks.bigquery import sink as bigquery

DELETE_SECONDS_MAX = 300.0
STREAMING_BUFFER = "streaming buffer"


class Facts:
    """Facts of one replay. Methods raise the errors of BigQuery's client."""

    def __init__(self, settings: Settings, project_id: int, replay_id: str) -> None:
        self._settings = settings
        self._project_id, self._replay_id = project_id, replay_id

    def count(self) -> int:
        """Returns the number of stored facts."""
        return self._run("SELECT COUNT(*)")

    def delete(self) -> list[str]:
        """Deletes the facts. Returns at most one message, which says why some facts could not be deleted."""
        try:
            self._run("DELETE")
        except BadRequest as error:
            if STREAMING_BUFFER not in str(error).lower():
                raise
            return [
                "bigquery: rows are in the streaming buffer, where they cannot be deleted for up to 90 minutes: "
                "run this again later"
            ]
        return []

    def _run(self, what: str) -> int:
        """Runs one statement on this replay's facts; returns the number of counted or deleted rows."""
        settings, total = self._settings, 0
        parameters = [
            official_bigquery.ScalarQueryParameter("project", "INT64", self._project_id),
            official_bigquery.ScalarQueryParameter("replay", "STRING", self._replay_id),
        ]
        retry_policy = DEFAULT_RETRY.with_timeout(
            settings.sink_timeout_seconds
        )  # the client's default is ten minutes
        with contextlib.closing(bigquery.client(settings)) as connected:
            server: Any = connected
            for table in bigquery.TABLES:
                job = server.query(
                    f"{what} FROM `{settings.bigquery_project}.{settings.bigquery_dataset}.{table}` "
                    "WHERE project_id = @project AND replay_id = @replay",
                    job_config=official_bigquery.QueryJobConfig(query_parameters=parameters),
                    timeout=settings.sink_timeout_seconds,
                    retry=retry_policy,
                    job_retry=None,
                )
                rows = list(job.result(timeout=DELETE_SECONDS_MAX, retry=retry_policy, job_retry=None))
                total += int(rows[0][0]) if rows else int(job.num_dml_affected_rows or 0)
        return total
