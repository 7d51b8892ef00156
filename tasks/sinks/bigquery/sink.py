"""Facts into BigQuery, streamed with tabledata.insertAll, of rows that the reader has encoded.

Each row carries its identity as insertId. BigQuery drops a row whose id it saw within about a minute, best
effort; later repetitions are stored again. The column `row_id` holds the same identity, so exact numbers are one
clause away, at any time:

    SELECT ... FROM t WHERE ... QUALIFY ROW_NUMBER() OVER (PARTITION BY row_id ORDER BY timestamp) = 1

and the view `<table>_exact` that migrations create is that query. The request's body is put together from the
rows' bytes as they are; nothing is decoded or encoded again. Rows are judged one by one (skipInvalidRows), so a
refused row does not keep its neighbours out.
https://cloud.google.com/bigquery/docs/reference/rest/v2/tabledata/insertAll
Why not the Storage Write API: docs/decisions/024-insert-all.md.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from tasks.errors import PermanentSinkError
from tasks.settings import Settings
from tasks.sinks.google.errors import TRANSIENT_REASONS, advice, sort
from tasks.sinks.outcome import Kind, Outcome, Trouble, remaining_seconds
from tasks.sinks.per_process import PerProcess
from tasks.units import MiB
from tasks.wire import TABLES_OF_SINK, Row, SinkName

TABLES = TABLES_OF_SINK[SinkName.BIGQUERY]
SCHEMA = Path(__file__).parents[1] / "schema" / "bigquery"

# https://cloud.google.com/bigquery/quotas#streaming_inserts allows 10 MB and 50,000 rows a request.
REQUEST_BYTES_MAX = 9 * MiB
REQUEST_ROWS_MAX = 10_000
INSERT_ID_CHARACTERS_MAX = 128
BODY_START = b'{"skipInvalidRows":true,"ignoreUnknownValues":false,"rows":['
BODY_END = b"]}"

# The neighbours of a bad row, in a request that was refused whole.
STOPPED = "stopped"


class BigQuerySink:
    """Writes RowItems. Memory: one request's body at a time, at most 9 MiB (or one row, if that is larger)."""

    name = "bigquery"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = PerProcess(lambda: client(settings))

    def write(self, items: Sequence[Row], token: str, deadline_seconds: float) -> None:
        """Streams `items` in as few requests as their sizes allow; `token` is not needed, rows have ids.

        PermanentSinkError.failed names refused rows, all others are durable; where `all_refused` is set, one
        of the requests was refused as a whole because of them.
        """
        ends_at = time.monotonic() + deadline_seconds
        outcome = Outcome(self.name)
        tables: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            tables.setdefault(item.table, []).append(position)
        for table, positions in tables.items():
            for request in requests(items, positions):
                self._insert(table, items, request, ends_at, outcome)
        outcome.raise_if_any()

    def _insert(
        self, table: str, items: Sequence[Row], positions: list[int], ends_at: float, outcome: Outcome
    ) -> None:
        """One insertAll; notes what it did not take."""
        left_seconds = remaining_seconds(ends_at)
        if left_seconds <= 0:
            outcome.note(Trouble(Kind.TRANSIENT, "no time left for the insert"), positions)
            return
        project, dataset = self._settings.bigquery_project, self._settings.bigquery_dataset
        try:
            connection: Any = self._client.get()._connection
            answer = connection.api_request(
                method="POST",
                path=f"/projects/{project}/datasets/{dataset}/tables/{quote(table, safe='')}/insertAll",
                data=body_of(items, positions),
                content_type="application/json",
                timeout=left_seconds,
            )
            refusals = list(answer.get("insertErrors") or ()) if isinstance(answer, dict) else []
        except Exception as error:
            trouble = sort(error)
            trouble = replace(trouble, message=f"table {table}: {trouble.message}")
            outcome.note(trouble, positions, named=len(positions) == 1)
            return
        self._note_refusals(table, positions, refusals, outcome)

    def _note_refusals(
        self, table: str, positions: list[int], refusals: list[dict[str, Any]], outcome: Outcome
    ) -> None:
        """Sorts `insertErrors`: bad rows, rows that were only stopped by them, rows to be tried again."""
        stopped: list[int] = []
        refused = False
        for refusal in refusals:
            position = positions[int(refusal.get("index", 0))]
            errors = [error for error in refusal.get("errors") or () if isinstance(error, dict)]
            reasons = {str(error.get("reason", "")) for error in errors}
            text = "; ".join(_described(error) for error in errors) or "refused without a reason"
            if reasons == {STOPPED}:
                stopped.append(position)
            elif reasons and reasons <= TRANSIENT_REASONS | {STOPPED}:
                outcome.note(Trouble(Kind.TRANSIENT, f"table {table}: {text}"), [position])
            elif "no such field" in text.lower():
                # The reader is newer than the table: every row has that field, and none is to blame.
                text = f"table {table}: {text}; run `replays-ingest migrate`"
                outcome.note(Trouble(Kind.CONFIGURATION, text), [position])
            else:
                refused = True
                outcome.note(Trouble(Kind.DATA, f"table {table}: {text}"), [position])
        if stopped and refused:
            outcome.note_nothing_written()
        elif stopped:
            outcome.note(Trouble(Kind.TRANSIENT, f"table {table}: stopped by other rows"), stopped)

    def check(self) -> str:
        """Sees the data set, its tables and their columns."""
        settings = self._settings
        dataset = f"{settings.bigquery_project}.{settings.bigquery_dataset}"
        timeout: dict[str, Any] = {"timeout": settings.sink_timeout_seconds, "retry": None}
        try:
            server: Any = self._client.get()
            tables = server.list_tables(dataset, **timeout)
            found = {table.table_id for table in tables}
            columns = {
                f"{name}.{column}"
                for name in found.intersection(TABLES)
                for column in columns_of(name)
                - {field.name for field in server.get_table(f"{dataset}.{name}", **timeout).schema}
            }
        except Exception as error:
            trouble = sort(error)
            todo = advice(error, "run `replays-ingest migrate`", "grant access to it")
            raise Trouble(trouble.kind, f"data set {dataset}: {trouble.message}{todo}").error() from error
        missing = [table for table in TABLES if table not in found] + sorted(columns)
        if missing:
            raise PermanentSinkError(
                f"data set {dataset} lacks {', '.join(missing)}; run `replays-ingest migrate`", configuration=True
            )
        return f"data set {dataset}, {len(TABLES)} tables in place"

    def close(self) -> None:
        server: Any = self._client.take()
        if server is not None:
            server.close()


