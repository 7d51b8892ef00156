"""`insertAll`: validates rows against the table, and deduplicates by insertId."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import date
from hashlib import blake2b
from typing import Any

from ingest.local.servers.bigquery.names import TableName
from ingest.local.servers.bigquery.rows import BadValue, check_partition, row_of
from ingest.local.servers.bigquery.schemas import fields_of

INSERT_ID_WINDOW_SECONDS = 60.0
INSERT_IDS_MAX = 500_000
INSERT_ID_CHARACTERS_MAX = 128


class InsertIds:
    """Remembers the insertIds of a table that were seen within a time window, up to a maximum number.

    As in the real service, deduplication is best effort: all ids are lost on a restart.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    @staticmethod
    def key(table: TableName, insert_id: str) -> bytes:
        """Returns a 16-byte key, so that half a million keys use less than 100 MB."""
        return blake2b(f"{table}\0{insert_id}".encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def seen(self, key: bytes, now: float) -> bool:
        """Returns whether a row with this id was stored within the window."""
        at = self._seen.get(key)
        return at is not None and now - at <= self._window_seconds

    def add(self, keys: Sequence[bytes], now: float) -> None:
        """Records the ids of stored rows."""
        for key in keys:
            self._seen.setdefault(key, now)
            if now - self._seen[key] > self._window_seconds:
                self._seen[key] = now
                self._seen.move_to_end(key)
        while self._seen:
            oldest = next(iter(self._seen))
            if len(self._seen) <= INSERT_IDS_MAX and now - self._seen[oldest] <= self._window_seconds:
                return
            del self._seen[oldest]


def validate_rows(
    resource: Mapping[str, Any], rows: Sequence[Any], ignore_unknown: bool, today: date
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Returns the stored forms of the valid rows and the errors of the invalid rows, each by index."""
    fields = fields_of(resource)
    column = str((resource.get("timePartitioning") or {}).get("field") or "")
    partition = next((field for field in fields if field.name.lower() == column.lower()), None)
    good: dict[int, dict[str, Any]] = {}
    errors: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(rows):
        try:
            content = entry.get("json") if isinstance(entry, dict) else None
            _check_insert_id(entry)
            row = row_of(fields, content, ignore_unknown=ignore_unknown)
            if partition is not None:
                check_partition(partition.name, partition.type, row, today)
        except BadValue as error:
            errors[index] = {
                "reason": "invalid",
                "location": error.location,
                "debugInfo": "",
                "message": str(error),
            }
        else:
            good[index] = row
    return good, errors


def _check_insert_id(entry: Any) -> None:
    """Raises BadValue for an insertId that is too long."""
    insert_id = entry.get("insertId") if isinstance(entry, dict) else None
    if isinstance(insert_id, str) and len(insert_id) > INSERT_ID_CHARACTERS_MAX:
        raise BadValue("", f"insertId has {len(insert_id)} characters, limit {INSERT_ID_CHARACTERS_MAX}.")
