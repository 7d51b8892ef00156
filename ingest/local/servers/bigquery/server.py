"""BigQuery: a small server with the REST calls that streaming, migrations and reading back need.

`python -m ingest.local.servers.bigquery.server` serves data sets, tables and views, `insertAll` with its rules
for bad rows and ids,
listing of rows, and queries in GoogleSQL (translated for DuckDB), on a data directory that survives a kill. An
unmodified google-cloud-bigquery works with it. What it does not know it refuses with an error that says so.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import threading
import time
import traceback
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

from ingest.local.servers.base import HttpServer, Server, answers_http
from ingest.local.servers.processes import HOST, Children

if TYPE_CHECKING:
    from ingest.local.servers.bigquery.store import ApiError, Result, Store

MiB = 1024 * 1024
REQUEST_BYTES_MAX = 10 * MiB
REQUEST_SECONDS_MAX = 300
PAGE_ROWS = 10_000
JOBS_KEPT_MAX = 100
JOB_ROWS_KEPT_MAX = 1_000_000
STATUS_NAMES = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}


class BigQuery(Server):
    """The server process. Data survives stops and kills; the memory of insertIds does not."""

    name: ClassVar[str] = "bigquery"

    def __init__(
        self,
        children: Children,
        directory: Path,
        *,
        name: str = "",
        port: int = 0,
        insert_id_window_seconds: float = 60.0,
        streaming_buffer_seconds: float = 0.0,
    ) -> None:
        super().__init__(children, directory, name=name, port=port)
        self.insert_id_window_seconds = insert_id_window_seconds
        self.streaming_buffer_seconds = streaming_buffer_seconds

    def command(self) -> list[str]:
        """Our own interpreter."""
        window = ["--insert-id-window-seconds", str(self.insert_id_window_seconds)]
        place = ["--data", str(self.directory), "--port", str(self.port)]
        buffer = ["--streaming-buffer-seconds", str(self.streaming_buffer_seconds)]
        return [sys.executable, "-m", "ingest.local.servers.bigquery.server", *place, *window, *buffer]

    def is_ready(self) -> bool:
        """It serves once the database is open."""
        return answers_http(f"{self.address}/health")

    @property
    def address(self) -> str:
        """What goes into `ClientOptions(api_endpoint=...)`."""
        return f"http://{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who, what, with which parameters and body."""

    project: str
    parts: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]

    def number(self, name: str, default: int) -> int:
        """A whole number >= 0 from the URL."""
        text = self.query.get(name, "")
        return int(text) if text.isdecimal() else default

    @property
    def timestamp_format(self) -> str:
        """How this client wants TIMESTAMP values: INT64, FLOAT64 or ISO8601_STRING."""
        options = self.body.get("formatOptions") or {}
        given = options.get("timestampOutputFormat") or self.query.get("formatOptions.timestampOutputFormat")
        whole = options.get("useInt64Timestamp") or self.query.get("formatOptions.useInt64Timestamp")
        if given:
            return str(given)
        return "INT64" if str(whole).lower() == "true" else "FLOAT64"


@dataclass(frozen=True, slots=True)
class Job:
    """A query that ran: its result, or its error."""

    id: str
    project: str
    configuration: Mapping[str, Any]
    started_milliseconds: int
    ended_milliseconds: int
    result: Result | None
    error: ApiError | None