def columns_of(table: str) -> set[str]:
    """The columns that this release writes, as `schema/bigquery` describes them."""
    description = json.loads((SCHEMA / f"{table}.json").read_text())
    return {field["name"] for field in description["fields"]}


def client(settings: Settings) -> bigquery.Client:
    """The official client for these settings; opens no connection. Also for migrations and readers."""
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
    """The JSON body of one insertAll, from the rows' own bytes."""
    parts: list[bytes | memoryview] = [BODY_START]
    for place, position in enumerate(positions):
        item = items[position]
        parts.append(b"," if place else b"")
        parts.append(_row_start(item))
        parts.append(item.json)
        parts.append(b"}")
    parts.append(BODY_END)
    return b"".join(parts)


def requests(items: Sequence[Row], positions: Sequence[int]) -> Iterator[list[int]]:
    """Positions that fit into one request, in order. A row that is too large by itself goes alone: the server
    has the last word on it."""
    request: list[int] = []
    size_bytes = 0
    for position in positions:
        item = items[position]
        row_bytes = len(item.json) + len(item.id) + 32
        if request and (size_bytes + row_bytes > REQUEST_BYTES_MAX or len(request) >= REQUEST_ROWS_MAX):
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


def _described(error: dict[str, Any]) -> str:
    place = f" at {error['location']}" if error.get("location") else ""
    return f"{error.get('reason', '')}{place}: {error.get('message', '')}"
