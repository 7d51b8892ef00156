"""Inserts rows encoded by the reader (JSONEachRow) into ClickHouse, one insert per table.

Repeated inserts are harmless for three reasons. An insert has a token derived from its batch, flush task, table
and choice of rows, and the server skips an insert if one of the last `deduplication_window` inserts had the same
token. Outside this window, or with another token, rows with the same identity replace each other when parts merge;
a query with FINAL never returns both. The materialized view counts distinct identities, so it does not count
repeated rows twice.

An insert is one block: the server parses all of it before it writes, so a refused insert stores nothing.
The server responds when the write is complete (`wait_end_of_query`); progress headers, which would start the
response early, are disabled.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect

from tasks.errors import PermanentSinkError
from tasks.printed import without_secrets
from tasks.settings import Settings
from tasks.sinks.base import Report
from tasks.sinks.clickhouse.answers import failure_of, reports_zero_rows
from tasks.sinks.clickhouse.errors import row_of
from tasks.sinks.clickhouse.probe import TABLE as PROBE_TABLE
from tasks.sinks.clickhouse.probe import failure_of_query, probe
from tasks.sinks.clickhouse.server import COMPRESSION, Server
from tasks.sinks.clickhouse.table import (
    COLUMNS,
    PARTITIONS_SETTING,
    VIEW_TABLES,
    TableFacts,
    dry_run_rows,
    facts_of,
    facts_query,
    failure_of_dry_run,
    is_dry_run_safe,
    mismatches,
)
from tasks.sinks.http.answers import Answer, unproven_success
from tasks.sinks.outcome import Blame, Failure, Outcome
from tasks.sinks.per_process import PerProcessValue
from tasks.wire import TABLES_BY_SINK, Row, SinkName

CONNECT_SECONDS_MAX = 10.0
REMOVED_ROWS_MAX = 16
# If the server reports the first of the remaining rows as bad this many consecutive times, it probably refuses all
# of them.
FIRST_ROW_REPORTS_MAX = 3
TABLES = (*COLUMNS, *VIEW_TABLES)


class ClickHouseSink:
    """Writes rows. Needs memory for one encoded and one compressed copy of a table's rows."""

    name = "clickhouse"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = PerProcessValue(lambda: Server(settings))

    def write(self, items: Sequence[Row], token: str, deadline_seconds: float) -> None:
        """Inserts `items`, one table at a time; a failing table does not prevent the others from being written.

        A row named by the server is removed, written alone to confirm that it is at fault, and reported in
        PermanentSinkError.failed; all others are then durable. If the server names none, or more than 16 rows are
        bad, `failed` is None and the caller bisects.
        """
        outcome = Outcome(self.name)
        write = _Write(self._server.get(), items, token, time.monotonic() + deadline_seconds, outcome)
        tables: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            tables.setdefault(item.table, []).append(position)
        for table, positions in tables.items():
            if table in TABLES_BY_SINK[SinkName.CLICKHOUSE]:  # the table's name becomes part of the statement
                write.table(table, positions)
            else:
                outcome.note(Failure(Blame.TABLE, f"this release writes no table {table!r}"), positions)
        outcome.raise_if_any()

    def examine(self, items: Sequence[Row], deadline_seconds: float) -> None:
        """Checks the engine and the columns of each table, and whether the table accepts rows that are known to be
        good.
        """
        ends_at = time.monotonic() + deadline_seconds
        tables = sorted({item.table for item in items} & set(TABLES))
        if not tables:
            return
        facts = self._facts(tables, ends_at)
        for table in tables:
            failure = self._fault(table, facts.get(table), ends_at)
            if failure is not None:
                raise failure.about(f"clickhouse: table {table}").error()

    def _facts(self, tables: Sequence[str], ends_at: float) -> dict[str, TableFacts]:
        """Returns the server's description of these tables. Raises SinkError."""
        end = self._server.get().query(facts_query(tables), ends_at)
        failure = failure_of_query(end)
        if failure is None and isinstance(end, Answer):
            facts = facts_of(end)
            if facts is not None:
                return facts
            failure = unproven_success(end, "the response is not a query result")
        assert failure is not None
        raise failure.about(without_secrets(self._settings.clickhouse_url)).error()

    def _fault(self, table: str, facts: TableFacts | None, ends_at: float) -> Failure | None:
        """Returns the problem with the table itself. Returns None if the table accepts valid rows, as far as that
        can be tested."""
        problems = list(mismatches(table, facts))
        if problems:
            return Failure(Blame.TABLE, "; ".join(problems))
        if facts is None or not is_dry_run_safe(table, facts):
            return None
        end = self._server.get().insert(table, dry_run_rows(table, time.time()), {PARTITIONS_SETTING: 1}, ends_at)
        return end if isinstance(end, Failure) else failure_of_dry_run(end)

    def check(self) -> Report:
        """Checks the tables and their columns, tests whether they accept good rows, and writes, reads back and
        deletes a row that belongs to no replay."""
        settings = self._settings
        ends_at = time.monotonic() + settings.sink_timeout_seconds
        facts = self._facts(TABLES, ends_at)
        missing = [table for table in TABLES if table not in facts]
        if missing:
            raise PermanentSinkError(
                f"{without_secrets(settings.clickhouse_url)}: database {settings.clickhouse_database} lacks "
                f"{', '.join(missing)}; run `replays-ingest migrate`",
                configuration=True,
            )
        not_tested: list[str] = []
        for table in TABLES:
            failure = self._fault(table, facts[table], ends_at)
            if failure is not None:
                raise failure.about(f"{without_secrets(settings.clickhouse_url)}: table {table}").error()
            if table in COLUMNS and not is_dry_run_safe(table, facts[table]):
                not_tested.append(f"whether {table} accepts a row: it is not partitioned by week")
        warnings = [
            f"table {table} has the engine {facts[table].engine}: repeated rows may not replace each other"
            for table in TABLES
            if not facts[table].engine.endswith("MergeTree")
        ]
        server = self._server.get()
        probed = probe(
            lambda table, block: server.insert(table, block, {}, ends_at), lambda sql: server.query(sql, ends_at)
        )
        if probed.failure is not None:
            raise probed.failure.about(f"{without_secrets(settings.clickhouse_url)}: table {PROBE_TABLE}").error()
        return Report(
            f"{without_secrets(settings.clickhouse_url)}, database {settings.clickhouse_database}: "
            f"{len(TABLES)} tables in place; a row was {', '.join(probed.steps)}",
            (*warnings, *probed.warnings),
            (*not_tested, *probed.not_tested),
        )

    def close(self) -> None:
        server = self._server.take()
        if server is not None:
            server.close()


