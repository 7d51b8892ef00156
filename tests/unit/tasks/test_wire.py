"""Tests what readers and workers of different releases accept from each other, and what they refuse."""

from __future__ import annotations

import msgspec
import pytest

from tasks.wire import (
    VERSION,
    Blob,
    ChordName,
    Completion,
    CompletionKind,
    DeadLetter,
    EncodedRows,
    Incompatible,
    Item,
    Manifest,
    Metric,
    MetricKind,
    ProtoRows,
    Row,
    SinkName,
    Stage,
    TaskEntry,
    TaskName,
    decode_completion,
    decode_items,
    decode_manifest,
    decode_manifest_head,
    encode_items,
    part_of,
)

ITEMS: dict[SinkName, Item] = {
    SinkName.GCS: Blob("30/1/a/0", b"recording", 7),
    SinkName.CLICKHOUSE: Row("replays", "click-1", b'{"n":1}', 7),
    SinkName.BIGQUERY: Row("replay_events", "fact-1", b'{"n":1}', 7),
    SinkName.DATADOG: Metric(MetricKind.COUNTER, "clicks", 1.0, ("sdk:js",)),
    SinkName.DEAD_LETTER: DeadLetter(b"key", b"value", (("reason", b"not_msgpack"),), 7),
}
MANIFEST = Manifest(
    "recordings-0-0-3", "digest", "recordings", 0, 0, 3, "reader-1", 1, (TaskEntry("rows/clickhouse/0", 3, 100),)
)


def as_json(value: Manifest | Completion, **more: object) -> bytes:
    """Returns a manifest or completion as JSON, as another release would write it, with the given fields added or
    replaced.
    """
    return msgspec.json.encode({**msgspec.to_builtins(value), **more})


@pytest.mark.parametrize("sink", SinkName)
def test_items_survive_a_round_trip(sink: SinkName) -> None:
    assert decode_items(sink, encode_items([ITEMS[sink]])) == [ITEMS[sink]]


@pytest.mark.parametrize("sink", SinkName)
def test_an_item_with_an_unknown_element_is_refused_and_not_truncated(sink: SinkName) -> None:
    """An item with an unknown element is refused, and the error says to upgrade the workers before the readers."""
    longer = [[*msgspec.to_builtins(ITEMS[sink], builtin_types=(bytes, memoryview)), "content-type"]]

    with pytest.raises(Incompatible, match="upgrade the workers before the readers"):
        decode_items(sink, msgspec.msgpack.encode(longer))


STAGED = ProtoRows(
    "replay_events",
    (("row_id", "STRING"), ("project_id", "INTEGER")),
    ((7, 1), (9, 2)),
    b"\x0a\x05\x0a\x01a\x10\x02" * 3,
)


def test_rows_as_protobuf_survive_a_round_trip() -> None:
    """Rows staged as protobuf are decoded to the same rows as JSON, with the offsets of their messages."""
    items = decode_items(SinkName.BIGQUERY, encode_items(EncodedRows(STAGED)))

    assert isinstance(items, EncodedRows)
    assert items.staged == STAGED
    assert list(items) == [
        Row("replay_events", "2-a", b'{"row_id":"a","project_id":2}', offset) for offset in (7, 9, 9)
    ]
    assert items[-1] == items[1:][1] == list(items)[2]


def test_a_part_of_rows_as_protobuf_is_protobuf() -> None:
    """If a repeated task sends only some of its rows, these rows remain encoded as protobuf.

    If the task sends all of its rows, they are not copied.
    """
    rows = msgspec.structs.replace(
        STAGED, rows=b"".join(b"\x0a\x05\x0a\x01%c\x10\x02" % letter for letter in b"abc")
    )
    items = EncodedRows(rows)

    some = part_of(items, [2, 0])

    assert isinstance(some, EncodedRows)
    assert list(some) == [items[2], items[0]]
    assert part_of(items, [0, 1, 2]) is items
    assert part_of([5, 6, 7], [2, 0]) == [7, 5]


def test_a_worker_that_does_not_know_rows_as_protobuf_refuses_them() -> None:
    """A worker of an earlier release refuses rows encoded as protobuf: nothing is written, and the batch waits
    until the worker is upgraded.
    """
    older = msgspec.msgpack.Decoder(list[Row])

    with pytest.raises(msgspec.ValidationError):
        older.decode(encode_items(EncodedRows(STAGED)))


