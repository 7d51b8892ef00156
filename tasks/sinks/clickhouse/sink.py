"""Rows into ClickHouse: one insert a table, of lines that the reader has encoded (JSONEachRow), byte for byte.

Repetition is harmless three times over. An insert carries a token made of the batch's and the table's name: the
server skips it when one with the same token is among the last `deduplication_window` ones. Past the window, or
under another token, rows of the same identity replace each other when parts merge, and at once for a query with
FINAL. And the materialised view counts distinct identities, so it does not count twice either.

An insert is one block: the server parses all of it before it writes, so a refused one left nothing behind. It
answers when the write is over (`wait_end_of_query`), and no progress headers begin the answer before that.
The driver's pool and its parsing are not needed for that; inserts are libcurl's, as uploads are.
"""

from __future__ import annotations

import hashlib
import math
import time
from base64 import b64encode
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.compression import get_compressor

from tasks.errors import PermanentSinkError
from tasks.printed import without_secrets
from tasks.settings import Settings
from tasks.sinks.base import Report
from tasks.sinks.clickhouse.answers import (
    WANTED_HEADERS,
    exception_of,
    says_nothing_was_new,
    trouble_of,
)
from tasks.sinks.clickhouse.errors import row_of
from tasks.sinks.clickhouse.table import (
    COLUMNS,
    PARTITIONS_SETTING,
    VIEW_TABLES,
    TableFacts,
    can_be_tried,
    dry_rows,
    facts_of,
    facts_query,
    fault_of_dry_insert,
    misfits,
)
from tasks.sinks.http.answers import Answer, trouble_of_status, unproven
from tasks.sinks.http.limits import BodyLimit
from tasks.sinks.http.transfers import Connections, Proxies
from tasks.sinks.outcome import Blame, Outcome, Trouble, remaining_seconds
from tasks.sinks.per_process import PerProcess
from tasks.units import KiB, MiB
from tasks.wire import TABLES_OF_SINK, Row, SinkName

COMPRESSION = "lz4"
COMPRESS_FROM_BYTES = 4 * KiB
CONNECT_SECONDS_MAX = 10.0
NAMED_ROWS_MAX = 16
BODY_BYTES_MAX = 256 * MiB
TABLES = (*COLUMNS, *VIEW_TABLES)

INSERT_SETTINGS: dict[str, Any] = {
    # The answer has to mean durable: here, on the shards of a Distributed table, and not before the end.
    "async_insert": 0,
    "insert_distributed_sync": 1,
    "wait_end_of_query": 1,
    "send_progress_in_http_headers": 0,
    "date_time_input_format": "best_effort",
    "input_format_allow_errors_num": 0,  # nothing silent: a row is written or named
    "input_format_allow_errors_ratio": 0,
    "input_format_skip_unknown_fields": 0,
    "input_format_null_as_default": 1,
    "input_format_defaults_for_omitted_fields": 1,
    "input_format_parallel_parsing": 0,  # rows are numbered from the start of the insert only without it
    "max_partitions_per_insert_block": 0,  # one client with a wild clock must not block everybody's batch
    "insert_deduplicate": 1,
    # Without it, an insert that died between table and view would be skipped for both when it comes again.
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}


