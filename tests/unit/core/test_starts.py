"""Tests the contents of the first commit of an assignment, and how starts without progress are counted."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.cut_record import Record, decode
from ingest.testing.runtime import PARTITION
from tests.kit.core_reader import Reader, limits, reader


def started_reader(text: str = "", *, committed: int | None = 10, **given: object) -> Reader:
    """Returns a reader that was just assigned PARTITION."""
    runtime = Reader(limits())
    runtime._epochs[PARTITION], runtime._offsets[PARTITION] = 1, 10
    assignment = on.Assignment(PARTITION, 1, committed, text, **given)  # type: ignore[arg-type]
    runtime.handle_event(on.PartitionsAssigned((assignment,)))
    return runtime


def records(runtime: Reader) -> list[tuple[int, Record]]:
    """Acknowledges the commits since the last call, and returns them."""
    found = []
    while commits := runtime.take(do.Commit):
        for commit in commits:
            found.append((commit.offset, decode(commit.offset, commit.record)))
            runtime.handle_event(on.Committed(commit.source, commit.epoch, commit.offset, commit.record))
    return found


def test_the_chosen_start_is_committed_before_any_message() -> None:
    """Before any message is consumed, the chosen start offset is committed, with the topic's id and the number of
    partitions that the topic had when the group started.
    """
    runtime = started_reader(committed=None, start=7, topic_id="now", partitions_at_start=4)

    assert records(runtime) == [(7, Record("now", 4, 1))]
    assert runtime.pipeline.position(PARTITION) == (7, 7)


def test_each_start_without_progress_counts() -> None:
    """If the last start made no progress, the first commit after the assignment increments the number of starts
    and keeps the recorded ends of batches.
    """
    runtime = started_reader("2;t=now;p=4;s=2;c=3,3", topic_id="now")

    assert runtime.pipeline.failed_starts(PARTITION) == 2
    assert records(runtime) == [(10, Record("now", 4, 3, (13, 16)))]


def test_the_count_resets_when_the_offset_advances() -> None:
    """The count is reset when the offset advances, because the reader is then past the message that caused the
    crashes.
    """
    runtime = started_reader("2;s=2")
    records(runtime)
    runtime.segments(2)
    records(runtime)
    for dispatch in runtime.take(do.Dispatch):
        runtime.settle_stages(dispatch)

    assert records(runtime) == [(12, Record())]
    assert runtime.pipeline.failed_starts(PARTITION) == 0


@pytest.mark.parametrize("end", [on.PartitionsRevoked((PARTITION,)), on.ShutdownRequested()])
def test_a_clean_shutdown_undoes_its_start(end: on.Event) -> None:
    """A clean shutdown, as in a deployment, does not count as a failed start; the reader waits until the commit
    that undoes the count is stored.
    """
    runtime = started_reader("2;s=2")
    records(runtime)

    runtime.handle_event(end)
    assert not runtime.take(do.Release) + runtime.take(do.Stop)  # type: ignore[operator]
    assert records(runtime) == [(10, Record(starts=2))]

    assert runtime.take(do.Release) + runtime.take(do.Stop)  # type: ignore[operator]


def test_a_partition_of_another_reader_has_no_failed_starts() -> None:
    """A partition that is not assigned to this reader has no failed starts, even if messages read from it earlier
    are still to be processed.
    """
    assert Reader(limits()).pipeline.failed_starts(PARTITION) == 0


def test_an_unknown_topic_id_keeps_the_recorded_one() -> None:
    """If the brokers do not report the topic id, the recorded id is kept."""
    assert records(started_reader("2;t=old;p=2")) == [(10, Record("old", 2, 1))]


def test_the_offset_after_a_gap_is_committed_at_once() -> None:
    """The offset after a gap is committed at once, and its record omits the planned batch ends inside the gap.

    Without this commit, the reader would choose a new start after a crash, which with `latest` would be a later
    offset.
    """
    runtime = started_reader("2;c=5,2s")
    records(runtime)

    runtime.handle_event(on.OffsetOutOfRange(PARTITION, 2, 10, 50))

    assert records(runtime) == [(50, Record(stops=(115,)))]


def test_the_end_of_a_gap_waits_for_earlier_messages() -> None:
    """The end of a gap is committed only after earlier messages have settled, because their only copies are in
    memory.
    """
    runtime = started_reader()
    records(runtime)
    runtime.segments(3)
    records(runtime)
    first = runtime.take(do.Dispatch)

    runtime.handle_event(on.OffsetOutOfRange(PARTITION, 2, 13, 50))
    runtime.advance(1.0)
    assert all(offset == 10 for offset, _ in records(runtime))

    for _ in range(5):
        for dispatch in first + runtime.take(do.Dispatch):
            runtime.settle_stages(dispatch)
        runtime.advance(2.0)
        last = records(runtime)
        first = []
        if last and last[-1][0] == 50:
            return
    raise AssertionError("50 was never committed")


def test_a_record_that_is_too_long_is_followed_at_once_by_a_shorter_one() -> None:
    """A record that is too long is resent at once with half the length, then a quarter, until it is stored."""
    runtime = reader()
    runtime.segments(4)
    lengths = []
    while commits := runtime.take(do.Commit):
        (commit,) = commits
        lengths.append(len(commit.record))
        fields = (commit.source, commit.epoch, commit.offset, commit.record)
        if commit.record:
            runtime.handle_event(on.CommitFailed(*fields, "too large", record_too_long=True))
        else:
            runtime.handle_event(on.Committed(*fields))

    assert lengths[-1] == 0
    assert all(after <= before // 2 for before, after in pairwise(lengths))
    assert len(runtime.take(do.Dispatch)) == 2, "no batch waits for a record that cannot be stored"


def test_a_commit_refused_without_a_record_is_retried_after_the_interval() -> None:
    """If a commit without a record is refused, the record's length cannot be the reason, so the retry waits for
    the interval.
    """
    runtime = reader(commit_interval_seconds=0.5, cut_record_bytes_max=0)
    runtime.segments(2)
    (commit,) = runtime.take(do.Commit)
    fields = (commit.source, commit.epoch, commit.offset, commit.record)
    assert commit.record == ""

    runtime.handle_event(on.CommitFailed(*fields, "too large", record_too_long=True))

    assert runtime.take(do.Commit) == []
