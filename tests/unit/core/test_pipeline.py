"""Tests the reader's decisions with the MockRuntime: batches, chords, offsets, rebalances, pauses, shutdown."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import RejectPolicy
from ingest.core.model import CutReason, OffsetRange, Stage, TopicPartition
from ingest.core.pipeline import Room
from ingest.testing.runtime import PARTITION
from tasks.wire import SinkName
from tests.kit.batches import drop, reject, segment
from tests.kit.core_reader import OTHER_PARTITION, Reader, ids, limits, reader


def kinds(commands: list[do.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


# Set-up, flushing, committing


def test_the_initial_state_is_empty() -> None:
    """Initially, nothing is in flight, nothing is committed, and the reader has capacity."""
    runtime = reader()

    assert runtime.commands == []
    assert runtime.committed == {}
    assert (runtime.pipeline.has_room, runtime.pipeline.paused) == (True, False)
    assert (runtime.pipeline.in_flight, runtime.pipeline.held_bytes) == ((), 0)
    assert runtime.pipeline.sources == (PARTITION,)


def test_below_the_thresholds_nothing_is_flushed() -> None:
    """A single small, recent message is not flushed if a batch needs two messages."""
    runtime = reader()

    runtime.segments(1)
    runtime.advance(1.9)

    assert runtime.commands == []
    assert runtime.pipeline.held_bytes == 100


def test_the_second_message_of_two_flushes_and_is_committed() -> None:
    """With a batch size of two messages, the second message completes a batch. The blobs and rows of the batch are
    written before offset 2 is committed.
    """
    runtime = reader()

    runtime.segments(2)
    answered = runtime.settle()

    assert [command.stage for command in answered if isinstance(command, do.Dispatch)] == [Stage.BLOBS, Stage.ROWS]
    assert runtime.committed == {PARTITION: 2}
    assert runtime.pipeline.held_bytes == 0


def test_the_byte_limit_flushes_before_the_count() -> None:
    """Two segments of 100 bytes each are flushed at a limit of 150 bytes, although the limit on the number of
    messages is not reached.
    """
    runtime = reader(batch_messages_max=100, batch_bytes_max=150)

    runtime.segments(2)

    assert ids(runtime.dispatches()) == ["0-2/blobs#1"]


def test_while_few_batches_are_in_flight_a_batch_is_cut_early() -> None:
    """While fewer batches than the limit are in flight, a batch is cut half a second after its first message.

    With a limit of one, the next batch waits for its full age while the first batch is in flight.
    """
    runtime = reader(batch_age_seconds_max=2.0, batch_age_idle_seconds=0.5, early_cut_in_flight_max=1)
    runtime.segments(1)
    runtime.advance(0.4)
    assert ids(runtime.dispatches()) == []
    runtime.advance(0.1)
    (first,) = runtime.dispatches()
    assert (first.batch.offsets, first.batch.cut_by) == (OffsetRange(0, 1), CutReason.IDLE)

    runtime.segments(1)
    runtime.advance(1.9)
    assert ids(runtime.dispatches()) == []
    runtime.advance(0.1)

    assert [dispatch.batch.cut_by for dispatch in runtime.dispatches()] == [CutReason.AGE]


def test_a_second_batch_is_cut_early_while_the_first_is_in_flight() -> None:
    """With a limit of two, a batch is cut early while one batch is in flight, but not while two are in flight."""
    runtime = reader(batch_age_seconds_max=2.0, batch_age_idle_seconds=0.5, early_cut_in_flight_max=2)
    for _ in range(2):
        runtime.segments(1)
        runtime.advance(0.5)
    assert [dispatch.batch.cut_by for dispatch in runtime.dispatches()] == [CutReason.IDLE, CutReason.IDLE]

    runtime.segments(1)
    runtime.advance(1.9)
    assert ids(runtime.dispatches()) == []


def test_no_batch_is_cut_early_while_one_is_parked() -> None:
    """While a batch is parked, the next batch is cut only at its maximum age, even if few are in flight."""
    runtime = reader(
        batch_age_seconds_max=2.0,
        batch_age_idle_seconds=0.5,
        early_cut_in_flight_max=4,
        retry_backoff_seconds=60.0,
    )
    runtime.segments(1)
    runtime.advance(0.5)
    (first,) = runtime.dispatches()
    runtime.fail(first)

    runtime.segments(1)
    runtime.advance(1.9)
    assert ids(runtime.dispatches()) == []
    runtime.advance(0.1)

    assert [dispatch.batch.cut_by for dispatch in runtime.dispatches()] == [CutReason.AGE]


def test_early_cuts_are_spread_over_time() -> None:
    """Early cuts are spread: two of three batches are cut at once, and the third is cut half a second later."""
    runtime = reader(batch_age_seconds_max=60.0, batch_age_idle_seconds=0.5, early_cuts_per_second_max=2.0)
    third = TopicPartition(PARTITION.topic, 2)
    runtime.assign(OTHER_PARTITION)
    runtime.assign(third)
    for source in (PARTITION, OTHER_PARTITION, third):
        runtime.segments(1, source=source)

    runtime.advance(0.5)
    cut = runtime.dispatches()
    assert len(cut) == 2
    for dispatch in cut:
        runtime.flush(dispatch)
    runtime.advance(0.4)
    assert runtime.dispatches() == []
    runtime.advance(0.1)

    assert [dispatch.batch.source for dispatch in runtime.dispatches()] == [third]


def test_age_flushes_the_open_batch() -> None:
    """The open batch is flushed two seconds after its first message."""
    runtime = reader(batch_age_seconds_max=2.0)
    runtime.segments(1)

    runtime.advance(2.0)

    assert ids(runtime.dispatches()) == ["0-1/blobs#1"]


def test_join_flushes_and_commits_the_open_batch() -> None:
    """When SIGTERM arrives, a half-full batch is flushed and committed."""
    runtime = reader()
    runtime.segments(1)

    runtime.join()

    assert runtime.committed == {PARTITION: 1}
    assert runtime.take(do.Stop) == [do.Stop(clean=True)]


def test_a_batch_with_nothing_to_write_still_commits() -> None:
    """A batch that contains only shed messages starts no chord, but its offset is committed."""
    runtime = reader()

    runtime.parsed(drop(), drop())
    runtime.acknowledge_commits()

    assert runtime.committed == {PARTITION: 2}
    assert runtime.take(do.Dispatch) == []


def test_a_reject_advances_the_offset_only_with_its_dead_letter() -> None:
    """A reject advances the offset only when its dead letter, which is written in the row stage, is durable."""
    runtime = reader()

    runtime.parsed(reject(0), reject(1))
    (dispatch,) = runtime.dispatches()

    assert dispatch.stage is Stage.ROWS
    assert [bad.offset for bad in dispatch.batch.rejects] == [0, 1]
    assert runtime.committed[PARTITION] == 0
    runtime.succeed(dispatch)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 2


def test_a_batch_that_settles_first_waits_for_the_one_before_it() -> None:
    """If a batch settles before its predecessor, its offsets are not committed until the predecessor settles: the
    committed offset is the end of the longest settled prefix.
    """
    runtime = reader()
    runtime.segments(4)
    first, second = runtime.dispatches()

    runtime.flush(second)
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 0

    runtime.flush(first)
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 4


def test_partitions_are_committed_separately() -> None:
    """The offsets of two partitions are committed separately, and neither overwrites the other."""
    runtime = reader(batch_messages_max=1)
    runtime.assign(OTHER_PARTITION)

    runtime.segments(1)
    runtime.segments(3, source=OTHER_PARTITION)
    runtime.settle()

    assert runtime.committed == {PARTITION: 1, OTHER_PARTITION: 3}


def test_offsets_already_taken_are_ignored() -> None:
    """A message that is fetched twice is in only one batch."""
    runtime = reader()
    runtime.segments(2)

    runtime.segments(2, at=0)

    assert [flight.batch.offsets for flight in runtime.pipeline.in_flight] == [OffsetRange(0, 2)]


def test_messages_of_an_older_epoch_are_ignored() -> None:
    """Messages that were fetched before the partition was revoked and assigned again are ignored."""
    runtime = reader()

    runtime.handle_event(on.MessageParsed(PARTITION, runtime.epoch() - 1, 0, segment()))
    runtime.handle_event(on.MessageParsed(OTHER_PARTITION, 1, 0, segment()))

    assert runtime.pipeline.held_bytes == 0


# The cut is recorded first


def test_the_cut_is_recorded_before_its_chord_starts() -> None:
    """A chord starts only after the broker has stored the commit that records the cut of its batch."""
    runtime = reader()

    runtime.segments(2)

    (commit,) = runtime.take(do.Commit)
    assert (commit.offset, commit.record) == (0, "2;s=1;c=2")
    assert runtime.take(do.Dispatch) == []
    runtime.handle_event(on.Committed(PARTITION, commit.epoch, commit.offset, commit.record))
    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#1"]


def test_a_broker_that_does_not_store_the_record_holds_no_batch_for_long() -> None:
    """If the broker does not store the record in time, the batch starts without it.

    Losing the record may cause duplicates, whereas waiting for it would stop ingestion.
    """
    runtime = reader(cut_record_seconds_max=5.0)
    runtime.segments(2)

    runtime.advance(4.9)
    assert runtime.take(do.Dispatch) == []
    runtime.advance(0.1)

    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#1"]


def test_a_batch_cut_during_a_commit_waits_for_the_next_record() -> None:
    """A batch that is cut while a commit is in flight waits for the next commit, because a response covers only
    its own request.
    """
    runtime = reader()
    runtime.segments(4)
    (commit,) = runtime.take(do.Commit)

    runtime.handle_event(on.Committed(PARTITION, commit.epoch, commit.offset, commit.record))

    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#1"]
    assert [c.record for c in runtime.take(do.Commit)] == ["2;s=1;c=2,2"]


def test_a_new_owner_cuts_the_same_ranges_after_a_crash() -> None:
    """After a crash a new owner cuts the same ranges: a batch that was cut by age is cut again according to the
    record, with the same id.
    """
    first = reader(batch_messages_max=100)
    for count in (3, 1, 2):
        first.segments(count)
        first.advance(2.0)
        first.acknowledge_commits()
    before = [dispatch.batch.id for dispatch in first.take(do.Dispatch)]

    second = Reader(limits(batch_messages_max=2))
    second.committed, second.records = dict(first.committed), dict(first.records)
    second.assign(PARTITION)
    second.segments(6)
    again = second.dispatches()

    assert [dispatch.batch.id for dispatch in again] == before
    assert {dispatch.batch.cut_by for dispatch in again} == {CutReason.PLANNED}


def test_a_second_crash_loses_no_recorded_cut() -> None:
    """After a second crash, the rest of the predecessor's plan is still in the record."""
    runtime = Reader(limits())
    runtime.committed, runtime.records = {PARTITION: 10}, {PARTITION: "1,3,3,3"}
    runtime.assign(PARTITION)

    runtime.segments(3)
    runtime.settle()
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert (runtime.committed[PARTITION], runtime.records[PARTITION]) == (13, "2;c=3,3")


