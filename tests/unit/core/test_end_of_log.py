"""The end offset of a partition is committed, even if the partition contains only transaction markers."""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core import events as on
from ingest.testing.runtime import PARTITION
from tests.kit.core_reader import Reader, reader


def end_reached(runtime: Reader, position: int, end: int) -> None:
    runtime.handle_event(on.EndReached(PARTITION, runtime.epoch(), position, end))
    runtime.advance(1.0)
    runtime.acknowledge_commits()


def test_the_offset_after_a_transaction_marker_is_committed() -> None:
    """The offset after a transaction marker is committed; otherwise the lag would grow by one with every
    transaction.
    """
    runtime = reader()
    runtime.segments(2)
    runtime.settle()

    end_reached(runtime, 2, 3)

    assert runtime.committed == {PARTITION: 3}
    assert runtime.pipeline.position(PARTITION) == (3, 3)


def test_a_log_with_only_markers_is_committed() -> None:
    """The end offset of a log that contains only transaction markers is committed even though no message was ever
    read.
    """
    runtime = reader()

    end_reached(runtime, 0, 7)

    assert runtime.committed == {PARTITION: 7}


def test_the_next_marker_is_committed_too() -> None:
    """The offset after a second transaction marker is committed, even though the client's position does not
    advance past markers.
    """
    runtime = reader()
    end_reached(runtime, 0, 1)

    end_reached(runtime, 0, 2)

    assert runtime.committed == {PARTITION: 2}


def test_messages_in_flight_hold_the_end_of_the_log_back() -> None:
    """The end offset of the log is committed only when the messages in flight before it have settled."""
    runtime = reader()
    runtime.segments(2)
    (out,) = runtime.dispatches()
    end_reached(runtime, 2, 3)
    assert runtime.committed == {PARTITION: 0}

    runtime.flush(out)
    runtime.advance(1.0)
    runtime.advance(1.0)
    runtime.acknowledge_commits()

    assert runtime.committed == {PARTITION: 3}


def test_an_open_batch_holds_the_end_of_the_log_back() -> None:
    """The end of the log is not committed while messages before it are in an open batch."""
    runtime = reader(batch_age_seconds_max=60.0)
    runtime.segments(1)

    end_reached(runtime, 1, 5)

    assert runtime.committed == {}


def test_an_end_that_is_reported_before_its_messages_arrive_waits_for_them() -> None:
    """If the client reports the end while earlier messages are still being parsed, the commit waits for these
    messages.
    """
    runtime = reader()
    end_reached(runtime, 2, 3)
    assert runtime.committed == {}

    runtime.segments(2)
    runtime.settle()
    runtime.advance(1.0)
    runtime.acknowledge_commits()

    assert runtime.committed == {PARTITION: 3}


def test_an_end_reported_for_a_former_assignment_is_ignored() -> None:
    """An end reported for a former assignment is ignored, because the topic may have been recreated since."""
    runtime = reader()
    runtime.handle_event(on.EndReached(PARTITION, runtime.epoch() - 1, 0, 9))
    runtime.advance(1.0)

    assert runtime.take(do.Commit) == []


def test_markers_cause_at_most_one_commit_per_interval() -> None:
    """Even if a producer ends a hundred transactions per second, their markers cause at most one commit per
    interval.
    """
    runtime = reader(commit_interval_seconds=1.0)
    commits = 0
    for end in range(1, 101):
        runtime.handle_event(on.EndReached(PARTITION, runtime.epoch(), 0, end))
        runtime.advance(0.1)
        commits += sum(isinstance(command, do.Commit) for command in runtime.commands)
        runtime.acknowledge_commits()

    assert 9 <= commits <= 10
    assert runtime.committed[PARTITION] >= 90
