"""Tests how long a batch waits before a retry."""

from __future__ import annotations

from ingest.core.retry import retry_seconds


def test_the_wait_doubles_up_to_its_cap() -> None:
    """The nominal wait doubles from 5 s up to 300 s and then stays constant; the actual wait is 50 % to 100 % of
    the nominal wait.
    """
    for failures, ceiling in ((1, 5.0), (2, 10.0), (3, 20.0), (7, 300.0), (10_000, 300.0)):
        seconds = retry_seconds("t-0-1-2", failures, 5.0, 300.0)
        assert ceiling / 2 <= seconds <= ceiling


def test_batches_that_failed_together_do_not_retry_together() -> None:
    """Batches that failed together do not retry together. The jitter depends only on the batch."""
    waits = {retry_seconds(f"t-0-{n}-{n + 1}", 1, 5.0, 300.0) for n in range(50)}

    assert len(waits) > 40
    assert retry_seconds("t-0-1-2", 3, 5.0, 300.0) == retry_seconds("t-0-1-2", 3, 5.0, 300.0)