@pytest.mark.parametrize(
    "more",
    [
        {"compression": "zstd"},
        {"columns": [["row_id", "RANGE"]]},
        {"columns": [["row_id", "STRING", "REPEATED"]]},
        {"counts": [[7, -1]]},
        {"counts": [[7, 10**12]]},
    ],
)
def test_rows_as_protobuf_with_more_than_is_known_are_refused(more: dict[str, object]) -> None:
    """Rows encoded as protobuf are refused if they have fields or column types of a newer release, or an
    impossible row count.
    """
    data = msgspec.msgpack.encode({**msgspec.to_builtins(STAGED, builtin_types=(bytes,)), **more})

    with pytest.raises(Incompatible):
        decode_items(SinkName.BIGQUERY, data)


@pytest.mark.parametrize("rows", [STAGED.rows[:-1], STAGED.rows[:-7], STAGED.rows + STAGED.rows, b"\x0b" * 21])
def test_other_bytes_than_the_stated_rows_are_refused(rows: bytes) -> None:
    """Bytes that are truncated, or that contain too few rows, too many rows or no rows, are refused."""
    with pytest.raises(Incompatible):
        list(EncodedRows(msgspec.structs.replace(STAGED, rows=rows)))


def test_a_row_without_identity_is_refused() -> None:
    staged = msgspec.structs.replace(STAGED, counts=((7, 1),), rows=b"\x0a\x02\x10\x02")

    with pytest.raises(Incompatible):
        EncodedRows(staged)[0]


def test_an_older_readers_item_without_the_last_element_takes_its_default() -> None:
    """If an older reader's metric lacks the last element, it has no tags."""
    assert decode_items("datadog", msgspec.msgpack.encode([["c", "clicks", 1.0]])) == [
        Metric(MetricKind.COUNTER, "clicks", 1.0)
    ]


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode([["d"]]), msgspec.msgpack.encode({"a": 1})])
def test_bytes_that_are_not_items_are_refused(data: bytes) -> None:
    """Bytes that are not items are refused, always with the same error."""
    with pytest.raises(Incompatible):
        decode_items("gcs", data)


def test_an_unknown_field_of_a_manifest_or_completion_is_ignored() -> None:
    """An unknown field of a manifest or completion is ignored, because a newer release may add fields."""
    completion = Completion(CompletionKind.DONE, "recordings-0-0-3", 1, "rows", 2)

    assert decode_manifest(as_json(MANIFEST, compression="zstd")) == MANIFEST
    assert decode_completion(as_json(completion, worker="w1")) == completion


def test_a_missing_version_is_the_first() -> None:
    """A missing version counts as the first version, because the first release sent none."""
    fields = msgspec.to_builtins(Completion(CompletionKind.RETRY, "recordings-0-0-3"))
    del fields["version"]

    assert decode_completion(msgspec.json.encode(fields)).version == 1


@pytest.mark.parametrize("version", [0, VERSION + 1])
def test_another_version_is_refused_with_both_numbers(version: int) -> None:
    """Any other version is refused, and the error names that version and the supported versions."""
    completion = Completion(CompletionKind.DONE, "recordings-0-0-3")

    with pytest.raises(Incompatible, match=rf"recordings-0-0-3 .*version {version} .*reads 1 to {VERSION}"):
        decode_manifest(as_json(MANIFEST, version=version))
    with pytest.raises(Incompatible, match=rf"recordings-0-0-3 .*version {version} .*upgrade the reader"):
        decode_completion(as_json(completion, version=version))


def test_a_refused_manifest_still_names_its_reader() -> None:
    """A manifest of any version names its reader, even if the rest of the manifest is refused."""
    data = msgspec.json.encode(
        {"version": 9, "batch_id": "recordings-0-0-3", "reader": "reader-1", "epoch": 4, "tasks": "elsewhere"}
    )

    head = decode_manifest_head(data)

    assert (head.reader, head.batch_id, head.epoch) == ("reader-1", "recordings-0-0-3", 4)


def test_names_are_read_as_they_were_written() -> None:
    chord = ChordName("recordings-0-0-3:digest", Stage.ROWS, 2, "token")
    task = TaskName(Stage.BLOBS, SinkName.GCS, 12)

    assert ChordName.parse(str(chord)) == chord
    assert TaskName.parse(str(task)) == task
    assert str(task) == "blobs/gcs/12"
    for wrong in ("blobs/gcs", "blobs/s3/0", "cells/gcs/0", "blobs/gcs/x"):
        with pytest.raises(ValueError):
            TaskName.parse(wrong)