def test_an_already_recorded_cut_starts_at_once() -> None:
    """A batch whose cut is already recorded starts at once, without another commit."""
    runtime = Reader(limits())
    runtime.committed, runtime.records = {PARTITION: 10}, {PARTITION: "1,3"}
    runtime.assign(PARTITION)
    runtime.acknowledge_commits()

    runtime.segments(3)

    assert runtime.take(do.Commit) == []
    assert ids(runtime.take(do.Dispatch)) == ["10-13/blobs#1"]


# Stages, deadlines, failures


def test_rows_start_only_after_the_blobs_are_durable() -> None:
    """The rows of a batch are written only after its blobs are durable, so that no replay is listed without its
    blob.
    """
    runtime = reader()
    runtime.segments(2)
    (blobs,) = runtime.dispatches()
    assert blobs.stage is Stage.BLOBS

    runtime.handle_event(on.FlushSucceeded(blobs.batch.id, blobs.batch.epoch, Stage.ROWS))
    assert runtime.take(do.Dispatch) == []

    runtime.succeed(blobs)
    (rows,) = runtime.take(do.Dispatch)
    assert (rows.stage, rows.attempt) == (Stage.ROWS, 2)


def test_a_settled_batch_is_discarded_once() -> None:
    """The staged bytes of a batch are discarded once, when it settles; a second completion changes nothing."""
    runtime = reader()
    runtime.segments(2)
    (blobs,) = runtime.dispatches()
    runtime.succeed(blobs)
    (rows,) = runtime.take(do.Dispatch)

    runtime.succeed(rows)
    runtime.succeed(rows)

    assert [discard.batch.id for discard in runtime.take(do.Discard)] == [rows.batch.id]


def test_a_chord_without_a_result_is_restarted_at_its_deadline() -> None:
    """A chord without a result is restarted at its deadline, with the same batch id and a higher attempt."""
    runtime = reader(flush_deadline_seconds=120.0)
    runtime.segments(2)
    (first,) = runtime.dispatches()
    assert first.deadline_seconds == 120.0

    runtime.advance(119.9)
    assert runtime.take(do.Dispatch) == []
    runtime.advance(0.1)
    (again,) = runtime.take(do.Dispatch)

    assert (again.batch, again.stage, again.attempt) == (first.batch, first.stage, 2)


def test_the_third_deadline_in_a_row_parks_the_batch() -> None:
    """After three missed deadlines in a row, a batch is parked.

    Either no worker is running or the queues are too long: more chords would not help, and an operator should see
    the batch.
    """
    runtime = reader(flush_deadline_seconds=100.0, retry_backoff_seconds=5.0)
    runtime.segments(2)
    runtime.dispatches()

    for attempt in (2, 3):
        runtime.advance(100.0)
        assert [again.attempt for again in runtime.take(do.Dispatch)] == [attempt]
        assert runtime.take(do.Park) == []
    runtime.advance(100.0)

    (park,) = runtime.take(do.Park)
    assert (park.attempt, park.error.startswith("no completion for 3 deadlines in a row (300 s)")) == (3, True)
    assert runtime.take(do.Dispatch) == []
    runtime.advance(park.retry_seconds)
    assert [again.attempt for again in runtime.take(do.Dispatch)] == [4]
    runtime.advance(100.0)
    (longer,) = runtime.take(do.Park)
    assert longer.retry_seconds > park.retry_seconds


