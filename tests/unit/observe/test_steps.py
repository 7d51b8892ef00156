"""Tests the steps of the commit protocol that a reader logs for the specification."""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.model import Drop, DropReason
from ingest.observe.steps import Step, Steps
from ingest.testing.runtime import PARTITION
from tests.kit.batches import segment
from tests.kit.core_reader import Reader, limits


class FollowedReader(Reader):
    """A reader and its observer. `logged` contains the steps so far."""

    def __init__(self, bounds: Limits) -> None:
        super().__init__(bounds)
        self.logged: list[Step] = []
        self._steps = Steps(self.pipeline)

    def handle_event(self, event: on.Event) -> list[do.Command]:
        commands = super().handle_event(event)
        self.logged += self._steps.observe(event, commands, self.now)
        return commands

    def take_steps(self) -> list[Step]:
        """Returns the steps since the last call."""
        logged, self.logged = self.logged, []
        return logged


def followed_reader(**changed: float) -> FollowedReader:
    """Returns a reader that owns PARTITION, without the steps of its assignment."""
    reader = FollowedReader(limits(**changed))
    reader.assign(PARTITION)
    reader.take_steps()
    return reader


def names(steps: list[Step]) -> list[str]:
    return [step["step"] for step in steps]


def facts(steps: list[Step], name: str) -> list[Step]:
    """Returns the fields of all steps with the given name, without the name and the partition."""
    return [
        {key: value for key, value in step.items() if key not in ("step", "partition")}
        for step in steps
        if step["step"] == name
    ]


def test_a_batch_is_logged_from_its_assignment_to_its_commit() -> None:
    """Each step of the protocol is logged once, in order."""
    reader = FollowedReader(limits())
    reader.assign(PARTITION)
    reader.segments(2)
    reader.settle()

    logged = reader.take_steps()
    assert names(logged) == [
        *("assigned", "cut", "commit", "committed"),
        *("dispatch", "flushed", "dispatch", "flushed", "settled", "commit", "committed"),
    ]
    assert facts(logged, "assigned") == [{"offset": 0, "ends": [], "new": True}]
    assert facts(logged, "cut") == [{"start": 0, "stop": 2, "stages": ["blobs", "rows"], "cut_by": "count"}]
    assert [step["ends"] for step in facts(logged, "commit")] == [[2], []]
    assert [step["stage"] for step in facts(logged, "dispatch")] == ["blobs", "rows"]
    assert facts(logged, "committed")[-1] == {"offset": 2, "ends": [], "short": False}
    assert {step["partition"] for step in logged} == {PARTITION.partition}


def test_a_new_owner_logs_the_ends_it_received() -> None:
    """The step of an assignment lists the end offset of a recorded batch that has not settled."""
    reader = followed_reader()
    reader.segments(2)
    reader.acknowledge_commits()
    reader.handle_event(on.PartitionsLost((PARTITION,)))
    reader.take_steps()
    reader.assign(PARTITION)

    assert facts(reader.take_steps(), "assigned") == [{"offset": 0, "ends": [2], "new": False}]


def test_dropped_messages_are_logged_as_a_range_with_nothing_to_write() -> None:
    """Dropped messages are logged as a range with nothing to write, which grows with each dropped message."""
    reader = followed_reader(batch_messages_max=5)
    reader.parsed(segment(0), Drop(DropReason.KILLED, 1), Drop(DropReason.KILLED, 1))

    assert facts(reader.take_steps(), "nothing") == [{"start": 1, "stop": 2}, {"start": 1, "stop": 3}]


def test_a_message_that_is_not_taken_is_not_a_step() -> None:
    reader = followed_reader(batch_messages_max=5)
    reader.parsed(Drop(DropReason.KILLED, 1))
    reader.take_steps()
    reader.handle_event(on.MessageParsed(PARTITION, reader.epoch(), 0, Drop(DropReason.KILLED, 1)))

    assert reader.take_steps() == []


def test_a_failed_chord_parks_its_batch_and_restarts() -> None:
    """A failed chord is logged as a parked batch, and its retry as a dispatch that is not late."""
    reader = followed_reader()
    reader.segments(2)
    (dispatch,) = reader.dispatches()
    reader.fail(dispatch)
    reader.advance(6.0)

    logged = reader.take_steps()
    assert facts(logged, "parked") == [{"stop": 2}]
    assert [step["late"] for step in facts(logged, "dispatch")] == [False, False]


def test_the_failure_of_an_older_attempt_is_not_a_step() -> None:
    """If an older attempt fails while a newer chord is in flight, no step is logged."""
    reader = followed_reader(flush_deadline_seconds=10.0)
    reader.segments(2)
    (dispatch,) = reader.dispatches()
    reader.advance(10.0)
    reader.take_steps()
    reader.fail(dispatch)

    assert "parked" not in names(reader.take_steps())


def test_a_chord_that_could_not_be_started_parks_its_batch() -> None:
    """If a chord could not be started, the log says that its batch is parked, although operators do not see the
    batch as parked.
    """
    reader = followed_reader()
    reader.segments(2)
    (dispatch,) = reader.dispatches()
    reader.take_steps()
    reader.fail_dispatch(dispatch)

    assert facts(reader.take_steps(), "parked") == [{"stop": 2}]


