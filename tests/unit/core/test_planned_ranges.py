"""Recorded ranges of a predecessor wait for their messages as long as these messages can still arrive."""

from __future__ import annotations

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import CutReason
from ingest.testing.runtime import PARTITION
from tests.kit.core_reader import OTHER_PARTITION, Reader, ids, limits

PLAN_SECONDS_MAX = 5.0


def successor(*, committed: int = 10, record: str = "1,5,5", **changed: float) -> Reader:
    """Returns a reader that takes over PARTITION with recorded ranges."""
    runtime = Reader(limits(batch_messages_max=100, plan_seconds_max=PLAN_SECONDS_MAX, **changed))
    runtime.committed, runtime.records = {PARTITION: committed}, {PARTITION: record}
    runtime.assign(PARTITION)
    return runtime


def pass_time(runtime: Reader, seconds: float) -> None:
    """Advances the clock in ticks of 0.1 s."""
    for _ in range(round(seconds / 0.1)):
        runtime.advance(0.1)


def end_reached(runtime: Reader, end: int) -> None:
    """Reports the end of the log, as the client does."""
    position = runtime.pipeline.position(PARTITION)[0]
    runtime.handle_event(on.EndReached(PARTITION, runtime.epoch(), position, end))


def cuts(runtime: Reader) -> list[tuple[int, int, CutReason]]:
    runtime.acknowledge_commits()
    return [(d.batch.offsets.start, d.batch.offsets.stop, d.batch.cut_by) for d in runtime.take(do.Dispatch)]


def test_at_the_end_of_the_log_the_rest_of_a_range_is_abandoned() -> None:
    """If the log ends before the planned end, because it was truncated or a replica lags for a long time, the
    range is abandoned.
    """
    runtime = successor()
    runtime.segments(3)
    end_reached(runtime, 13)

    pass_time(runtime, PLAN_SECONDS_MAX - 0.2)
    assert cuts(runtime) == []
    pass_time(runtime, 0.4)

    assert cuts(runtime) == [(10, 13, CutReason.AGE)]


def test_a_range_whose_last_messages_are_gone_is_cut_at_the_end_of_the_log() -> None:
    """If no messages are left between the last message taken and the planned end, the range is cut at the end of
    the log.
    """
    runtime = successor()
    runtime.segments(3)
    end_reached(runtime, 20)
    runtime.advance(0.1)

    assert cuts(runtime) == [(10, 13, CutReason.PLANNED)]


def test_a_range_waits_while_the_broker_delivers_nothing() -> None:
    """A planned range waits while the broker delivers nothing.

    Before the end of the log is reached, the absence of messages does not show that they are gone.
    """
    runtime = successor()
    runtime.segments(3)

    pass_time(runtime, 10 * PLAN_SECONDS_MAX)
    runtime.segments(2)

    assert cuts(runtime) == [(10, 15, CutReason.PLANNED)]


def test_a_reader_that_is_paused_does_not_wait_for_messages() -> None:
    """Time in which the reader is paused at the in-flight limit does not count as waiting for the rest of a
    planned range.
    """
    runtime = successor(in_flight_batches_max=1, record="1,5")
    runtime.assign(OTHER_PARTITION)
    runtime.segments(3)
    end_reached(runtime, 13)
    runtime.segments(1, source=OTHER_PARTITION)
    runtime.advance(2.0)
    (out,) = runtime.dispatches()

    pass_time(runtime, 3 * PLAN_SECONDS_MAX)
    assert runtime.pipeline.paused
    runtime.flush(out)
    runtime.segments(2)

    assert cuts(runtime) == [(10, 15, CutReason.PLANNED)]


def test_a_reader_at_its_bound_does_not_wait_for_messages() -> None:
    """A reader that has reached a limit stops polling before it pauses the consumer, and the time until the pause
    does not count as waiting.
    """
    runtime = successor(in_flight_batches_max=1, pause_after_seconds=60.0)
    runtime.assign(OTHER_PARTITION)
    runtime.segments(3)
    end_reached(runtime, 13)
    runtime.segments(1, source=OTHER_PARTITION)
    runtime.advance(2.0)
    (out,) = runtime.dispatches()

    pass_time(runtime, 3 * PLAN_SECONDS_MAX)
    assert not runtime.pipeline.paused
    runtime.flush(out)
    runtime.segments(2)

    assert cuts(runtime) == [(10, 15, CutReason.PLANNED)]


def test_a_held_partition_does_not_wait_for_messages() -> None:
    """Time during which a partition is held for a stuck batch does not count as waiting, because nothing is
    fetched.
    """
    runtime = successor(pending_ranges_max=4, record="1,1,1,1,1,5")
    runtime.segments(6)
    end_reached(runtime, 16)
    runtime.advance(0.0)
    stuck, *rest = runtime.dispatches()
    for dispatch in rest:
        runtime.flush(dispatch)
    runtime.fail(stuck)
    assert do.Pause((PARTITION,)) in runtime.take(do.Pause)

    pass_time(runtime, 3 * PLAN_SECONDS_MAX)
    runtime.acknowledge_commits()
    runtime.flush(runtime.take(do.Dispatch)[-1])
    runtime.segments(3)

    assert cuts(runtime) == [(14, 19, CutReason.PLANNED)]


