"""Tests when the reader stops polling, pauses, and resumes."""

from __future__ import annotations

import pytest

from ingest.core.backpressure import Backpressure, BackpressureChange
from tests.kit.core_reader import limits


def pressure() -> Backpressure:
    return Backpressure(limits(in_flight_batches_max=4, in_flight_bytes_max=1000, pause_after_seconds=0.5))


@pytest.mark.parametrize(("batches", "size_bytes"), [(4, 0), (0, 1000), (9, 9999)])
def test_at_a_bound_polling_stops(batches: int, size_bytes: int) -> None:
    """Reaching the limit on batches or on bytes stops polling.

    The consumer is not paused yet, because a pause discards its prefetched messages.
    """
    full = pressure()

    assert full.update(batches, size_bytes, now=0.0) is None
    assert not full.has_room
    assert not full.paused


def test_below_the_bounds_messages_are_polled() -> None:
    """If the reader is one batch below its batch limit and one byte below its byte limit, it still polls."""
    free = pressure()

    assert free.update(3, 999, now=0.0) is None
    assert free.has_room


def test_it_pauses_only_after_a_while_at_the_bound() -> None:
    """The reader pauses only after half a second at the limit, because shorter periods are normal under load."""
    full = pressure()
    full.update(4, 0, now=10.0)

    assert full.update(4, 0, now=10.4) is None
    assert full.update(4, 0, now=10.5) is BackpressureChange.PAUSE
    assert full.paused
    assert full.update(4, 0, now=99.0) is None


def test_it_resumes_at_half_of_both_bounds() -> None:
    """The reader resumes once the number and the total size of the batches have both fallen to half of their
    limits.

    Resuming just below a limit would make the reader alternate between paused and resumed.
    """
    full = pressure()
    full.update(4, 0, now=0.0)
    full.update(4, 0, now=1.0)

    assert full.update(3, 0, now=2.0) is None
    assert full.update(2, 501, now=3.0) is None
    assert not full.has_room
    assert full.update(2, 500, now=4.0) is BackpressureChange.RESUME
    assert full.has_room
    assert not full.paused


def test_without_a_pause_there_is_nothing_to_resume() -> None:
    full = pressure()
    full.update(4, 0, now=0.0)

    assert full.update(0, 0, now=0.1) is None
    assert full.has_room


def test_a_bound_of_one_still_resumes() -> None:
    """With a limit of one batch, the reader still resumes once no batch is left, because half of one rounds down
    to zero.
    """
    full = Backpressure(limits(in_flight_batches_max=1))
    full.update(1, 0, now=0.0)
    full.update(1, 0, now=1.0)

    assert full.update(0, 0, now=2.0) is BackpressureChange.RESUME
