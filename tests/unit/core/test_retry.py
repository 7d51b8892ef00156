"""How long a batch waits, and when the share of rejects is no accident."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.core.retry import RejectRatio, retry_seconds
from tests.kit.core_reader import limits


def test_the_wait_doubles_up_to_its_cap() -> None:
    """Half to whole of 5, 10, 20, ... 300 seconds, for ever."""
    for failures, ceiling in ((1, 5.0), (2, 10.0), (3, 20.0), (7, 300.0), (10_000, 300.0)):
        seconds = retry_seconds("t-0-1-2", failures, 5.0, 300.0)
        assert ceiling / 2 <= seconds <= ceiling


def test_batches_that_failed_together_do_not_come_back_together() -> None:
    """The jitter is the batch's own, and the same every time."""
    waits = {retry_seconds(f"t-0-{n}-{n + 1}", 1, 5.0, 300.0) for n in range(50)}

    assert len(waits) > 40
    assert retry_seconds("t-0-1-2", 3, 5.0, 300.0) == retry_seconds("t-0-1-2", 3, 5.0, 300.0)


def test_a_window_must_be_full_before_it_judges() -> None:
    """One bad message at start-up is not a bad deploy."""
    ratio = RejectRatio(limits(reject_window=10, reject_ratio_max=0.5))

    assert not any(ratio.exceeded(True) for _ in range(9))
    assert ratio.exceeded(True)


def test_exactly_the_limit_is_still_allowed() -> None:
    """More than, not as much as."""
    ratio = RejectRatio(limits(reject_window=10, reject_ratio_max=0.5))

    verdicts = [ratio.exceeded(n % 2 == 0) for n in range(40)]

    assert not any(verdicts)
    assert ratio.ratio == 0.5


@given(st.lists(st.booleans(), max_size=80))
def test_the_ratio_is_that_of_the_last_messages(rejected: list[bool]) -> None:
    """A sliding window, message by message."""
    ratio = RejectRatio(limits(reject_window=10, reject_ratio_max=0.3))

    for n, reject in enumerate(rejected, start=1):
        window = rejected[max(0, n - 10) : n]
        assert ratio.exceeded(reject) == (n >= 10 and sum(window) > 3)
        assert ratio.ratio == sum(window) / len(window)
