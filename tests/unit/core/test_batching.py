"""Tests when a batch is cut: by count, bytes, age, or planned end."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ingest.core.batching import Builder
from ingest.core.limits import Limits
from ingest.core.model import Batch, CutReason, OffsetRange, Reject, Stage
from ingest.testing.runtime import PARTITION
from tasks.units import MiB
from tests.kit.batches import drop, reject, segment
from tests.kit.core_reader import limits


def builder(plan: tuple[int, ...] = (), **changed: float) -> Builder:
    return Builder(PARTITION, 1, limits(**{"batch_messages_max": 100, **changed}), plan)


def only(batches: list[Batch]) -> Batch:
    assert len(batches) == 1
    return batches[0]


def test_the_message_that_reaches_the_count_cuts() -> None:
    """If the maximum count is 2, the second message cuts the batch."""
    open_batch = Builder(PARTITION, 1, limits(batch_messages_max=2))

    assert open_batch.add(5, segment(5), now=0.0) == []
    batch = only(open_batch.add(6, segment(6), now=0.0))

    assert (batch.offsets.start, batch.offsets.stop, batch.cut_by) == (5, 7, CutReason.COUNT)
    assert len(open_batch) == 0


def test_the_message_that_reaches_the_bytes_cuts_and_is_in_the_batch() -> None:
    """The message that reaches the byte limit is the last message in the batch, so the limit is exceeded by at
    most one message.
    """
    open_batch = builder(batch_bytes_max=250)

    assert open_batch.add(0, segment(0), now=0.0) == []
    assert open_batch.add(1, segment(1), now=0.0) == []
    batch = only(open_batch.add(2, segment(2), now=0.0))

    assert (batch.size_bytes, batch.cut_by) == (300, CutReason.BYTES)
    assert open_batch.size_bytes == 0


def test_a_message_over_the_byte_limit_is_a_batch_of_its_own() -> None:
    """A message of fifteen megabytes, which exceeds the byte limit, is flushed without waiting, in a separate
    batch.
    """
    open_batch = builder(batch_bytes_max=250)

    assert only(open_batch.add(0, segment(0, size_bytes=9_999), now=0.0)).size_bytes == 9_999


def test_a_batch_ends_before_the_message_that_it_could_not_be_staged_with() -> None:
    """A message that would take the batch above `staged_bytes_max` begins the next batch."""
    open_batch = builder(batch_bytes_max=10_000, staged_bytes_max=250)

    assert open_batch.add(0, segment(0), now=0.0) == []
    assert open_batch.add(1, segment(1), now=0.0) == []
    batch = only(open_batch.add(2, segment(2), now=0.0))

    assert (batch.offsets, batch.size_bytes, batch.cut_by) == (OffsetRange(0, 2), 200, CutReason.BYTES)
    assert len(open_batch) == 1


def test_a_message_that_is_too_large_is_a_batch_of_its_own() -> None:
    """A message above the maximum size is the only message of its batch."""
    open_batch = builder(batch_bytes_max=250, staged_bytes_max=250)
    open_batch.add(0, segment(0), now=0.0)

    before, alone = open_batch.add(1, segment(1, size_bytes=9_999), now=0.0)
    open_batch.add(2, segment(2), now=0.0)

    assert (before.offsets, alone.offsets) == (OffsetRange(0, 1), OffsetRange(1, 2))
    assert len(open_batch) == 1


def test_a_planned_range_that_grew_too_large_is_cut_in_between_and_keeps_its_end() -> None:
    """If another release produces more rows, so that a planned range exceeds `staged_bytes_max`, the range is cut
    in two.

    The planned end of the range is kept.
    """
    open_batch = builder(plan=(4, 9), batch_bytes_max=100, staged_bytes_max=250)

    cut = [batch for offset in range(4) for batch in open_batch.add(offset, segment(offset), now=0.0)]

    assert [(batch.offsets, batch.cut_by) for batch in cut] == [
        (OffsetRange(0, 2), CutReason.BYTES),
        (OffsetRange(2, 4), CutReason.PLANNED),
    ]
    assert open_batch.planned_ends == (9,)


def test_records_with_long_headers_are_many_batches() -> None:
    """Records with long headers are cut into many batches.

    Without the limit, 48 records with 12 MB of headers each would form one batch of 576 MB, which Redis would
    never accept.
    """
    blown_up = Reject("schema", "bad", 0, b"", None, (("h", bytes(12 * MiB)),))
    open_batch = Builder(PARTITION, 1, Limits())

    cut = [
        batch
        for offset in range(48)
        for batch in open_batch.add(offset, replace(blown_up, offset=offset), now=0.0)
    ]

    assert len(cut) >= 23
    assert max(batch.size_bytes for batch in cut) <= Limits().staged_bytes_max


def test_keys_and_headers_of_a_dead_letter_count() -> None:
    """The size of a dead letter includes its key and headers, which are staged with it."""
    small = Reject("schema", "bad", 0, b"v")
    key, headers = bytes(1000), (("n" * 500, bytes(2000)), ("none", None))

    assert replace(small, key=key, headers=headers).size_bytes - small.size_bytes >= 3500


def test_the_halves_of_a_batch_hold_its_messages_and_meet() -> None:
    """A batch is split between two messages, always at the same offset, so a restart makes the same halves."""
    open_batch = builder(batch_messages_max=5)
    outcomes = [segment(10), drop(), reject(12), segment(13, size_bytes=900), segment(14)]
    whole = only(
        [batch for at, outcome in enumerate(outcomes, 10) for batch in open_batch.add(at, outcome, now=0.0)]
    )

    halves = whole.halves()

    assert halves is not None
    first, second = halves
    assert (first.offsets, second.offsets) == (OffsetRange(10, 14), OffsetRange(14, 15))
    assert first.segments + second.segments == whole.segments
    assert first.rejects + second.rejects == whole.rejects
    assert first.size_bytes + second.size_bytes == whole.size_bytes
    assert whole.halves() == halves


def test_halves_leave_out_the_gap_between_them() -> None:
    """Each half of a split batch ends directly after a message, so the gap between the halves is in neither
    range.
    """
    open_batch = builder(batch_messages_max=2)
    open_batch.add(10, segment(10), now=0.0)

    halves = only(open_batch.add(20, segment(20), now=0.0)).halves()

    assert halves is not None
    assert [half.offsets for half in halves] == [OffsetRange(10, 11), OffsetRange(20, 21)]


def test_a_single_message_has_no_halves() -> None:
    """A batch of a single message cannot be split into halves."""
    open_batch = builder(batch_messages_max=1)

    assert only(open_batch.add(0, segment(0), now=0.0)).halves() is None


def test_age_counts_from_the_first_message_of_the_batch() -> None:
    """The age of a batch counts from its first message; otherwise a slow stream of messages would never be
    flushed.
    """
    open_batch = builder(batch_age_seconds_max=2.0)
    open_batch.add(0, segment(0), now=10.0)
    open_batch.add(1, segment(1), now=11.9)

    assert open_batch.cut_if_due(now=11.99) is None
    batch = open_batch.cut_if_due(now=12.0)

    assert batch is not None
    assert (batch.offsets.stop, batch.cut_by) == (2, CutReason.AGE)
    assert (batch.opened_at, batch.cut_at) == (10.0, 12.0)


def test_an_empty_batch_is_never_due() -> None:
    """A batch without messages has no age, so it is never due."""
    assert builder().cut_if_due(now=1e9) is None
    assert builder().drain(now=1e9) is None


def test_the_open_batch_is_cut_at_shutdown() -> None:
    """At shutdown the open batch is cut and flushed."""
    open_batch = builder()
    open_batch.add(3, segment(3), now=0.0)

    batch = open_batch.drain(now=1.0)

    assert batch is not None
    assert (batch.offsets.start, batch.cut_by) == (3, CutReason.DRAIN)


def test_rejects_travel_inside_the_batch_and_drops_only_move_the_offset() -> None:
    """A reject becomes part of its batch; a dropped message only advances the offset."""
    open_batch = builder()
    open_batch.add(0, reject(0), now=0.0)
    open_batch.add(1, drop(), now=0.0)
    batch = open_batch.drain(now=0.0)

    assert batch is not None
    assert (len(batch.rejects), len(batch.segments), batch.offsets.stop) == (1, 0, 2)
    assert batch.stages == (Stage.ROWS,)


def test_a_batch_has_only_the_stages_it_needs() -> None:
    """Blobs are flushed before rows, and a stage with nothing to write is omitted."""
    for outcomes, stages in (
        ([segment(0)], (Stage.BLOBS, Stage.ROWS)),
        ([segment(0, rows=False)], (Stage.BLOBS,)),
        ([segment(0, blob=False)], (Stage.ROWS,)),
        ([drop()], ()),
    ):
        open_batch = builder()
        for outcome in outcomes:
            open_batch.add(0, outcome, now=0.0)
        batch = open_batch.drain(now=0.0)
        assert batch is not None
        assert batch.stages == stages


def test_the_id_depends_only_on_the_range() -> None:
    """If any reader cuts the same range again at any time, the batch has the same id."""
    first, second = builder(), Builder(PARTITION, 9, limits(batch_messages_max=1))
    first.add(4, segment(4), now=0.0)

    by_drain = first.drain(now=3.0)
    by_count = only(second.add(4, segment(4), now=77.0))

    assert by_drain is not None
    assert by_drain.id == by_count.id == f"{PARTITION}-4-5"


# The predecessor's cuts


def test_planned_ends_come_before_count_bytes_and_age() -> None:
    """A new owner cuts the ranges that its predecessor recorded, whatever its own limits are."""
    open_batch = Builder(PARTITION, 1, limits(batch_messages_max=2, batch_age_seconds_max=1.0), (3, 4))

    for offset in (0, 1):
        assert open_batch.add(offset, segment(offset), now=0.0) == []
    assert open_batch.cut_if_due(now=5.0) is None
    first = only(open_batch.add(2, segment(2), now=5.0))
    second = only(open_batch.add(3, segment(3), now=5.0))

    assert [(b.offsets.start, b.offsets.stop, b.cut_by) for b in (first, second)] == [
        (0, 3, CutReason.PLANNED),
        (3, 4, CutReason.PLANNED),
    ]
    assert open_batch.planned_ends == ()


def test_after_the_plan_its_own_limits_apply_again() -> None:
    """After the last planned end, the reader's own limits apply again."""
    open_batch = Builder(PARTITION, 1, limits(batch_messages_max=2), (1,))
    open_batch.add(0, segment(0), now=0.0)

    assert open_batch.add(1, segment(1), now=0.0) == []
    assert only(open_batch.add(2, segment(2), now=0.0)).cut_by is CutReason.COUNT


