"""Tests when a postponed task runs again."""

from __future__ import annotations

from tasks.retries import PROBE_SPREAD_SECONDS, RetryLater, backoff_seconds, is_exhausted, retry_wait_seconds
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
    """The wait is at least the server's Retry-After, plus jitter, so that not all tasks retry at once."""
    waits = [backoff_seconds(0, 20.0, SETTINGS) for _ in range(200)]

    assert min(waits) >= 20
    assert max(waits) > 20.5


def test_a_wait_is_at_most_half_of_the_visibility_timeout() -> None:
    """A wait is at most half of the visibility timeout.

    A waiting task is an unacknowledged message, so after a wait longer than the visibility timeout it would run
    twice.
    """
    assert backoff_seconds(0, 10_000.0, SETTINGS) == 300


def test_there_is_no_wait_when_only_the_runs_time_was_up() -> None:
    """If a run ended only because its time had run out, the next run starts almost immediately."""
    assert backoff_seconds(0, 0.0, SETTINGS) <= 0.1


def test_a_task_waits_for_the_probe_of_an_open_breaker_and_not_for_its_backoff() -> None:
    """While the breaker is open, the wait does not depend on the number of retries, and has little jitter."""
    for tries in (0, 3, 10):
        waits = [retry_wait_seconds(tries, RetryLater("503", probe_seconds=15.0), SETTINGS) for _ in range(200)]
        assert min(waits) >= 15.0
        assert max(waits) <= 15.0 + PROBE_SPREAD_SECONDS


def test_a_longer_wait_that_the_server_requests_is_kept_for_a_probe() -> None:
    """A server's Retry-After of one minute is honored, even if the breaker's next probe is due sooner."""
    assert retry_wait_seconds(0, RetryLater("429", 60.0, probe_seconds=15.0), SETTINGS) >= 60.0


def test_only_runs_that_count_use_up_the_retries() -> None:
    """A run that was postponed is limited only by the remaining time."""
    assert is_exhausted(8, RetryLater("503"), 1.0, 60.0, SETTINGS)
    assert not is_exhausted(8, RetryLater("open", probe_seconds=15.0, counts=False), 16.0, 60.0, SETTINGS)
    assert is_exhausted(0, RetryLater("open", probe_seconds=15.0, counts=False), 16.0, 10.0, SETTINGS)
