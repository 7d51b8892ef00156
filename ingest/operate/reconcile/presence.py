"""Queries the sinks for a batch's items by identity and returns the missing items.

Recordings are compared by their bytes (`recordings.py`); rows in ClickHouse by their replacement key (clicks also
by rank); rows in BigQuery by `project_id` and `row_id`. Datadog is not queried. A query has at most KEYS_MAX
identities and covers the days of their rows. Rows that are not found on these days are also searched for on a few
days before and after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from google.cloud import bigquery as google_bigquery

from ingest.core.parse.document import UINT32_MAX
from ingest.operate.reconcile.problem import Problem, numbers, uuids
from ingest.operate.reconcile.recordings import Recordings
from ingest.settings import Settings
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.google import errors as google_errors
from tasks.wire import Row, chunks

KEYS_MAX = 1000
# (project_id, row_id), because several projects may use the same replay_id and thus the same row_id.
FactKey = tuple[int, str]
DAY_SECONDS = 86_400
REDELIVERY_SECONDS_MAX = 3 * DAY_SECONDS
"""A segment that the SDK sent twice has one identity and two arrival times, and some rows contain the arrival
time. Items not found at their own time are searched within this distance, with a more expensive query, before they
count as missing.
"""

Key = tuple[object, ...]


class Presence(Protocol):
    """A sink that can be queried. Only one thread may use an instance."""

    def find_problems(self, items: Sequence[Any]) -> dict[int, Problem]:
        """Returns the problem with each item that is not durable, by the item's position in `items`. Raises
        SinkError.

        Of several items with the same identity, only the last can be reported.
        """

    def close(self) -> None: ...


class Rows:
    """Queries ClickHouse."""

    def __init__(self, settings: Settings) -> None:
        try:
            self._client = clickhouse.client(settings)
        except Exception as error:
            raise clickhouse_errors.classify(error).error() from error

    def find_problems(self, items: Sequence[Row]) -> dict[int, Problem]:
        """A row is present if a row with its key is stored. The rank of a stored click must also be at least as
        high as that of the expected row: a click stored without its later dead-click report differs.
        """
        found: dict[int, Problem] = {}
        tables: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            tables.setdefault(item.table, []).append(position)
        for table, positions in tables.items():
            for chunk in chunks(positions, KEYS_MAX):
                rows = {position: decoded(items[position]) for position in chunk}
                alive = {position: row for position, row in rows.items() if not is_past_retention(row)}
                if alive:
                    found |= self._absent(table, alive)
        return found

    def _absent(self, table: str, rows: dict[int, dict[str, Any]]) -> dict[int, Problem]:
        key_of = KEYS[table]
        last = {key_of(row): position for position, row in rows.items()}
        wanted: dict[Key, int] = {}
        for row in rows.values():
            wanted[key_of(row)] = max(wanted.get(key_of(row), 0), rank(row))
        stored = self._stored(table, list(rows.values()), 0)
        if nearby := [row for row in rows.values() if stored.get(key_of(row), -1) < wanted[key_of(row)]]:
            stored |= self._stored(table, nearby, REDELIVERY_SECONDS_MAX)
        return {
            last[key]: Problem.DIFFERS if key in stored else Problem.MISSING
            for key, wanted_rank in wanted.items()
            if stored.get(key, -1) < wanted_rank
        }

    def _stored(self, table: str, rows: list[dict[str, Any]], margin_seconds: int) -> dict[Key, int]:
        """Returns the ranks, by key, of stored rows that are at most `margin_seconds` before or after these
        rows."""
        try:
            columns, grouped = _SELECTED[table]
            where = CONDITIONS[table](rows, margin_seconds)
            answer = self._client.query(f"SELECT {columns} FROM {table} WHERE {where} {grouped}").result_rows
        except Exception as error:
            raise clickhouse_errors.classify(error).error() from error
        return {tuple(key): stored_rank for *key, stored_rank in answer}

    def close(self) -> None:
        self._client.close()


def decoded(item: Row) -> dict[str, Any]:
    """Returns the decoded row, without empty columns."""
    row: dict[str, Any] = msgspec.json.decode(item.json)
    return row


def fact_key(item: Row) -> FactKey:
    """Returns a fact's identity."""
    row = decoded(item)
    return int(row["project_id"]), str(row["row_id"])


def fact_seconds(item: Row) -> float:
    """Returns a fact's time in Unix seconds."""
    return datetime.fromisoformat(decoded(item)["timestamp"]).timestamp()


def is_past_retention(row: dict[str, Any]) -> bool:
    """Returns True if the table's TTL may have deleted the row. The TTL counts from the time of the row. For
    an event, this time can be earlier than that of the segment that contains the event.
    """
    moment = row.get("received", row.get("timestamp", 0))
    return "retention_days" in row and moment + row["retention_days"] * DAY_SECONDS < time.time()


def rank(row: dict[str, Any]) -> int:
    """Returns the rank of a click's row. Of the rows with the same identity, ClickHouse keeps the one with the
    highest rank.
    """
    return int(row.get("click_is_dead", 0)) + int(row.get("click_is_rage", 0))


