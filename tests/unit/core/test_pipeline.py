"""The reader's decisions, on the MockRuntime: batches, chords, offsets, rebalances, pauses, shutdown."""

from __future__ import annotations

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import RejectPolicy
from ingest.core.model import CutReason, OffsetRange, Stage, TopicPartition
from ingest.core.pipeline import Room
from ingest.testing.runtime import PARTITION
from tests.kit.batches import drop, reject, segment
from tests.kit.core_reader import OTHER, Reader, ids, limits, reader


def kinds(commands: list[do.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


# Set-up, flushing, committing


def test_set_up_gives_the_initial_state() -> None:
    """Nothing is in flight, nothing is committed, there is room."""
    runtime = reader()

    assert runtime.commands == []
    assert runtime.committed == {}
    assert (runtime.pipeline.has_room, runtime.pipeline.paused) == (True, False)
    assert (runtime.pipeline.in_flight, runtime.pipeline.held_bytes) == ((), 0)
    assert runtime.pipeline.sources == (PARTITION,)


def test_below_the_thresholds_nothing_is_flushed() -> None:
    """One message of two, young and small."""
    runtime = reader()

    runtime.segments(1)
    runtime.advance(1.9)

    assert runtime.commands == []
    assert runtime.pipeline.held_bytes == 100


def test_the_second_message_at_length_two_flushes_and_commits_one_past_it() -> None:
    """The whole way: cut, blobs, rows, commit."""
    runtime = reader()

    runtime.segments(2)
    answered = runtime.settle()

    assert [command.stage for command in answered if isinstance(command, do.Dispatch)] == [Stage.BLOBS, Stage.ROWS]
    assert runtime.committed == {PARTITION: 2}
    assert runtime.pipeline.held_bytes == 0


def test_bytes_flush_before_the_count_does() -> None:
    """Two segments of 100 bytes against a bound of 150."""
    runtime = reader(batch_messages_max=100, batch_bytes_max=150)

    runtime.segments(2)

    assert ids(runtime.dispatches()) == ["0-2/blobs#1"]


def test_while_nothing_is_in_flight_a_younger_batch_goes() -> None:
    """Half a second after its first message; the next one waits for its age while that is out."""
    runtime = reader(batch_age_seconds_max=2.0, batch_age_idle_seconds=0.5)
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


def test_early_cuts_are_spread_over_time() -> None:
    """Of three partitions two are cut at once, the third half a second later."""
    runtime = reader(batch_age_seconds_max=60.0, batch_age_idle_seconds=0.5, early_cuts_per_second_max=2.0)
    third = TopicPartition(PARTITION.topic, 2)
    runtime.assign(OTHER)
    runtime.assign(third)
    for source in (PARTITION, OTHER, third):
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


def test_age_flushes_what_is_there() -> None:
    """Two seconds after its first message."""
    runtime = reader(batch_age_seconds_max=2.0)
    runtime.segments(1)

    runtime.advance(2.0)

    assert ids(runtime.dispatches()) == ["0-1/blobs#1"]


def test_join_flushes_what_is_there_and_commits_it() -> None:
    """SIGTERM with half a batch open."""
    runtime = reader()
    runtime.segments(1)

    runtime.join()

    assert runtime.committed == {PARTITION: 1}
    assert runtime.take(do.Stop) == [do.Stop(clean=True)]


def test_a_batch_with_nothing_to_write_still_commits() -> None:
    """Messages that were shed move the offset and start no chord."""
    runtime = reader()

    runtime.parsed(drop(), drop())
    runtime.acknowledge_commits()

    assert runtime.committed == {PARTITION: 2}
    assert runtime.take(do.Dispatch) == []


def test_a_reject_advances_the_offset_only_with_its_dead_letter() -> None:
    """It travels in the batch; its stage is that of the rows."""
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
    """The watermark is that of the longest settled prefix."""
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


def test_partitions_are_committed_each_on_its_own() -> None:
    """One message on each of two partitions: two offsets, none overwritten."""
    runtime = reader(batch_messages_max=1)
    runtime.assign(OTHER)

    runtime.segments(1)
    runtime.segments(3, source=OTHER)
    runtime.settle()

    assert runtime.committed == {PARTITION: 1, OTHER: 3}


def test_offsets_that_were_taken_already_are_ignored() -> None:
    """A message fetched twice is in one batch."""
    runtime = reader()
    runtime.segments(2)

    runtime.segments(2, at=0)

    assert [flight.batch.offsets for flight in runtime.pipeline.in_flight] == [OffsetRange(0, 2)]


def test_messages_of_an_older_epoch_are_ignored() -> None:
    """They were fetched before the partition went away and came back."""
    runtime = reader()

    runtime.publish(on.MessageParsed(PARTITION, runtime.epoch() - 1, 0, segment()))
    runtime.publish(on.MessageParsed(OTHER, 1, 0, segment()))

    assert runtime.pipeline.held_bytes == 0


# The cut is recorded first


def test_the_cut_is_recorded_before_its_chord_starts() -> None:
    """The record rides on a commit; until the broker stored it the batch waits."""
    runtime = reader()

    runtime.segments(2)

    (commit,) = runtime.take(do.Commit)
    assert (commit.offset, commit.record) == (0, "2;s=1;c=2")
    assert runtime.take(do.Dispatch) == []
    runtime.publish(on.Committed(PARTITION, commit.epoch, commit.offset, commit.record))
    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#1"]


def test_a_broker_that_does_not_store_the_record_holds_no_batch_for_long() -> None:
    """Losing the record costs a duplicate; waiting for it would cost everything."""
    runtime = reader(cut_record_seconds_max=5.0)
    runtime.segments(2)

    runtime.advance(4.9)
    assert runtime.take(do.Dispatch) == []
    runtime.advance(0.1)

    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#1"]


def test_a_batch_cut_while_a_record_is_on_its_way_waits_for_the_next_one() -> None:
    """One commit at a time a partition, and an answer speaks only for what was asked."""
    runtime = reader()
    runtime.segments(4)
    (commit,) = runtime.take(do.Commit)

    runtime.publish(on.Committed(PARTITION, commit.epoch, commit.offset, commit.record))

    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#1"]
    assert [c.record for c in runtime.take(do.Commit)] == ["2;s=1;c=2,2"]


def test_a_new_owner_cuts_the_same_ranges_after_a_crash() -> None:
    """Cut by age in the first life, by the record in the second: the ids are the same."""
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


def test_a_second_crash_forgets_no_recorded_cut() -> None:
    """The rest of the predecessor's plan stays in the record until it is reached."""
    runtime = Reader(limits())
    runtime.committed, runtime.records = {PARTITION: 10}, {PARTITION: "1,3,3,3"}
    runtime.assign(PARTITION)

    runtime.segments(3)
    runtime.settle()
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert (runtime.committed[PARTITION], runtime.records[PARTITION]) == (13, "2;c=3,3")


def test_a_cut_that_is_recorded_already_starts_at_once() -> None:
    """The record would say the same again; no commit is sent, and nobody waits for an answer to nothing."""
    runtime = Reader(limits())
    runtime.committed, runtime.records = {PARTITION: 10}, {PARTITION: "1,3"}
    runtime.assign(PARTITION)
    runtime.acknowledge_commits()

    runtime.segments(3)

    assert runtime.take(do.Commit) == []
    assert ids(runtime.take(do.Dispatch)) == ["10-13/blobs#1"]


# Stages, deadlines, failures


def test_rows_start_only_after_the_blobs_are_durable() -> None:
    """A user must not open a replay whose blob is not there."""
    runtime = reader()
    runtime.segments(2)
    (blobs,) = runtime.dispatches()
    assert blobs.stage is Stage.BLOBS

    runtime.publish(on.FlushSucceeded(blobs.batch.id, blobs.batch.epoch, Stage.ROWS))
    assert runtime.take(do.Dispatch) == []

    runtime.succeed(blobs)
    (rows,) = runtime.take(do.Dispatch)
    assert (rows.stage, rows.attempt) == (Stage.ROWS, 2)


def test_a_settled_batch_is_discarded_once() -> None:
    """Its staged bytes are no longer needed; a second completion says nothing new."""
    runtime = reader()
    runtime.segments(2)
    (blobs,) = runtime.dispatches()
    runtime.succeed(blobs)
    (rows,) = runtime.take(do.Dispatch)

    runtime.succeed(rows)
    runtime.succeed(rows)

    assert [discard.batch.id for discard in runtime.take(do.Discard)] == [rows.batch.id]


def test_a_chord_that_is_not_heard_of_is_started_again_at_its_deadline() -> None:
    """The same batch under the same id, a higher attempt."""
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
    """Nobody flushes, or queues are too long: more chords would not help, and somebody should see it."""
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


def test_a_word_between_two_missed_deadlines_starts_their_count_anew() -> None:
    """The blobs took two deadlines and ended; the rows may take two as well."""
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


def test_a_batch_that_was_parked_in_silence_settles_when_it_is_heard_of() -> None:
    """The queue was long, nothing more: the chord that ends late is as good as the next one."""
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
    """It says nothing about the one that is out."""
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
    """Durable is durable, whoever did it."""
    runtime = reader(flush_deadline_seconds=10.0)
    runtime.segments(2)
    (first,) = runtime.dispatches()
    runtime.advance(10.0)
    runtime.take(do.Dispatch)

    runtime.succeed(first)

    assert ids(runtime.take(do.Dispatch)) == ["0-2/rows#3"]


def test_a_failed_chord_parks_its_batch_and_is_tried_again_later_and_later() -> None:
    """The backoff doubles; the error is shown."""
    runtime = reader(retry_backoff_seconds=5.0, retry_backoff_seconds_max=300.0)
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


def test_a_parked_batch_holds_its_watermark_and_nothing_else() -> None:
    """Other batches go on; the offset waits in front of the parked one."""
    runtime = reader()
    runtime.segments(4)
    first, second = runtime.dispatches()

    runtime.fail(first)
    runtime.flush(second)
    runtime.advance(1.0)
    runtime.acknowledge_commits()

    assert runtime.committed[PARTITION] == 0
    assert runtime.pipeline.has_room


def test_a_success_forgives_the_failures_before_it() -> None:
    """The next stage starts with the shortest wait."""
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


def test_a_batch_that_could_not_be_staged_is_not_parked_but_tried_again() -> None:
    """Nobody has to look at it: Redis is away."""
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
    """The backoff of what could not be started has a low cap."""
    runtime = reader(retry_backoff_seconds=5.0, undispatched_seconds_max=15.0)
    runtime.segments(2)
    for _ in range(40):
        for dispatch in runtime.dispatches():
            runtime.fail_dispatch(dispatch)
        runtime.advance(15.0)

    assert len(runtime.take(do.Dispatch)) == 1


def test_a_batch_that_redis_can_never_hold_is_cut_again_and_recorded_first() -> None:
    """Waiting for room would be waiting for ever; the halves flush once their boundary is stored."""
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


def test_a_crash_after_a_batch_was_cut_again_cuts_the_same_halves() -> None:
    """The record has their boundary; the end of the whole batch is still in it."""
    runtime = reader(batch_messages_max=4)
    runtime.segments(4)
    (dispatch,) = runtime.dispatches()
    runtime.fail_dispatch(dispatch, too_large=True)
    before = ids(runtime.dispatches())

    runtime.publish(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)
    runtime.segments(4)

    assert ids(runtime.dispatches()) == before


def test_what_settles_late_of_a_batch_that_was_cut_again_is_ignored() -> None:
    """An earlier chord of it may still complete; the halves are written all the same, under identities of their
    messages."""
    runtime = reader(batch_messages_max=2)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail_dispatch(dispatch, too_large=True)

    runtime.succeed(dispatch)

    assert ids(runtime.dispatches()) == ["0-1/blobs#1", "1-2/blobs#1"]


def test_a_single_message_that_redis_can_never_hold_is_tried_again() -> None:
    """It cannot be cut; an operator gives Redis more memory."""
    runtime = reader(batch_messages_max=1)
    runtime.segments(1)
    (dispatch,) = runtime.dispatches()

    runtime.fail_dispatch(dispatch, too_large=True)
    runtime.advance(60.0)

    assert ids(runtime.dispatches()) == ["0-1/blobs#2"]


def test_when_the_sinks_are_back_parked_batches_are_due_at_once() -> None:
    """Three batches failed while nothing succeeded; the first success of their stage ends their backoff."""
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=60.0)
    runtime.segments(3)
    first, *others = runtime.dispatches()
    for dispatch in (first, *others):
        runtime.fail(dispatch)
    runtime.publish(on.RetryRequested(first.batch.id))
    (again,) = runtime.dispatches()
    assert again.batch.id == first.batch.id

    runtime.publish(on.FlushSucceeded(first.batch.id, first.batch.epoch, Stage.BLOBS))

    started = {(dispatch.batch.id, dispatch.stage) for dispatch in runtime.dispatches()}
    assert {(other.batch.id, Stage.BLOBS) for other in others} < started


def test_a_batch_that_fails_while_others_succeed_keeps_its_backoff() -> None:
    """Its sinks work: what fails is its own, and each success would only start it again."""
    runtime = reader(batch_messages_max=1, retry_backoff_seconds=60.0, retry_backoff_seconds_max=60.0)
    runtime.segments(2)
    stuck, other = runtime.dispatches()
    runtime.flush(other)
    runtime.fail(stuck)

    runtime.segments(1)
    (after,) = runtime.dispatches()
    runtime.settle_stages(after)

    assert stuck.batch.id not in {dispatch.batch.id for dispatch in runtime.dispatches()}


def test_an_operator_can_retry_a_parked_batch_now() -> None:
    """Without waiting for the backoff."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail(dispatch)

    runtime.publish(on.RetryRequested(dispatch.batch.id))

    assert ids(runtime.take(do.Dispatch)) == ["0-2/blobs#2"]


def test_what_is_shown_as_parked_is_renewed_until_its_stage_is_durable() -> None:
    """A Discard that gets lost leaves nothing behind: the lease ends, because nobody renews it."""
    runtime = reader(parked_renew_seconds=5.0, retry_backoff_seconds=60.0, retry_backoff_seconds_max=60.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail(dispatch, "bucket is gone")
    (park,) = runtime.take(do.Park)

    runtime.advance(5.0)
    (renewed,) = runtime.take(do.Renew)
    runtime.publish(on.RetryRequested(dispatch.batch.id))
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


def test_a_batch_that_was_not_shown_is_not_renewed() -> None:
    """One that could not be staged is retried without an operator."""
    runtime = reader(parked_renew_seconds=5.0)
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail_dispatch(dispatch)

    runtime.advance(6.0)

    assert runtime.take(do.Renew) == []


def test_a_retry_of_what_is_not_parked_changes_nothing() -> None:
    """A second click, or a batch that is not ours."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()

    assert runtime.publish(on.RetryRequested(dispatch.batch.id)) == []
    assert runtime.publish(on.RetryRequested("other-0-1-2")) == []


def test_an_abandoned_batch_lets_the_watermark_pass() -> None:
    """Its messages are dead letters already."""
    runtime = reader()
    runtime.segments(4)
    first, second = runtime.dispatches()
    runtime.flush(second)
    runtime.fail(first)

    runtime.publish(on.BatchAbandoned(first.batch.id, OffsetRange(0, 1), "another range"))
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 0

    runtime.publish(on.BatchAbandoned(first.batch.id, first.batch.offsets, "given up"))
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 4
    assert runtime.pipeline.held_bytes == 0


# Bounds


def test_no_more_chords_are_out_than_allowed() -> None:
    """The rest waits for a slot, which the next stage of a batch keeps."""
    runtime = reader(batch_messages_max=1, in_flight_batches_max=2)
    runtime.segments(4)
    out = runtime.dispatches()
    assert ids(out) == ["0-1/blobs#1", "1-2/blobs#1"]

    runtime.succeed(out[0])
    assert ids(runtime.take(do.Dispatch)) == ["0-1/rows#2"]
    runtime.publish(on.FlushSucceeded(out[0].batch.id, out[0].batch.epoch, Stage.ROWS))
    assert ids(runtime.take(do.Dispatch)) == ["2-3/blobs#1"]


@pytest.mark.parametrize("bound", [{"in_flight_batches_max": 2}, {"in_flight_bytes_max": 400}])
def test_at_a_bound_nothing_more_is_taken_and_after_a_while_the_consumer_is_paused(
    bound: dict[str, float],
) -> None:
    """It goes on when both fell to half."""
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


def test_a_partition_that_comes_while_paused_is_paused_too() -> None:
    """Or its messages would come over the bound."""
    runtime = reader(in_flight_batches_max=1, pause_after_seconds=0.0)
    runtime.segments(2)
    runtime.advance(1.0)

    commands = runtime.assign(OTHER)

    assert commands == [do.Pause((OTHER,))]


def test_behind_one_stuck_batch_a_partition_runs_ahead_only_so_far() -> None:
    """That partition alone is paused: a crash would read all of it again."""
    runtime = reader(batch_messages_max=1, pending_ranges_max=6)
    runtime.assign(OTHER)
    runtime.segments(1)
    (stuck,) = runtime.dispatches()
    runtime.fail(stuck, "poison")
    for _ in range(5):
        runtime.segments(1)
        for dispatch in runtime.dispatches():
            runtime.flush(dispatch)

    assert runtime.take(do.Pause) == [do.Pause((PARTITION,))]
    assert not runtime.pipeline.paused
    runtime.segments(1, source=OTHER)
    assert ids(runtime.dispatches()) == ["0-1/blobs#1"]

    runtime.publish(on.BatchAbandoned(stuck.batch.id, stuck.batch.offsets, "given up"))
    assert runtime.take(do.Resume) == [do.Resume((PARTITION,))]


def test_resuming_all_leaves_a_held_partition_paused() -> None:
    """Two reasons to pause; one of them is over."""
    runtime = reader(batch_messages_max=1, pending_ranges_max=4, in_flight_batches_max=2, pause_after_seconds=0.5)
    runtime.assign(OTHER)
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

    runtime.segments(2, source=OTHER)
    out = runtime.dispatches()
    runtime.advance(0.6)
    assert runtime.pipeline.paused
    for dispatch in out:
        runtime.flush(dispatch)

    assert runtime.take(do.Resume) == [do.Resume((OTHER,))]


# Commits are answered, or not


def test_a_refused_commit_is_tried_again_after_the_interval_not_at_once() -> None:
    """Whatever happens meanwhile: no hot loop."""
    runtime = reader(commit_interval_seconds=0.5)
    runtime.segments(2)
    (commit,) = runtime.take(do.Commit)
    said = (commit.source, commit.epoch, commit.offset, commit.record)

    runtime.publish(on.CommitFailed(*said, "not coordinator"))
    for _ in range(9):
        runtime.advance(0.05)
        runtime.segments(2)
    assert runtime.take(do.Commit) == []

    runtime.advance(0.1)
    (again,) = runtime.take(do.Commit)
    assert again.record == "2;s=1;c=2" + ",2" * 9
    runtime.publish(on.CommitFailed(again.source, again.epoch, again.offset, again.record, "again"))
    runtime.advance(0.4)
    assert runtime.take(do.Commit) == []


def test_an_acknowledged_commit_is_repeated_while_nothing_new_is_to_be_committed() -> None:
    """A broker may have lost it, and an idle partition would keep its lag for ever."""
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
    runtime.publish(on.Committed(again.source, again.epoch, again.offset, again.record))
    runtime.advance(30.0)
    assert runtime.take(do.Commit) == []


def test_a_refused_commit_is_said_again_even_if_nothing_else_happens() -> None:
    """The broker did not store it: an idle reader must not leave the group behind."""
    runtime = reader(commit_interval_seconds=0.5)
    runtime.segments(2)
    runtime.settle_stages(runtime.dispatches()[0])
    (commit,) = runtime.take(do.Commit)

    runtime.publish(on.CommitFailed(commit.source, commit.epoch, commit.offset, commit.record, "no"))
    runtime.advance(0.5)

    assert runtime.take(do.Commit) == [commit]


def test_a_commit_without_an_answer_is_given_up_and_said_again() -> None:
    """The next one says the same or more."""
    runtime = reader(commit_answer_seconds_max=10.0)
    runtime.segments(2)
    (commit,) = runtime.take(do.Commit)

    runtime.advance(9.9)
    assert runtime.take(do.Commit) == []
    runtime.advance(0.2)

    assert runtime.take(do.Commit) == [commit]


def test_the_late_answer_to_a_commit_that_was_given_up_makes_the_newer_one_be_said_again() -> None:
    """It may have been stored over the newer one, which would leave the group behind until the next message."""
    runtime = reader(batch_messages_max=1, commit_answer_seconds_max=1.0)
    runtime.segments(1)
    (old,) = runtime.take(do.Commit)
    runtime.advance(5.0)
    runtime.settle()
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 1

    runtime.publish(on.Committed(old.source, old.epoch, old.offset, old.record))
    runtime.advance(1.0)

    assert [commit.offset for commit in runtime.take(do.Commit)] == [1]


def test_the_answer_to_a_former_assignment_is_ignored() -> None:
    """Another epoch's commit is not the one that is out."""
    runtime = reader()
    runtime.segments(2)
    (commit,) = runtime.take(do.Commit)

    runtime.publish(on.Committed(commit.source, commit.epoch - 1, commit.offset, commit.record))

    assert runtime.take(do.Dispatch) == []


def test_commits_come_at_most_once_an_interval_under_load() -> None:
    """Settled batches share one; only the record of a cut does not wait."""
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
    runtime.publish(on.Committed(commit.source, commit.epoch, commit.offset, commit.record))
    assert runtime.take(do.Commit) == []
    runtime.advance(0.5)
    assert [commit.offset for commit in runtime.take(do.Commit)] == [4]


# Partitions go


def test_a_revoked_partition_drains_then_is_released() -> None:
    """What is in flight may settle and is committed; what is open is left to the next owner."""
    runtime = reader()
    runtime.segments(3)
    (dispatch,) = runtime.dispatches()

    runtime.publish(on.PartitionsRevoked((PARTITION,)))
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
    """Shorter than the session time-out; what did not settle is read again by the next owner."""
    runtime = reader(drain_deadline_seconds=20.0)
    runtime.segments(2)
    runtime.dispatches()
    runtime.publish(on.PartitionsRevoked((PARTITION,)))

    runtime.advance(19.9)
    assert runtime.take(do.Release) == []
    runtime.advance(0.1)

    assert runtime.take(do.Release) == [do.Release((PARTITION,))]
    assert runtime.committed[PARTITION] == 0


def test_a_drain_does_not_wait_for_what_is_parked() -> None:
    """Its retry is the next owner's."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail(dispatch)

    runtime.publish(on.PartitionsRevoked((PARTITION,)))
    runtime.acknowledge_commits()

    assert runtime.take(do.Release) == [do.Release((PARTITION,))]


def test_while_draining_nothing_new_is_cut() -> None:
    """Neither by messages nor by age."""
    runtime = reader(drain_deadline_seconds=20.0)
    runtime.segments(3)
    runtime.dispatches()
    runtime.publish(on.PartitionsRevoked((PARTITION,)))

    runtime.segments(5)
    runtime.advance(10.0)

    assert [flight.batch.offsets for flight in runtime.pipeline.in_flight] == [OffsetRange(0, 2)]


def test_an_idle_partition_and_an_unknown_one_are_released_at_once() -> None:
    """There is nothing to wait for."""
    runtime = reader()

    runtime.publish(on.PartitionsRevoked((PARTITION, OTHER)))

    released = [source for release in runtime.take(do.Release) for source in release.sources]
    assert sorted(released) == [PARTITION, OTHER]


def test_revoking_one_partition_leaves_the_other_alone() -> None:
    """Cooperative: only what moves stops."""
    runtime = reader()
    runtime.assign(OTHER)
    runtime.segments(2, source=OTHER)

    runtime.publish(on.PartitionsRevoked((PARTITION,)))
    runtime.settle()

    assert runtime.committed[OTHER] == 2
    assert runtime.pipeline.sources == (OTHER,)


def test_a_lost_partition_is_dropped_without_a_commit() -> None:
    """It may be somebody else's already."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()

    runtime.publish(on.PartitionsLost((PARTITION,)))
    runtime.settle_stages(dispatch)
    runtime.advance(60.0)

    assert kinds(runtime.commands) == []
    assert runtime.pipeline.held_bytes == 0


def test_a_completion_of_an_older_epoch_is_ignored() -> None:
    """The same range may be in flight again: only its own chord settles it."""
    runtime = reader()
    runtime.segments(2)
    (old,) = runtime.dispatches()
    runtime.publish(on.PartitionsLost((PARTITION,)))
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


# Messages that expired


def test_an_offset_out_of_range_is_a_gap_and_what_is_held_stays_ours() -> None:
    """Batches in flight of expired messages are their only copy."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()

    runtime._epochs[PARTITION] += 1
    runtime.publish(on.OffsetOutOfRange(PARTITION, runtime.epoch(), wanted=2, resumed_at=50))
    runtime.segments(2, at=50)
    (later,) = runtime.dispatches()
    runtime.flush(later)
    assert later.batch.offsets == OffsetRange(50, 52)
    assert runtime.committed[PARTITION] == 0

    runtime.settle_stages(dispatch)
    runtime.advance(1.0)
    runtime.acknowledge_commits()
    assert runtime.committed[PARTITION] == 52


def test_a_log_that_went_back_is_another_log() -> None:
    """The topic was made anew: nothing that we held is true there."""
    runtime = reader()
    runtime.segments(2)
    runtime.dispatches()

    runtime._epochs[PARTITION] += 1
    runtime.publish(on.OffsetOutOfRange(PARTITION, runtime.epoch(), wanted=2, resumed_at=0))
    runtime.segments(2, at=0)
    runtime.settle()

    assert runtime.committed[PARTITION] == 2
    assert runtime.pipeline.in_flight == ()


# Room


def test_the_message_that_reaches_the_byte_bound_is_the_last_one() -> None:
    """Nothing has to be cut or ticked for it to be noticed."""
    runtime = reader(batch_messages_max=100, in_flight_bytes_max=1000)

    runtime.parsed(segment(0, size_bytes=999))
    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.NOW
    runtime.parsed(segment(1, size_bytes=1))

    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.LATER


def test_a_held_partition_has_no_room_and_the_others_do() -> None:
    """What was fetched of it waits."""
    runtime = reader(batch_messages_max=1, in_flight_batches_max=100, pending_ranges_max=8)
    runtime.assign(OTHER)
    runtime.segments(8)

    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.LATER
    assert runtime.pipeline.room(OTHER, runtime.epoch(OTHER)) is Room.NOW


def test_there_is_never_room_for_what_will_be_read_again() -> None:
    """A former assignment, a partition that is given back, a reader that stops."""
    runtime = reader()
    runtime.assign(OTHER)
    here, there = runtime.epoch(), runtime.epoch(OTHER)

    assert runtime.pipeline.room(PARTITION, here - 1) is Room.NEVER
    runtime.segments(2)
    runtime.publish(on.PartitionsRevoked((PARTITION,)))
    assert runtime.pipeline.room(PARTITION, here) is Room.NEVER
    runtime.publish(on.ShutdownRequested())
    assert runtime.pipeline.room(OTHER, there) is Room.NEVER


# Messages that are parsed beside the loop


def deferred(runtime: Reader, offset: int, source: TopicPartition = PARTITION, size_bytes: int = 0) -> None:
    runtime.publish(on.MessageDeferred(source, runtime.epoch(source), offset, size_bytes))


def test_what_was_taken_before_a_deferred_message_does_not_wait_for_it() -> None:
    """The open batch ends there when it is old enough; nothing of the message is committed."""
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


def test_a_partition_with_a_deferred_message_waits_and_the_others_go_on() -> None:
    """It is paused until the answer, which goes into a batch like any other."""
    runtime = reader(batch_messages_max=2)
    runtime.assign(OTHER)

    deferred(runtime, 0)
    assert runtime.take(do.Pause) == [do.Pause((PARTITION,))]
    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.LATER
    assert runtime.pipeline.room(OTHER, runtime.epoch(OTHER)) is Room.NOW
    runtime.segments(2, source=OTHER)
    runtime.settle()
    assert runtime.committed[OTHER] == 2

    runtime.segments(1)
    assert runtime.take(do.Resume) == [do.Resume((PARTITION,))]
    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.NOW
    runtime.segments(1)
    runtime.settle()
    assert runtime.committed[PARTITION] == 2


def test_a_deferred_message_and_those_around_it_share_a_batch() -> None:
    """A batch costs a dozen round trips: an answer that comes soon causes no further one."""
    runtime = reader(batch_messages_max=4)
    runtime.segments(2)

    deferred(runtime, 2)
    runtime.segments(2)

    assert ids(runtime.dispatches()) == ["0-4/blobs#1"]


def test_a_planned_range_is_not_cut_for_a_deferred_message_in_it() -> None:
    """The same cut comes first."""
    runtime = reader(batch_messages_max=4)
    runtime.committed, runtime.records = {PARTITION: 0}, {PARTITION: "1,4"}
    runtime.publish(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)
    runtime.segments(2)

    deferred(runtime, 2)
    assert runtime.dispatches() == []
    runtime.segments(2)

    assert ids(runtime.dispatches()) == ["0-4/blobs#1"]


def test_a_deferred_message_counts_towards_the_bytes_that_are_held() -> None:
    """It is in memory, here and in the child."""
    runtime = reader(in_flight_bytes_max=1000)

    deferred(runtime, 0, size_bytes=1000)

    assert runtime.pipeline.held_bytes == 1000
    assert not runtime.pipeline.has_room
    runtime.segments(1)
    assert runtime.pipeline.held_bytes == 100


def test_an_answer_for_a_former_assignment_is_ignored() -> None:
    """The next owner reads the message again, if that is us."""
    runtime = reader()
    deferred(runtime, 0)
    former = runtime.epoch()
    runtime.publish(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)

    runtime.publish(on.MessageParsed(PARTITION, former, 0, segment(0)))

    assert runtime.pipeline.position(PARTITION) == (0, None)
    assert runtime.pipeline.room(PARTITION, runtime.epoch()) is Room.NOW


def test_giving_a_partition_back_does_not_wait_for_a_deferred_message() -> None:
    """It is read again."""
    runtime = reader(batch_messages_max=1)
    runtime.segments(1)
    deferred(runtime, 1)
    runtime.publish(on.PartitionsRevoked((PARTITION,)))

    runtime.settle()

    assert runtime.take(do.Release) == [do.Release((PARTITION,))]
    assert runtime.committed[PARTITION] == 1


def test_a_reader_that_resumes_leaves_a_partition_with_a_deferred_message_paused() -> None:
    """What comes behind it has nowhere to go."""
    runtime = reader(batch_messages_max=1, in_flight_batches_max=1, pause_after_seconds=0.1)
    runtime.assign(OTHER)
    deferred(runtime, 0)
    runtime.segments(1, source=OTHER)
    runtime.dispatches()
    runtime.advance(0.2)
    runtime.take(do.Pause)

    for stage in (Stage.BLOBS, Stage.ROWS):
        runtime.publish(on.FlushSucceeded(f"{OTHER}-0-1", runtime.epoch(OTHER), stage))

    assert runtime.take(do.Resume) == [do.Resume((OTHER,))]


# Halt and shutdown


def test_too_many_rejects_halt_the_reader() -> None:
    """A bad deploy must not send a whole topic to the dead letters."""
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


def test_a_halt_in_a_planned_range_makes_its_first_part_durable() -> None:
    """Otherwise no restart would ever get further, and no letter would say why."""
    runtime = reader(batch_messages_max=100, reject_window=10, reject_unattributed_ratio_max=0.5)
    runtime.committed, runtime.records = {PARTITION: 0}, {PARTITION: "1,2s"}
    runtime.publish(on.PartitionsLost((PARTITION,)))
    runtime.assign(PARTITION)

    runtime.parsed(*[reject(offset) for offset in range(10)])

    assert runtime.pipeline.halted
    runtime.settle()
    assert (runtime.committed[PARTITION], runtime.records[PARTITION]) == (10, "2;c=2i")


def test_garbage_of_one_project_is_reported_and_everything_goes_on() -> None:
    """Half of all is its garbage: its letters are written, the others' segments too."""
    runtime = reader(batch_messages_max=10, reject_window=20)
    for offset in range(0, 200, 2):
        runtime.parsed(reject(offset, project_id=7), segment(offset + 1))

    runtime.settle()

    assert runtime.pipeline.halted is None
    assert runtime.committed[PARTITION] == 200
    assert [(shed.project_id, shed.shed) for shed in runtime.take(do.Shed)] == [(7, True)]


def test_by_policy_the_rejects_of_a_shed_project_are_dropped_and_counted() -> None:
    """The first ones, before it is shed, are letters; the offsets of all are committed."""
    runtime = Reader(limits(batch_messages_max=10, reject_window=20, reject_policy=RejectPolicy.DROP))  # type: ignore[arg-type]
    runtime.assign(PARTITION)
    runtime.parsed(*[reject(offset, project_id=7) for offset in range(50)])

    dispatches = runtime.settle()

    letters = {letter for dispatch in dispatches for letter in dispatch.batch.rejects}  # type: ignore[attr-defined]
    assert len(letters) == 9
    assert runtime.pipeline.rejects.dropped == 41
    assert runtime.committed[PARTITION] == 50


def test_a_halted_reader_settles_what_is_in_flight_and_pauses_what_it_is_given() -> None:
    """It stays up, keeps its partitions, and consumes nothing."""
    runtime = reader(reject_window=10, reject_unattributed_ratio_max=0.5)
    runtime.parsed(*[reject(offset) for offset in range(10)])
    assert runtime.pipeline.halted

    assert runtime.assign(OTHER) == [do.Pause((OTHER,))]
    runtime.settle()
    runtime.advance(1.0)
    runtime.settle()

    assert runtime.committed[PARTITION] == 10
    assert runtime.take(do.Resume) == []


def test_shutdown_settles_commits_and_stops_clean() -> None:
    """What is open is cut, the commit is waited for."""
    runtime = reader()
    runtime.segments(3)

    runtime.publish(on.ShutdownRequested())
    for dispatch in runtime.dispatches():
        runtime.settle_stages(dispatch)
    assert runtime.take(do.Stop) == []
    runtime.acknowledge_commits()

    assert runtime.committed[PARTITION] == 3
    assert runtime.take(do.Stop) == [do.Stop(clean=True)]
    assert runtime.segments(2) == []


def test_shutdown_ends_at_the_drain_deadline() -> None:
    """A sick sink must not keep a process that was told to go."""
    runtime = reader(drain_deadline_seconds=20.0)
    runtime.segments(2)
    runtime.dispatches()
    runtime.publish(on.ShutdownRequested())

    runtime.advance(19.9)
    assert runtime.take(do.Stop) == []
    runtime.advance(0.1)

    assert runtime.take(do.Stop) == [do.Stop(clean=False)]


def test_shutdown_with_a_parked_batch_is_not_clean_but_does_not_wait() -> None:
    """Its retry is the next owner's."""
    runtime = reader()
    runtime.segments(2)
    (dispatch,) = runtime.dispatches()
    runtime.fail(dispatch)

    runtime.publish(on.ShutdownRequested())
    runtime.acknowledge_commits()

    assert runtime.take(do.Stop) == [do.Stop(clean=False)]


def test_shutdown_is_asked_for_once() -> None:
    """A second SIGTERM does not move the deadline."""
    runtime = reader(drain_deadline_seconds=20.0)
    runtime.segments(2)
    runtime.dispatches()
    runtime.publish(on.ShutdownRequested())
    runtime.advance(15.0)
    runtime.publish(on.ShutdownRequested())

    runtime.advance(5.0)

    assert runtime.take(do.Stop) == [do.Stop(clean=False)]


def test_after_the_stop_nothing_is_decided_any_more() -> None:
    """The process is on its way out."""
    runtime = reader()
    runtime.join()
    runtime.take(do.Stop)

    assert runtime.publish(on.PartitionsRevoked((PARTITION,))) == []
    assert runtime.advance(1e6) == []
