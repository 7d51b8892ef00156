"""The REST calls, by method and path."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from ingest.local.servers.bigquery.errors import ApiError
from ingest.local.servers.bigquery.jobs import Job, Jobs
from ingest.local.servers.bigquery.names import TableName
from ingest.local.servers.bigquery.rows import format_row, resource_of
from ingest.local.servers.bigquery.store import Store

PAGE_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Call:
    """A request, with its path arguments, URL parameters and body.

    `if_match`: the etag that the resource must have, or empty.
    """

    project: str
    parts: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]
    if_match: str = ""

    def number(self, name: str, default: int) -> int:
        """Returns a whole number >= 0 from the URL."""
        text = self.query.get(name, "")
        return int(text) if text.isdecimal() else default

    @property
    def timestamp_format(self) -> str:
        """The requested format of TIMESTAMP values: INT64, FLOAT64 or ISO8601_STRING."""
        options = self.body.get("formatOptions") or {}
        given = options.get("timestampOutputFormat") or self.query.get("formatOptions.timestampOutputFormat")
        whole = options.get("useInt64Timestamp") or self.query.get("formatOptions.useInt64Timestamp")
        if given:
            return str(given)
        return "INT64" if str(whole).lower() == "true" else "FLOAT64"


class Service:
    """Handles the REST calls, which are selected by method and path."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._jobs = Jobs()
        dataset = r"/datasets/(?P<dataset>[^/]+)"
        table = dataset + r"/tables/(?P<table>[^/]+)"
        routes: list[tuple[str, str, Callable[[Call], dict[str, Any] | None]]] = [
            ("GET", r"/datasets", self._list_datasets),
            ("POST", r"/datasets", lambda call: store.create_dataset(call.project, call.body)),
            ("GET", dataset, lambda call: store.dataset(call.project, call.parts["dataset"])),
            ("PATCH", dataset, self._update_dataset),
            ("PUT", dataset, self._update_dataset),
            ("DELETE", dataset, self._delete_dataset),
            ("GET", dataset + "/tables", self._list_tables),
            ("POST", dataset + "/tables", self._create_table),
            ("GET", table, lambda call: store.table(self._table(call))),
            ("PATCH", table, self._update_table),
            ("PUT", table, self._update_table),
            ("DELETE", table, lambda call: store.delete_table(self._table(call))),
            ("POST", table + "/insertAll", self._insert_all),
            ("GET", table + "/data", self._list_rows),
            ("POST", "/queries", self._query),
            ("GET", r"/queries/(?P<job>[^/]+)", self._query_results),
            ("POST", "/jobs", self._insert_job),
            ("GET", r"/jobs/(?P<job>[^/]+)", lambda call: self._job_resource(self._job(call))),
            ("POST", r"/jobs/(?P<job>[^/]+)/cancel", lambda call: {"job": self._job_resource(self._job(call))}),
        ]
        prefix = r"/bigquery/v2/projects/(?P<project>[^/]+)"
        self._routes = [(method, re.compile(f"{prefix}{path}/?\\Z"), act) for method, path, act in routes]

    def handle(
        self, method: str, path: str, query: Mapping[str, str], body: Any, if_match: str = ""
    ) -> dict[str, Any] | None:
        """Returns the JSON of the response, or None for an empty response. Raises ApiError."""
        if not isinstance(body, dict):
            raise ApiError(400, "parseError", "The body is not a JSON object.")
        for known, pattern, act in self._routes:
            found = pattern.match(path)
            if found and known == method:
                parts = {name: unquote(value) for name, value in found.groupdict().items()}
                return act(Call(parts["project"], parts, query, body, if_match))
        raise ApiError(501, "notImplemented", f"{method} {path} is not supported here.")

    # ---- datasets and tables

    def _table(self, call: Call) -> TableName:
        return TableName(call.project, call.parts["dataset"], call.parts["table"])

    def _list_datasets(self, call: Call) -> dict[str, Any]:
        kept = ("kind", "id", "datasetReference", "location", "labels", "friendlyName")
        found = self.store.datasets(call.project)
        return {
            "kind": "bigquery#datasetList",
            "datasets": [{key: entry[key] for key in kept if key in entry} for entry in found],
        }

    def _update_dataset(self, call: Call) -> dict[str, Any]:
        return self.store.update_dataset(call.project, call.parts["dataset"], call.body, call.if_match)

    def _delete_dataset(self, call: Call) -> None:
        contents = call.query.get("deleteContents", "false").lower() == "true"
        self.store.delete_dataset(call.project, call.parts["dataset"], contents=contents)

    def _list_tables(self, call: Call) -> dict[str, Any]:
        kept = ("kind", "id", "tableReference", "type", "timePartitioning", "clustering", "labels", "creationTime")
        found = self.store.tables(call.project, call.parts["dataset"])
        tables = [{key: entry[key] for key in kept if key in entry} for entry in found]
        return {"kind": "bigquery#tableList", "tables": tables, "totalItems": len(tables)}

    def _create_table(self, call: Call) -> dict[str, Any]:
        return self.store.create_table(call.project, call.parts["dataset"], call.body)

    def _update_table(self, call: Call) -> dict[str, Any]:
        return self.store.update_table(self._table(call), call.body, call.if_match)

    def _insert_all(self, call: Call) -> dict[str, Any]:
        today = datetime.now(UTC).date()
        errors = self.store.insert_all(self._table(call), call.body, time.monotonic(), today)
        answer: dict[str, Any] = {"kind": "bigquery#tableDataInsertAllResponse"}
        return answer | ({"insertErrors": errors} if errors else {})

    def _list_rows(self, call: Call) -> dict[str, Any]:
        start = call.number("pageToken", call.number("startIndex", 0))
        count = min(call.number("maxResults", PAGE_ROWS), PAGE_ROWS)
        selected = [name for name in call.query.get("selectedFields", "").split(",") if name]
        fields, rows, total = self.store.list_rows(self._table(call), start, count, selected)
        answer: dict[str, Any] = {
            "kind": "bigquery#tableDataList",
            "totalRows": str(total),
            "rows": [format_row(fields, row, call.timestamp_format) for row in rows],
        }
        if count and start + len(rows) < total:
            answer["pageToken"] = str(start + len(rows))
        return answer

    # ---- queries

    def _run(self, project: str, job_id: str, query: Mapping[str, Any]) -> Job:
        """Runs a query to completion, because the emulator's jobs are complete as soon as they are created."""
        started = int(time.time() * 1000)
        result, failure = None, None
        try:
            if query.get("useLegacySql", False) is True:
                raise ApiError(400, "invalid", "Legacy SQL is not supported here.")
            default = query.get("defaultDataset") or {}
            result = self.store.query(
                str(query.get("query", "")),
                str(default.get("projectId") or project),
                str(default.get("datasetId") or ""),
                query.get("queryParameters") or (),
            )
        except ApiError as error:
            failure = error
        job = Job(job_id, project, query, started, int(time.time() * 1000), result, failure)
        self._jobs.add(job)
        return job

    def _job(self, call: Call) -> Job:
        job = self._jobs.get(call.project, call.parts["job"])
        if job is None:
            raise ApiError(404, "notFound", f"Not found: Job {call.project}:{call.parts['job']}")
        return job

    def _insert_job(self, call: Call) -> dict[str, Any]:
        configuration = call.body.get("configuration") or {}
        if "query" not in configuration:
            kinds = ", ".join(configuration) or "empty"
            raise ApiError(501, "notImplemented", f"Jobs of kind {kinds} are not supported here, only queries.")
        job_id = str((call.body.get("jobReference") or {}).get("jobId") or uuid.uuid4())
        if self._jobs.get(call.project, job_id) is not None:
            raise ApiError(409, "duplicate", f"Already Exists: Job {call.project}:{job_id}")
        return self._job_resource(self._run(call.project, job_id, configuration["query"]))

    def _job_resource(self, job: Job) -> dict[str, Any]:
        status: dict[str, Any] = {"state": "DONE"}
        if job.error is not None:
            detail = {"reason": job.error.reason, "message": str(job.error), "location": job.error.location}
            status |= {"errorResult": detail, "errors": [detail]}
        statement = job.result.statement if job.result is not None else "SELECT"
        query = {"statementType": statement, "totalBytesProcessed": "0", "cacheHit": False}
        if job.result is not None and job.result.affected is not None:
            query["numDmlAffectedRows"] = str(job.result.affected)
        return {
            "kind": "bigquery#job",
            "id": f"{job.project}:US.{job.id}",
            "jobReference": {"projectId": job.project, "jobId": job.id, "location": "US"},
            "configuration": {"jobType": "QUERY", "query": dict(job.configuration)},
            "status": status,
            "statistics": {
                "creationTime": str(job.started_milliseconds),
                "startTime": str(job.started_milliseconds),
                "endTime": str(job.ended_milliseconds),
                "query": query,
            },
        }

    def _query(self, call: Call) -> dict[str, Any]:
        job = self._run(call.project, str(uuid.uuid4()), call.body)
        count = call.body.get("maxResults")
        return self._page(job, 0, PAGE_ROWS if count is None else int(count), call) | {
            "kind": "bigquery#queryResponse"
        }

    def _query_results(self, call: Call) -> dict[str, Any]:
        start = call.number("pageToken", call.number("startIndex", 0))
        page = self._page(self._job(call), start, call.number("maxResults", PAGE_ROWS), call)
        return page | {"kind": "bigquery#getQueryResultsResponse"}

    def _page(self, job: Job, start: int, count: int, call: Call) -> dict[str, Any]:
        if job.error is not None:
            raise job.error
        assert job.result is not None
        rows = job.result.rows[start : start + min(count, PAGE_ROWS)]
        answer: dict[str, Any] = {
            "jobReference": {"projectId": job.project, "jobId": job.id, "location": "US"},
            "jobComplete": True,
            "schema": resource_of(job.result.fields),
            "totalRows": str(len(job.result.rows)),
            "totalBytesProcessed": "0",
            "cacheHit": False,
        }
        if rows:
            # An empty list is omitted, because clients first request maxResults=0, and would use an empty `rows`
            # as the first page of results.
            answer["rows"] = [format_row(job.result.fields, row, call.timestamp_format) for row in rows]
        if job.result.affected is not None:
            answer["numDmlAffectedRows"] = str(job.result.affected)
        if count and start + len(rows) < len(job.result.rows):
            answer["pageToken"] = str(start + len(rows))
        return answer