def _replays_condition(rows: Sequence[dict[str, Any]], margin_seconds: int, *, of_event: bool = True) -> str:
    """Returns a condition with time bounds and the hash, so that the server can use partitions and the primary
    key."""
    times = [int(row["timestamp"]) for row in rows]
    replays = uuids(row["replay_id"] for row in rows)
    events = f" AND event_hash IN ({uuids(row['event_hash'] for row in rows)})" if of_event else ""
    return (
        f"timestamp BETWEEN toDateTime({max(0, min(times) - margin_seconds)}) "
        f"AND toDateTime({min(UINT32_MAX, max(times) + margin_seconds)}) "
        f"AND project_id IN ({numbers(row['project_id'] for row in rows)}) AND replay_id IN ({replays}) "
        f"AND cityHash64(replay_id) IN (SELECT cityHash64(toUUID(arrayJoin([{replays}])))){events}"
    )


def _segments_condition(rows: Sequence[dict[str, Any]], _: int) -> str:
    return (
        f"project_id IN ({numbers(row['project_id'] for row in rows)}) "
        f"AND replay_id IN ({uuids(row['replay_id'] for row in rows)}) "
        f"AND segment_id IN ({numbers(row['segment_id'] for row in rows)})"
    )


def _outcomes_condition(rows: Sequence[dict[str, Any]], _: int) -> str:
    return (
        f"org_id IN ({numbers(row['org_id'] for row in rows)}) "
        f"AND project_id IN ({numbers(row['project_id'] for row in rows)}) "
        f"AND replay_id IN ({uuids(row['replay_id'] for row in rows)})"
    )


KEYS: dict[str, Callable[[dict[str, Any]], Key]] = {
    "replays": lambda row: (row["project_id"], row["replay_id"], row["event_hash"]),
    "replay_segments": lambda row: (row["project_id"], row["replay_id"], row["segment_id"]),
    "replay_outcomes": lambda row: (row["org_id"], row["project_id"], row["replay_id"]),
}
# The condition that bounds the search in each table, and its key columns.
CONDITIONS: dict[str, Callable[..., str]] = {
    "replays": _replays_condition,
    "replay_segments": _segments_condition,
    "replay_outcomes": _outcomes_condition,
}
_SELECTED = {
    "replays": (
        "project_id, toString(replay_id), toString(event_hash), max(click_is_dead + click_is_rage)",
        "GROUP BY project_id, replay_id, event_hash",
    ),
    "replay_segments": ("DISTINCT project_id, toString(replay_id), segment_id, 0", ""),
    "replay_outcomes": ("DISTINCT org_id, project_id, toString(replay_id), 0", ""),
}


class Facts:
    """Queries BigQuery. A query is billed for two columns of the days that it covers."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.sink_timeout_seconds
        self._expiration_seconds = settings.bigquery_expiration_days * DAY_SECONDS
        self._dataset = f"{settings.bigquery_project}.{settings.bigquery_dataset}"
        try:
            self._client = bigquery.client(settings)
        except Exception as error:  # the constructor looks up credentials
            raise google_errors.classify(error).error() from error

    def find_problems(self, items: Sequence[Row]) -> dict[int, Problem]:
        """Compares rows by `project_id` and `row_id`."""
        found: dict[int, Problem] = {}
        tables: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            if not self._expired(item):
                tables.setdefault(item.table, []).append(position)
        for table, positions in tables.items():
            for chunk in chunks(positions, 10 * KEYS_MAX):
                last = {fact_key(items[position]): position for position in chunk}
                stored = self._stored(table, [items[position] for position in chunk], 1)
                if nearby := [items[place] for key, place in last.items() if key not in stored]:
                    stored |= self._stored(table, nearby, REDELIVERY_SECONDS_MAX)
                found |= {position: Problem.MISSING for key, position in last.items() if key not in stored}
        return found

    def _expired(self, item: Row) -> bool:
        limit = self._expiration_seconds
        return bool(limit) and fact_seconds(item) + limit < time.time()

    def _stored(self, table: str, items: Sequence[Row], margin_seconds: int) -> set[FactKey]:
        """Returns the keys of stored rows that are at most `margin_seconds` before or after these rows. The
        minimum is one second, because the server may round fractions.
        """
        times = [fact_seconds(item) for item in items]
        keys = [fact_key(item) for item in items]
        config = google_bigquery.QueryJobConfig(
            query_parameters=[
                google_bigquery.ArrayQueryParameter("projects", "INT64", sorted({project for project, _ in keys})),
                google_bigquery.ArrayQueryParameter("ids", "STRING", [row_id for _, row_id in keys]),
                google_bigquery.ScalarQueryParameter("low", "TIMESTAMP", to_datetime(min(times) - margin_seconds)),
                google_bigquery.ScalarQueryParameter(
                    "high", "TIMESTAMP", to_datetime(max(times) + margin_seconds)
                ),
            ]
        )
        query = (
            f"SELECT DISTINCT project_id, row_id FROM `{self._dataset}.{table}` "
            "WHERE timestamp BETWEEN @low AND @high "
            "AND project_id IN UNNEST(@projects) AND row_id IN UNNEST(@ids)"
        )
        try:
            answer = self._client.query_and_wait(query, job_config=config, wait_timeout=10 * self._seconds)
            return {(int(row["project_id"]), str(row["row_id"])) for row in answer}
        except Exception as error:
            raise google_errors.classify(error).error() from error

    def close(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]


def to_datetime(seconds: float) -> datetime:
    """Converts Unix seconds to the type that BigQuery's client expects."""
    return datetime.fromtimestamp(max(0.0, seconds), UTC)


PRESENCES: dict[str, Callable[[Settings], Presence]] = {"gcs": Recordings, "clickhouse": Rows, "bigquery": Facts}
