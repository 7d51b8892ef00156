"""The staged batch: what the reader puts into Redis and the flush tasks take out of it.

One Redis hash a batch, under `batch_key(batch_id, digest)`:

    manifest          JSON, `Manifest`
    <task name>       msgpack list of the items of one flush task; the name is `<stage>/<sink>/<n>`
    done/<task name>  "1" once that task's write is durable (the done mark)

The digest covers every item, so that a mark can never vouch for other bytes than those that were written:
the same range with other content (another release of the parser, say) is another hash.
This is the only module that both packages share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

VERSION = 1
MANIFEST = "manifest"

if TYPE_CHECKING:
    Buffer = bytes | memoryview
else:
    Buffer = memoryview  # either is encoded; decoding gives views on the bytes that came from Redis

SINKS = ("gcs", "clickhouse", "bigquery", "datadog", "dead_letter")
STAGE_OF_SINK = {
    "gcs": "blobs",
    "clickhouse": "rows",
    "bigquery": "rows",
    "datadog": "rows",
    "dead_letter": "rows",
}


class BlobItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One object: its name, its bytes, and the Kafka offset it came from."""

    name: str
    content: Buffer
    offset: int


class RowItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row as a JSON object in UTF-8 (no newline), its identity, and the Kafka offset it came from."""

    table: str
    id: str
    json: Buffer
    offset: int


class MetricItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One product metric: kind "c" or "d", value in the unit of the metric."""

    kind: str
    name: str
    value: float
    tags: tuple[str, ...]


class DeadLetterItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One record for the dead-letter topic, headers complete."""

    key: bytes | None
    value: Buffer
    headers: tuple[tuple[str, bytes | None], ...]
    offset: int


Item = BlobItem | RowItem | MetricItem | DeadLetterItem
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "gcs": msgspec.msgpack.Decoder(list[BlobItem]),
    "clickhouse": msgspec.msgpack.Decoder(list[RowItem]),
    "bigquery": msgspec.msgpack.Decoder(list[RowItem]),
    "datadog": msgspec.msgpack.Decoder(list[MetricItem]),
    "dead_letter": msgspec.msgpack.Decoder(list[DeadLetterItem]),
}


class TaskEntry(msgspec.Struct, frozen=True):
    """One flush task of the batch: its field's name, how many items and how many bytes it holds."""

    name: str
    items: int
    size_bytes: int

    @property
    def stage(self) -> str:
        return self.name.split("/", 1)[0]

    @property
    def sink(self) -> str:
        return self.name.split("/", 2)[1]


class Manifest(msgspec.Struct, frozen=True):
    """What is in a staged batch and who waits for it. `reader` names the stream that completions go to."""

    batch_id: str
    digest: str
    topic: str
    partition: int
    start: int
    stop: int
    reader: str
    epoch: int
    tasks: tuple[TaskEntry, ...]
    version: int = VERSION

    def of_stage(self, stage: str) -> tuple[TaskEntry, ...]:
        """The tasks of one stage, in order."""
        return tuple(entry for entry in self.tasks if entry.stage == stage)


def batch_key(batch_id: str, digest: str, prefix: str = "replays") -> str:
    """The Redis key of a staged batch. Braces keep all keys of one batch on one node of a Redis Cluster."""
    return f"{prefix}:batch:{{{batch_id}}}:{digest}"


def reader_stream(reader: str, prefix: str = "replays") -> str:
    """The Redis stream on which one reader process learns of completions and of operators' wishes."""
    return f"{prefix}:reader:{reader}"


def done_field(task_name: str) -> str:
    """The hash field that marks a task's write as durable."""
    return "done/" + task_name


def reference(manifest: Manifest) -> str:
    """How a task message names a staged batch: `<batch id>:<digest>`."""
    return f"{manifest.batch_id}:{manifest.digest}"


def batch_id_of(batch: str) -> str:
    """The batch id in such a reference. Names of topics hold no colon."""
    return batch.rsplit(":", 1)[0]


class ChordName(NamedTuple):
    """What the task id of a chord's body says: batch (a reference), stage, attempt, and the chord's token."""

    batch: str
    stage: str
    attempt: int
    token: str


def chord_id(batch: str, stage: str, attempt: int, token: str) -> str:
    """The name of one chord, and the task id of its body."""
    return f"{batch}~{stage}~{attempt}~{token}"


def parse_chord_id(text: str) -> ChordName:
    """The parts again. Raises ValueError for another task's id."""
    batch, stage, attempt, token = text.split("~")
    return ChordName(batch, stage, int(attempt), token)


_encoder = msgspec.msgpack.Encoder()
_T = TypeVar("_T")


def encode_items(items: Sequence[Item]) -> bytes:
    """One flush task's items as msgpack."""
    return _encoder.encode(items)


def decode_items(sink: str, data: bytes) -> list[Item]:
    """The items of one flush task; bytes inside are views on `data`, not copies.

    Raises msgspec.ValidationError or msgspec.DecodeError when `data` is not what `encode_items` made.
    """
    decoded: list[Item] = _decoders[sink].decode(data)
    return decoded


def chunks(items: Iterable[_T], count_max: int) -> list[list[_T]]:
    """Lists of at most `count_max` items, in order."""
    out: list[list[_T]] = []
    for item in items:
        if not out or len(out[-1]) >= count_max:
            out.append([])
        out[-1].append(item)
    return out


class Completion(msgspec.Struct, frozen=True):
    """One entry of a reader's stream (field `c`, JSON).

    kind: "done" (every mark of the stage is there), "failed" (a task gave up, or marks are missing),
    "retry" (an operator wants it now), "abandoned" (an operator gave it up, its messages are dead letters).
    """

    kind: str
    batch_id: str
    epoch: int = -1
    stage: str = ""
    attempt: int = 0
    error: str = ""
