"""The record of a flush task in a staged batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tasks.connection import connect
from tasks.seals import Purpose
from tasks.settings import Settings
from tasks.staging import Staging, StagingError
from tasks.task_record import StagedRecord
from tasks.wire import ChordName, Manifest, Stage, TaskEntry, reference

TASK = "rows/bigquery/0"


class StagedBatch:
    """A staged batch with one task."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client: Any = connect(settings)
        self.unverified: list[Purpose] = []
        self.staging = Staging(self.client, settings, self.unverified.append)
        content = settings.seals.content(b"rows")
        self.manifest = Manifest(
            "topic-0-0-9", "digest", "topic", 0, 0, 9, "reader", 1, (TaskEntry(TASK, 1, 4, content),)
        )
        self.batch = reference(self.manifest)
        self.stage()

    def stage(self) -> None:
        """Stages the batch, even if it is already staged."""
        self.staging.stage(self.manifest, ChordName(self.batch, Stage.ROWS, 1, "t"), {TASK: b"rows"})

    def record(self) -> StagedRecord:
        """Returns the record as one run of the task sees it."""
        return StagedRecord(self.staging, self.settings, self.batch, TASK)


@pytest.fixture
def staged(settings: Callable[..., Settings], redis_url: str, fresh_name: Callable[[str], str]) -> StagedBatch:
    return StagedBatch(settings(redis_url=redis_url, key_prefix=fresh_name("record")))


def test_the_next_run_finds_the_record_even_if_the_batch_was_staged_again(staged: StagedBatch) -> None:
    first = staged.record()
    assert first.load() == b""
    assert first.store(b"one")
    assert first.store(b"two")
    staged.stage()

    assert staged.record().load() == b"two"


def test_a_run_replaces_only_what_it_saw(staged: StagedBatch) -> None:
    slow, quick = staged.record(), staged.record()
    assert slow.load() == quick.load() == b""
    assert quick.store(b"quick")

    assert not slow.store(b"slow")
    assert slow.load() == b"quick"
    assert slow.store(b"slow")
    assert not quick.store(b"quick again")


def test_the_done_mark_removes_the_record(staged: StagedBatch) -> None:
    record = staged.record()
    record.load()
    record.store(b"one")

    staged.staging.mark(staged.batch, TASK, "id")

    assert staged.record().load() == b""


def test_nothing_is_recorded_for_a_batch_that_is_gone(staged: StagedBatch) -> None:
    """If Redis was emptied, nothing is recorded for the batch until the reader has staged the batch again, because
    a Redis key that contains only a record would never expire.
    """
    record = staged.record()
    record.load()
    staged.client.delete(staged.staging.key(staged.batch))

    with pytest.raises(StagingError, match="not staged"):
        record.store(b"one")
    assert not staged.client.exists(staged.staging.key(staged.batch))


def test_a_forged_record_is_ignored_and_replaced(
    settings: Callable[..., Settings], redis_url: str, fresh_name: Callable[[str], str]
) -> None:
    """If a shared key is configured, a record without a valid seal is ignored and replaced, because it could
    hide rows.
    """
    sealed = StagedBatch(settings(redis_url=redis_url, key_prefix=fresh_name("record"), shared_key="k" * 32))
    record = sealed.record()
    record.load()
    assert record.store(b"one")
    assert sealed.record().load() == b"one"

    sealed.client.hset(sealed.staging.key(sealed.batch), f"appends/{TASK}", b"forged")

    again = sealed.record()
    assert again.load() == b""
    assert sealed.unverified == [Purpose.APPENDS]
    assert again.store(b"two")
    assert sealed.record().load() == b"two"
