"""Compares rows that would be written with the rows stored in ClickHouse, by identity and content.

The server converts the encoded rows to the columns' types, so that both sides are compared in the same form. The
stored side is the row that FINAL returns. Differences are ignored if the stored row is from another message and
ingestion would let the stored row replace the compared row. Such replacements happen when a click is reported
again, with a higher rank or in another segment, and when an SDK sends a segment twice, with two arrival times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.operate.reconcile.presence import (
    CONDITIONS,
    KEYS,
    REDELIVERY_SECONDS_MAX,
    Key,
    decoded,
    is_past_retention,
    rank,
)
from ingest.operate.reconcile.problem import numbers
from ingest.operate.shadow.comparison import Kind
from ingest.settings import Settings
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.clickhouse.table import COLUMNS
from tasks.units import MiB
from tasks.wire import Row

ROWS_MAX = 1000
ROWS_BYTES_MAX = MiB
POSITION_COLUMNS = ("partition", "offset")
TIME_COLUMNS = {"replays": "timestamp", "replay_segments": "received", "replay_outcomes": "timestamp"}

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowDifference:
    """One difference. `position` is the row's index among the given rows, or None for a stored row that is not
    among them.
    """

    kind: Kind
    table: str
    what: str
    offset: int
    position: int | None = None
    item: str = ""


@dataclass(slots=True)
class ContentsComparison:
    """The result of comparing some rows."""

    compared: int
    superseded: int
    differences: list[RowDifference]


class StoredRows:
    """Queries one ClickHouse server. Methods raise SinkError."""

    def __init__(self, settings: Settings) -> None:
        try:
            self._client = clickhouse.client(settings)
        except Exception as error:
            raise clickhouse_errors.classify(error).error() from error

    def compare(self, items: Sequence[Row], partition: int, *, unexpected: bool = True) -> ContentsComparison:
        """Compares rows of messages of one partition. With `unexpected`, also finds other stored rows of these
        messages; `items` must then contain all rows of the messages. Skips rows that the tables' TTL may have
        deleted.
        """
        found = ContentsComparison(0, 0, [])
        tables: dict[str, dict[int, Row]] = {}
        for position, item in enumerate(items):
            if item.table in CONDITIONS:
                tables.setdefault(item.table, {})[position] = item
        for table, rows in tables.items():
            for chunk in bounded_chunks(rows):
                _Comparison(self._rows, table, chunk, found).run()
        if unexpected:
            found.differences += self._unexpected(list(tables.get("replays", {}).values()), partition)
        return found

    def _unexpected(self, items: Sequence[Row], partition: int) -> Iterator[RowDifference]:
        """Yields the rows of `replays` that are stored for these messages although this release would not write
        them."""
        key_of = KEYS["replays"]
        rows = [decoded(item) for item in items]
        row_keys = {key_of(row) for row in rows}
        alive = [(item, row) for item, row in zip(items, rows, strict=True) if not is_past_retention(row)]
        for start in range(0, len(alive), ROWS_MAX):
            chunk = alive[start : start + ROWS_MAX]
            where = CONDITIONS["replays"]([row for _, row in chunk], REDELIVERY_SECONDS_MAX, of_event=False)
            offsets = numbers(item.offset for item, _ in chunk)
            query = (
                "SELECT project_id, toString(replay_id), toString(event_hash), offset FROM replays FINAL "
                f"WHERE {where} AND partition = {int(partition)} AND offset IN ({offsets})"
            )
            for project, replay, event, offset in self._query(query):
                if (project, replay, event) not in row_keys:
                    row_keys.add((project, replay, event))
                    what = "this release produces no such row"
                    yield RowDifference(Kind.UNEXPECTED, "replays", what, int(offset), item=f"replays/{event}")

    def _rows(self, table: str, source: str, query_bytes: int = 0) -> list[Values]:
        """Selects the columns of the table from `source`, the part of a statement after FROM."""
        names = list(COLUMNS[table])
        columns = ", ".join(f"`{name}`" for name in names)
        # The statement contains the rows to compare, and the server limits statements to 256 KiB by default.
        settings = {"max_query_size": 2 * query_bytes + MiB}
        return [
            dict(zip(names, row, strict=True)) for row in self._query(f"SELECT {columns} FROM {source}", settings)
        ]

    def _query(self, query: str, settings: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        try:
            rows: Sequence[Sequence[Any]] = self._client.query(query, settings=settings).result_rows
        except Exception as error:
            raise clickhouse_errors.classify(error).error() from error
        return rows

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class _Comparison:
    """Compares some rows of one table."""

    def __init__(self, rows: Any, table: str, items: dict[int, Row], found: ContentsComparison) -> None:
        self._rows, self._table, self._found = rows, table, found
        encoded = {position: decoded(item) for position, item in items.items()}
        self._items = {
            position: item for position, item in items.items() if not is_past_retention(encoded[position])
        }
        self._encoded = {position: encoded[position] for position in self._items}

    def run(self) -> None:
        """Runs the comparison and adds its findings to the result."""
        if not self._items:
            return
        table, key_of = self._table, KEYS[self._table]
        typed = dict(zip(self._items, self._typed(list(self._items.values())), strict=True))
        wanted: dict[Key, list[int]] = {}
        for position, row in self._encoded.items():
            wanted.setdefault(key_of(row), []).append(position)
        stored = self._stored(list(self._encoded.values()), 0)
        not_found = [self._encoded[places[-1]] for key, places in wanted.items() if key not in stored]
        if not_found:
            stored |= self._stored(not_found, REDELIVERY_SECONDS_MAX)
        self._found.compared += len(wanted)
        for key, positions in wanted.items():
            highest = max(rank(self._encoded[position]) for position in positions)
            candidates = [position for position in positions if rank(self._encoded[position]) == highest]
            found = classify_difference(table, [typed[position] for position in candidates], stored.get(key, []))
            if found is None:
                continue
            kind, what = found
            if kind is None:
                self._found.superseded += 1
                continue
            item = self._items[candidates[-1]]
            name = f"{item.table}/{item.id}"
            self._found.differences.append(RowDifference(kind, table, what, item.offset, candidates[-1], name))

    def _typed(self, items: Sequence[Row]) -> list[Values]:
        """Returns the rows as an insert would store them."""
        structure = ", ".join(f"`{name}` {kind}" for name, (kind, _) in COLUMNS[self._table].items())
        data = b"\n".join(item.json for item in items).decode()
        found: list[Values] = self._rows(
            self._table, f"format(JSONEachRow, {string_literal(structure)}, {string_literal(data)})", 2 * len(data)
        )
        return found

    def _stored(self, rows: list[Values], margin_seconds: int) -> dict[Key, list[Values]]:
        where = CONDITIONS[self._table](rows, margin_seconds)
        found: dict[Key, list[Values]] = {}
        for row in self._rows(self._table, f"{self._table} FINAL WHERE {where}", 64 * len(rows)):
            texts = row | {name: str(row[name]) for name in ("replay_id", "event_hash") if name in row}
            found.setdefault(KEYS[self._table](texts), []).append(row)
        return found


def classify_difference(table: str, wanted: list[Values], stored: list[Values]) -> tuple[Kind | None, str] | None:
    """Returns None if the rows are equal, otherwise the kind of difference and its description. The kind is None
    if another message has replaced the row."""
    if not stored:
        return Kind.MISSING, "no such row"
    differing: list[str] = []
    for row in stored:
        for wanted_row in wanted:
            columns = [
                name for name in wanted_row if wanted_row[name] != row[name] and name not in POSITION_COLUMNS
            ]
            if (
                table == "replay_outcomes"
            ):  # this table has no message position, and each delivery has its own time
                columns = [name for name in columns if name != TIME_COLUMNS[table]]
            if not columns:
                return None
            other = any(wanted_row.get(name) != row.get(name) for name in POSITION_COLUMNS)
            if other and _replaces(table, row, wanted_row, columns):
                return None, ""
            if not differing or len(columns) < len(differing):
                differing = columns
    return Kind.DIFFERS, f"differs in {', '.join(differing)}"


def _replaces(table: str, row: Values, wanted_row: Values, columns: list[str]) -> bool:
    """Returns whether ingestion replaces this row with a row of another message."""
    if columns == [TIME_COLUMNS[table]]:
        return True
    return table == "replays" and (rank(row) > rank(wanted_row) or row["segment_id"] != wanted_row["segment_id"])


def string_literal(text: str) -> str:
    """Returns the text as a ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def bounded_chunks(rows: dict[int, Row]) -> Iterator[dict[int, Row]]:
    """Yields chunks of at most ROWS_MAX rows and about ROWS_BYTES_MAX bytes."""
    chunk: dict[int, Row] = {}
    size_bytes = 0
    for position, row in rows.items():
        if chunk and (len(chunk) >= ROWS_MAX or size_bytes + len(row.json) > ROWS_BYTES_MAX):
            yield chunk
            chunk, size_bytes = {}, 0
        chunk[position] = row
        size_bytes += len(row.json)
    if chunk:
        yield chunk
