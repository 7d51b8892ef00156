"""Streams rows encoded by the reader to BigQuery with tabledata.insertAll.

Each row is sent with its identity as the insertId. BigQuery drops a row, on a best-effort basis, if it received a
row with the same id within about the last minute; later duplicates are stored. The columns `project_id` and
`row_id` also identify a row, so a single clause gives exact numbers at any time:

    SELECT ... FROM t WHERE ... QUALIFY ROW_NUMBER() OVER (PARTITION BY project_id, row_id ORDER BY timestamp) = 1

The view `<table>_exact`, which migrations create, is that query. Request bodies are concatenated from the rows'
bytes without re-encoding. Rows are validated individually (skipInvalidRows), so a refused row does not affect
others. Credentials and addresses come from the official client; requests are sent with libcurl.
https://cloud.google.com/bigquery/docs/reference/rest/v2/tabledata/insertAll Why not the Storage Write API:
docs/decisions/024-insert-all.md.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import Request
from google.cloud import bigquery

from tasks.settings import Settings
from tasks.sinks.base import Report
from tasks.sinks.bigquery.answers import Refusal, refusals_of
from tasks.sinks.bigquery.table import dry_run_insert, failure_of_dry_run, fault_of_resource
from tasks.sinks.google.errors import classify
from tasks.sinks.http.answers import Answer
from tasks.sinks.http.limits import BodyLimit
from tasks.sinks.http.transfers import Connections, Method
from tasks.sinks.outcome import Action, Blame, Failure, Outcome, seconds_until
from tasks.sinks.per_process import PerProcessValue
from tasks.units import MiB
from tasks.wire import TABLES_BY_SINK, EncodedRows, Row, SinkName

TABLES = TABLES_BY_SINK[SinkName.BIGQUERY]

# https://cloud.google.com/bigquery/quotas#streaming_inserts allows 10 MB and 50,000 rows per request.
REQUEST_BYTES_MAX = 9 * MiB
REQUEST_ROWS_MAX = 10_000
INSERT_ID_CHARACTERS_MAX = 128
BODY_START = b'{"skipInvalidRows":true,"ignoreUnknownValues":false,"rows":['
BODY_END = b"]}"


class BigQuerySink:
    """Writes rows. Memory: one request's body at a time, at most 9 MiB (or one row, if that is larger)."""

    name = "bigquery"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._service = PerProcessValue(lambda: Service(settings))

    def write(self, items: Sequence[Row], token: str, deadline_seconds: float) -> None:
        """Streams `items` in as few requests as their sizes allow; `token` is not needed, because rows have ids.

        PermanentSinkError.failed names the refused rows. All other rows are durable unless `all_refused` is set,
        which means that a request was refused as a whole because of these rows.
        """
        ends_at = time.monotonic() + deadline_seconds
        outcome = Outcome(self.name)
        items = list(items)  # rows that the reader encoded for the other API become JSON
        service = self._ready()
        tables: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            tables.setdefault(item.table, []).append(position)
        for table, positions in tables.items():
            if table not in TABLES:
                outcome.note(Failure(Blame.TABLE, f"this release writes no table {table!r}"), positions)
                continue
            waiting = deque(requests(items, positions, service.limit.bytes_max))
            while waiting:
                request = waiting.popleft()
                waiting.extendleft(reversed(self._insert(service, table, items, request, ends_at, outcome)))
        outcome.raise_if_any()

    def _ready(self) -> Service:
        """Returns the service of this process, with a token that is valid for this write."""
        try:
            service = self._service.get()
            service.refresh()
        except Exception as error:
            raise classify(error).error() from error
        return service

    def _insert(
        self,
        service: Service,
        table: str,
        items: Sequence[Row],
        positions: list[int],
        ends_at: float,
        outcome: Outcome,
    ) -> list[list[int]]:
        """Sends one insertAll request, and records which rows were not stored. Returns the halves of a request
        that was too large.
        """
        body = body_of(items, positions)
        end = service.send(Method.POST, f"{quote(table, safe='')}/insertAll", body, ends_at)
        found = end if isinstance(end, Failure) else refusals_of(end, len(positions))
        if not isinstance(found, Failure):
            _note_refusals(table, positions, found, outcome)
            return []
        failure = found.about(f"table {table}")
        if failure.blame is Blame.SIZE and len(positions) > 1:
            service.limit.refused(len(body))
            middle = len(positions) // 2
            return [positions[:middle], positions[middle:]]
        if failure.blame is Blame.SIZE:
            text = f"one row of {len(body)} bytes is too large: {failure.message}"
            failure = Failure(Blame.ROW, text)
        if failure.blame is Blame.BATCH and len(positions) == 1:
            failure = failure.blamed(Blame.ROW)
        outcome.note(failure, positions)
        return []

    def examine(self, items: Sequence[Row], deadline_seconds: float) -> None:
        """Checks the columns of each table, and whether the table accepts a row that is known to be good."""
        ends_at = time.monotonic() + deadline_seconds
        service = self._ready()
        tables = {items.staged.table} if isinstance(items, EncodedRows) else {item.table for item in items}
        for table in sorted(tables):
            failure = self._fault(service, table, ends_at)
            if failure is not None:
                raise failure.about(f"bigquery: table {table}").error()

    def _fault(self, service: Service, table: str, ends_at: float) -> Failure | None:
        """Returns the problem with the table; None if the table accepts valid rows."""
        if table not in TABLES:
            return None
        end = service.send(Method.GET, table, b"", ends_at)
        failure = end if isinstance(end, Failure) else fault_of_resource(table, end)
        # An account without permission to read the table may still have permission to write to it. The dry run
        # with a valid row shows whether it has.
        if failure is not None and failure.blame is not Blame.CREDENTIALS:
            return failure
        end = service.send(Method.POST, f"{quote(table, safe='')}/insertAll", dry_run_insert(table), ends_at)
        return end if isinstance(end, Failure) else failure_of_dry_run(end)

    def check(self) -> Report:
        """Checks that the tables have the right columns and accept a valid row, and that the views exist."""
        settings = self._settings
        dataset = f"{settings.bigquery_project}.{settings.bigquery_dataset}"
        ends_at = time.monotonic() + settings.sink_timeout_seconds
        service, warnings = self._ready(), []
        for table in TABLES:
            failure = self._fault(service, table, ends_at)
            if failure is not None:
                advice = _table_advice(failure)
                raise Failure(
                    failure.blame, f"dataset {dataset}, table {table}: {failure.message}{advice}"
                ).error()
            end = service.send(Method.GET, f"{table}_exact", b"", ends_at)
            if isinstance(end, Answer) and end.status == 404:
                warnings.append(f"view {table}_exact is missing; run `replays-ingest migrate`")
        return Report(
            f"dataset {dataset}, {len(TABLES)} tables in place, each would take a row of this release",
            tuple(warnings),
            ("storing a row: BigQuery cannot delete a streamed row for up to 90 minutes",),
        )

    def close(self) -> None:
        service = self._service.take()
        if service is not None:
            service.close()


