"""Tests how `benchmarks.scale_readers` computes its figures from its observations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale_readers import Outcome, stops

GOOD_OUTCOME = Outcome(1000, {"4 to 1": 5.0}, {0: 3.0, 1: 9.0}, fell=False, amid=True, missing="")


def test_a_stop_lasts_from_one_commit_of_a_partition_to_the_next() -> None:
    """A pause in a partition's commits lasts until that partition commits again, regardless of commits for other
    partitions.

    Commits outside the measured window are ignored.
    """
    samples = [
        (0.0, {0: 0, 1: 0}),
        (1.0, {0: 5, 1: 1}),
        (2.0, {0: 6, 1: 1}),
        (5.0, {0: 7, 1: 2}),
        (6.0, {0: 8, 1: 2}),
        (9.0, {0: 9, 1: 3}),
    ]

    found = stops(samples, 1.0, 8.0)

    assert (found[0], found[1]) == (3.0, 4.0)
    assert stops(samples, 5.0, 6.0)[0] == pytest.approx(1.0)


def test_a_run_is_good_when_it_lost_nothing_and_no_partition_stopped_for_long() -> None:
    assert GOOD_OUTCOME.ok(15)
    assert not GOOD_OUTCOME.ok(9)
    assert not replace(GOOD_OUTCOME, missing="one").ok(15)
    assert not replace(GOOD_OUTCOME, amid=False).ok(15)
    assert not replace(GOOD_OUTCOME, fell=True).ok(15)