class ClickHouseSink:
    """Writes RowItems. Memory: one encoded copy of a table's rows, and a compressed one."""

    name = "clickhouse"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = PerProcess(lambda: Server(settings))

    def write(self, items: Sequence[Row], token: str, deadline_seconds: float) -> None:
        """Inserts `items`, a table at a time; a table that fails does not keep the others from being written.

        A row that the server names is taken out, written alone to make sure that it is the one, and reported
        in PermanentSinkError.failed; all others are durable then. Where the server names none, or more than
        16 rows are bad, `failed` is None and the caller bisects.
        """
        outcome = Outcome(self.name)
        write = _Write(self._server.get(), items, token, time.monotonic() + deadline_seconds, outcome)
        tables: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            tables.setdefault(item.table, []).append(position)
        for table, positions in tables.items():
            if table in TABLES_OF_SINK[SinkName.CLICKHOUSE]:  # its name goes into the statement
                write.table(table, positions)
            else:
                outcome.note(Trouble(Blame.TABLE, f"this release writes no table {table!r}"), positions)
        outcome.raise_if_any()

    def examine(self, items: Sequence[Row], deadline_seconds: float) -> None:
        """Asks each table for its engine and columns, and whether it would take rows that are known to be good."""
        ends_at = time.monotonic() + deadline_seconds
        tables = sorted({item.table for item in items} & set(TABLES))
        if not tables:
            return
        facts = self._facts(tables, ends_at)
        for table in tables:
            trouble = self._fault(table, facts.get(table), ends_at)
            if trouble is not None:
                raise trouble.about(f"clickhouse: table {table}").error()

    def _facts(self, tables: Sequence[str], ends_at: float) -> dict[str, TableFacts]:
        """What the server says about these tables. Raises SinkError."""
        end = self._server.get().query(facts_query(tables), ends_at)
        trouble = end if isinstance(end, Trouble) else exception_of(end)
        if trouble is None and isinstance(end, Answer):
            facts = facts_of(end)
            if facts is not None:
                return facts
            trouble = unproven(end, "it is no result") if end.ok else trouble_of_status(end)
        assert trouble is not None
        raise trouble.about(without_secrets(self._settings.clickhouse_url)).error()

    def _fault(self, table: str, facts: TableFacts | None, ends_at: float) -> Trouble | None:
        """What is wrong with the table itself. None: it takes what it should take, as far as can be tried."""
        problems = list(misfits(table, facts))
        if problems:
            return Trouble(Blame.TABLE, "; ".join(problems))
        if facts is None or not can_be_tried(table, facts):
            return None
        end = self._server.get().insert(table, dry_rows(table, time.time()), {PARTITIONS_SETTING: 1}, ends_at)
        return end if isinstance(end, Trouble) else fault_of_dry_insert(end)

    def check(self) -> Report:
        """Sees the tables and their columns, asks whether they would take good rows, and writes, reads back and
        deletes a row of nobody's replay."""
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
        not_tested = []
        for table in TABLES:
            trouble = self._fault(table, facts[table], ends_at)
            if trouble is not None:
                raise trouble.about(f"{without_secrets(settings.clickhouse_url)}: table {table}").error()
            if table in COLUMNS and not can_be_tried(table, facts[table]):
                not_tested.append(f"whether {table} takes a row: it is not partitioned by week")
        warnings = [
            f"table {table} has the engine {facts[table].engine}: {why}"
            for table in TABLES
            if (why := _doubt(facts[table].engine))
        ]
        return Report(
            f"{without_secrets(settings.clickhouse_url)}, database {settings.clickhouse_database}: "
            f"{len(TABLES)} tables in place, they would take rows of this release",
            tuple(warnings),
            tuple(not_tested),
        )

    def close(self) -> None:
        server = self._server.take()
        if server is not None:
            server.close()


class _Write:
    """One call of `write`: notes in `outcome` what did not become durable."""

    def __init__(self, server: Server, items: Sequence[Row], token: str, ends_at: float, outcome: Outcome) -> None:
        self._server = server
        self._items = items
        self._token = token
        self._ends_at = ends_at
        self._outcome = outcome

    def table(self, table: str, positions: list[int]) -> None:
        """One table's rows, in one insert unless that is too large."""
        waiting = deque(chunks(self._items, positions, self._server.limit.bytes_max))
        while waiting:
            wanted = waiting.popleft()
            trouble = self._insert(table, wanted)
            if trouble is None:
                continue
            if trouble.blame is Blame.SIZE and len(wanted) > 1:
                self._server.limit.refused(_size_bytes(self._items, wanted))
                middle = len(wanted) // 2
                waiting.extendleft((wanted[middle:], wanted[:middle]))
            elif trouble.blame is Blame.BATCH and len(wanted) > 1:
                self._without_named(table, wanted, trouble)
            else:
                self._outcome.note(self._of_one(trouble, wanted), wanted)

    def _of_one(self, trouble: Trouble, wanted: list[int]) -> Trouble:
        """A refusal of a single row is about that row."""
        if len(wanted) > 1 or not trouble.blame.accuses_items:
            return trouble
        if trouble.blame is Blame.SIZE:
            size_bytes = len(self._items[wanted[0]].json)
            return Trouble(Blame.ROW, f"one row of {size_bytes} bytes is too large: {trouble.message}")
        return trouble.blamed(Blame.ROW)

    def _without_named(self, table: str, positions: list[int], trouble: Trouble) -> None:
        """Takes out the rows that the server names, one after another, and writes the others."""
        wanted, refused = list(positions), 0
        while wanted:
            row = row_of(trouble.message)
            if row is None or row >= len(wanted) or refused >= NAMED_ROWS_MAX:
                self._outcome.note(self._of_one(trouble, wanted), wanted)
                return
            suspect = wanted[row]
            if len(wanted) > 1:
                alone = self._insert(table, [suspect])
                if alone is None or alone.blame is not Blame.BATCH:
                    # It was not that row (and it is written now), or the server cannot tell at the moment.
                    self._outcome.note(alone or trouble, wanted)
                    return
                trouble = alone
            self._outcome.note(trouble.blamed(Blame.ROW), [suspect])
            refused += 1
            wanted.remove(suspect)
            again = self._insert(table, wanted) if wanted else None
            if again is None:
                return
            trouble = again
            if trouble.blame is not Blame.BATCH:
                self._outcome.note(self._of_one(trouble, wanted), wanted)
                return

    def _insert(self, table: str, positions: list[int]) -> Trouble | None:
        """One INSERT. None: durable, by its proof."""
        block = b"\n".join([self._items[position].json for position in positions])
        token = _table_token(self._token, table, len(self._items), positions)
        for attempt in (token, f"{token}:again"):
            settings = {"insert_deduplication_token": attempt}
            end = self._server.insert(table, block, settings, self._ends_at)
            if isinstance(end, Trouble):
                return end.about(f"table {table}")
            trouble = trouble_of(end, len(positions))
            if trouble is None or not says_nothing_was_new(end):
                break
            # Perhaps a token that the server knows, perhaps nothing was written: another token tells.
        return trouble and trouble.about(f"table {table}")