def test_a_planned_range_with_a_compacted_end_ends_at_the_next_message() -> None:
    """If compaction removed the last message of a planned range, the next message cuts the batch and opens a new
    batch.
    """
    open_batch = builder(plan=(3, 10))
    open_batch.add(0, segment(0), now=0.0)

    batch = only(open_batch.add(5, segment(5), now=0.0))

    assert (batch.offsets.stop, batch.cut_by) == (1, CutReason.PLANNED)
    assert (len(open_batch), open_batch.planned_ends) == (1, (10,))


def test_one_message_can_complete_two_batches() -> None:
    """A message after the first planned end completes the first planned batch. If the message is also the last one
    before the second planned end, it completes the second planned batch, too.
    """
    open_batch = builder(plan=(3, 6))
    open_batch.add(0, segment(0), now=0.0)

    batches = open_batch.add(5, segment(5), now=0.0)

    assert [(b.offsets.start, b.offsets.stop) for b in batches] == [(0, 1), (5, 6)]


def test_a_plan_that_cannot_be_completed_is_abandoned() -> None:
    """A plan that cannot be completed is abandoned.

    Cutting different ranges only changes batch ids, whereas waiting forever would stop ingestion.
    """
    open_batch = builder(plan=(100, 200), batch_age_seconds_max=1.0, plan_seconds_max=30.0)
    open_batch.add(0, segment(0), now=0.0)

    open_batch.add_idle_seconds(29.9)
    assert open_batch.cut_if_due(now=29.9) is None
    open_batch.add_idle_seconds(0.1)
    batch = open_batch.cut_if_due(now=30.0)

    assert batch is not None
    assert batch.cut_by is CutReason.AGE
    assert open_batch.planned_ends == ()