def test_a_result_between_two_missed_deadlines_resets_their_count() -> None:
    """If the blobs complete after two missed deadlines, the rows may also miss two deadlines before the batch is
    parked.
    """
    runtime = reader(flush_deadline_seconds=100.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    for _ in range(2):
        runtime.advance(100.0)
        (dispatch,) = runtime.take(do.Dispatch)

    runtime.succeed(dispatch)
    runtime.take(do.Dispatch)
    for _ in range(2):
        runtime.advance(100.0)

    assert ids(runtime.take(do.Dispatch)) == ["0-2/rows#5", "0-2/rows#6"]
    assert runtime.take(do.Park) == []


def test_a_batch_parked_without_a_result_settles_on_a_late_completion() -> None:
    """If the queue was merely long, a parked batch settles when its chord completes late."""
    runtime = reader(flush_deadline_seconds=100.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    for _ in range(3):
        runtime.advance(100.0)
    assert len(runtime.take(do.Park)) == 1
    runtime.take(do.Dispatch)

    runtime.succeed(dispatch)
    runtime.settle()

    assert runtime.committed == {PARTITION: 2}


def test_the_failure_of_an_older_attempt_is_ignored() -> None:
    """If an older attempt fails, the current attempt of the batch is unaffected."""
    runtime = reader(flush_deadline_seconds=10.0)
    runtime.segments(2)
    (first,) = runtime.dispatches()
    runtime.advance(10.0)
    (second,) = runtime.take(do.Dispatch)

    runtime.fail(first)

    assert runtime.take(do.Park) == []
    runtime.fail(second)
    assert [park.attempt for park in runtime.take(do.Park)] == [2]


def test_the_success_of_an_older_attempt_counts() -> None:
    """If an older attempt succeeds, the batch settles, because the data is durable whichever attempt wrote it."""
    runtime = reader(flush_deadline_seconds=10.0)
    runtime.segments(2)
    (first,) = runtime.dispatches()
    runtime.advance(10.0)
    runtime.take(do.Dispatch)

    runtime.succeed(first)

    assert ids(runtime.take(do.Dispatch)) == ["0-2/rows#3"]


def test_a_failed_chord_parks_its_batch_with_a_growing_backoff() -> None:
    """A failed chord parks its batch with a backoff that doubles after each failure.

    The parked entry contains the error.
    """
    runtime = reader(retry_backoff_seconds=5.0, retry_backoff_seconds_max=300.0, parked_probe_seconds=600.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    waits = []
    for _ in range(4):
        runtime.fail(dispatch, "no such table")
        (park,) = runtime.take(do.Park)
        assert (park.batch, park.error) == (dispatch.batch, "no such table")
        runtime.advance(park.retry_seconds - 0.01)
        assert runtime.take(do.Dispatch) == []
        runtime.advance(0.02)
        (dispatch,) = runtime.take(do.Dispatch)
        waits.append(park.retry_seconds)

    assert all(2.5 * 2**n <= wait <= 5.0 * 2**n for n, wait in enumerate(waits))


def test_a_parked_batch_blocks_only_its_watermark() -> None:
    """While a batch is parked, other batches continue, but the committed offset stays before the parked batch."""
    runtime = reader()
    runtime.segments(4)
    first, second = runtime.dispatches()

    runtime.fail(first)
    runtime.flush(second)
    runtime.advance(1.0)
    runtime.acknowledge_commits()

    assert runtime.committed[PARTITION] == 0
    assert runtime.pipeline.has_room


def test_a_success_resets_the_failure_count() -> None:
    """After a stage succeeds, the failure count is reset, and the next stage starts with the shortest wait."""
    runtime = reader(retry_backoff_seconds=4.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    for _ in range(3):
        runtime.fail(dispatch)
        runtime.advance(100.0)
        (dispatch,) = runtime.take(do.Dispatch)
    runtime.take(do.Park)
    runtime.succeed(dispatch)
    (rows,) = runtime.take(do.Dispatch)

    runtime.fail(rows)

    (park,) = runtime.take(do.Park)
    assert park.retry_seconds <= 4.0


def test_a_batch_that_could_not_be_staged_is_retried_without_parking() -> None:
    """A batch that cannot be staged because Redis is unavailable is retried and not parked."""
    runtime = reader(retry_backoff_seconds=5.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()

    runtime.fail_dispatch(dispatch, "connection refused")

    assert runtime.take(do.Park) == []
    runtime.advance(2.4)
    assert runtime.take(do.Dispatch) == []
    runtime.advance(2.6)
    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#2"]


def test_after_an_hour_without_redis_the_reader_is_back_within_seconds() -> None:
    """After an hour without Redis, chords start again within seconds, because their backoff has a low cap."""
    runtime = reader(retry_backoff_seconds=5.0, undispatched_seconds_max=15.0)
    runtime.segments(2)
    for _ in range(40):
        for dispatch in runtime.dispatches():
            runtime.fail_dispatch(dispatch)
        runtime.advance(15.0)

    assert len(runtime.take(do.Dispatch)) == 1


def test_a_batch_too_large_for_redis_is_split_and_recorded_first() -> None:
    """A batch that is too large for Redis is split, and its halves are flushed once the broker has stored their
    boundary.
    """
    runtime = reader(batch_messages_max=4)
    runtime.segments(4)
    (dispatch,) = runtime.dispatches()

    runtime.fail_dispatch(dispatch, "redis is nearly full", too_large=True)

    (recut,) = runtime.take(do.Recut)
    assert (recut.batch, recut.into) == (dispatch.batch, ("ingest-replay-recordings-0-0-2", recut.into[1]))
    assert runtime.take(do.Dispatch) == []
    halves = runtime.dispatches()
    assert ids(halves) == ["0-2/blobs#1", "2-4/blobs#1"]
    assert runtime.records[PARTITION] == "2;s=1;c=2,2"
    assert runtime.pipeline.held_bytes == dispatch.batch.size_bytes
    runtime.flush(halves[1])
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 0
    runtime.flush(halves[0])
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 4
    assert runtime.pipeline.held_bytes == 0


def test_a_crash_after_a_split_cuts_the_same_halves() -> None:
    """After a crash, the batch is cut into the same halves, because the cut record contains the boundary between
    them as well as the end of the whole batch.
    """
    runtime = reader(batch_messages_max=4)
    runtime.segments(4)
    (dispatch,) = runtime.dispatches()
    runtime.fail_dispatch(dispatch, too_large=True)
    before = ids(runtime.dispatches())

    runtime.handle_event(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)
    runtime.segments(4)

    assert ids(runtime.dispatches()) == before


def test_a_late_completion_of_a_split_batch_is_ignored() -> None:
    """A late completion of a batch that was split is ignored.

    The halves are written regardless, under the identities of their messages.
    """
    runtime = reader(batch_messages_max=2)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail_dispatch(dispatch, too_large=True)

    runtime.succeed(dispatch)

    assert ids(runtime.dispatches()) == ["0-1/blobs#1", "1-2/blobs#1"]


def test_a_single_message_too_large_for_redis_is_retried() -> None:
    """A single message that is too large for Redis cannot be split, and is retried until an operator gives
    Redis more memory.
    """
    runtime = reader(batch_messages_max=1)
    runtime.segments(1)
    (dispatch,) = runtime.dispatches()

    runtime.fail_dispatch(dispatch, too_large=True)
    runtime.advance(60.0)

    assert ids(runtime.dispatches()) == ["0-1/blobs#2"]


def test_when_the_sinks_recover_parked_batches_are_due_at_once() -> None:
    """If three batches failed while nothing succeeded, the first success of their stage ends their backoff."""
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=60.0)
    runtime.segments(3)
    first, *others = runtime.dispatches()
    for dispatch in (first, *others):
        runtime.fail(dispatch)
    runtime.handle_event(on.RetryRequested(first.batch.id))
    (again,) = runtime.dispatches()
    assert again.batch.id == first.batch.id

    runtime.handle_event(on.FlushSucceeded(first.batch.id, first.batch.epoch, Stage.BLOBS))

    started = {(dispatch.batch.id, dispatch.stage) for dispatch in runtime.dispatches()}
    assert {(other.batch.id, Stage.BLOBS) for other in others} < started


def test_a_batch_that_fails_while_others_succeed_keeps_its_backoff() -> None:
    """A batch that fails while others succeed keeps its backoff, because the failure is specific to this batch.

    Restarting the batch after every success of another batch would not help.
    """
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=60.0, retry_backoff_seconds_max=60.0)
    runtime.segments(2)
    stuck, other = runtime.dispatches()
    runtime.flush(other)
    runtime.fail(stuck)

    runtime.segments(1)
    (after,) = runtime.dispatches()
    runtime.settle_stages(after)

    assert stuck.batch.id not in {dispatch.batch.id for dispatch in runtime.dispatches()}


def test_a_batch_with_its_own_cause_is_not_restarted_by_each_success() -> None:
    """A batch that fails immediately, while other batches succeed before and after, keeps its growing backoff."""
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=4.0, parked_probe_seconds=15.0)
    runtime.segments(1)
    (stuck,) = runtime.dispatches()
    runtime.fail(stuck)
    starts = 0
    for _ in range(240):
        runtime.segments(1)
        runtime.acknowledge_commits()
        for dispatch in runtime.take(do.Dispatch):
            if dispatch.batch.id == stuck.batch.id:
                starts += 1
                runtime.fail(dispatch)
            else:
                runtime.settle_stages(dispatch)
        runtime.advance(0.5)

    # The retries wait for 4, 8, 16, 32 and 60 s, with jitter. The first success of another batch restarts this
    # backoff sequence; later successes do not.
    assert 3 <= starts <= 8


def test_a_success_in_other_sinks_does_not_prove_that_the_failed_sink_works() -> None:
    """A batch that waits for ClickHouse stays parked when a batch of dead letters is written, and becomes due when
    another batch is written to ClickHouse.
    """
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=60.0)
    runtime.parsed(segment(0, blob=False), reject(1), segment(2, blob=False))
    waiting, letters, rows = runtime.dispatches()
    runtime.fail(waiting, sinks={SinkName.CLICKHOUSE})

    runtime.settle_stages(letters)
    assert runtime.dispatches() == []

    runtime.settle_stages(rows)
    assert ids(runtime.dispatches()) == ["0-1/rows#2"]


def test_while_sinks_are_unavailable_one_parked_batch_is_retried_per_interval() -> None:
    """After half an hour without a sink, every batch has a backoff of up to an hour, but one batch is retried
    every 15 seconds, beginning with the batch that has been parked longest. Retries are not much more frequent.
    """
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=5.0, retry_backoff_seconds_max=3600.0)
    runtime.segments(4)
    starts: list[tuple[float, str]] = []
    while runtime.now < 3600.0:
        for dispatch in runtime.dispatches():
            starts.append((runtime.now, dispatch.batch.id))
            runtime.fail(dispatch)
        runtime.advance(0.5)

    late = [(at, batch) for at, batch in starts if at >= 1800.0]
    gaps = [after - before for (before, _), (after, _) in pairwise(late)]
    assert max(gaps) <= 15.5
    assert 4 * 25 <= len(late) <= 4 * 30 + 8
    assert len({batch for _, batch in late}) == 4


