"""Rows into ClickHouse: one insert a table, of lines that the reader has encoded (JSONEachRow), byte for byte.

Repetition is harmless three times over. An insert carries a token made of the batch's and the table's name: the
server skips it when one with the same token is among the last `deduplication_window` ones. Past the window, or
under another token, rows of the same identity replace each other when parts merge, and at once for a query with
FINAL. And the materialised view counts distinct identities, so it does not count twice either.

An insert is one block: the server parses all of it before it writes, so a refused one left nothing behind.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.compression import get_compressor
from urllib3 import Timeout

from tasks.errors import PermanentSinkError
from tasks.settings import Settings
from tasks.sinks.clickhouse.errors import row_of, sort
from tasks.sinks.outcome import Kind, Outcome, Trouble, remaining_seconds
from tasks.sinks.per_process import PerProcess
from tasks.units import KiB
from tasks.wire import TABLES_OF_SINK, Row, SinkName

COMPRESSION = "lz4"
COMPRESS_FROM_BYTES = 4 * KiB
CONNECT_SECONDS_MAX = 10.0
NAMED_ROWS_MAX = 16
TABLES = (
    *("replays", "replay_segments", "replay_outcomes", "replay_summaries"),
    *("replay_objects", "replay_places"),
)

INSERT_SETTINGS: dict[str, Any] = {
    "async_insert": 0,  # the answer has to mean durable
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
        self._client = PerProcess(lambda: client(settings))

    def write(self, items: Sequence[Row], token: str, deadline_seconds: float) -> None:
        """Inserts `items`, a table at a time; a table that fails does not keep the others from being written.

        A row that the server names is taken out, written alone to make sure that it is the one, and reported
        in PermanentSinkError.failed; all others are durable then. Where the server names none, or more than
        16 rows are bad, `failed` is None and the caller bisects.
        """
        ends_at = time.monotonic() + deadline_seconds
        outcome = Outcome(self.name)
        tables: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            tables.setdefault(item.table, []).append(position)
        for table, positions in tables.items():
            if table in TABLES_OF_SINK[SinkName.CLICKHOUSE]:  # the driver puts it into the statement
                self._write_table(table, items, positions, token, ends_at, outcome)
            else:
                outcome.note(Trouble(Kind.CONFIGURATION, f"this release writes no table {table!r}"), positions)
        outcome.raise_if_any()

    def _write_table(
        self,
        table: str,
        items: Sequence[Row],
        positions: list[int],
        token: str,
        ends_at: float,
        outcome: Outcome,
    ) -> None:
        """One table's rows; notes what did not become durable."""
        wanted, refused = list(positions), 0
        while wanted:
            trouble = self._insert(table, items, wanted, token, ends_at)
            if trouble is None:
                return
            row = row_of(trouble.message) if trouble.kind is Kind.DATA else None
            named = row is not None and row < len(wanted)
            if not named or refused >= NAMED_ROWS_MAX:
                outcome.note(trouble, wanted, named=len(wanted) == 1)
                return
            assert row is not None
            suspect = wanted[row]
            if len(wanted) > 1:
                alone = self._insert(table, items, [suspect], token, ends_at)
                if alone is None or alone.kind is not Kind.DATA:
                    # It was not that row (and it is written now), or the server cannot tell at the moment.
                    outcome.note(alone or trouble, wanted, named=False)
                    return
                trouble = alone
            outcome.note(trouble, [suspect])
            refused += 1
            wanted.remove(suspect)

    def _insert(
        self, table: str, items: Sequence[Row], positions: list[int], token: str, ends_at: float
    ) -> Trouble | None:
        """One INSERT. None: durable."""
        left_seconds = remaining_seconds(ends_at)
        if left_seconds <= 0:
            return Trouble(Kind.TRANSIENT, "no time left for the insert")
        block = b"\n".join([items[position].json for position in positions])
        compression = COMPRESSION if len(block) >= COMPRESS_FROM_BYTES else None
        if compression:
            block = bytes(get_compressor(compression).compress_block(block))
        settings = INSERT_SETTINGS | {
            "insert_deduplication_token": _table_token(token, table, len(items), positions),
            "max_execution_time": math.ceil(left_seconds),
        }
        try:
            server = self._client.get()
            server.timeout = Timeout(connect=min(left_seconds, CONNECT_SECONDS_MAX), read=left_seconds)
            server.raw_insert(
                table, insert_block=block, fmt="JSONEachRow", settings=settings, compression=compression
            )
        except Exception as error:
            trouble = sort(error)
            return Trouble(trouble.kind, f"table {table}: {trouble.message}", trouble.retry_after_seconds)
        return None

    def check(self) -> str:
        """Sees the server, the database and the tables."""
        settings = self._settings
        try:
            server = self._client.get()
            found = {
                row[0]: row[1]
                for row in server.query(
                    "SELECT name, engine FROM system.tables WHERE database = currentDatabase()"
                ).result_rows
            }
        except Exception as error:
            trouble = sort(error)
            raise Trouble(trouble.kind, f"{settings.clickhouse_url}: {trouble.message}").error() from error
        missing = [table for table in TABLES if table not in found]
        if missing:
            raise PermanentSinkError(
                f"{settings.clickhouse_url}: database {settings.clickhouse_database} lacks "
                f"{', '.join(missing)}; run `replays-ingest migrate`",
                configuration=True,
            )
        return f"{settings.clickhouse_url} version {server.server_version}, {len(TABLES)} tables in place"

    def close(self) -> None:
        server = self._client.take()
        if server is not None:
            server.close()


def client(settings: Settings, *, database: str | None = None) -> Any:
    """A connected clickhouse-connect client; also for migrations and readers. May be used by several threads.

    Raises what the driver raises; `sort` of `tasks.sinks.clickhouse.errors` says who acts.
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


def _table_token(token: str, table: str, items: int, positions: list[int]) -> str:
    """The deduplication token of these rows of this write.

    The same write cuts the same rows under the same token; what is left of it after a refused row is other
    content, so it gets another token.
    """
    if len(positions) == items:
        return f"{token}:{table}"
    places = hashlib.blake2b(repr(positions).encode(), digest_size=8).hexdigest()
    return f"{token}:{table}:{places}"
