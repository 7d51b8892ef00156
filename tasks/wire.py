"""Formats exchanged between readers and workers: items, staged batches, names in messages, completions.

One Redis hash per batch, under `batch_key(batch_id, digest)`:

    manifest          JSON, `Manifest`
    <task name>       msgpack list of the items of one flush task, or `ProtoRows`; the name is a `TaskName`
    done/<task name>  set once that task's write is durable (the done mark): "1", or its seal (`tasks.seals`)

The digest covers every item, so that a mark is valid only for the bytes that were written. The same range with
different content, for example from another release of the parser, is stored in a separate hash.

Readers and workers of different releases run side by side during an upgrade. Compatibility:

    manifest, completion   Objects. An unknown field is ignored, and a missing field takes its default.
                           `version` is incremented for any other change, and a newer version is refused.
    items                  Arrays. A missing last element takes its default. An unknown element is refused, because
                           a worker that ignored it would write less than the reader intended, and report the
                           whole item as durable.
    ProtoRows              An object that names its columns, so that rows with the columns of another release can
                           be written. A worker refuses an object with an unknown field, type or column form.

Therefore, a new element is added at the end with a default, and workers are upgraded before readers. A refused
batch is parked with the reason until the workers are upgraded.

The core imports only this module, `tasks.proto_rows` and `tasks.units` from `tasks`, because they do no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import msgspec

from tasks.proto_rows import Columns, are_columns_known, fact_id, joined, places_of, to_json

VERSION = 1
MANIFEST = "manifest"

if TYPE_CHECKING:
    Buffer = bytes | memoryview
else:
    Buffer = memoryview  # bytes are encoded the same way; decoding returns views of the bytes that Redis returned


class Incompatible(Exception):
    """This release cannot read data written by another release. The message states what to upgrade."""


# ------------------------------------------------------------------------------------------- Sinks and stages


class Stage(StrEnum):
    """The two chords of a batch, in order: no row is written before its blob.

    docs/decisions/008-blob-before-rows.md
    """

    BLOBS = "blobs"
    ROWS = "rows"


class SinkName(StrEnum):
    """Every sink, in the order of a batch's tasks."""

    GCS = "gcs"
    CLICKHOUSE = "clickhouse"
    BIGQUERY = "bigquery"
    DATADOG = "datadog"
    DEAD_LETTER = "dead_letter"

    @property
    def stage(self) -> Stage:
        """The chord that writes to this sink."""
        return Stage.BLOBS if self is SinkName.GCS else Stage.ROWS


TABLES_BY_SINK = {
    SinkName.CLICKHOUSE: ("replays", "replay_segments", "replay_outcomes", "replay_objects"),
    SinkName.BIGQUERY: ("replay_events",),
}
"""The tables that each sink writes to; rows for other tables are refused."""


# ------------------------------------------------------------------------------------------------------ Items


class MetricKind(StrEnum):
    """How DogStatsD aggregates a metric."""

    COUNTER = "c"
    DISTRIBUTION = "d"


