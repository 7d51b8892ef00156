"""A worker of this release writes a batch of a newer reader as the reader intended, or does not write it at
all.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ingest.core import events as on
from ingest.core.model import Batch, Stage
from ingest.reader.encoding import Encoder
from tasks import chord
from tasks.staging import Staging
from tasks.wire import MANIFEST, ChordName, SinkName, reference
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet

CLICKHOUSE = "rows/clickhouse/0"


def dispatch_as_newer_reader(fleet: Fleet, batch: Batch, **changed: Any) -> None:
    """Starts the chord of the rows with some fields of the staged hash replaced, as a newer reader would write
    them.
    """
    manifest = Encoder(tuple(SinkName), 128, "reader-1").encode(batch).manifest
    tasks = [entry.name for entry in manifest.of_stage(Stage.ROWS)]
    name = ChordName(reference(manifest), Stage.ROWS, 1, chord.new_token())
    staging = Staging(fleet.client, fleet.settings)
    payloads = Encoder(tuple(SinkName), 128, "reader-1").payloads(batch, Stage.ROWS, tasks)
    staging.stage(manifest, name, payloads)
    written = msgspec.json.encode({**msgspec.to_builtins(manifest), **changed.pop(MANIFEST, {})})
    fleet.client.hset(staging.key(name.batch), mapping={MANIFEST: written, **changed})
    until = int(time.time()) + 60
    chord.start(chord.publisher(fleet.settings), chord.FanOut(name, tuple(tasks), until))


def test_a_batch_of_a_newer_version_is_refused_and_names_the_upgrade(fleet: Fleet) -> None:
    """A batch of a newer version is refused: no sink is called, and the reader gets an error that says to
    upgrade.
    """
    dispatcher, batch = fleet.dispatcher(), make_batch()
    fleet.worker()

    dispatch_as_newer_reader(fleet, batch, manifest={"version": 2})
    event = fleet.next_event()

    assert isinstance(event, on.FlushFailed)
    assert (event.batch_id, event.stage, event.attempt) == (batch.id, Stage.ROWS, 1)
    assert "version 2" in event.error
    assert "upgrade the workers" in event.error
    assert fleet.calls("clickhouse", "began") == []
    assert fleet.settle(dispatcher, batch, attempt=2) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)


def test_an_item_with_unknown_elements_is_not_written_partially(fleet: Fleet) -> None:
    """If an item has unknown elements, no row is written, and the error says to upgrade the workers."""
    fleet.dispatcher()
    fleet.worker()
    rows = msgspec.msgpack.encode([["replays", "click-0", b"{}", 0, "a column for the newer table"]])

    dispatch_as_newer_reader(fleet, make_batch(), **{CLICKHOUSE: rows})
    event = fleet.next_event()

    assert isinstance(event, on.FlushFailed)
    assert "upgrade the workers" in event.error
    assert fleet.calls("clickhouse", "began") == []


def test_an_unknown_manifest_field_is_ignored(fleet: Fleet) -> None:
    """The stage completes."""
    fleet.dispatcher()
    fleet.worker()
    batch = make_batch()

    dispatch_as_newer_reader(fleet, batch, manifest={"region": "eu"})

    assert fleet.next_event() == on.FlushSucceeded(batch.id, 1, Stage.ROWS)