class Jobs:
    """The latest queries. The oldest results go when there are too many."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[tuple[str, str], Job] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        """Keeps it for later pages."""
        with self._lock:
            self._jobs[job.project, job.id] = job
            while len(self._jobs) > 1 and (len(self._jobs) > JOBS_KEPT_MAX or self._rows() > JOB_ROWS_KEPT_MAX):
                self._jobs.popitem(last=False)

    def get(self, project: str, job_id: str) -> Job | None:
        """None if it never was, or is forgotten."""
        with self._lock:
            return self._jobs.get((project, job_id))

    def _rows(self) -> int:
        return sum(len(job.result.rows) for job in self._jobs.values() if job.result is not None)


class Service:
    """The calls, by method and path."""

    def __init__(self, store: Store) -> None:
        # Imported here so that naming the server costs a client nothing; it takes DuckDB, Arrow and sqlglot.
        from ingest.local.servers.bigquery import rows as bigquery_rows
        from ingest.local.servers.bigquery import store as bigquery_store

        self.store = store
        self.errors = bigquery_store.ApiError
        self._names = bigquery_store.TableName
        self._spell_row = bigquery_rows.spell_row
        self._resource_of = bigquery_rows.resource_of
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
            ("PATCH", table, lambda call: store.update_table(self._table(call), call.body)),
            ("PUT", table, lambda call: store.update_table(self._table(call), call.body)),
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

    def handle(self, method: str, path: str, query: Mapping[str, str], body: Any) -> dict[str, Any] | None:
        """The answer's JSON (None: empty). Raises ApiError."""
        if not isinstance(body, dict):
            raise self.errors(400, "parseError", "The body is not a JSON object.")
        for known, pattern, act in self._routes:
            found = pattern.match(path)
            if found and known == method:
                parts = {name: unquote(value) for name, value in found.groupdict().items()}
                return act(Call(parts["project"], parts, query, body))
        raise self.errors(501, "notImplemented", f"{method} {path} is not supported here.")

    # ---- data sets and tables

    def _table(self, call: Call) -> Any:
        return self._names(call.project, call.parts["dataset"], call.parts["table"])

    def _list_datasets(self, call: Call) -> dict[str, Any]:
        kept = ("kind", "id", "datasetReference", "location", "labels", "friendlyName")
        found = self.store.datasets(call.project)
        return {
            "kind": "bigquery#datasetList",
            "datasets": [{key: entry[key] for key in kept if key in entry} for entry in found],
        }

    def _update_dataset(self, call: Call) -> dict[str, Any]:
        return self.store.update_dataset(call.project, call.parts["dataset"], call.body)

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
            "rows": [self._spell_row(fields, row, call.timestamp_format) for row in rows],
        }
        if count and start + len(rows) < total:
            answer["pageToken"] = str(start + len(rows))
        return answer

    # ---- queries

    def _run(self, project: str, job_id: str, query: Mapping[str, Any]) -> Job:
        """Runs it to its end: jobs here are done when they are made."""
        started = int(time.time() * 1000)
        result, failure = None, None
        try:
            if query.get("useLegacySql", False) is True:
                raise self.errors(400, "invalid", "Legacy SQL is not supported here.")
            default = query.get("defaultDataset") or {}
            result = self.store.query(
                str(query.get("query", "")),
                str(default.get("projectId") or project),
                str(default.get("datasetId") or ""),
                query.get("queryParameters") or (),
            )
        except self.errors as error:
            failure = error
        job = Job(job_id, project, query, started, int(time.time() * 1000), result, failure)
        self._jobs.add(job)
        return job

    def _job(self, call: Call) -> Job:
        job = self._jobs.get(call.project, call.parts["job"])
        if job is None:
            raise self.errors(404, "notFound", f"Not found: Job {call.project}:{call.parts['job']}")
        return job

    def _insert_job(self, call: Call) -> dict[str, Any]:
        configuration = call.body.get("configuration") or {}
        if "query" not in configuration:
            kinds = ", ".join(configuration) or "empty"
            raise self.errors(501, "notImplemented", f"Jobs of kind {kinds} are not supported here, only queries.")
        job_id = str((call.body.get("jobReference") or {}).get("jobId") or uuid.uuid4())
        if self._jobs.get(call.project, job_id) is not None:
            raise self.errors(409, "duplicate", f"Already Exists: Job {call.project}:{job_id}")
        return self._job_resource(self._run(call.project, job_id, configuration["query"]))

    def _job_resource(self, job: Job) -> dict[str, Any]:
        status: dict[str, Any] = {"state": "DONE"}
        if job.error is not None:
            detail = {"reason": job.error.reason, "message": str(job.error), "location": job.error.location}
            status |= {"errorResult": detail, "errors": [detail]}
        statement = job.result.statement if job.result is not None else "SELECT"
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
                "query": {"statementType": statement, "totalBytesProcessed": "0", "cacheHit": False},
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
            "schema": self._resource_of(job.result.fields),
            "totalRows": str(len(job.result.rows)),
            "totalBytesProcessed": "0",
            "cacheHit": False,
        }
        if rows:
            # Absent when empty: clients ask with maxResults=0 first and take present rows for the whole page.
            answer["rows"] = [self._spell_row(job.result.fields, row, call.timestamp_format) for row in rows]
        if job.result.affected is not None:
            answer["numDmlAffectedRows"] = str(job.result.affected)
        if count and start + len(rows) < len(job.result.rows):
            answer["pageToken"] = str(start + len(rows))
        return answer


