"""When a task that was put off comes back."""

from __future__ import annotations

from tasks.retries import backoff_seconds
from tasks.settings import Settings

SETTINGS = Settings(task_backoff_seconds=1.0, task_backoff_seconds_max=60.0, task_visibility_seconds=600)


def test_the_wait_is_anywhere_below_a_doubling_ceiling() -> None:
    """Full jitter: tasks that failed together do not come back together."""
    for tries, ceiling in [(0, 1), (1, 2), (3, 8), (10, 60)]:
        waits = [backoff_seconds(tries, None, SETTINGS) for _ in range(200)]
        assert 0 <= min(waits) < ceiling * 0.2
        assert ceiling * 0.8 < max(waits) <= ceiling


def test_what_the_server_asked_for_is_a_floor() -> None:
    """Retry-After is honoured, and spread so that not everybody is back in the same second."""
    waits = [backoff_seconds(0, 20.0, SETTINGS) for _ in range(200)]

    assert min(waits) >= 20
    assert max(waits) > 20.5


def test_a_wait_never_outlives_half_of_the_visibility_timeout() -> None:
    """A waiting task is an unacknowledged message: waiting longer would run it twice."""
    assert backoff_seconds(0, 10_000.0, SETTINGS) == 300


def test_no_wait_when_only_the_runs_time_was_up() -> None:
    """The next run goes on almost at once."""
    assert backoff_seconds(0, 0.0, SETTINGS) <= 0.1
