"""Tests which part of a run is measured."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.window import Mark, Window


def observed(window: Window, marks: Iterable[tuple[float, int, float]]) -> Window:
    """Adds marks (seconds, committed segments, CPU seconds), as the benchmark does, and closes the window."""
    for at, done, cpu in marks:
        if window.is_edge(done) or window.is_open:
            window.add(Mark(at, done, {"reader": cpu, "worker": 2 * cpu}))
            window.extend({"memory": 5.0})
    window.close()
    return window


def test_warm_up_and_tail_are_not_measured() -> None:
    """Time, segments and CPU are counted from the end of the warm-up until the tail begins."""
    window = observed(
        Window(warm=100, stop=900),
        [(0, 0, 0), (5, 90, 4), (6, 110, 5), (8, 500, 7), (10, 905, 9), (15, 1000, 20)],
    )

    assert (window.segments, window.seconds) == (795, 4)
    assert window.cpu_seconds == {"reader": 4, "worker": 8}


def test_the_series_ends_with_the_measurement() -> None:
    """The times of the samples are relative to the end of the warm-up, and the last sample is at the end of the
    measurement.
    """
    window = observed(Window(warm=100, stop=900), [(6, 110, 5), (8, 500, 7), (10, 905, 9), (15, 1000, 20)])

    assert [sample["seconds"] for sample in window.series] == [0, 2, 4]
    assert window.series[1] == {"seconds": 2, "segments": 390, "cpu": 6, "memory": 5.0}


def test_a_run_whose_segments_are_committed_at_once_has_a_result() -> None:
    """A run that is too short to measure counts as one segment in a millisecond, so nothing is divided by zero."""
    window = observed(Window(warm=10, stop=40), [(1, 0, 0), (2, 50, 1)])

    assert (window.segments, window.seconds) == (1, 1e-3)
    assert window.cpu_seconds == {"reader": 0, "worker": 0}