def test_a_batch_with_its_own_cause_is_not_a_probe() -> None:
    """A batch that failed while others succeeded is retried after its own backoff, not at the next probe."""
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=600.0, retry_backoff_seconds_max=600.0)
    runtime.segments(2)
    stuck, other = runtime.dispatches()
    runtime.flush(other)
    runtime.fail(stuck)

    for _ in range(280):
        runtime.advance(1.0)

    assert runtime.take(do.Dispatch) == []


def test_a_batch_that_fails_just_after_the_recovery_is_retried_soon() -> None:
    """Failures during an outage do not lengthen the backoff of a batch that fails once more after others have
    succeeded.
    """
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=4.0, retry_backoff_seconds_max=300.0)
    runtime.segments(2)
    unlucky, first = runtime.dispatches()
    for _ in range(6):
        runtime.fail(unlucky)
        runtime.handle_event(on.RetryRequested(unlucky.batch.id))
        (unlucky,) = runtime.dispatches()
    runtime.take(do.Park)

    runtime.succeed(first)
    runtime.fail(unlucky)

    (park,) = runtime.take(do.Park)
    assert park.retry_seconds <= 4.0


def test_an_operator_can_retry_a_parked_batch_now() -> None:
    """An operator's retry of a parked batch skips the backoff."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail(dispatch)

    runtime.handle_event(on.RetryRequested(dispatch.batch.id))

    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#2"]


def test_a_parked_entry_is_renewed_until_its_stage_is_durable() -> None:
    """The lease of a parked entry is renewed only until its stage is durable, so the entry expires even if a
    Discard is lost.
    """
    runtime = reader(parked_renew_seconds=5.0, retry_backoff_seconds=60.0, retry_backoff_seconds_max=60.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail(dispatch, "bucket is gone")
    (park,) = runtime.take(do.Park)

    runtime.advance(5.0)
    (renewed,) = runtime.take(do.Renew)
    runtime.handle_event(on.RetryRequested(dispatch.batch.id))
    (again,) = runtime.dispatches()
    runtime.advance(5.0)
    (flying,) = runtime.take(do.Renew)
    runtime.succeed(again)
    (rows,) = runtime.take(do.Dispatch)
    runtime.advance(30.0)

    assert (renewed.park.error, renewed.batch, renewed.age_seconds) == ("bucket is gone", dispatch.batch, 5.0)
    assert renewed.park.retry_seconds == pytest.approx(park.retry_seconds - 5.0)
    assert flying.age_seconds == 10.0
    assert rows.stage is Stage.ROWS
    assert runtime.take(do.Renew) == []


def test_a_batch_without_a_parked_entry_is_not_renewed() -> None:
    """A batch that could not be staged has no parked entry, so no lease is renewed."""
    runtime = reader(parked_renew_seconds=5.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail_dispatch(dispatch)

    runtime.advance(6.0)

    assert runtime.take(do.Renew) == []


def test_a_retry_of_a_batch_that_is_not_parked_changes_nothing() -> None:
    """A retry request changes nothing if its batch is no longer parked (for example, after a second click) or
    belongs to another reader.
    """
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()

    assert runtime.handle_event(on.RetryRequested(dispatch.batch.id)) == []
    assert runtime.handle_event(on.RetryRequested("other-0-1-2")) == []


def test_an_abandoned_batch_unblocks_the_watermark() -> None:
    """An abandoned batch counts as settled for the watermark, because its messages are already dead letters."""
    runtime = reader()
    runtime.segments(4)
    first, second = runtime.dispatches()
    runtime.flush(second)
    runtime.fail(first)

    runtime.handle_event(on.BatchAbandoned(first.batch.id, OffsetRange(0, 1), "another range"))
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 0

    runtime.handle_event(on.BatchAbandoned(first.batch.id, first.batch.offsets, "given up"))
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 4
    assert runtime.pipeline.held_bytes == 0


# Bounds


def test_chords_in_flight_are_bounded() -> None:
    """The number of chords in flight is bounded: further batches wait for a slot, and a batch keeps its slot for
    its next stage.
    """
    runtime = reader(batch_messages_max=1, in_flight_batches_max=2)
    runtime.segments(4)
    out = runtime.dispatches()
    assert ids(out) == ["0-1/blobs#1", "1-2/blobs#1"]

    runtime.succeed(out[0])
    assert ids(runtime.take(do.Dispatch)) == ["0-1/rows#2"]
    runtime.handle_event(on.FlushSucceeded(out[0].batch.id, out[0].batch.epoch, Stage.ROWS))
    assert ids(runtime.take(do.Dispatch)) == ["2-3/blobs#1"]


@pytest.mark.parametrize("bound", [{"in_flight_batches_max": 2}, {"in_flight_bytes_max": 400}])
def test_at_a_bound_polling_stops_and_the_consumer_is_paused_later(
    bound: dict[str, float],
) -> None:
    """When the batches or bytes in flight reach their limit, polling stops at once, and the consumer is paused
    later.

    The consumer resumes when batches and bytes have both dropped to half of their limits.
    """
    runtime = reader(pause_after_seconds=0.5, **bound)
    runtime.segments(4)
    first, second = runtime.dispatches()

    assert not runtime.pipeline.has_room
    assert runtime.take(do.Pause) == []
    runtime.advance(0.5)
    assert runtime.take(do.Pause) == [do.Pause((PARTITION,))]
    assert runtime.pipeline.paused

    runtime.flush(first)
    assert runtime.take(do.Resume) == [do.Resume((PARTITION,))]
    assert runtime.pipeline.has_room
    runtime.flush(second)


def test_a_partition_assigned_while_paused_is_paused_too() -> None:
    """A partition that is assigned while the reader is paused is also paused; otherwise its messages would
    exceed the bound.
    """
    runtime = reader(in_flight_batches_max=1, pause_after_seconds=0.0)
    runtime.segments(2)
    runtime.advance(1.0)

    commands = runtime.assign(OTHER_PARTITION)

    assert commands == [do.Pause((OTHER_PARTITION,))]


def test_a_partition_runs_only_so_far_ahead_of_a_stuck_batch() -> None:
    """A partition is paused when it is too far ahead of a stuck batch, because after a crash all later messages
    would be read again.
    """
    runtime = reader(batch_messages_max=1, pending_ranges_max=6)
    runtime.assign(OTHER_PARTITION)
    runtime.segments(1)
    (stuck,) = runtime.dispatches()
    runtime.fail(stuck, "poison")
    for _ in range(5):
        runtime.segments(1)
        for dispatch in runtime.dispatches():
            runtime.flush(dispatch)

    assert runtime.take(do.Pause) == [do.Pause((PARTITION,))]
    assert not runtime.pipeline.paused
    runtime.segments(1, source=OTHER_PARTITION)
    assert ids(runtime.dispatches()) == ["0-1/blobs#1"]

    runtime.handle_event(on.BatchAbandoned(stuck.batch.id, stuck.batch.offsets, "given up"))
    assert runtime.take(do.Resume) == [do.Resume((PARTITION,))]


def test_resuming_all_leaves_a_held_partition_paused() -> None:
    """When backpressure ends, a partition that is held for a stuck batch stays paused."""
    runtime = reader(batch_messages_max=1, pending_ranges_max=4, in_flight_batches_max=2, pause_after_seconds=0.5)
    runtime.assign(OTHER_PARTITION)
    runtime.segments(1)
    (stuck,) = runtime.dispatches()
    for _ in range(3):
        runtime.segments(1)
        for dispatch in runtime.dispatches():
            runtime.flush(dispatch)
    runtime.fail(stuck)
    runtime.advance(0.6)
    assert do.Pause((PARTITION,)) in runtime.take(do.Pause)
    runtime.take(do.Resume)

    runtime.segments(2, source=OTHER_PARTITION)
    out = runtime.dispatches()
    runtime.advance(0.6)
    assert runtime.pipeline.paused
    for dispatch in out:
        runtime.flush(dispatch)

    assert runtime.take(do.Resume) == [do.Resume((OTHER_PARTITION,))]


# Commits with and without a response


def test_a_refused_commit_is_retried_after_the_interval() -> None:
    """A refused commit is retried only after the interval, and no other event triggers the retry earlier."""
    runtime = reader(commit_interval_seconds=0.5)
    runtime.segments(2)
    (commit,) = runtime.take(do.Commit)
    fields = (commit.source, commit.epoch, commit.offset, commit.record)

    runtime.handle_event(on.CommitFailed(*fields, "not coordinator"))
    for _ in range(9):
        runtime.advance(0.05)
        runtime.segments(2)
    assert runtime.take(do.Commit) == []

    runtime.advance(0.1)
    (again,) = runtime.take(do.Commit)
    assert again.record == "2;s=1;c=2" + ",2" * 9
    runtime.handle_event(on.CommitFailed(again.source, again.epoch, again.offset, again.record, "again"))
    runtime.advance(0.4)
    assert runtime.take(do.Commit) == []


def test_an_acknowledged_commit_is_repeated_on_an_idle_partition() -> None:
    """On an idle partition an acknowledged commit is repeated, because the broker may have lost it."""
    runtime = reader(commit_interval_seconds=0.5, commit_repeat_seconds=60.0)
    runtime.segments(2)
    runtime.settle()
    runtime.advance(1.0)
    runtime.settle()
    assert runtime.committed == {PARTITION: 2}

    for _ in range(58):
        runtime.advance(1.0)
    assert runtime.take(do.Commit) == []

    runtime.advance(2.0)
    (again,) = runtime.take(do.Commit)
    assert again.offset == 2
    runtime.handle_event(on.Committed(again.source, again.epoch, again.offset, again.record))
    runtime.advance(30.0)
    assert runtime.take(do.Commit) == []


def test_a_refused_commit_is_resent_even_if_nothing_else_happens() -> None:
    """A commit that the broker refused is resent even if nothing else happens; otherwise the lag of an idle reader
    would never become zero.
    """
    runtime = reader(commit_interval_seconds=0.5)
    runtime.segments(2)
    runtime.settle_stages(runtime.dispatches()[0])
    (commit,) = runtime.take(do.Commit)

    runtime.handle_event(on.CommitFailed(commit.source, commit.epoch, commit.offset, commit.record, "no"))
    runtime.advance(0.5)

    assert runtime.take(do.Commit) == [commit]


def test_a_commit_without_a_response_times_out_and_is_resent() -> None:
    """A commit without a response times out, and the next commit covers at least the same offsets."""
    runtime = reader(commit_answer_seconds_max=10.0)
    runtime.segments(2)
    (commit,) = runtime.take(do.Commit)

    runtime.advance(9.9)
    assert runtime.take(do.Commit) == []
    runtime.advance(0.2)

    assert runtime.take(do.Commit) == [commit]


def test_a_late_response_to_a_timed_out_commit_resends_the_newer_one() -> None:
    """A late response to a timed-out commit causes the newer commit to be resent.

    The broker may have stored the older commit after the newer commit, which would leave the group at the older
    offset until the next message.
    """
    runtime = reader(batch_messages_max=1, commit_answer_seconds_max=1.0)
    runtime.segments(1)
    (old,) = runtime.take(do.Commit)
    runtime.advance(5.0)
    runtime.settle()
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 1

    runtime.handle_event(on.Committed(old.source, old.epoch, old.offset, old.record))
    runtime.advance(1.0)

    assert [commit.offset for commit in runtime.take(do.Commit)] == [1]


def test_a_response_to_a_former_assignment_is_ignored() -> None:
    """A response to a commit of a former assignment is ignored, because another commit is in flight."""
    runtime = reader()
    runtime.segments(2)
    (commit,) = runtime.take(do.Commit)

    runtime.handle_event(on.Committed(commit.source, commit.epoch - 1, commit.offset, commit.record))

    assert runtime.take(do.Dispatch) == []


def test_commits_are_sent_at_most_once_per_interval_under_load() -> None:
    """Under load, at most one commit is sent per interval, except for commits that record a cut."""
    runtime = reader(batch_messages_max=1, commit_interval_seconds=0.5, in_flight_batches_max=9)
    runtime.segments(8)
    out = runtime.dispatches()
    runtime.advance(0.6)
    runtime.acknowledge_commits()

    for dispatch in out[:4]:
        runtime.flush(dispatch)

    commits = runtime.take(do.Commit)
    assert [commit.offset for commit in commits] == [1]
    (commit,) = commits
    runtime.handle_event(on.Committed(commit.source, commit.epoch, commit.offset, commit.record))
    assert runtime.take(do.Commit) == []
    runtime.advance(0.5)
    assert [commit.offset for commit in runtime.take(do.Commit)] == [4]


# Revocation and loss


def test_a_revoked_partition_drains_then_is_released() -> None:
    """While a revoked partition is drained, batches in flight settle and are committed.

    Messages in the open batch are left for the next owner.
    """
    runtime = reader()
    runtime.segments(3)
    (dispatch,) = runtime.dispatches()

    runtime.handle_event(on.PartitionsRevoked((PARTITION,)))
    runtime.advance(5.0)
    assert runtime.take(do.Release) == []

    runtime.settle_stages(dispatch)
    assert runtime.take(do.Release) == []
    runtime.acknowledge_commits()

    assert runtime.committed[PARTITION] == 2
    assert runtime.take(do.Release) == [do.Release((PARTITION,))]
    assert runtime.pipeline.sources == ()
    assert runtime.pipeline.held_bytes == 0


def test_a_drain_ends_at_its_deadline() -> None:
    """A drain ends at its deadline, which is shorter than the session timeout.

    The next owner reads the unsettled messages again.
    """
    runtime = reader(drain_deadline_seconds=20.0)
    runtime.segments(2)
    runtime.dispatches()
    runtime.handle_event(on.PartitionsRevoked((PARTITION,)))

    runtime.advance(19.9)
    assert runtime.take(do.Release) == []
    runtime.advance(0.1)

    assert runtime.take(do.Release) == [do.Release((PARTITION,))]
    assert runtime.committed[PARTITION] == 0


def test_a_drain_does_not_wait_for_parked_batches() -> None:
    """A drain does not wait for parked batches, which the next owner retries."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail(dispatch)

    runtime.handle_event(on.PartitionsRevoked((PARTITION,)))
    runtime.acknowledge_commits()

    assert runtime.take(do.Release) == [do.Release((PARTITION,))]


