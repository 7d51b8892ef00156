"""Lists every object that a row in ClickHouse refers to, sorted by name.

Rows whose retention ends within a day are skipped, because their object may be deleted at any time. The server
sorts each project's names, on disk if the sort needs more than SORT_BYTES_MAX of memory. This process keeps one
block of rows in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from urllib3 import Timeout

from ingest.settings import Settings
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.units import MiB

DAY_SECONDS = 86_400
PROJECTS_MAX = 1_000_000
SORT_BYTES_MAX = 512 * MiB
ANSWER_SECONDS_MAX = 600.0
_SORT = f"SETTINGS max_bytes_before_external_sort = {SORT_BYTES_MAX}"


class ReferencingRows:
    """Queries one ClickHouse server. Methods raise the errors of clickhouse-connect."""

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._alive = f"toUnixTimestamp(received) + retention_days * {DAY_SECONDS} > {int(now) + DAY_SECONDS}"
        self._server: Any = clickhouse.client(settings)
        self._server.timeout = Timeout(connect=clickhouse.CONNECT_SECONDS_MAX, read=ANSWER_SECONDS_MAX)

    def segments(self) -> Iterator[str]:
        """Yields the object of each segment in the `segment` layout; duplicates are adjacent."""
        for where in self._by_project("replay_segments"):
            query = f"SELECT object FROM replay_segments WHERE {where} AND {self._alive} ORDER BY object {_SORT}"
            for (name,) in self._rows(query):
                yield name

    def indexed(self) -> Iterator[str]:
        """Like `segments`, but for segments stored in a packed object."""
        for where in self._by_project("replay_objects"):
            query = f"SELECT name FROM replay_objects WHERE {where} AND {self._alive} ORDER BY name {_SORT}"
            for (name,) in self._rows(query):
                yield name

    def packed(self) -> Iterator[tuple[str, int]]:
        """Yields each packed object with the number of its segments."""
        query = (
            f"SELECT object, count() FROM replay_objects FINAL WHERE {self._alive} "
            f"GROUP BY object ORDER BY object {_SORT}"
        )
        yield from self._rows(query)

    def _by_project(self, table: str) -> Iterator[str]:
        """Yields one condition per retention period and project, in the order of the object names."""
        found = self._server.query(
            f"SELECT DISTINCT retention_days, project_id FROM {table} WHERE {self._alive} LIMIT {PROJECTS_MAX}"
        ).result_rows
        for days, project in sorted(found, key=lambda pair: f"{pair[0]}/{pair[1]}/"):
            yield f"retention_days = {int(days)} AND project_id = {int(project)}"

    def _rows(self, query: str) -> Iterator[Any]:
        with self._server.query_row_block_stream(query) as blocks:
            for block in blocks:
                yield from block

    def close(self) -> None:
        """Closes the connections."""
        self._server.close()
