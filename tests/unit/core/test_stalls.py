"""Tests which partitions are refetched because no messages arrive although more are available."""

from __future__ import annotations

from ingest.core.stalls import Stalls


def refetched_partitions(stalls: Stalls, fetched: dict[int, tuple[int, int]], *moments: float) -> list[list[int]]:
    return [stalls.check(fetched, now) for now in moments]


def test_a_stalled_partition_is_refetched_before_the_end_of_its_log() -> None:
    """If a partition makes no progress for `seconds_max` before it reaches the end of its log, its fetch is
    restarted; other partitions are not affected.
    """
    stalls = Stalls(seconds_max=30.0, gap_seconds_max=10.0)

    assert refetched_partitions(stalls, {0: (5, 9), 1: (7, 7)}, 100.0, 110.0, 120.0) == [[], [], []]
    assert stalls.check({0: (5, 9), 1: (7, 7)}, 130.0) == [0]


def test_each_refetch_without_effect_doubles_the_time_to_the_next_one() -> None:
    """Each refetch without effect doubles the time to the next refetch, because an open transaction looks like a
    stall.
    """
    stalls = Stalls(seconds_max=10.0, gap_seconds_max=10.0)

    found = refetched_partitions(stalls, {0: (5, 9)}, *range(0, 90, 10))

    assert [number for number, due in enumerate(found) if due] == [1, 3, 7]


def test_a_partition_with_progress_or_without_fetching_is_not_stalled() -> None:
    """A partition with a single new message does not count as stalled, and neither does a paused partition."""
    stalls = Stalls(seconds_max=20.0, gap_seconds_max=10.0)

    assert refetched_partitions(stalls, {0: (5, 9)}, 0.0, 10.0) == [[], []]
    assert refetched_partitions(stalls, {0: (6, 9)}, 20.0, 30.0) == [[], []]
    assert stalls.check({}, 40.0) == []
    assert refetched_partitions(stalls, {0: (6, 9)}, 50.0, 60.0) == [[], []]
    assert stalls.check({0: (6, 9)}, 70.0) == [0]


def test_time_without_fetching_does_not_count() -> None:
    """Time that the reader spends draining or suspended does not count as a stall, because nothing is fetched
    then.
    """
    stalls = Stalls(seconds_max=30.0, gap_seconds_max=10.0)

    assert refetched_partitions(stalls, {0: (5, 9)}, 0.0, 1000.0, 2000.0) == [[], [], []]
    assert stalls.check({0: (5, 9)}, 3000.0) == [0]