def test_while_draining_nothing_new_is_cut() -> None:
    """While a partition is being drained, no new batch is cut, whether by message count or by age."""
    runtime = reader(drain_deadline_seconds=20.0)
    runtime.segments(3)
    runtime.dispatches()
    runtime.handle_event(on.PartitionsRevoked((PARTITION,)))

    runtime.segments(5)
    runtime.advance(10.0)

    assert [flight.batch.offsets for flight in runtime.pipeline.in_flight] == [OffsetRange(0, 2)]


def test_an_idle_partition_and_an_unknown_one_are_released_at_once() -> None:
    """An idle or unknown partition is released at once, because there is nothing to wait for."""
    runtime = reader()

    runtime.handle_event(on.PartitionsRevoked((PARTITION, OTHER_PARTITION)))

    released = [source for release in runtime.take(do.Release) for source in release.sources]
    assert sorted(released) == [PARTITION, OTHER_PARTITION]


def test_revoking_one_partition_leaves_the_other_alone() -> None:
    """If one partition is revoked in a cooperative rebalance, the other partition continues."""
    runtime = reader()
    runtime.assign(OTHER_PARTITION)
    runtime.segments(2, source=OTHER_PARTITION)

    runtime.handle_event(on.PartitionsRevoked((PARTITION,)))
    runtime.settle()

    assert runtime.committed[OTHER_PARTITION] == 2
    assert runtime.pipeline.sources == (OTHER_PARTITION,)


