"""Tests how the periods during which partitions have no owner are computed."""

from __future__ import annotations

from tests.unit.tools.test_history import line
from tools.history.collect import LoggedOperations, seconds_of
from tools.history.owners import Disturbance, Gap, OwnedPeriod, gaps

T0 = seconds_of("2026-11-27T10:00:00Z")


def test_gaps_are_the_times_between_owners_longest_first() -> None:
    """Gaps are the periods between owners, longest first.

    Owners may overlap, for example when a suspended reader's partition was reassigned.
    """
    owned = [
        OwnedPeriod("a.1", 0, 0.0, 10.0),
        OwnedPeriod("b.1", 0, 8.0, 20.0),
        OwnedPeriod("a.2", 0, 15.0, 16.0),
        OwnedPeriod("a.2", 0, 21.0, 30.0),
        OwnedPeriod("b.1", 1, 0.0, 5.0),
        OwnedPeriod("b.1", 1, 9.0, 30.0),
    ]

    assert gaps(owned) == [Gap(1, 5.0, 9.0), Gap(0, 20.0, 21.0)]


def test_a_gap_counts_from_the_last_disturbance_before_its_end() -> None:
    """A gap is measured from the last disturbance before its end.

    If a disturbance outlasts the gap, the undisturbed part of the gap is zero. Disturbances that begin after the
    gap do not count.
    """
    gap = Gap(0, 10.0, 50.0)

    assert gap.undisturbed_seconds([]) == 40.0
    assert gap.undisturbed_seconds([Disturbance(0.0, 5.0), Disturbance(60.0, 61.0)]) == 40.0
    assert gap.undisturbed_seconds([Disturbance(12.0, 20.0), Disturbance(15.0, 16.0)]) == 30.0
    assert gap.undisturbed_seconds([Disturbance(45.0, 55.0)]) == 0.0


def test_the_log_of_a_reader_has_the_times_of_its_ownership() -> None:
    """According to a reader's log, ownership ends when partitions are revoked or lost, or at the last line if the
    reader was killed.
    """
    logged = LoggedOperations.of(
        "r",
        [
            line("reader_started", 1),
            line("partitions_assigned", 2, partitions={"0": None, "1": None, "2": None}),
            line("partitions_revoked", 5, partitions=[0]),
            line("partitions_lost", 6, partitions=[1]),
            line("protocol_step", 8),
            line("reader_started", 20),
            line("partitions_assigned", 21, partitions={"0": 5}),
            line("partitions_assigned", 23, partitions={"0": 5}),
            line("reader_stopped", 30),
        ],
    )

    assert [(one.life, one.partition, one.since - T0, one.until - T0) for one in logged.owned] == [
        ("r.1", 0, 2, 5),
        ("r.1", 1, 2, 6),
        ("r.1", 2, 2, 8),
        ("r.2", 0, 21, 30),
    ]
    assert [at - T0 for at in logged.starts] == [1, 20]