class Service:
    """State of one process: the official client, which supplies credentials and addresses, and the process's
    connections.
    """

    def __init__(self, settings: Settings) -> None:
        self._client: Any = client(settings)
        self._connections = Connections(1)
        self._fetch_token = Request()
        self._headers: list[str] = []
        self._tables = f"/projects/{settings.bigquery_project}/datasets/{settings.bigquery_dataset}/tables/"
        self.limit = BodyLimit(REQUEST_BYTES_MAX)

    def refresh(self) -> None:
        """Fetches a new token when the current one is about to expire. Raises google-auth's exceptions."""
        headers = {"Content-Type": "application/json", "User-Agent": "replays-ingest", "Expect": ""}
        url = self._client._connection.API_BASE_URL
        self._client._credentials.before_request(self._fetch_token, "POST", url, headers)
        self._headers = [f"{name}: {value}" if value else f"{name}:" for name, value in headers.items()]

    def send(self, method: Method, path: str, body: bytes, ends_at: float) -> Answer | Failure:
        """Sends one request about a table; `path` begins with the table's name."""
        remaining_seconds = seconds_until(ends_at)
        if remaining_seconds <= 0:
            return Failure(Blame.NETWORK, "no time left for the request")
        url = self._client._connection.build_api_url(path=self._tables + path)
        return self._connections.for_this_thread.send(url, self._headers, body, remaining_seconds, method=method)

    def close(self) -> None:
        """Closes the connections of this process."""
        self._connections.close()
        self._client.close()