def test_a_lost_partition_is_dropped_without_a_commit() -> None:
    """A lost partition is dropped without a commit, because another reader may already own it."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()

    runtime.handle_event(on.PartitionsLost((PARTITION,)))
    runtime.settle_stages(dispatch)
    runtime.advance(60.0)

    assert kinds(runtime.commands) == []
    assert runtime.pipeline.held_bytes == 0


def test_a_completion_of_an_older_epoch_is_ignored() -> None:
    """A completion from an older epoch is ignored: the same range may be in flight again, and only its current
    chord settles it.
    """
    runtime = reader()
    runtime.segments(2)
    (old,) = runtime.dispatches()
    runtime.handle_event(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)
    runtime.segments(2)
    (new,) = runtime.dispatches()
    assert new.batch.id == old.batch.id

    runtime.settle_stages(old)
    runtime.fail(old)
    assert runtime.take(do.Discard) == []
    assert runtime.take(do.Park) == []

    runtime.settle_stages(new)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 2


# Expired messages


def test_an_offset_out_of_range_is_a_gap_and_held_batches_are_kept() -> None:
    """Batches in flight are kept when their offsets expire, because they are the only copy of the messages."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()

    runtime._epochs[PARTITION] += 1
    runtime.handle_event(on.OffsetOutOfRange(PARTITION, runtime.epoch(), wanted=2, resumed_at=50))
    runtime.segments(2, at=50)
    (later,) = runtime.dispatches()
    runtime.flush(later)
    assert later.batch.offsets == OffsetRange(50, 52)
    assert runtime.committed[PARTITION] == 0

    runtime.settle_stages(dispatch)
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 52


