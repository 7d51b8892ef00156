"""Encodes a batch for its flush tasks: selects and orders the items, encodes them once, and computes their digest.

The same batch with the same settings gives the same names, bytes and digest, so that done marks of earlier
attempts and owners are found.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import xxhash

from ingest.core.model import Batch, Reject, Stage, proto_rows
from ingest.core.packing import pack
from tasks.kafka.letters import Label, Origin
from tasks.seals import UNSEALED, Seals
from tasks.wire import DeadLetter, Item, Manifest, SinkName, TaskEntry, TaskName, chunks, encode_items


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch's manifest and, by task name, the bytes of its flush tasks."""

    manifest: Manifest
    payloads: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Encoder:
    """`sinks`: enabled sinks. `blobs_per_task`: maximum objects per task.

    `packed`: recordings of a batch are concatenated into a few objects, with an index row for each recording.
    `seals`: with a shared key, the manifest has the digest of each task's bytes.
    """

    sinks: tuple[SinkName, ...]
    blobs_per_task: int
    reader: str
    packed: bool = False
    seals: Seals = UNSEALED

    def encode(self, batch: Batch) -> EncodedBatch:
        """Encodes all tasks of the batch and its manifest."""
        digest = xxhash.xxh3_128()
        entries, payloads = [], {}
        for name, items in self._tasks(batch, tuple(Stage)):
            data = encode_items(items)
            # The digest covers names and lengths, so that bytes moved from one task to another are detected.
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
        return EncodedBatch(manifest, payloads)

    def payloads(self, batch: Batch, stage: Stage, names: Iterable[str]) -> dict[str, bytes]:
        """Re-encodes the items of the named tasks, which all belong to `stage`. Returns the bytes by task name."""
        wanted = set(names)
        return {name: encode_items(items) for name, items in self._tasks(batch, (stage,)) if name in wanted}

    def _tasks(self, batch: Batch, stages: Sequence[Stage]) -> Iterator[tuple[str, Sequence[Item]]]:
        """Yields (task name, items) of each flush task that has items, in a fixed order."""
        objects, index = pack(batch) if self.packed else ([], [])
        for sink in self.sinks:
            if sink.stage not in stages:
                continue
            if sink is SinkName.BIGQUERY:
                for number, facts in enumerate(_facts(batch)):
                    yield str(TaskName(sink.stage, sink, number)), facts
                continue
            items = items_of(batch, sink) if not (self.packed and sink is SinkName.GCS) else list[Item](objects)
            if self.packed and sink is SinkName.CLICKHOUSE:
                items += index
            size = self.blobs_per_task if sink is SinkName.GCS else max(1, len(items))
            for number, chunk in enumerate(chunks(items, size)):
                yield str(TaskName(sink.stage, sink, number)), chunk


def items_of(batch: Batch, sink: SinkName) -> list[Item]:
    """Returns all items of a batch for one sink, in order."""
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
                items += segment.facts
        case SinkName.DATADOG:
            for segment in batch.segments:
                items += segment.metrics
        case SinkName.DEAD_LETTER:
            items += [_dead_letter(batch, reject) for reject in batch.rejects]
    return items


def _facts(batch: Batch) -> Iterator[Sequence[Item]]:
    """Yields the facts of a batch, as JSON or protobuf, whichever the parser produced; each format has its own
    task."""
    as_json = [row for segment in batch.segments for row in segment.bigquery]
    if as_json:
        yield as_json
    encoded = proto_rows(batch.segments)
    if encoded:
        yield encoded


def _dead_letter(batch: Batch, reject: Reject) -> DeadLetter:
    """Returns the original record, labelled with its reject reason."""
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