def _note_refusals(table: str, positions: list[int], refusals: Sequence[Refusal], outcome: Outcome) -> None:
    """Records bad rows, rows refused only because of bad rows, and rows to be retried."""
    stopped: list[int] = []
    refused = False
    for refusal in refusals:
        position = positions[refusal.index]
        if refusal.failure is None:
            stopped.append(position)
            continue
        refused = refused or refusal.failure.blame.action is not Action.RETRY
        outcome.note(refusal.failure.about(f"table {table}"), [position])
    if refused:
        outcome.note_excluded(stopped)
    elif stopped:
        outcome.note(Failure(Blame.SERVER, f"table {table}: stopped by other rows"), stopped)


def _table_advice(failure: Failure) -> str:
    """Returns advice about a table, to be appended to the error message."""
    if failure.blame is Blame.CREDENTIALS:
        return "; grant access to it (roles/bigquery.dataEditor)"
    return (
        "; run `replays-ingest migrate`"
        if "migrate" not in failure.message and ("not found" in failure.message.lower())
        else ""
    )


def client(settings: Settings) -> bigquery.Client:
    """Returns the official client for these settings; opens no connection. Migrations and readers use it too."""
    if settings.bigquery_endpoint:
        return bigquery.Client(
            project=settings.bigquery_project,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options=ClientOptions(api_endpoint=settings.bigquery_endpoint.rstrip("/")),
        )
    options = None
    if settings.google_credentials_file:
        options = ClientOptions(credentials_file=str(settings.google_credentials_file))
    return bigquery.Client(project=settings.bigquery_project, client_options=options)


def body_of(items: Sequence[Row], positions: Sequence[int]) -> bytes:
    """Returns the JSON body of one insertAll request, from the rows' own bytes."""
    parts: list[bytes | memoryview] = [BODY_START]
    for place, position in enumerate(positions):
        item = items[position]
        parts.append(b"," if place else b"")
        parts.append(_row_start(item))
        parts.append(item.json)
        parts.append(b"}")
    parts.append(BODY_END)
    return b"".join(parts)


def requests(
    items: Sequence[Row], positions: Sequence[int], bytes_max: int = REQUEST_BYTES_MAX
) -> Iterator[list[int]]:
    """Positions that fit into one request, in order. A single row that is too large is sent alone, and the server
    decides whether to accept it."""
    request: list[int] = []
    size_bytes = 0
    for position in positions:
        item = items[position]
        row_bytes = len(item.json) + len(item.id) + 32
        if request and (size_bytes + row_bytes > bytes_max or len(request) >= REQUEST_ROWS_MAX):
            yield request
            request, size_bytes = [], 0
        request.append(position)
        size_bytes += row_bytes
    if request:
        yield request


def _row_start(item: Row) -> bytes:
    insert_id = item.id
    if len(insert_id) > INSERT_ID_CHARACTERS_MAX:
        insert_id = hashlib.blake2b(insert_id.encode(), digest_size=32).hexdigest()
    return b'{"insertId":' + json.dumps(insert_id).encode() + b',"json":'
