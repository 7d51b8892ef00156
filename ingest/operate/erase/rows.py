"""Finds, counts and deletes a replay's rows in ClickHouse, including the rows that record where its bytes are
stored."""

from __future__ import annotations

import contextlib
from typing import Any
from uuid import UUID

from urllib3 import Timeout

from ingest.operate.erase.holdings import EraseFailed, Holdings
from ingest.settings import Settings
from tasks.sinks.clickhouse import sink as clickhouse

# Tables in the order of deletion: a second run needs the last table to find the remaining bytes.
TABLES = ("replays", "replay_summaries", "replay_segments", "replay_objects", "replay_places")
DELETE_SECONDS_MAX = 300.0
REPLAYS_MAX = 1_000_000


def replays_of(settings: Settings, project_id: int, user: str = "") -> list[str]:
    """Returns the ids of a project's replays, or of those with `user` in any user field of their rows; at most
    REPLAYS_MAX.

    Each id has 32 hex digits. Raises the errors of clickhouse-connect.
    """
    named = "AND {user:String} IN (user, user_id, user_name, user_email) " if user else ""
    tables = ("replays",) if user else ("replays", "replay_segments", "replay_places")
    with contextlib.closing(clickhouse.client(settings)) as server:
        found = set[str]()
        for table in tables:
            rows = server.query(
                f"SELECT DISTINCT toString(replay_id) FROM {table} WHERE project_id = {{project:UInt64}} {named}"
                f"LIMIT {REPLAYS_MAX}",
                parameters={"project": project_id, "user": user},
            ).result_rows
            found |= {row[0].replace("-", "") for row in rows}
    return sorted(found)


class Rows:
    """Rows of one replay. Methods raise the errors of clickhouse-connect."""

    def __init__(self, settings: Settings, project_id: int, replay_id: str) -> None:
        self._settings = settings
        self._project_id, self._replay_id = int(project_id), UUID(replay_id)
        # These values are validated, so they are safe to insert into a statement. Old servers accept no parameters
        # in mutations.
        self._which = f"project_id = {self._project_id:d} AND replay_id = toUUID('{self._replay_id}')"

    def search(self, found: dict[str, Any]) -> set[int]:
        """Adds fields of Holdings to `found`. Returns the retention periods of the replay's segments, in days."""
        with contextlib.closing(clickhouse.client(self._settings)) as server:
            found["rows"] = {table: self._count(server, table) for table in TABLES}
            places = server.query(
                "SELECT DISTINCT object, start_bytes, length_bytes FROM (SELECT object, start_bytes, length_bytes "
                f"FROM replay_places WHERE {self._which} UNION ALL SELECT object, start_bytes, length_bytes "
                f"FROM replay_objects WHERE {self._which}) ORDER BY object, start_bytes"
            ).result_rows
            ranges: dict[str, list[tuple[int, int]]] = {}
            for name, start, length in places:
                ranges.setdefault(name, []).append((start, length))
            found["ranges"] = {name: tuple(spans) for name, spans in ranges.items()}
            days, newest = set[int](), 0
            for table in ("replay_segments", "replay_places"):
                (seen, at) = server.query(
                    "SELECT groupUniqArray(retention_days), toUnixTimestamp(max(received)) "
                    f"FROM {table} WHERE {self._which}"
                ).result_rows[0]
                days |= set(seen)
                newest = max(newest, at)
            found["newest_at"] = float(newest) if days else None
            found["billed"] = bool(self._count(server, "replay_outcomes"))
            other_projects = server.query(
                "SELECT DISTINCT project_id FROM replay_segments WHERE replay_id = toUUID({replay:String}) "
                "AND project_id != {project:UInt64} ORDER BY project_id LIMIT 10",
                parameters={"replay": str(self._replay_id), "project": self._project_id},
            ).result_rows
            found["elsewhere"] = tuple(row[0] for row in other_projects)
        return days

    def _count(self, server: Any, table: str) -> int:
        return int(server.query(f"SELECT count() FROM {table} WHERE {self._which}").result_rows[0][0])

    def delete(self, found: Holdings) -> None:
        """Runs one mutation per table on every replica. Unlike a lightweight delete, a mutation removes the bytes
        from disk.
        """
        with contextlib.closing(clickhouse.client(self._settings)) as server:
            server.timeout = Timeout(connect=clickhouse.CONNECT_SECONDS_MAX, read=DELETE_SECONDS_MAX)
            for table in TABLES:
                if not found.rows.get(table) and not self._count(server, table):
                    continue
                where = self._which
                if table == "replays":  # the primary key contains this hash, so parts without it are not rewritten
                    where += f" AND cityHash64(replay_id) = cityHash64(toUUID('{self._replay_id}'))"
                server.command(f"ALTER TABLE {table} DELETE WHERE {where} SETTINGS mutations_sync = 2")
                rows = self._count(server, table)
                if rows:
                    raise EraseFailed(
                        f"{table} has {rows} new rows of it, so it is still being written: run this again later"
                    )