def test_time_in_a_drain_does_not_count_as_waiting() -> None:
    """Time during a drain does not count as waiting, because the loop is inside the client's callback and fetches
    nothing.
    """
    runtime = successor(drain_deadline_seconds=100.0)
    runtime.assign(OTHER_PARTITION)
    runtime.segments(3)
    end_reached(runtime, 13)
    runtime.segments(1, source=OTHER_PARTITION)
    runtime.advance(2.0)
    (out,) = runtime.dispatches()
    runtime.handle_event(on.PartitionsRevoked((OTHER_PARTITION,)))

    pass_time(runtime, 3 * PLAN_SECONDS_MAX)
    runtime.flush(out)
    runtime.acknowledge_commits()
    runtime.segments(2)

    assert cuts(runtime) == [(10, 15, CutReason.PLANNED)]


def test_time_while_the_process_is_suspended_does_not_count() -> None:
    """Time during which the process is suspended does not count as waiting: the clock advances, but nothing is
    fetched.
    """
    runtime = successor()
    runtime.segments(3)
    end_reached(runtime, 13)
    runtime.advance(0.1)

    for _ in range(5):
        runtime.advance(3600.0)
    runtime.segments(2)

    assert cuts(runtime) == [(10, 15, CutReason.PLANNED)]


def test_a_record_survives_an_owner_in_between() -> None:
    """The record of every commit contains the planned ends that have not been reached yet."""
    runtime = successor(record="1,1,5")
    runtime.segments(3)
    runtime.settle()
    pass_time(runtime, 1.0)
    runtime.acknowledge_commits()

    assert (runtime.committed[PARTITION], runtime.records[PARTITION]) == (11, "2;c=5")


# Planned ranges that reach the byte bound


def test_planned_ranges_are_completed_one_by_one_over_the_byte_bound() -> None:
    """If incomplete planned ranges together reach the byte bound, they are completed one by one."""
    runtime = Reader(limits(batch_messages_max=100, in_flight_bytes_max=500, pause_after_seconds=0.5))
    runtime.committed = {PARTITION: 0, OTHER_PARTITION: 0}
    runtime.records = {PARTITION: "1,5", OTHER_PARTITION: "1,5"}
    runtime.assign(PARTITION, OTHER_PARTITION)
    runtime.segments(2)
    runtime.segments(3, source=OTHER_PARTITION)

    pass_time(runtime, 1.0)
    assert runtime.take(do.Pause) == [do.Pause((PARTITION, OTHER_PARTITION))]
    assert runtime.take(do.Resume) == [do.Resume((OTHER_PARTITION,))]

    runtime.segments(2, source=OTHER_PARTITION)
    assert runtime.take(do.Pause) == [do.Pause((OTHER_PARTITION,))]
    (first,) = runtime.dispatches()
    runtime.flush(first)

    assert ids([first]) == ["0-5/blobs#1"]
    assert runtime.take(do.Resume) == [do.Resume((PARTITION, OTHER_PARTITION))]


@pytest.mark.parametrize("event", [on.PartitionsRevoked((PARTITION,)), on.PartitionsLost((PARTITION,))])
def test_the_range_being_completed_may_be_revoked(event: on.Event) -> None:
    """If the planned range being completed is revoked, the next range is completed instead."""
    runtime = Reader(limits(batch_messages_max=100, in_flight_bytes_max=300, pause_after_seconds=0.5))
    runtime.committed = {PARTITION: 0, OTHER_PARTITION: 0}
    runtime.records = {PARTITION: "1,5", OTHER_PARTITION: "1,5"}
    runtime.assign(PARTITION, OTHER_PARTITION)
    runtime.segments(4)
    runtime.segments(3, source=OTHER_PARTITION)
    pass_time(runtime, 1.0)
    assert runtime.take(do.Resume) == [do.Resume((PARTITION,))]

    runtime.handle_event(event)

    assert runtime.take(do.Resume) == [do.Resume((OTHER_PARTITION,))]


def test_the_range_being_completed_may_lose_messages_to_retention() -> None:
    """If messages of the planned range being completed expire, its partition is still fetched, and the remaining
    messages complete the range.
    """
    runtime = successor(in_flight_bytes_max=300, pause_after_seconds=0.5)
    runtime.segments(3)
    pass_time(runtime, 1.0)
    assert runtime.take(do.Resume) == [do.Resume((PARTITION,))]
    runtime.take(do.Pause)

    runtime._epochs[PARTITION] += 1
    runtime.handle_event(on.OffsetOutOfRange(PARTITION, runtime.epoch(), wanted=13, resumed_at=14))
    assert runtime.take(do.Pause) == []
    runtime.segments(1, at=14)

    assert cuts(runtime) == [(10, 15, CutReason.PLANNED)]


def test_a_range_over_the_byte_bound_is_abandoned_at_the_end_of_the_log() -> None:
    """A planned range above the byte bound is abandoned at the end of the log, after the same wait as any other
    range.
    """
    runtime = successor(in_flight_bytes_max=300, pause_after_seconds=0.5)
    runtime.segments(3)
    pass_time(runtime, 1.0)
    assert runtime.pipeline.paused
    end_reached(runtime, 13)

    pass_time(runtime, PLAN_SECONDS_MAX + 0.3)

    assert cuts(runtime) == [(10, 13, CutReason.AGE)]