def test_a_plan_waits_while_nothing_is_fetched() -> None:
    """A planned range waits while nothing is fetched, because time alone does not show that messages are
    missing.
    """
    open_batch = builder(plan=(100,), plan_seconds_max=30.0)
    open_batch.add(0, segment(0), now=0.0)
    open_batch.add_idle_seconds(10.0)

    assert open_batch.cut_if_due(now=9999.0) is None
    assert open_batch.planned_ends == (100,)


def test_each_message_of_a_planned_range_restarts_the_wait() -> None:
    """Each message of a planned range restarts the wait, so a range that arrives slowly is still completed."""
    open_batch = builder(plan=(100,), plan_seconds_max=30.0)
    for offset in range(3):
        open_batch.add(offset, segment(offset), now=25.0 * offset)
        open_batch.add_idle_seconds(25.0)

    assert open_batch.cut_if_due(now=75.0) is None
    assert open_batch.planned_ends == (100,)


def test_shutdown_leaves_an_unfinished_planned_range_to_the_next_owner() -> None:
    """At shutdown an unfinished planned range is left to the next owner; cutting a part of it would create
    another batch id.
    """
    open_batch = builder(plan=(3,))
    open_batch.add(0, segment(0), now=0.0)

    assert open_batch.drain(now=0.0) is None