def test_a_log_with_lower_offsets_is_a_new_log() -> None:
    """If the offsets of a log are lower than before, the topic was recreated, and the state of the old log is
    dropped.
    """
    runtime = reader()
    runtime.segments(2)
    runtime.dispatches()

    runtime._epochs[PARTITION] += 1
    runtime.handle_event(on.OffsetOutOfRange(PARTITION, runtime.epoch(), wanted=2, resumed_at=0))
    runtime.segments(2, at=0)
    runtime.settle()

    assert runtime.committed[PARTITION] == 2
    assert runtime.pipeline.in_flight == ()


# Capacity


def test_the_message_that_reaches_the_byte_bound_is_the_last_one() -> None:
    """When a message reaches the limit of bytes in flight, polling stops immediately, without a cut or a tick."""
    runtime = reader(batch_messages_max=100, in_flight_bytes_max=1000)

    runtime.parsed(segment(0, size_bytes=999))
    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.NOW
    runtime.parsed(segment(1, size_bytes=1))

    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.LATER


def test_a_held_partition_takes_no_messages_and_the_others_do() -> None:
    """Messages fetched from a held partition wait, and messages of other partitions are taken."""
    runtime = reader(batch_messages_max=1, in_flight_batches_max=100, pending_ranges_max=8)
    runtime.assign(OTHER_PARTITION)
    runtime.segments(8)

    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.LATER
    assert runtime.pipeline.room(OTHER_PARTITION, runtime.epoch(OTHER_PARTITION)) is Room.NOW


def test_messages_that_will_be_read_again_are_never_taken() -> None:
    """Messages are never taken if they belong to a former assignment or to a partition being drained, or arrive
    during shutdown.
    """
    runtime = reader()
    runtime.assign(OTHER_PARTITION)
    here, there = runtime.epoch(), runtime.epoch(OTHER_PARTITION)

    assert runtime.pipeline.room(PARTITION, here - 1) is Room.NEVER
    runtime.segments(2)
    runtime.handle_event(on.PartitionsRevoked((PARTITION,)))
    assert runtime.pipeline.room(PARTITION, here) is Room.NEVER
    runtime.handle_event(on.ShutdownRequested())
    assert runtime.pipeline.room(OTHER_PARTITION, there) is Room.NEVER


# Messages parsed outside the loop


def deferred(runtime: Reader, offset: int, source: TopicPartition = PARTITION, size_bytes: int = 0) -> None:
    runtime.handle_event(on.MessageDeferred(source, runtime.epoch(source), offset, size_bytes))


def test_messages_before_a_deferred_one_do_not_wait_for_it() -> None:
    """When the open batch is old enough, it is cut before the deferred message, whose offset is not committed."""
    runtime = reader(batch_messages_max=10, batch_age_seconds_max=5.0)
    runtime.segments(3)

    deferred(runtime, 3)
    assert runtime.dispatches() == []
    runtime.advance(5.0)

    (dispatch,) = runtime.dispatches()
    assert (dispatch.batch.offsets, dispatch.batch.cut_by) == (OffsetRange(0, 3), CutReason.AGE)
    runtime.flush(dispatch)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 3


def test_a_deferred_message_blocks_only_its_partition() -> None:
    """Only the partition of a deferred message is paused until the result arrives.

    The message then joins a batch like any other.
    """
    runtime = reader(batch_messages_max=2)
    runtime.assign(OTHER_PARTITION)

    deferred(runtime, 0)
    assert runtime.take(do.Pause) == [do.Pause((PARTITION,))]
    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.LATER
    assert runtime.pipeline.room(OTHER_PARTITION, runtime.epoch(OTHER_PARTITION)) is Room.NOW
    runtime.segments(2, source=OTHER_PARTITION)
    runtime.settle()
    assert runtime.committed[OTHER_PARTITION] == 2

    runtime.segments(1)
    assert runtime.take(do.Resume) == [do.Resume((PARTITION,))]
    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.NOW
    runtime.segments(1)
    runtime.settle()
    assert runtime.committed[PARTITION] == 2


def test_a_deferred_message_and_those_around_it_share_a_batch() -> None:
    """If the result of a deferred message arrives soon, the message and its neighbors share a batch.

    A batch costs a dozen round trips.
    """
    runtime = reader(batch_messages_max=4)
    runtime.segments(2)

    deferred(runtime, 2)
    runtime.segments(2)

    assert ids(runtime.dispatches()) == ["0-4/blobs#1"]


def test_a_planned_range_is_not_cut_for_a_deferred_message_in_it() -> None:
    """A planned range that contains a deferred message is cut only at its recorded end."""
    runtime = reader(batch_messages_max=4)
    runtime.committed, runtime.records = {PARTITION: 0}, {PARTITION: "1,4"}
    runtime.handle_event(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)
    runtime.segments(2)

    deferred(runtime, 2)
    assert runtime.dispatches() == []
    runtime.segments(2)

    assert ids(runtime.dispatches()) == ["0-4/blobs#1"]


def test_a_deferred_message_counts_towards_the_held_bytes() -> None:
    """A deferred message counts towards the held bytes, because it is in the memory of the reader and of the child
    process.
    """
    runtime = reader(in_flight_bytes_max=1000)

    deferred(runtime, 0, size_bytes=1000)

    assert runtime.pipeline.held_bytes == 1000
    assert not runtime.pipeline.has_room
    runtime.segments(1)
    assert runtime.pipeline.held_bytes == 100


def test_a_parse_result_for_a_former_assignment_is_ignored() -> None:
    """A parse result for a former assignment is ignored, because the next owner reads the message again."""
    runtime = reader()
    deferred(runtime, 0)
    former = runtime.epoch()
    runtime.handle_event(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)

    runtime.handle_event(on.MessageParsed(PARTITION, former, 0, segment(0)))

    assert runtime.pipeline.position(PARTITION) == (0, None)
    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.NOW