class _Write:
    """One call to `write`. Records in `outcome` the rows that did not become durable."""

    def __init__(self, server: Server, items: Sequence[Row], token: str, ends_at: float, outcome: Outcome) -> None:
        self._server = server
        self._items = items
        self._token = token
        self._ends_at = ends_at
        self._outcome = outcome

    def table(self, table: str, positions: list[int]) -> None:
        """Writes the rows of one table, in one insert unless it would be too large."""
        pending_chunks = deque(chunks(self._items, positions, self._server.limit.bytes_max))
        while pending_chunks:
            wanted = pending_chunks.popleft()
            failure = self._insert(table, wanted)
            if failure is None:
                continue
            if failure.blame is Blame.SIZE and len(wanted) > 1:
                self._server.limit.refused(_size_bytes(self._items, wanted))
                middle = len(wanted) // 2
                pending_chunks.extendleft((wanted[middle:], wanted[:middle]))
            elif failure.blame is Blame.BATCH and len(wanted) > 1:
                self._insert_without_named_rows(table, wanted, failure)
            else:
                self._outcome.note(self._blame_single_row(failure, wanted), wanted)

    def _blame_single_row(self, failure: Failure, wanted: list[int]) -> Failure:
        """Returns the error with ROW as its cause if a single row was refused, because that row is then at
        fault.
        """
        if len(wanted) > 1 or not failure.blame.blames_items:
            return failure
        if failure.blame is Blame.SIZE:
            size_bytes = len(self._items[wanted[0]].json)
            return Failure(Blame.ROW, f"one row of {size_bytes} bytes is too large: {failure.message}")
        return failure.blamed(Blame.ROW)

    def _insert_without_named_rows(self, table: str, positions: list[int], failure: Failure) -> None:
        """Removes, one at a time, the rows that the server reports as bad, and writes the remaining rows."""
        wanted, refused, first = list(positions), 0, 0
        while wanted:
            row = row_of(failure.message)
            first = first + 1 if row == 0 else 0
            too_many = refused >= REMOVED_ROWS_MAX or first > FIRST_ROW_REPORTS_MAX
            if row is None or row >= len(wanted) or too_many:
                self._outcome.note(self._blame_single_row(failure, wanted), wanted)
                return
            suspect = wanted[row]
            if len(wanted) > 1:
                single_result = self._insert(table, [suspect])
                if single_result is None or single_result.blame is not Blame.BATCH:
                    # Either the row has now been written, so it was not at fault, or the server currently cannot
                    # tell whether the row is at fault.
                    self._outcome.note(single_result or failure, wanted)
                    return
                failure = single_result
            self._outcome.note(failure.blamed(Blame.ROW), [suspect])
            refused += 1
            wanted.remove(suspect)
            again = self._insert(table, wanted) if wanted else None
            if again is None:
                return
            failure = again
            if failure.blame is not Blame.BATCH:
                self._outcome.note(self._blame_single_row(failure, wanted), wanted)
                return

    def _insert(self, table: str, positions: list[int]) -> Failure | None:
        """Runs one INSERT. Returns None if the response proves that the rows are durable."""
        block = b"\n".join([self._items[position].json for position in positions])
        token = _table_token(self._token, table, len(self._items), positions)
        for attempt in (token, f"{token}:again"):
            settings = {"insert_deduplication_token": attempt}
            end = self._server.insert(table, block, settings, self._ends_at)
            if isinstance(end, Failure):
                return end.about(f"table {table}")
            failure = failure_of(end, len(positions))
            if failure is None or not reports_zero_rows(end):
                break
            # Either the server skipped the insert because it had already accepted this token, or the insert wrote
            # nothing. An insert with another token shows which of these happened.
        return failure and failure.about(f"table {table}")


