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
from tasks.kafka.letters import Label, Origin
from tasks.seals import UNSEALED, Seals
from tasks.wire import DeadLetter, Item, Manifest, SinkName, TaskEntry, TaskName, chunks, encode_items


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch's manifest and, by task name, the bytes of its flush tasks."""

    manifest: Manifest
    payloads: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Encoder:
    """`sinks`: those that are switched on. `blobs_per_task`: how many objects one task uploads.

    `packed`: the recordings of a batch lie end to end in few objects, and each gets an index row.
    `seals`: with a shared key the manifest has the digest of each task's bytes.
    """

    sinks: tuple[SinkName, ...]
    blobs_per_task: int
    reader: str
    packed: bool = False
    seals: Seals = UNSEALED

    def encode(self, batch: Batch) -> Encoded:
        """All tasks of the batch, and what it consists of."""
        digest = xxhash.xxh3_128()
        entries, payloads = [], {}
        for name, items in self._tasks(batch, tuple(Stage)):
            data = encode_items(items)
            # Names and lengths as well, so that bytes cannot move from one task to another unnoticed.
            digest.update(f"{name}:{len(data)}:".encode())
            digest.update(data)
            entries.append(TaskEntry(name, len(items), len(data), self.seals.content(data)))
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
            if sink.stage not in stages:
                continue
            items = items_of(batch, sink) if not (self.packed and sink is SinkName.GCS) else list[Item](objects)
            if self.packed and sink is SinkName.CLICKHOUSE:
                items += index
            size = self.blobs_per_task if sink is SinkName.GCS else max(1, len(items))
            for number, chunk in enumerate(chunks(items, size)):
                yield str(TaskName(sink.stage, sink, number)), chunk


def items_of(batch: Batch, sink: SinkName) -> list[Item]:
    """Everything that one sink gets of a batch, in order."""
    items: list[Item] = []
    match sink:
        case SinkName.GCS:
            for segment in batch.segments:
                items += segment.blobs
        case SinkName.CLICKHOUSE:
            for segment in batch.segments:
                items += segment.clickhouse
        case SinkName.BIGQUERY:
            for segment in batch.segments:
                items += segment.bigquery
        case SinkName.DATADOG:
            for segment in batch.segments:
                items += segment.metrics
        case SinkName.DEAD_LETTER:
            items += [_dead_letter(batch, reject) for reject in batch.rejects]
    return items


def _dead_letter(batch: Batch, reject: Reject) -> DeadLetter:
    """The original record, labelled with what became of it."""
    label = Label(
        reason=reject.reason,
        error=reject.error,
        origin=Origin(batch.source.topic, batch.source.partition, reject.offset),
        batch_id=batch.id,
        first_seen_ms=reject.first_seen_ms,
        originals=reject.headers,
    )
    value = None if reject.tombstone else reject.value
    return DeadLetter(reject.key, value, label.encode(), reject.offset)