def test_releasing_a_partition_does_not_wait_for_a_deferred_message() -> None:
    """A partition is released without waiting for a deferred message, which the next owner reads again."""
    runtime = reader(batch_messages_max=1)
    runtime.segments(1)
    deferred(runtime, 1)
    runtime.handle_event(on.PartitionsRevoked((PARTITION,)))

    runtime.settle()

    assert runtime.take(do.Release) == [do.Release((PARTITION,))]
    assert runtime.committed[PARTITION] == 1


def test_resuming_leaves_a_partition_with_a_deferred_message_paused() -> None:
    """When consumption resumes, a partition with a deferred message stays paused."""
    runtime = reader(batch_messages_max=1, in_flight_batches_max=1, pause_after_seconds=0.1)
    runtime.assign(OTHER_PARTITION)
    deferred(runtime, 0)
    runtime.segments(1, source=OTHER_PARTITION)
    runtime.dispatches()
    runtime.advance(0.2)
    runtime.take(do.Pause)

    for stage in (Stage.BLOBS, Stage.ROWS):
        runtime.handle_event(on.FlushSucceeded(f"{OTHER_PARTITION}-0-1", runtime.epoch(OTHER_PARTITION), stage))

    assert runtime.take(do.Resume) == [do.Resume((OTHER_PARTITION,))]


# Halt and shutdown


def test_too_many_rejects_halt_the_reader() -> None:
    """Too many rejects halt the reader, so that a bad deployment does not turn a whole topic into dead letters."""
    runtime = reader(batch_messages_max=100, reject_window=10, reject_unattributed_ratio_max=0.5)
    runtime.segments(5)
    for offset in range(5, 10):
        runtime.parsed(reject(offset))
    assert runtime.take(do.Halt) == []

    runtime.parsed(reject(10))

    assert len(runtime.take(do.Halt)) == 1
    assert runtime.take(do.Pause) == [do.Pause((PARTITION,))]
    assert not runtime.pipeline.has_room
    (dispatch,) = runtime.dispatches()
    assert dispatch.batch.offsets == OffsetRange(0, 11)
    assert len(dispatch.batch.rejects) == 6
    runtime.settle_stages(dispatch)
    runtime.segments(50)
    runtime.advance(60.0)
    runtime.settle()
    assert runtime.committed[PARTITION] == 11


def test_a_halt_in_a_planned_range_flushes_its_first_part() -> None:
    """If the reader halts within a planned range, the first part of the range is flushed.

    If this part were not flushed, no restart would ever make progress, and no dead letter would show the reason.
    """
    runtime = reader(batch_messages_max=100, reject_window=10, reject_unattributed_ratio_max=0.5)
    runtime.committed, runtime.records = {PARTITION: 0}, {PARTITION: "1,2s"}
    runtime.handle_event(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)

    runtime.parsed(*[reject(offset) for offset in range(10)])

    assert runtime.pipeline.halted
    runtime.settle()
    assert (runtime.committed[PARTITION], runtime.records[PARTITION]) == (10, "2;c=2i")


def test_garbage_of_one_project_is_reported_and_ingestion_continues() -> None:
    """If half of all messages are garbage from one project, they become dead letters, and the other segments are
    ingested.
    """
    runtime = reader(batch_messages_max=10, reject_window=20)
    for offset in range(0, 200, 2):
        runtime.parsed(reject(offset, project_id=7), segment(offset + 1))

    runtime.settle()

    assert runtime.pipeline.halted is None
    assert runtime.committed[PARTITION] == 200
    assert [(shed.project_id, shed.shed) for shed in runtime.take(do.Shed)] == [(7, True)]


def test_by_policy_the_rejects_of_a_shed_project_are_dropped_and_counted() -> None:
    """The rejects of a shed project are dropped and counted, and its earlier rejects become dead letters.

    All offsets are committed.
    """
    runtime = Reader(limits(batch_messages_max=10, reject_window=20, reject_policy=RejectPolicy.DROP))  # type: ignore[arg-type]
    runtime.assign(PARTITION)
    runtime.parsed(*[reject(offset, project_id=7) for offset in range(50)])

    dispatches = runtime.settle()

    letters = {letter for dispatch in dispatches for letter in dispatch.batch.rejects}  # type: ignore[attr-defined]
    assert len(letters) == 9
    assert runtime.pipeline.rejects.dropped == 41
    assert runtime.committed[PARTITION] == 50


def test_a_halted_reader_settles_its_batches_and_pauses_new_partitions() -> None:
    """A halted reader settles its batches, keeps its partitions, and consumes nothing, even from newly assigned
    partitions.
    """
    runtime = reader(reject_window=10, reject_unattributed_ratio_max=0.5)
    runtime.parsed(*[reject(offset) for offset in range(10)])
    assert runtime.pipeline.halted

    assert runtime.assign(OTHER_PARTITION) == [do.Pause((OTHER_PARTITION,))]
    runtime.settle()
    runtime.advance(1.0)
    runtime.settle()

    assert runtime.committed[PARTITION] == 10
    assert runtime.take(do.Resume) == []


def test_shutdown_settles_commits_and_stops_clean() -> None:
    """At shutdown the open batch is cut, and the reader waits for its commit."""
    runtime = reader()
    runtime.segments(3)

    runtime.handle_event(on.ShutdownRequested())
    for dispatch in runtime.dispatches():
        runtime.settle_stages(dispatch)
    assert runtime.take(do.Stop) == []
    runtime.acknowledge_commits()

    assert runtime.committed[PARTITION] == 3
    assert runtime.take(do.Stop) == [do.Stop(clean=True)]
    assert runtime.segments(2) == []


def test_shutdown_ends_at_the_drain_deadline() -> None:
    """Shutdown ends at the drain deadline even if a sink is unavailable."""
    runtime = reader(drain_deadline_seconds=20.0)
    runtime.segments(2)
    runtime.dispatches()
    runtime.handle_event(on.ShutdownRequested())

    runtime.advance(19.9)
    assert runtime.take(do.Stop) == []
    runtime.advance(0.1)

    assert runtime.take(do.Stop) == [do.Stop(clean=False)]


def test_shutdown_with_a_parked_batch_is_not_clean_but_does_not_wait() -> None:
    """A shutdown with a parked batch does not wait, but is not clean; the next owner retries the batch."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail(dispatch)

    runtime.handle_event(on.ShutdownRequested())
    runtime.acknowledge_commits()

    assert runtime.take(do.Stop) == [do.Stop(clean=False)]


def test_a_second_shutdown_request_changes_nothing() -> None:
    """A second SIGTERM does not move the drain deadline."""
    runtime = reader(drain_deadline_seconds=20.0)
    runtime.segments(2)
    runtime.dispatches()
    runtime.handle_event(on.ShutdownRequested())
    runtime.advance(15.0)
    runtime.handle_event(on.ShutdownRequested())

    runtime.advance(5.0)

    assert runtime.take(do.Stop) == [do.Stop(clean=False)]


def test_after_the_stop_no_decisions_are_made() -> None:
    """After the reader has stopped, events cause no commands."""
    runtime = reader()
    runtime.join()
    runtime.take(do.Stop)

    assert runtime.handle_event(on.PartitionsRevoked((PARTITION,))) == []
    assert runtime.advance(1e6) == []
