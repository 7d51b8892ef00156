"""Which partitions are fetched anew because nothing comes although messages are there."""

from __future__ import annotations

from ingest.core.stalls import Stalls


def looks(stalls: Stalls, fetched: dict[int, tuple[int, int]], *moments: float) -> list[list[int]]:
    return [stalls.look(fetched, now) for now in moments]


def test_a_partition_that_stands_still_before_the_end_of_its_log_is_fetched_anew() -> None:
    """After `seconds_max`, and alone."""
    stalls = Stalls(seconds_max=30.0, look_seconds_max=10.0)

    assert looks(stalls, {0: (5, 9), 1: (7, 7)}, 100.0, 110.0, 120.0) == [[], [], []]
    assert stalls.look({0: (5, 9), 1: (7, 7)}, 130.0) == [0]


def test_each_restart_that_does_not_help_doubles_the_time_to_the_next_one() -> None:
    """An open transaction looks the same, and nothing can be fetched behind it."""
    stalls = Stalls(seconds_max=10.0, look_seconds_max=10.0)

    found = looks(stalls, {0: (5, 9)}, *range(0, 90, 10))

    assert [number for number, due in enumerate(found) if due] == [1, 3, 7]


def test_a_partition_that_moves_or_is_not_fetched_does_not_stand_still() -> None:
    """One message is enough; so is a pause."""
    stalls = Stalls(seconds_max=20.0, look_seconds_max=10.0)

    assert looks(stalls, {0: (5, 9)}, 0.0, 10.0) == [[], []]
    assert looks(stalls, {0: (6, 9)}, 20.0, 30.0) == [[], []]
    assert stalls.look({}, 40.0) == []
    assert looks(stalls, {0: (6, 9)}, 50.0, 60.0) == [[], []]
    assert stalls.look({0: (6, 9)}, 70.0) == [0]


def test_time_in_which_nobody_fetched_does_not_count() -> None:
    """The loop waits in a drain, or the process stands still."""
    stalls = Stalls(seconds_max=30.0, look_seconds_max=10.0)

    assert looks(stalls, {0: (5, 9)}, 0.0, 1000.0, 2000.0) == [[], [], []]
    assert stalls.look({0: (5, 9)}, 3000.0) == [0]
