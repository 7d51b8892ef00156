"""A batch as its flush tasks get it: items chosen and ordered, encoded once, named by their digest.

Pure: the same batch under the same settings gives the same names, the same bytes and the same digest, so that the
done marks of an earlier attempt, or of an earlier owner, are found again.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import xxhash

from ingest.core.model import Batch, Reject, Stage
from ingest.core.packing import pack
from tasks.wire import (
    STAGE_OF_SINK,
    BlobItem,
    DeadLetterItem,
    Item,
    Manifest,
    MetricItem,
    RowItem,
    TaskEntry,
    chunks,
    encode_items,
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch's manifest and, by task name, the bytes of its flush tasks."""

    manifest: Manifest
    payloads: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Encoder:
    """`sinks`: those that are switched on. `blobs_per_task`: how many objects one task uploads.

    `packed`: the recordings of a batch lie end to end in few objects, and each gets an index row.
    """

    sinks: tuple[str, ...]
    blobs_per_task: int
    reader: str
    packed: bool = False

    def encode(self, batch: Batch) -> Encoded:
        """All tasks of the batch, and what it consists of."""
        digest = xxhash.xxh3_128()
        entries, payloads = [], {}
        for name, items in self._tasks(batch, tuple(Stage)):
            data = encode_items(items)
            # Names and lengths as well, so that bytes cannot move from one task to another unnoticed.
            digest.update(f"{name}:{len(data)}:".encode())
            digest.update(data)
            entries.append(TaskEntry(name, len(items), len(data)))
            payloads[name] = data
        manifest = Manifest(
            batch_id=batch.id,
            digest=base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode(),
            topic=batch.source.topic,
            partition=batch.source.partition,
            start=batch.offsets.start,
            stop=batch.offsets.stop,
            reader=self.reader,
            epoch=batch.epoch,
            tasks=tuple(entries),
        )
        return Encoded(manifest, payloads)

    def payloads(self, batch: Batch, stage: Stage, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of these tasks of one stage again, by task name."""
        wanted = set(names)
        return {name: encode_items(items) for name, items in self._tasks(batch, (stage,)) if name in wanted}

    def _tasks(self, batch: Batch, stages: Sequence[Stage]) -> Iterator[tuple[str, list[Item]]]:
        """(task name, items) of each flush task, in a fixed order; none is empty."""
        objects, index = pack(batch) if self.packed else ([], [])
        for sink in self.sinks:
            if STAGE_OF_SINK[sink] not in stages:
                continue
            items: list[Item] = []
            if self.packed and sink == "gcs":
                items += [BlobItem(blob.name, blob.content, blob.offset) for blob in objects]
            else:
                items += items_of(batch, sink)
            if self.packed and sink == "clickhouse":
                items += [RowItem(row.table, row.id, row.json, row.offset) for row in index]
            size = self.blobs_per_task if sink == "gcs" else max(1, len(items))
            for number, chunk in enumerate(chunks(items, size)):
                yield f"{STAGE_OF_SINK[sink]}/{sink}/{number}", chunk


def items_of(batch: Batch, sink: str) -> Iterator[Item]:
    """Everything that one sink gets of a batch, in order."""
    match sink:
        case "gcs":
            for segment in batch.segments:
                for blob in segment.blobs:
                    yield BlobItem(blob.name, blob.content, blob.offset)
        case "clickhouse":
            for segment in batch.segments:
                for row in segment.clickhouse:
                    yield RowItem(row.table, row.id, row.json, row.offset)
        case "bigquery":
            for segment in batch.segments:
                for row in segment.bigquery:
                    yield RowItem(row.table, row.id, row.json, row.offset)
        case "datadog":
            for segment in batch.segments:
                for metric in segment.metrics:
                    yield MetricItem(metric.kind, metric.name, metric.value, metric.tags)
        case "dead_letter":
            for reject in batch.rejects:
                yield _dead_letter(batch, reject)


def _dead_letter(batch: Batch, reject: Reject) -> DeadLetterItem:
    """The original record with headers that say what became of it. Ours come last and win."""
    letter = reject.dead_letter
    ours = {
        "reason": letter.reason,
        "error": letter.error,
        "topic": batch.source.topic,
        "partition": str(batch.source.partition),
        "offset": str(letter.offset),
        "batch_id": batch.id,
        "first_seen": str(letter.first_seen_ms),
    }
    originals = tuple((name, value) for name, value in letter.headers if name not in ours)
    encoded = tuple((name, text.encode()) for name, text in ours.items())
    return DeadLetterItem(letter.key, letter.value, originals + encoded, letter.offset)