def client(settings: Settings, *, database: str | None = None) -> Any:
    """Returns a connected clickhouse-connect client for migrations and queries; the sink itself does not use this
    client. Several threads may share the client.

    Raises the driver's exceptions; `tasks.sinks.clickhouse.errors.classify` classifies them.
    """
    url = urlsplit(settings.clickhouse_url)
    ca_file = settings.clickhouse_tls_ca_file
    connected: Any = clickhouse_connect.get_client(
        interface=url.scheme,
        host=url.hostname or "",
        port=url.port or (8443 if url.scheme == "https" else 8123),
        proxy_path=url.path,
        username=settings.clickhouse_user,
        password=settings.clickhouse_password.get_secret_value(),
        database=settings.clickhouse_database if database is None else database,
        ca_cert=str(ca_file) if ca_file else None,
        # All clients of the process share the driver's default pool, and closing a client does not close it.
        dedicated_pool=True,
        connect_timeout=math.ceil(min(settings.sink_timeout_seconds, CONNECT_SECONDS_MAX)),
        send_receive_timeout=math.ceil(settings.sink_timeout_seconds),
        compress=COMPRESSION,
        # With a session, the server would refuse an insert while another one runs.
        autogenerate_session_id=False,
        client_name="replays-ingest",
    )
    connected.http_retries = 0  # the callers retry; retries here would exceed their deadlines
    return connected


def chunks(items: Sequence[Row], positions: Sequence[int], bytes_max: int) -> Iterator[list[int]]:
    """Groups of positions whose rows fit into one insert, in order. A row that is too large forms its own
    group.
    """
    chunk: list[int] = []
    size_bytes = 0
    for position in positions:
        row_bytes = len(items[position].json) + 1
        if chunk and size_bytes + row_bytes > bytes_max:
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(position)
        size_bytes += row_bytes
    if chunk:
        yield chunk


def _size_bytes(items: Sequence[Row], positions: Sequence[int]) -> int:
    """Returns the size of the uncompressed rows; all rows compress at about the same ratio."""
    return sum(len(items[position].json) + 1 for position in positions)


def _table_token(token: str, table: str, items: int, positions: list[int]) -> str:
    """Returns the deduplication token for the rows at `positions` in this write.

    A repeated write is divided into the same groups of rows with the same tokens. If a refused row has been
    removed, the group has different content, so it gets a different token.
    """
    if len(positions) == items:
        return f"{token}:{table}"
    places = hashlib.blake2b(repr(positions).encode(), digest_size=8).hexdigest()
    return f"{token}:{table}:{places}"
