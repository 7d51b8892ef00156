"""Tests how a comparison in rounds computes its medians and ratios."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.rounds import Spread, median_run, ratios, spreads


def figures(rate: float, cpu: float, memory: float) -> dict[str, Any]:
    """The figures of one run."""
    return {"segments_per_second": rate, "cpu_micros_per_segment": cpu, "memory_bytes": memory}


# The second round ran on a machine with half the speed.
OURS = [figures(1000, 500, 400), figures(500, 1000, 420), figures(1200, 450, 410)]
PEER = [figures(500, 1500, 100), figures(250, 3000, 100), figures(400, 1500, 100)]


def test_the_median_run_is_in_the_middle() -> None:
    """If the number of runs is even, the cheaper of the two middle runs is chosen."""
    assert median_run(OURS) == 0
    assert median_run(OURS[:2]) == 0
    assert median_run(PEER[1:]) == 1


def test_a_median_is_reported_with_its_range() -> None:
    found = spreads(OURS, ["cpu_micros_per_segment"])["cpu_micros_per_segment"]

    assert found == Spread(500, 450, 1000)
    assert found.text() == "500 [450-1000]"
    assert Spread.of([2.5]).text(1) == "2.5"


def test_ratios_compare_runs_of_one_round() -> None:
    """A slow round does not change the ratios, because both sides of a ratio come from the same round.

    Fewer microseconds per segment mean more segments per core-second.
    """
    found = ratios({"ours": OURS, "peer": PEER}, "peer")

    assert found["ours"]["segments_per_second"] == Spread(2.0, 2.0, 3.0)
    assert found["ours"]["cpu_micros_per_segment"].median == 3.0
    assert found["ours"]["memory_bytes"].median == pytest.approx(4.1)
    assert found["peer"]["segments_per_second"] == Spread(1.0, 1.0, 1.0)


def test_without_the_reference_there_are_no_ratios() -> None:
    assert ratios({"ours": OURS}, "peer") == {}


def test_a_run_that_was_too_short_has_no_ratio() -> None:
    """For a run without measured CPU time, the ratio is 0, and no error is raised."""
    found = ratios({"ours": [figures(1, 0, 1)], "peer": [figures(1, 5, 1)]}, "peer")

    assert found["ours"]["cpu_micros_per_segment"].median == 0


def test_a_missing_round_is_an_error() -> None:
    """If a system is missing from a round, an error is raised: runs from other rounds are not comparable."""
    with pytest.raises(ValueError, match="zip"):
        ratios({"ours": OURS, "peer": PEER[:2]}, "peer")