class Server:
    """ClickHouse's HTTP interface, for one process."""

    def __init__(self, settings: Settings) -> None:
        url = urlsplit(settings.clickhouse_url)
        port = url.port or (8443 if url.scheme == "https" else 8123)
        self._url = f"{url.scheme}://{_host(url.hostname or '')}:{port}/{url.path.lstrip('/')}"
        self._database = settings.clickhouse_database
        user = f"{settings.clickhouse_user}:{settings.clickhouse_password.get_secret_value()}"
        self._headers = [
            f"Authorization: Basic {b64encode(user.encode()).decode()}",
            "Content-Type: application/octet-stream",
            "User-Agent: replays-ingest",
            "Expect:",
        ]
        self._connections = Connections(1, proxies=Proxies.ALL, ca_file=settings.clickhouse_tls_ca_file)
        self.limit = BodyLimit(BODY_BYTES_MAX)

    def insert(self, table: str, block: bytes, settings: Mapping[str, Any], ends_at: float) -> Answer | Trouble:
        """One INSERT of JSONEachRow lines."""
        left_seconds = remaining_seconds(ends_at)
        if left_seconds <= 0:
            return Trouble(Blame.NETWORK, "no time left for the insert")
        headers = self._headers
        if len(block) >= COMPRESS_FROM_BYTES:
            block = bytes(get_compressor(COMPRESSION).compress_block(block))
            headers = [*headers, f"Content-Encoding: {COMPRESSION}"]
        return self._send(
            {
                "query": f"INSERT INTO `{table}` FORMAT JSONEachRow",
                "max_execution_time": math.ceil(left_seconds),
                **INSERT_SETTINGS,
                **settings,
            },
            headers,
            block,
            left_seconds,
        )

    def query(self, sql: str, ends_at: float) -> Answer | Trouble:
        """A statement whose result fits into one answer."""
        return self._send({"wait_end_of_query": 1}, self._headers, sql.encode(), remaining_seconds(ends_at))

    def _send(
        self, parameters: Mapping[str, Any], headers: list[str], body: bytes, left_seconds: float
    ) -> Answer | Trouble:
        url = f"{self._url}?{urlencode({'database': self._database, **parameters})}"
        return self._connections.mine.send(url, headers, body, left_seconds, wanted_headers=WANTED_HEADERS)

    def close(self) -> None:
        """Closes the connections of this process."""
        self._connections.close()


def client(settings: Settings, *, database: str | None = None) -> Any:
    """A connected clickhouse-connect client; also for migrations and readers. May be used by several threads.

    Raises what the driver raises; `tasks.sinks.clickhouse.errors.sort` says whose fault it is.
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
        # The driver's default pool is shared by every client of the process, and not closed with any.
        dedicated_pool=True,
        connect_timeout=math.ceil(min(settings.sink_timeout_seconds, CONNECT_SECONDS_MAX)),
        send_receive_timeout=math.ceil(settings.sink_timeout_seconds),
        compress=COMPRESSION,
        # A session would make the server refuse a second insert while one runs.
        autogenerate_session_id=False,
        client_name="replays-ingest",
    )
    connected.http_retries = 0  # retries have their owners already, and each would double the deadline
    return connected


def chunks(items: Sequence[Row], positions: Sequence[int], bytes_max: int) -> Iterator[list[int]]:
    """Positions whose rows fit into one insert, in order. A row that is too large by itself goes alone."""
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
    """Of the rows as they are; compressed they are smaller, in about the same proportion."""
    return sum(len(items[position].json) + 1 for position in positions)


def _doubt(engine: str) -> str:
    """Why a table of this engine does not keep rows as it should; empty when it does."""
    if engine.endswith("MergeTree"):
        return ""
    if engine in ("Null", "Memory", "Buffer"):
        return "rows that it took are not durable"
    return "repeated rows are not known to replace each other there"


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _table_token(token: str, table: str, items: int, positions: list[int]) -> str:
    """The deduplication token of these rows of this write.

    The same write cuts the same rows under the same token; what is left of it after a refused row is other
    content, so it gets another token.
    """
    if len(positions) == items:
        return f"{token}:{table}"
    places = hashlib.blake2b(repr(positions).encode(), digest_size=8).hexdigest()
    return f"{token}:{table}:{places}"