class Blob(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One object for blob storage. `name` is deterministic, and `content` is stored unchanged.

    `offset` is the Kafka offset of the source message, so that a refusal can be traced to that message.
    """

    name: str
    content: Buffer
    offset: int


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One row, encoded once.

    `json` is one JSON object in UTF-8 without a newline. `id` is the row's identity, derived from
    (replay_id, segment_id, event): writing the same id twice leaves one row. `offset`: see `Blob`.
    """

    table: str
    id: str
    json: bytes
    offset: int


class Metric(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One product metric for Datadog: `value` is the amount to add to a counter, or one value of a
    distribution.
    """

    kind: MetricKind
    name: str
    value: float
    tags: tuple[str, ...] = ()


class DeadLetter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One record for the dead-letter topic, with all its headers. `offset`: see `Blob`. A tombstone has no
    value.
    """

    key: bytes | None
    value: Buffer | None
    headers: tuple[tuple[str, bytes | None], ...]
    offset: int


Item = Blob | Row | Metric | DeadLetter
_ITEM_TYPE_BY_SINK: dict[SinkName, type[Item]] = {
    SinkName.GCS: Blob,
    SinkName.CLICKHOUSE: Row,
    SinkName.BIGQUERY: Row,
    SinkName.DATADOG: Metric,
    SinkName.DEAD_LETTER: DeadLetter,
}


class ProtoRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The items of one flush task: rows of one BigQuery table as framed protobuf messages (`tasks.proto_rows`).

    `columns`: the columns of the release that encoded the rows. `counts`: the Kafka offset and the number of rows
    of each message, in the order of the rows.
    """

    table: str
    columns: Columns
    counts: tuple[tuple[int, int], ...]
    rows: bytes


class EncodedRows(Sequence[Row]):
    """`ProtoRows` as items. A sink that sends protobuf uses the bytes; a single item is converted to JSON when it
    is accessed.

    Iterating or indexing raises Incompatible if the bytes are not framed rows.
    """

    def __init__(self, staged: ProtoRows) -> None:
        self.staged = staged
        self._count = sum(count for _, count in staged.counts)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._row(place) for place in range(self._count)[index]]
        return self._row(range(self._count)[index])

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, range(self._count))

    def part(self, positions: Sequence[int]) -> EncodedRows:
        """Returns the rows at these positions, in this order, as protobuf."""
        if len(positions) == self._count and list(positions) == list(range(self._count)):
            return self
        rows = joined(self.staged.rows, [self._places[position] for position in positions])
        counts = tuple((self._offsets[position], 1) for position in positions)
        return EncodedRows(msgspec.structs.replace(self.staged, counts=counts, rows=rows))

    @cached_property
    def framed_bytes(self) -> list[int]:
        """Size of each framed row."""
        stops = [0, *(stop for _, stop in self._places)]
        return [stop - start for start, stop in pairwise(stops)]

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        try:
            places = places_of(self.staged.rows)
        except ValueError as error:
            raise _unreadable_rows(error) from error
        if len(places) != self._count:
            raise _unreadable_rows(f"{len(places)} rows instead of {self._count}")
        return places

    @cached_property
    def _offsets(self) -> list[int]:
        return [offset for offset, count in self.staged.counts for _ in range(count)]

    def _row(self, position: int) -> Row:
        start, stop = self._places[position]
        try:
            row = to_json(self.staged.columns, self.staged.rows[start:stop])
            identity = msgspec.json.decode(row, type=_Identity)
        except (ValueError, msgspec.MsgspecError) as error:
            raise _unreadable_rows(error) from error
        row_id = fact_id(identity.project_id, identity.row_id)
        return Row(self.staged.table, row_id, row, self._offsets[position])


class _Identity(msgspec.Struct):
    project_id: int
    row_id: str


def _unreadable_rows(error: object) -> Incompatible:
    return Incompatible(f"the staged rows of bigquery cannot be read: {error}")


_encoder = msgspec.msgpack.Encoder()
_decode_proto_rows = msgspec.msgpack.Decoder(ProtoRows).decode
_decoders: dict[SinkName, msgspec.msgpack.Decoder[Any]] = {
    sink: msgspec.msgpack.Decoder(list[item])  # type: ignore[valid-type]
    for sink, item in _ITEM_TYPE_BY_SINK.items()
}
_T = TypeVar("_T")
# First bytes of msgpack maps of up to 15 keys; a list of items begins with another byte.
_MAPS = frozenset(bytes((byte,)) for byte in range(0x80, 0x90))


def encode_items(items: Sequence[Item]) -> bytes:
    """Encodes one flush task's items as msgpack."""
    return _encoder.encode(items.staged if isinstance(items, EncodedRows) else items)


def decode_items(sink: SinkName, data: bytes) -> Sequence[Item]:
    """Returns the items of one flush task; blobs and dead letters are views of `data`, not copies.

    Raises Incompatible if `data` was not encoded by this or an older release.
    """
    try:
        if sink == SinkName.BIGQUERY and data[:1] in _MAPS:
            return _encoded_rows(_decode_proto_rows(data))
        decoded: Sequence[Item] = _decoders[sink].decode(data)
    except msgspec.MsgspecError as error:
        raise Incompatible(
            f"the staged {sink} items do not have the form that this release writes ({error}): "
            "upgrade the workers before the readers"
        ) from error
    return decoded


def _encoded_rows(staged: ProtoRows) -> EncodedRows:
    if any(count < 0 for _, count in staged.counts) or 2 * sum(count for _, count in staged.counts) > len(
        staged.rows
    ):
        raise _unreadable_rows("their number does not fit their size")
    if not are_columns_known(staged.columns):
        raise Incompatible(
            "the staged rows of bigquery have columns that this release cannot describe: upgrade the workers "
            "before the readers"
        )
    return EncodedRows(staged)


def part_of(items: Sequence[_T], positions: Sequence[int]) -> Sequence[_T]:
    """Returns the items at these positions, in this order."""
    if isinstance(items, EncodedRows):
        return items.part(positions)  # type: ignore[return-value]
    return [items[position] for position in positions]


def chunks(items: Iterable[_T], count_max: int) -> list[list[_T]]:
    """Splits items into lists of at most `count_max` items, in order."""
    out: list[list[_T]] = []
    for item in items:
        if not out or len(out[-1]) >= count_max:
            out.append([])
        out[-1].append(item)
    return out


# ------------------------------------------------------------------------------------------- The staged batch


class TaskName(NamedTuple):
    """The name of one flush task within its batch: `<stage>/<sink>/<number>`."""

    stage: Stage
    sink: SinkName
    number: int

    def __str__(self) -> str:
        return f"{self.stage}/{self.sink}/{self.number}"

    @classmethod
    def parse(cls, text: str) -> TaskName:
        """Parses a task name. Raises ValueError for any other string."""
        stage, sink, number = text.split("/")
        return cls(Stage(stage), SinkName(sink), int(number))


class TaskEntry(msgspec.Struct, frozen=True):
    """One flush task of the batch: its field name, its number of items, and its size in bytes.

    `content`: `Seals.content` of the bytes; empty if the reader has no shared key.
    """

    name: str
    items: int
    size_bytes: int
    content: str = ""

    @property
    def stage(self) -> str:
        """The stage as text. Like `sink`, it may have a value that is known only to a newer release."""
        return self.name.split("/", 1)[0]

    @property
    def sink(self) -> str:
        return self.name.split("/", 2)[1]


class Manifest(msgspec.Struct, frozen=True):
    """Describes a staged batch. `reader` names the stream for completions."""

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
        """Returns the tasks of one stage, in order."""
        return tuple(entry for entry in self.tasks if entry.stage == stage)


class ManifestHead(msgspec.Struct, frozen=True):
    """The part of a manifest that is the same in every version. It names the reader to which a worker reports that
    the manifest is unreadable.
    """

    batch_id: str
    reader: str
    epoch: int
    version: int = VERSION


_manifests = msgspec.json.Decoder(Manifest)
_manifest_heads = msgspec.json.Decoder(ManifestHead)


def decode_manifest_head(data: bytes) -> ManifestHead:
    """Decodes the head of a manifest of any version. Raises Incompatible if it is not a manifest."""
    try:
        return _manifest_heads.decode(data)
    except msgspec.MsgspecError as error:
        raise Incompatible(f"the staged manifest cannot be read: {error}") from error


def decode_manifest(data: bytes) -> Manifest:
    """Decodes a manifest. Raises Incompatible for a newer version."""
    head = decode_manifest_head(data)
    _expect_version(f"{head.batch_id} was staged", head.version, "upgrade the workers before the readers")
    try:
        return _manifests.decode(data)
    except msgspec.MsgspecError as error:
        raise Incompatible(f"the manifest of {head.batch_id} cannot be read: {error}") from error


def _expect_version(what: str, version: int, remedy: str) -> None:
    if not 1 <= version <= VERSION:
        raise Incompatible(
            f"{what} in version {version} of the wire format, this release reads 1 to {VERSION}: {remedy}"
        )


def batch_key(batch_id: str, digest: str, prefix: str = "replays") -> str:
    """Returns the Redis key of a staged batch. Braces keep all keys of one batch on one node of a Redis
    Cluster.
    """
    return f"{prefix}:batch:{{{batch_id}}}:{digest}"


def reader_stream(reader: str, prefix: str = "replays") -> str:
    """Returns the Redis stream of one reader, for completions and operator requests."""
    return f"{prefix}:reader:{reader}"


def done_field(task_name: str) -> str:
    """Returns the hash field that marks a task's write as durable."""
    return "done/" + task_name


def reference(manifest: Manifest) -> str:
    """Returns the reference that task messages use for a staged batch: `<batch id>:<digest>`."""
    return f"{manifest.batch_id}:{manifest.digest}"


def batch_id_of(batch: str) -> str:
    """Returns the batch id in a reference to a staged batch. Topic names contain no colon."""
    return batch.rsplit(":", 1)[0]


# ------------------------------------------------------------------------------------- Chords and completions


class ChordName(NamedTuple):
    """One chord of one batch. `batch` is a reference to the staged batch, as returned by `reference`. `str()`
    returns the task id of the chord's callback."""

    batch: str
    stage: Stage
    attempt: int
    token: str

    def __str__(self) -> str:
        return f"{self.batch}~{self.stage}~{self.attempt}~{self.token}"

    @classmethod
    def parse(cls, text: str) -> ChordName:
        """Parses a chord name. Raises ValueError for any other task id."""
        batch, stage, attempt, token = text.split("~")
        return cls(batch, Stage(stage), int(attempt), token)


class CompletionKind(StrEnum):
    """Kind of a completion: DONE and FAILED come from chords, all other kinds from operators."""

    DONE = "done"  # all done marks of the stage are set
    FAILED = "failed"  # a task failed, or done marks are missing
    RETRY = "retry"  # retry now
    ABANDONED = "abandoned"  # the batch's messages are dead letters: continue without it


class Completion(msgspec.Struct, frozen=True):
    """One entry of a reader's stream (field `c`, JSON).

    A completion has the version of the batch's manifest, so that the reader can decode it. `sinks`: names of the
    sinks with unfinished tasks, if the stage failed; empty if unknown.
    """

    kind: CompletionKind
    batch_id: str
    epoch: int = -1
    stage: str = ""
    attempt: int = 0
    error: str = ""
    version: int = VERSION
    sinks: tuple[str, ...] = ()


def known_sinks(names: Iterable[str]) -> frozenset[SinkName]:
    """Returns the sinks with these names. Sinks that exist only in a newer release are left out."""
    return frozenset(name for name in SinkName if name in frozenset(names))


_completions = msgspec.json.Decoder(Completion)


def decode_completion(data: bytes) -> Completion:
    """Decodes a completion. Raises Incompatible for a newer version or an unknown kind."""
    try:
        completion = _completions.decode(data)
    except msgspec.MsgspecError as error:
        raise Incompatible(f"a completion cannot be read: {error}") from error
    _expect_version(f"the completion of {completion.batch_id} is", completion.version, "upgrade the reader")
    return completion
