"""Tests how parked batches, and messages that were read again, are counted from the readers' logs."""

from __future__ import annotations

from typing import Any

import pytest

from tools.history.check import Commit
from tools.mixed.account import REFUSED, RepeatedMessages, parked, read_again, within

START = 1_700_000_000.0


def line(event: str, second: int, **facts: Any) -> dict[str, Any]:
    """Returns a log line with a time that is the given number of seconds after the start."""
    return {"event": event, "timestamp": f"2023-11-14T22:13:{20 + second:02}+00:00", **facts}


def park(batch: str, second: int, error: str = "the sink is away") -> dict[str, Any]:
    return line("batch_parked", second, batch=batch, error=error)


def cut(second: int, partition: int, start: int, stop: int) -> dict[str, Any]:
    return line("protocol_step", second, step="cut", partition=partition, start=start, stop=stop)


def commit(partition: int, offset: int, second: int, *, refused: bool = False) -> Commit:
    return Commit("reader-1.1", partition, offset, "", START + second, START + second, refused)


def test_a_batch_is_parked_once_until_its_end_is_committed():
    """A batch that is parked twice counts once, from when it is first parked until its end offset or a later
    offset is committed.
    """
    lines = [park("a-topic-0-10-20", 7), park("a-topic-0-10-20", 3, "first")]
    commits = [commit(0, 19, 8), commit(1, 20, 9), commit(0, 25, 10, refused=True), commit(0, 30, 12)]

    (found,) = parked(lines, commits)

    assert (found.at, found.error, found.seconds) == (START + 3, "first", 9.0)


def test_a_batch_that_is_never_committed_has_no_time():
    (found,) = parked([park("a-topic-0-10-20", 3)], [commit(0, 19, 8)])

    assert found.seconds is None


@pytest.mark.parametrize(("error", "refused"), [(f"version 2: {REFUSED}", True), ("503", False)])
def test_only_versions_are_refusals(error: str, refused: bool):
    """A batch that was refused because of its version is counted, and a batch that a sink refused is not."""
    (found,) = parked([park("a-topic-0-10-20", 3, error)], ())

    assert found.refused is refused


def test_messages_that_are_cut_again_are_counted_once_each_time():
    """If the next owner cuts different ranges, messages that the former owner also cut count as read again."""
    lines = [cut(1, 0, 0, 10), cut(4, 0, 6, 12), cut(2, 1, 0, 10), cut(6, 0, 12, 20), line("other", 5)]

    assert read_again(lines) == [RepeatedMessages(START + 4, 4)]


def test_events_are_counted_in_the_phase_of_their_time():
    """An event at the boundary between two phases is counted in the later phase."""
    some = [RepeatedMessages(START + 5, 1), RepeatedMessages(START + 1, 2)]

    assert within(some, START, START + 5) == [some[1]]
    assert within(some, START + 5, START + 9) == [some[0]]
