"""ClickHouse's HTTP interface for inserts and checks, through libcurl.

The driver is not used, so that statements are sent unchanged and the complete response can be evaluated
(`answers.py`).
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from clickhouse_connect.driver.compression import get_compressor

from tasks.settings import Settings
from tasks.sinks.clickhouse.answers import WANTED_HEADERS
from tasks.sinks.http.answers import Answer
from tasks.sinks.http.limits import BodyLimit
from tasks.sinks.http.transfers import Connections, Proxies
from tasks.sinks.outcome import Blame, Failure, seconds_until
from tasks.units import KiB, MiB

COMPRESSION = "lz4"
COMPRESSION_BYTES_MIN = 4 * KiB
BODY_BYTES_MAX = 256 * MiB

INSERT_SETTINGS: dict[str, Any] = {
    # Success must mean that the rows are durable on this server and on all shards of a Distributed table, so the
    # server may respond only once the query has ended.
    "async_insert": 0,
    "insert_distributed_sync": 1,
    "wait_end_of_query": 1,
    "send_progress_in_http_headers": 0,
    "date_time_input_format": "best_effort",
    "input_format_allow_errors_num": 0,  # no row is dropped silently
    "input_format_allow_errors_ratio": 0,
    "input_format_skip_unknown_fields": 0,
    "input_format_null_as_default": 1,
    "input_format_defaults_for_omitted_fields": 1,
    "input_format_parallel_parsing": 0,  # otherwise errors do not number rows from the start of the insert
    "max_partitions_per_insert_block": 0,  # a client with a wrong clock must not block the batch
    "insert_deduplicate": 1,
    # Without this setting, if an insert wrote to the table but failed before it wrote to the view, the server
    # would skip the retry for both.
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}


class Server:
    """Client for ClickHouse's HTTP interface; each process has its own."""

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

    def insert(self, table: str, block: bytes, settings: Mapping[str, Any], ends_at: float) -> Answer | Failure:
        """Sends one INSERT of JSONEachRow lines."""
        remaining_seconds = seconds_until(ends_at)
        if remaining_seconds <= 0:
            return Failure(Blame.NETWORK, "no time left for the insert")
        headers = self._headers
        if len(block) >= COMPRESSION_BYTES_MIN:
            block = bytes(get_compressor(COMPRESSION).compress_block(block))
            headers = [*headers, f"Content-Encoding: {COMPRESSION}"]
        return self._send(
            {
                "query": f"INSERT INTO `{table}` FORMAT JSONEachRow",
                "max_execution_time": math.ceil(remaining_seconds),
                **INSERT_SETTINGS,
                **settings,
            },
            headers,
            block,
            remaining_seconds,
        )

    def query(self, sql: str, ends_at: float) -> Answer | Failure:
        """Runs a statement whose result fits into one response."""
        return self._send({"wait_end_of_query": 1}, self._headers, sql.encode(), seconds_until(ends_at))

    def _send(
        self, parameters: Mapping[str, Any], headers: list[str], body: bytes, remaining_seconds: float
    ) -> Answer | Failure:
        url = f"{self._url}?{urlencode({'database': self._database, **parameters})}"
        return self._connections.for_this_thread.send(
            url, headers, body, remaining_seconds, wanted_headers=WANTED_HEADERS
        )

    def close(self) -> None:
        """Closes the connections of this process."""
        self._connections.close()


def _host(name: str) -> str:
    return f"[{name}]" if ":" in name else name