@given(
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=40),
    plan=st.lists(st.integers(1, 9), max_size=8),
    count=st.integers(1, 6),
)
def test_every_message_is_in_exactly_one_batch(steps: list[int], plan: list[int], count: int) -> None:
    """For any gaps and any planned ends, the ranges ascend, do not overlap, and contain every message exactly
    once.
    """
    offsets = [sum(steps[: n + 1]) for n in range(len(steps))]
    ends = tuple(sum(plan[: n + 1]) for n in range(len(plan)))
    open_batch = Builder(PARTITION, 1, limits(batch_messages_max=count, plan_seconds_max=1.0), ends)

    batches = [batch for offset in offsets for batch in open_batch.add(offset, segment(offset), now=0.0)]
    open_batch.add_idle_seconds(99.0)
    rest = open_batch.cut_if_due(now=99.0)
    batches += [rest] if rest else []

    held = [row.offset for batch in batches for seen in batch.segments for row in seen.clickhouse]
    assert held == offsets
    for before, after in pairwise(batches):
        assert before.offsets.stop <= after.offsets.start
    for batch in batches:
        inside = [row.offset for seen in batch.segments for row in seen.clickhouse]
        assert (inside[0], inside[-1] + 1) == (batch.offsets.start, batch.offsets.stop)


@given(
    offsets=st.lists(st.integers(0, 200), unique=True, min_size=1, max_size=60).map(sorted),
    first=st.integers(1, 7),
    second=st.integers(1, 7),
)
def test_a_new_owner_repeats_the_cuts_of_the_former_one(offsets: list[int], first: int, second: int) -> None:
    """A new owner with different limits cuts the recorded ranges again, with the same ids."""
    former = Builder(PARTITION, 1, limits(batch_messages_max=first))
    cut = [batch for offset in offsets for batch in former.add(offset, segment(offset), now=0.0)]
    plan = tuple(batch.offsets.stop for batch in cut)

    later = Builder(PARTITION, 2, limits(batch_messages_max=second), plan)
    again = [batch for offset in offsets for batch in later.add(offset, segment(offset), now=9.0)]

    assert [batch.id for batch in again[: len(cut)]] == [batch.id for batch in cut]
