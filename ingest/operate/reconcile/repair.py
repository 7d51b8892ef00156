"""Writes items again through the sinks' `write` method, in small chunks and at a limited rate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from ingest.core.model import Batch
from ingest.core.packing import pack
from ingest.settings import Settings
from tasks.errors import PermanentSinkError, SinkError
from tasks.sinks import build
from tasks.sinks.base import Sink
from tasks.wire import Item, Row, SinkName

WRITE_ITEMS_MAX = 200
WRITE_TRIES = 5
BACKOFF_SECONDS = 0.5


class Repair:
    """Performs the writes of one run. Sinks are built on first use."""

    def __init__(self, settings: Settings, per_second_max: float) -> None:
        self._settings = settings
        self._per_second_max = per_second_max
        self._run = int(time.time() * 1000)
        self._sinks: dict[str, Sink[Any]] = {}

    def write(self, sink: str, batch: Batch, items: Sequence[Item]) -> str:
        """Returns the error, or "" if all items were written. Stops at the first failure."""
        if sink == SinkName.GCS and self._settings.gcs_layout == "packed":
            wanted = set(map(id, items))
            segments = [segment for segment in batch.segments if any(id(blob) in wanted for blob in segment.blobs)]
            # Recordings are packed again, because an index row that refers to a missing object takes precedence
            # over the segment's own object. The new object has a different name, because an object with corrupted
            # bytes is never overwritten.
            source = batch.source._replace(topic=f"{batch.source.topic}-repair-{self._run}")
            objects, index = pack(replace(batch, source=source, segments=tuple(segments)))
            return self.write_items(SinkName.GCS, batch.id, objects) or self.write_items(
                SinkName.CLICKHOUSE, f"{batch.id}:index", index
            )
        return self.write_items(sink, batch.id, items)

    def write_items(self, sink: str, batch_id: str, items: Sequence[Item]) -> str:
        """Like `write`, but writes the items unchanged. `batch_id` is part of the insert token."""
        if sink not in self._sinks:
            self._sinks[sink] = build(sink, self._settings)
        at_once = max(1, min(WRITE_ITEMS_MAX, int(self._per_second_max)))
        for start in range(0, len(items), at_once):
            chunk = [self._with_new_insert_id(sink, item) for item in items[start : start + at_once]]
            began = time.monotonic()
            # The token differs from the tokens of the batch and of earlier repairs, because ClickHouse would
            # otherwise skip the insert as a duplicate. Rows with the same key still replace each other.
            token = f"reconcile-{self._run}-{batch_id}:{sink}:{start}"
            try:
                self._write_with_retries(sink, chunk, token)
            except SinkError as error:
                return f"{sink}, {len(chunk)} items of {batch_id}: {error}"
            time.sleep(max(0.0, len(chunk) / self._per_second_max - (time.monotonic() - began)))
        return ""

    def _with_new_insert_id(self, sink: str, item: Item) -> Item:
        """Changes the insert id, because BigQuery remembers it for about a minute and would skip a row that has
        since been deleted. The row's identity, the column `row_id`, does not change.
        """
        if sink == "bigquery" and isinstance(item, Row):
            return msgspec.structs.replace(item, id=f"{item.id}-{self._run}")
        return item

    def _write_with_retries(self, sink: str, items: Sequence[Item], token: str) -> None:
        for attempt in range(WRITE_TRIES):
            try:
                self._sinks[sink].write(items, token, self._settings.sink_timeout_seconds)
                return
            except PermanentSinkError:
                raise
            except SinkError:
                if attempt + 1 == WRITE_TRIES:
                    raise
                time.sleep(BACKOFF_SECONDS * 2**attempt)

    def close(self) -> None:
        """Closes the sinks."""
        for sink in self._sinks.values():
            sink.close()
