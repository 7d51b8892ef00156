"""Tests how `benchmarks.outage` computes its figures from its observations."""

from __future__ import annotations

from benchmarks.outage import COMMIT, NEW, attempted, forwarded, reached


def test_requests_that_the_proxy_answers_with_an_error_are_not_forwarded() -> None:
    """Only the requests without an injected error have reached the sink."""
    counts = {"requests": 12, "status 503": 9, "connections": 4}

    assert forwarded(counts) == 3
    assert attempted(counts, "503") == 9


def test_the_milestones_are_reached_one_after_another() -> None:
    """The first commit has happened once a committed offset is above the one at the end of the outage. The first
    new message is committed once a committed offset is above the log end offset at the end of the outage.
    """
    ends, start = {0: 100, 1: 90}, {0: 10, 1: 20}
    current_ends = {0: 120, 1: 95}

    assert reached(ends, {0: 10, 1: 20}, start, current_ends) == {"lag": 185}
    assert reached(ends, {0: 100, 1: 20}, start, current_ends) == {"lag": 95, COMMIT: 1}
    assert reached(ends, {0: 101, 1: 20}, start, current_ends) == {"lag": 94, COMMIT: 1, NEW: 1}
