"""Tests the layout `packed`: identity, retention classes, bounds, and the contents of the index."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from ingest.core import packing
from ingest.core.model import Batch, Message, Segment, TopicPartition
from ingest.core.packing import pack
from ingest.core.parse import ParseRules, parse
from ingest.reader.encoding import Encoder
from ingest.settings import Settings
from ingest.testing.messages import recording
from tasks.wire import SinkName
from tests.kit.batches import make_batch


def with_retention(batch: Batch, *days: int) -> Batch:
    segments = tuple(
        msgspec.structs.replace(segment, retention_days=day)
        for segment, day in zip(batch.segments, days, strict=True)
    )
    return Batch(batch.source, batch.epoch, batch.offsets, segments, batch.rejects, batch.size_bytes, batch.cut_by)


def test_the_same_batch_after_a_crash_is_the_same_object():
    """If another owner packs the same batch in another epoch, the names, bytes, index and digest are the same."""
    once, again = make_batch(5, epoch=1), make_batch(5, epoch=7)
    encoder = Encoder((SinkName.GCS, SinkName.CLICKHOUSE, SinkName.DEAD_LETTER), 64, "r", packed=True)

    assert pack(once) == pack(again)
    assert encoder.encode(once).manifest.digest == encoder.encode(again).manifest.digest


def test_other_bytes_of_the_same_range_get_another_name():
    """If the same range has different bytes, the object gets a different name.

    If the name were the same, a 412 response would confirm bytes that are not stored.
    """
    (first,), (second,) = pack(make_batch(2))[0], pack(make_batch(2, content=b"other"))[0]

    assert first.name.rsplit("-", 1)[0] == second.name.rsplit("-", 1)[0]
    assert first.name != second.name


def test_the_index_finds_every_recording_in_its_retention_class():
    """There is one object per retention class, and each index row selects exactly its segment."""
    batch = with_retention(make_batch(4), 90, 30, 90, 30)

    objects, rows = pack(batch)

    assert [blob.name.split("/")[0] for blob in objects] == ["30", "90"]
    contents = {blob.name: bytes(blob.content) for blob in objects}
    found = {}
    for row in map(json.loads, (row.json for row in rows)):
        stop = row["start_bytes"] + row["length_bytes"]
        found[row["name"]] = contents[row["object"]][row["start_bytes"] : stop]
    assert found == {blob.name: blob.content for segment in batch.segments for blob in segment.blobs}


@pytest.mark.parametrize("received", [5, 2**32 + 1000, 123_123_123_123])
def test_an_index_row_has_the_arrival_time_of_its_segment(received: int):
    """An index row has the arrival time of its segment, not the time in the message.

    A row with a date in the distant past would be dropped immediately, and the recording would be lost.
    """
    now = 1_790_000_000
    value = recording(replay_id="a" * 32, segment_id=0, received=received)
    segment = parse(Message(TopicPartition("t", 0), 1, 0, value, timestamp_ms=now * 1000), ParseRules())
    assert isinstance(segment, Segment)

    (row,) = pack(replace(make_batch(1), segments=(segment,)))[1]

    assert json.loads(row.json)["received"] == json.loads(segment.clickhouse[0].json)["received"] == now


def test_an_object_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """A large batch is packed into several objects of bounded size, and no recording is split."""
    monkeypatch.setattr(packing, "OBJECT_BYTES_MAX", 25)

    objects, rows = pack(make_batch(5))  # Each has 11 bytes.

    assert [len(blob.content) for blob in objects] == [22, 22, 11]
    assert len(rows) == 5


def test_packed_objects_without_an_index_are_refused():
    """Packed objects without an index are refused, because their recordings could not be read."""
    with pytest.raises(ValueError, match="holds the index"):
        Settings(gcs_layout="packed", sinks=("gcs", "dead_letter"))
