"""Tests the public MockRuntime as code that builds on the core would use it, with whole messages and the real
parser.
"""

from __future__ import annotations

from ingest.core import commands as do
from ingest.core.limits import Limits
from ingest.core.model import CutReason, OffsetRange, Stage
from ingest.testing.messages import REJECTED, recording
from ingest.testing.runtime import PARTITION, MockRuntime

LETTER = REJECTED[0][2]


def started_runtime(**limits: int) -> MockRuntime:
    """Returns a runtime that owns PARTITION."""
    runtime = MockRuntime(Limits(**limits))
    runtime.assign(PARTITION)
    return runtime


def test_the_example_in_its_docstring_works() -> None:
    """In the docstring's example, the offset that follows the batch is committed after the batch has settled."""
    runtime = started_runtime(batch_messages_max=2)

    runtime.submit(recording(segment_id=0))
    assert runtime.take(do.Commit) == []
    runtime.submit(recording(segment_id=1))
    runtime.settle()

    assert runtime.committed == {PARTITION: 2}


def test_a_gap_in_the_log_is_inside_a_range() -> None:
    """If the log has a gap, the range of the batch covers it."""
    runtime = started_runtime(batch_messages_max=2)
    runtime.submit(recording(segment_id=0))

    runtime.submit(recording(segment_id=1), offset=7)
    runtime.acknowledge_commits()

    (dispatch,) = runtime.take(do.Dispatch)
    assert dispatch.batch.offsets == OffsetRange(0, 8)
    assert len(dispatch.batch.segments) == 2


def test_a_message_that_never_parses_becomes_a_dead_letter() -> None:
    """A message that never parses becomes a dead letter: its batch has one reject and only rows to write."""
    runtime = started_runtime(batch_messages_max=1)

    runtime.submit(LETTER)
    runtime.acknowledge_commits()

    (dispatch,) = runtime.take(do.Dispatch)
    assert dispatch.stage is Stage.ROWS
    assert [reject.value for reject in dispatch.batch.rejects] == [LETTER]


def test_the_test_chooses_how_a_chord_ends() -> None:
    """A batch is parked if its chord fails, but not if the chord cannot start; in both cases the batch is retried.

    The test chooses how the chord ends.
    """
    runtime = started_runtime(batch_messages_max=1)
    runtime.submit(recording())
    runtime.acknowledge_commits()

    runtime.fail(runtime.take(do.Dispatch)[0], "503")
    assert [park.error for park in runtime.take(do.Park)] == ["503"]
    runtime.advance(runtime.pipeline.limits.retry_backoff_seconds)
    runtime.fail_dispatch(runtime.take(do.Dispatch)[0])
    assert runtime.take(do.Park) == []
    runtime.advance(runtime.pipeline.limits.undispatched_seconds_max)

    assert [dispatch.attempt for dispatch in runtime.take(do.Dispatch)] == [3]


def test_a_crash_is_a_new_runtime_with_the_stored_commits() -> None:
    """After a crash, a new runtime with the stored commits cuts the recorded range again."""
    runtime = started_runtime(batch_messages_max=2)
    runtime.submit(recording(segment_id=0))
    runtime.submit(recording(segment_id=1))
    runtime.acknowledge_commits()

    successor = MockRuntime(Limits(batch_messages_max=100))
    successor.committed, successor.records = runtime.committed, runtime.records
    successor.assign(PARTITION)
    successor.acknowledge_commits()
    successor.submit(recording(segment_id=0))
    successor.submit(recording(segment_id=1))
    successor.advance(0.0)

    (dispatch,) = successor.take(do.Dispatch)
    assert dispatch.batch.offsets == OffsetRange(0, 2)
    assert dispatch.batch.cut_by is CutReason.PLANNED


def test_joining_flushes_the_open_batch() -> None:
    """`join` flushes and commits the open batch, and the reader stops cleanly."""
    runtime = started_runtime()
    runtime.submit(recording())

    runtime.join()

    assert runtime.committed == {PARTITION: 1}
    assert [stop.clean for stop in runtime.take(do.Stop)] == [True]
