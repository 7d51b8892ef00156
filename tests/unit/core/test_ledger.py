"""Tests the at-least-once guarantee with examples, and with a state machine that compares the ledger with sets of
offsets.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from ingest.core.ledger import Ledger
from ingest.core.model import OffsetRange, TopicPartition

P = TopicPartition("t", 0)
Q = TopicPartition("t", 1)


def ledger_with(*ranges: tuple[int, int], source: TopicPartition = P) -> Ledger:
    ledger = Ledger()
    for start, stop in ranges:
        ledger.take(source, OffsetRange(start, stop))
    return ledger


def test_nothing_is_committable_before_a_range_settles() -> None:
    """After an assignment, nothing is committable until a range settles."""
    ledger = ledger_with((0, 2))

    assert ledger.committable(P) is None


def test_a_batch_commits_only_after_the_one_before_it() -> None:
    """If a batch settles before an earlier one, it is committed only after the earlier batch has settled too."""
    ledger = ledger_with((0, 2), (2, 3))

    assert not ledger.settle(P, OffsetRange(2, 3))
    assert ledger.committable(P) is None
    assert ledger.settle(P, OffsetRange(0, 2))
    assert ledger.committable(P) == 3


def test_the_parts_of_a_split_range_settle_separately_and_commit_in_order() -> None:
    """The parts of a split range settle separately, and ranges after it are committed only when both parts have
    settled.
    """
    ledger = ledger_with((0, 4), (4, 6))

    ledger.split(P, OffsetRange(0, 4), OffsetRange(0, 1), OffsetRange(2, 4))

    assert ledger.pending(P) == (OffsetRange(0, 1), OffsetRange(2, 4), OffsetRange(4, 6))
    ledger.settle(P, OffsetRange(4, 6))
    assert not ledger.settle(P, OffsetRange(2, 4))
    assert ledger.settle(P, OffsetRange(0, 1))
    assert ledger.committable(P) == 6


def test_the_committed_offset_is_one_past_the_last_one() -> None:
    """The committed offset is one past the last message, because the stop of a half-open range is the next offset
    to read.
    """
    ledger = ledger_with((7, 9))

    ledger.settle(P, OffsetRange(7, 9))

    assert ledger.committable(P) == 9


def test_a_gap_in_the_log_blocks_nothing() -> None:
    """A gap in the log, such as compacted offsets, blocks no commit."""
    ledger = ledger_with((0, 2), (10, 12))

    ledger.settle(P, OffsetRange(0, 2))
    assert ledger.committable(P) == 2
    ledger.settle(P, OffsetRange(10, 12))
    assert ledger.committable(P) == 12


def test_settling_twice_changes_nothing() -> None:
    """Settling a range twice changes nothing, because completions are delivered at least once."""
    ledger = ledger_with((0, 2), (2, 4))

    ledger.settle(P, OffsetRange(0, 2))

    assert not ledger.settle(P, OffsetRange(0, 2))
    assert ledger.committable(P) == 2


def test_an_unknown_range_settles_nothing() -> None:
    """A range that is not in the ledger, such as a different cut of the same offsets, settles nothing."""
    ledger = ledger_with((0, 4))

    assert not ledger.settle(P, OffsetRange(0, 2))
    assert not ledger.settle(Q, OffsetRange(0, 4))
    assert ledger.committable(P) is None


def test_partitions_do_not_wait_for_each_other() -> None:
    """Partitions do not wait for each other, because each has its own watermark."""
    ledger = ledger_with((0, 2))
    ledger.take(Q, OffsetRange(5, 6))

    ledger.settle(Q, OffsetRange(5, 6))

    assert (ledger.committable(P), ledger.committable(Q)) == (None, 6)


def test_a_removed_partition_commits_nothing_and_starts_afresh() -> None:
    """A partition that was revoked commits nothing, because only the next owner commits.

    When the partition is assigned again, this reader starts at the offset that the other owner committed.
    """
    ledger = ledger_with((4, 6))
    ledger.settle(P, OffsetRange(4, 6))

    ledger.forget(P)

    assert ledger.committable(P) is None
    assert not ledger.settle(P, OffsetRange(4, 6))
    ledger.take(P, OffsetRange(2, 6))
    assert ledger.pending(P) == (OffsetRange(2, 6),)


def test_ranges_that_overlap_are_a_broken_invariant() -> None:
    """A range that overlaps an earlier range is refused, because the shared offsets would be committed when the
    first range settles.
    """
    ledger = ledger_with((0, 4))

    with pytest.raises(AssertionError):
        ledger.take(P, OffsetRange(3, 5))


def test_pending_counts_settled_ranges_that_wait() -> None:
    """Settled ranges that wait for an earlier range are pending: after a crash they would be read again."""
    ledger = ledger_with((0, 1), (1, 2), (2, 3))

    ledger.settle(P, OffsetRange(1, 2))

    assert ledger.pending(P) == (OffsetRange(0, 1), OffsetRange(1, 2), OffsetRange(2, 3))
    assert ledger.pending_count(P) == 3
    assert ledger.taken_until(P) == 3


class LedgerMachine(RuleBasedStateMachine):
    """Compares the ledger with two sets of offsets per partition: received and durable.

    The model has no ranges and no order: an offset is committable if every received offset below it is durable.
    Batches from former assignments can still settle, for example when a completion arrives late.
    """

    cut = Bundle("cut")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.received: dict[TopicPartition, set[int]] = {}
        self.durable: dict[TopicPartition, set[int]] = {}
        self.next: dict[TopicPartition, int] = {}
        self.open: dict[TopicPartition, list[int]] = {}
        self.epoch: dict[TopicPartition, int] = {}
        self.committed: dict[TopicPartition, int] = {}

    def _owned(self) -> list[TopicPartition]:
        return sorted(self.received)

    @rule(source=st.sampled_from([P, Q]), restart=st.booleans())
    def assign(self, source: TopicPartition, restart: bool) -> None:
        """The group assigns a partition; reading starts at the committed offset, or at a later offset chosen by
        the reset policy.
        """
        if source in self.received:
            return
        self.received[source], self.durable[source], self.open[source] = set(), set(), []
        self.next[source] = self.committed.get(source, 0) if restart else self.committed.get(source, 0) + 5
        self.epoch[source] = self.epoch.get(source, 0) + 1

    @precondition(lambda self: self.received)
    @rule(data=st.data(), count=st.integers(1, 4), gap=st.integers(0, 3))
    def receive(self, data: st.DataObject, count: int, gap: int) -> None:
        """Messages arrive, possibly after a gap in the log."""
        source = data.draw(st.sampled_from(self._owned()))
        start = self.next[source] + gap
        offsets = range(start, start + count)
        self.open[source] += offsets
        self.next[source] = offsets.stop

    @precondition(lambda self: any(self.open.values()))
    @rule(target=cut, data=st.data())
    def cut_batch(self, data: st.DataObject) -> object:
        """The open batch of a partition, or a part of it, is cut."""
        source = data.draw(st.sampled_from([s for s in self._owned() if self.open[s]]))
        count = data.draw(st.integers(1, len(self.open[source])))
        taken, self.open[source] = self.open[source][:count], self.open[source][count:]
        offsets = OffsetRange(taken[0], taken[-1] + 1)
        self.ledger.take(source, offsets)
        self.received[source].update(taken)
        return source, offsets, frozenset(taken), self.epoch[source]

    @rule(batch=consumes(cut))
    def settle(self, batch: tuple[TopicPartition, OffsetRange, frozenset[int], int]) -> None:
        """The chord of a batch completes once."""
        self._settle(batch)

    @rule(target=cut, batch=consumes(cut))
    def settle_twice(self, batch: tuple[TopicPartition, OffsetRange, frozenset[int], int]) -> object:
        """The chord of a batch completes, and its completion is kept so that it can be delivered a second time."""
        self._settle(batch)
        return multiple(batch)

    @rule(target=cut, batch=consumes(cut))
    def fail(self, batch: tuple[TopicPartition, OffsetRange, frozenset[int], int]) -> object:
        """The chord of a batch fails: nothing changes, and it will be retried."""
        return multiple(batch)

    def _settle(self, batch: tuple[TopicPartition, OffsetRange, frozenset[int], int]) -> None:
        source, offsets, taken, epoch = batch
        if source not in self.received or epoch != self.epoch[source]:
            return  # the pipeline discards completions of older epochs before they reach the ledger
        before = self.ledger.committable(source)
        self.durable[source] |= taken
        rose = self.ledger.settle(source, offsets)
        after = self.ledger.committable(source)
        assert rose == (after != before)
        assert before is None or (after is not None and after >= before)

    @precondition(lambda self: self.received)
    @rule(data=st.data(), commits=st.booleans())
    def remove_partition(self, data: st.DataObject, commits: bool) -> None:
        """A partition is revoked (with a last commit) or lost (without)."""
        source = data.draw(st.sampled_from(self._owned()))
        committable = self.ledger.committable(source)
        if commits and committable is not None:
            self.committed[source] = committable
        self.ledger.forget(source)
        for known in (self.received, self.durable, self.open, self.next):
            del known[source]

    @invariant()
    def committable_matches_the_model(self) -> None:
        for source in (P, Q):
            committable = self.ledger.committable(source)
            received = sorted(self.received.get(source, ()))
            durable = self.durable.get(source, set())
            settled = []
            for offset in received:
                if offset not in durable:
                    break
                settled.append(offset)
            if committable is None:
                assert not any(r.start in durable for r in self.ledger.pending(source)[:1])
            else:
                assert all(offset in durable for offset in received if offset < committable)
                assert settled
                assert committable == settled[-1] + 1

    @invariant()
    def pending_begins_at_the_first_offset_that_is_not_durable(self) -> None:
        for source in self.received:
            missing = self.received[source] - self.durable[source]
            pending = self.ledger.pending(source)
            assert bool(pending) == bool(missing)
            if missing:
                assert pending[0].start == min(missing)
                assert {r.stop for r in pending} >= {self.ledger.taken_until(source)}


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTheLedgerAgreesWithSetsOfOffsets = LedgerMachine.TestCase
