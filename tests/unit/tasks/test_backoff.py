"""Tests when a postponed task runs again."""

from __future__ import annotations

from tasks.retries import backoff_seconds
from tasks.settings import Settings

SETTINGS = Settings(task_backoff_seconds=1.0, task_backoff_seconds_max=60.0, task_visibility_seconds=600)


def test_the_wait_is_random_below_a_doubling_ceiling() -> None:
    """The wait is random below a doubling ceiling (full jitter), so that tasks that failed together do not
    retry together.
    """
    for tries, ceiling in [(0, 1), (1, 2), (3, 8), (10, 60)]:
        waits = [backoff_seconds(tries, None, SETTINGS) for _ in range(200)]
        assert 0 <= min(waits) < ceiling * 0.2
        assert ceiling * 0.8 < max(waits) <= ceiling


def test_the_servers_retry_after_is_a_floor() -> None:
    """The wait is at least the server's Retry-After, plus a spread, so that not all tasks retry in the same
    second.
    """
    waits = [backoff_seconds(0, 20.0, SETTINGS) for _ in range(200)]

    assert min(waits) >= 20
    assert max(waits) > 20.5


def test_a_wait_is_at_most_half_of_the_visibility_timeout() -> None:
    """A wait is at most half of the visibility time-out.

    A waiting task is an unacknowledged message, so after a longer wait it would run twice.
    """
    assert backoff_seconds(0, 10_000.0, SETTINGS) == 300


def test_there_is_no_wait_when_only_the_runs_time_was_up() -> None:
    """If a run ended only because its time had run out, the next run starts almost immediately."""
    assert backoff_seconds(0, 0.0, SETTINGS) <= 0.1