def test_a_dispatch_after_the_deadline_is_logged_as_late() -> None:
    """A dispatch after a missed deadline is logged as late, because before the previous dispatch has a result,
    the specification allows another dispatch only if it is late.
    """
    reader = followed_reader(flush_deadline_seconds=10.0)
    reader.segments(2)
    reader.dispatches()
    reader.take_steps()
    reader.advance(10.0)

    assert [step["late"] for step in facts(reader.take_steps(), "dispatch")] == [True]


def test_a_batch_not_recorded_in_time_starts_without_a_record() -> None:
    """If a batch starts without a cut record because the broker does not respond, the first dispatch of the batch
    is logged as late.
    """
    reader = followed_reader(cut_record_seconds_max=3.0)
    reader.segments(2)
    reader.advance(3.0)

    assert [step["late"] for step in facts(reader.take_steps(), "dispatch")] == [True]


def test_a_batch_that_can_never_be_staged_is_split() -> None:
    """If a batch that can never be staged is split, both halves are logged, and nothing is parked."""
    reader = followed_reader()
    reader.segments(2)
    (dispatch,) = reader.dispatches()
    reader.take_steps()
    reader.fail_dispatch(dispatch, too_large=True)

    logged = reader.take_steps()
    (split,) = facts(logged, "split")
    assert [(part["start"], part["stop"]) for part in split["into"]] == [(0, 1), (1, 2)]
    assert "cut" not in names(logged)
    assert "parked" not in names(logged)


def test_a_record_that_is_too_long_shortens_later_steps() -> None:
    """After the broker has refused a long record, later commits are logged with `short=True`, because their
    records may contain fewer batch ends.
    """
    reader = followed_reader()
    reader.segments(2)
    (commit,) = reader.take(do.Commit)
    reader.handle_event(on.CommitFailed(PARTITION, commit.epoch, commit.offset, commit.record, "too long", True))

    logged = reader.take_steps()
    assert facts(logged, "refused") == [{"offset": 0, "ends": [2], "short": True}]
    assert facts(logged, "commit")[-1] == {"offset": 0, "ends": [], "short": True}


def test_an_abandoned_batch_is_settled_by_the_operator() -> None:
    """An abandoned batch is logged as settled by the operator, so the specification can distinguish it from a
    durable batch.
    """
    reader = followed_reader()
    reader.segments(2)
    (dispatch,) = reader.dispatches()
    reader.fail(dispatch)
    reader.handle_event(on.BatchAbandoned(dispatch.batch.id, dispatch.batch.offsets, "operator"))

    assert facts(reader.take_steps(), "settled") == [{"stop": 2, "by": "operator"}]


def test_a_drain_that_ends_in_time_is_not_late() -> None:
    """A drain with nothing in flight ends at once, and its release is not logged as late."""
    reader = followed_reader()
    reader.handle_event(on.PartitionsRevoked((PARTITION,)))

    logged = reader.take_steps()
    assert names(logged) == ["revoked", "released"]
    assert not facts(logged, "released")[0]["late"]


def test_a_drain_ended_by_its_deadline_is_late() -> None:
    """If a chord without a result is in flight, the drain ends at its deadline, and the release is logged as
    late.
    """
    reader = followed_reader(drain_deadline_seconds=4.0)
    reader.segments(2)
    reader.dispatches()
    reader.handle_event(on.PartitionsRevoked((PARTITION,)))
    reader.advance(4.0)

    assert [step["late"] for step in facts(reader.take_steps(), "released")] == [True]


def test_a_gap_in_the_log_is_a_range_with_nothing_to_write() -> None:
    reader = followed_reader()
    reader.handle_event(on.OffsetOutOfRange(PARTITION, reader.epoch() + 1, 0, 7))

    assert facts(reader.take_steps(), "nothing") == [{"start": 0, "stop": 7}]


def test_a_recreated_log_is_another_assignment() -> None:
    """If the offsets are lower than before, another assignment is logged, in which the partition counts as new."""
    reader = followed_reader(batch_messages_max=5)
    reader.segments(3)
    reader.handle_event(on.OffsetOutOfRange(PARTITION, reader.epoch() + 1, 3, 0))

    logged = reader.take_steps()
    assert names(logged)[:2] == ["lost", "assigned"]
    assert facts(logged, "assigned") == [{"offset": 0, "ends": [], "new": True}]


def test_the_end_of_the_log_is_a_step() -> None:
    """A reader that reaches the end of a partition logs the offsets up to the end as a step, because they hold no
    messages and the specification treats them as empty.
    """
    reader = followed_reader()
    reader.handle_event(on.EndReached(PARTITION, reader.epoch(), 0, 3))

    assert facts(reader.take_steps(), "ended") == [{"start": 0, "stop": 3}]


def test_a_reader_that_stopped_takes_no_more_steps() -> None:
    """A completion after the reader has stopped is ignored by the core and not logged."""
    reader = followed_reader(drain_deadline_seconds=4.0)
    reader.segments(2)
    (dispatch,) = reader.dispatches()
    reader.handle_event(on.ShutdownRequested())
    reader.advance(4.0)
    assert facts(reader.take_steps(), "stopped") == [{"clean": False}]
    reader.succeed(dispatch)

    assert reader.take_steps() == []


def test_partitions_of_other_readers_are_not_steps() -> None:
    """Responses for a partition that is not owned, and the loss of such a partition, are not logged."""
    reader = FollowedReader(limits())
    reader.handle_event(on.Committed(PARTITION, 1, 4, ""))
    reader.handle_event(on.PartitionsLost((PARTITION,)))
    reader.handle_event(on.EndReached(PARTITION, 1, 0, 3))

    assert reader.take_steps() == []
