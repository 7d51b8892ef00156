"""With the `packed` layout on real servers, objects are written, delivered again, and read next to objects of the
other layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import pytest

from ingest.core.model import Batch
from ingest.core.packing import pack
from ingest.web.reads import Reads
from tasks.errors import PermanentSinkError
from tasks.migrate.clickhouse import migrate_schema
from tasks.migrate.gcs import migrate_bucket
from tasks.settings import Settings
from tasks.sinks.clickhouse.sink import ClickHouseSink
from tasks.sinks.gcs.sink import GcsSink
from tasks.stored import read_replay
from tasks.wire import Blob, Row
from tests.kit.batches import REPLAY, make_batch
from tests.kit.scripted_server import Answer, ReceivedRequest, answering
from tests.kit.sink_answers import object_stored


@pytest.fixture
def stores(settings: Callable[..., Settings], gcs_endpoint: str, clickhouse_url: str) -> Settings:
    """Settings whose bucket and tables exist."""
    made = settings(gcs_endpoint=gcs_endpoint, clickhouse_url=clickhouse_url, gcs_layout="packed")
    assert list(migrate_bucket(made, dry_run=False))
    assert list(migrate_schema(made, dry_run=False))
    return made


def of_the_future(batch: Batch) -> Batch:
    """Returns the batch with times in the far future, because its rows would otherwise have expired."""
    segments = tuple(msgspec.structs.replace(segment, received=4_000_000_000) for segment in batch.segments)
    return dataclasses.replace(batch, segments=segments)


def segment_row(number: int) -> Row:
    json = (
        f'{{"org_id":1,"project_id":2,"replay_id":"{REPLAY}","segment_id":{number},"received":4000000000,'
        f'"retention_days":30,"object":"30/2/{REPLAY}/{number}","size_compressed":1,"size_uncompressed":1,'
        f'"size_video":0,"partition":0,"offset":{number}}}'
    )
    return Row("replay_segments", f"{REPLAY}/{number}", json.encode(), number)


def session_row() -> Row:
    json = (
        f'{{"event_hash":"{REPLAY}","replay_id":"{REPLAY}","segment_id":0,"org_id":1,"project_id":2,'
        '"timestamp":4000000000,"retention_days":30,"partition":0,"offset":0}'
    )
    return Row("replays", REPLAY, json.encode(), 0)


def test_a_replay_in_both_layouts_reads_back_after_redelivery(stores: Settings) -> None:
    """A replay can be read back even if it was packed twice (the second upload got 412) and one segment is in a
    separate object.
    """
    batch = of_the_future(make_batch(4))
    blobs, rows = pack(batch)
    objects = [Blob(blob.name, blob.content, blob.offset) for blob in blobs]
    index = [Row(row.table, row.id, row.json, row.offset) for row in rows]
    gcs, server = GcsSink(stores), ClickHouseSink(stores)

    for token in ("first", "second"):
        gcs.write(objects, token, 20)
        server.write([*index, session_row(), *map(segment_row, range(5))], token, 20)
    gcs.write([Blob(f"30/2/{REPLAY}/4", b"alone", 4)], "alone", 20)

    found = [part.content for part in read_replay(stores, REPLAY, 2)]
    assert found == [segment.blobs[0].content for segment in batch.segments] + [b"alone"]
    reads = Reads(stores)
    segments = reads.segments(reads.replay(REPLAY, 2))
    assert [content for _, content in reads.recordings(segments)] == found
    gcs.close()
    server.close()


def test_an_existing_object_is_not_written_again(settings: Callable[..., Settings]) -> None:
    """An existing object is not overwritten: the upload may only create the object, and a 412 response counts as
    success if the stored object is identical.

    The server is scripted, because emulators would overwrite the object.
    """
    blobs, _ = pack(make_batch(3))
    kept: list[Answer] = []

    def refuse(request: ReceivedRequest) -> Answer:
        if request.method == "GET":
            return kept[0]
        kept.append(object_stored(request))
        return Answer(412, b"{}")

    with answering(refuse) as (url, requests):
        sink = GcsSink(settings(gcs_endpoint=url))
        sink.write([Blob(blobs[0].name, blobs[0].content, 0)], "again", 20)
        sink.close()

    assert ["ifGenerationMatch=0" in request.path for request in requests] == [True, False]


def test_a_refused_object_parks_its_batch(settings: Callable[..., Settings]) -> None:
    """A refused packed object parks its batch, because one dead letter could not list all recordings in it."""
    blobs, _ = pack(make_batch(3))

    with answering(lambda request: Answer(400, b"{}")) as (url, _):
        sink = GcsSink(settings(gcs_endpoint=url))
        with pytest.raises(PermanentSinkError) as refused:
            sink.write([Blob(blobs[0].name, blobs[0].content, 0)], "token", 20)
        sink.close()

    assert refused.value.configuration
