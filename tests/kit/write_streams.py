"""Facts in both staged forms, and tables and task records, for tests of the Storage Write API."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ingest.core.parse.rows import moment
from tasks.proto_rows import FACT_COLUMNS, MICROSECONDS, Columns, framed, integer_field, text_field
from tasks.settings import Settings
from tasks.sinks.bigquery.sink import client
from tasks.wire import EncodedRows, ProtoRows, Row

NOON = 1_795_000_000
TABLE = "replay_events"


def fact(number: int, table: str = TABLE, **given: Any) -> Row:
    """Returns a valid row; `given` changes or adds columns."""
    fields = {
        "row_id": f"row-{number}",
        "event_type": "ui.click",
        "timestamp": moment(NOON + number + 0.125),
        "org_id": 1,
        "project_id": 2,
        "replay_id": "0" * 32,
        "segment_id": number,
        "attributes": json.dumps({"url": 'http://a/"ä'}),
    } | given
    return Row(table, f"row-{number}", json.dumps(fields, ensure_ascii=False).encode(), number)


def encoded(items: Sequence[Row]) -> EncodedRows:
    """Returns the same rows as staged by a reader with `bigquery_write=storage`.

    Columns that the table lacks are encoded as integers.
    """
    fields = [json.loads(item.json) for item in items]
    known = [name for name, _ in FACT_COLUMNS]
    more = sorted({name for row in fields for name in row} - set(known))
    columns = (*FACT_COLUMNS, *((name, "INTEGER") for name in more))
    rows = b"".join(framed(_message(columns, row)) for row in fields)
    table = items[0].table if items else TABLE
    return EncodedRows(ProtoRows(table, columns, tuple((item.offset, 1) for item in items), rows))


def microseconds_of(moment: str) -> int:
    """Converts an RFC 3339 string to Unix time in microseconds."""
    return (datetime.fromisoformat(moment) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _message(columns: Columns, row: dict[str, Any]) -> bytes:
    parts = []
    for number, (name, kind) in enumerate(columns, 1):
        value: Any = row.get(name)
        if value is None:
            continue
        if kind == "TIMESTAMP":
            is_text_of_time = isinstance(value, str)
            value = microseconds_of(value) if is_text_of_time else round(value * MICROSECONDS)
        is_text = kind in ("STRING", "JSON")
        parts.append(text_field(number, value.encode()) if is_text else integer_field(number, value))
    return b"".join(parts)


def selected(settings: Settings, select: str, table: str = TABLE) -> list[tuple[Any, ...]]:
    """Returns the rows of a query over the table."""
    server: Any = client(settings)
    name = f"`{settings.bigquery_project}.{settings.bigquery_dataset}.{table}`"
    found = [tuple(row.values()) for row in server.query_and_wait(f"SELECT {select} FROM {name}")]
    server.close()
    return found


def numbers(settings: Settings, table: str = TABLE) -> list[int]:
    """Returns the sorted numbers of the facts in the table, including duplicates."""
    return sorted(number for (number,) in selected(settings, "segment_id", table))


class Notes:
    """A task's record, held in memory and shared by the task's runs; `run` returns the record for one run."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.stored: list[bytes] = []
        self._lock = threading.Lock()

    def run(self) -> RunNotes:
        """Returns the record as one run of the task sees it."""
        return RunNotes(self)

    def replace(self, seen: bytes, content: bytes) -> bool:
        """Replaces the content if it equals `seen`."""
        with self._lock:
            if self.content != seen:
                return False
            self.content = content
            self.stored.append(content)
            return True


class RetriedNotes(Notes):
    """A record whose first change is applied but reported as refused, as if the response had been lost and the
    request retried.
    """

    def replace(self, seen: bytes, content: bytes) -> bool:
        """Replaces the content, but returns False on the first call."""
        return super().replace(seen, content) and len(self.stored) > 1


class RunNotes:
    """A `TaskRecord`."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._seen = b""

    def load(self) -> bytes:
        """Reads the current content of the record."""
        self._seen = self._notes.content
        return self._seen

    def store(self, content: bytes) -> bool:
        """Replaces the content if it has not changed since this run read it."""
        stored = self._notes.replace(self._seen, content)
        if stored:
            self._seen = content
        return stored