def error_body(code: int, reason: str, message: str, location: str = "") -> dict[str, Any]:
    """The shape of all errors of Google's APIs."""
    detail = {"message": message, "domain": "global", "reason": reason}
    if location:
        detail |= {"location": location, "locationType": "parameter"}
    status = STATUS_NAMES.get(code, "UNKNOWN")
    return {"error": {"code": code, "message": message, "errors": [detail], "status": status}}


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS_MAX
    disable_nagle_algorithm = True
    wbufsize = -1

    service: ClassVar[Service]

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        errors = self.service.errors
        try:
            body = self._body()
            if url.path == "/health":
                self._answer(200, {})
                return
            query = dict(parse_qsl(url.query, keep_blank_values=True))
            answer = self.service.handle(self.command, url.path, query, json.loads(body) if body else {})
            self._answer(204 if answer is None else 200, answer)
        except errors as error:
            self._answer(error.code, error_body(error.code, error.reason, str(error), error.location))
        except ValueError as error:
            self._answer(400, error_body(400, "parseError", f"Parse error: {error}"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            self._answer(500, error_body(500, "backendError", f"{type(error).__name__}: {error}"))

    def _body(self) -> bytes:
        """The body, inflated. The service's limit of 10 MB holds for both forms."""
        size = int(self.headers.get("Content-Length") or 0)
        if size > REQUEST_BYTES_MAX:
            self.close_connection = True
            raise self._too_large(size)
        data = self.rfile.read(size)
        if self.headers.get("Content-Encoding", "").lower() == "gzip":
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"gzip: {error}") from error
            if len(data) > REQUEST_BYTES_MAX:
                raise self._too_large(len(data))
        return data

    def _too_large(self, size: int) -> ApiError:
        text = f"Request of {size} bytes exceeds the limit of {REQUEST_BYTES_MAX} bytes."
        return self.service.errors(413, "requestTooLarge", text)

    def _answer(self, status: int, body: Mapping[str, Any] | None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        if self.close_connection:
            self.send_header("Connection", "close")
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not news."""


def main() -> None:
    """python -m ingest.local.servers.bigquery.server --data DIRECTORY --port PORT"""
    from ingest.local.servers.bigquery.store import INSERT_ID_WINDOW_SECONDS, Store

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--insert-id-window-seconds", type=float, default=INSERT_ID_WINDOW_SECONDS)
    parser.add_argument("--streaming-buffer-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    server = HttpServer((HOST, arguments.port), Handler)
    store = Store(
        arguments.data / "bigquery.duckdb",
        insert_id_window_seconds=arguments.insert_id_window_seconds,
        streaming_buffer_seconds=arguments.streaming_buffer_seconds,
    )
    Handler.service = Service(store)
    server.serve_forever()


if __name__ == "__main__":
    main()
