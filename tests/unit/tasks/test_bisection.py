"""When items are written to a sink, partial success is kept, poison items are found, and a wrong table is not
mistaken for poison items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tasks.bisection import REFUSED_ITEMS_MIN, WRITES_MAX, TimeLimitReached, deliver
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.staging import Progress


class Server:
    """A server that stores the positions of the items that it receives.

    Items in `poison` are refused, and the refusal names them if `named` is set; items in `away` fail once.
    `faults` are the results of successive calls to `examine`: an exception, or None for a healthy destination.
    """

    def __init__(
        self,
        poison: Sequence[int] = (),
        away: Sequence[int] = (),
        named: bool = False,
        faults: Sequence[Exception | None] = (),
    ) -> None:
        self.poison, self.away, self.named = set(poison), set(away), named
        self.faults = list(faults)
        self.kept: list[int] = []
        self.writes = 0
        self.examined: list[list[int]] = []

    def write(self, positions: Sequence[int]) -> None:
        self.writes += 1
        bad = [(place, "bad") for place, position in enumerate(positions) if position in self.poison]
        if bad and self.named:
            self.kept += [position for position in positions if position not in self.poison]
            raise PermanentSinkError("some are bad", failed=tuple(bad))
        if bad:
            raise PermanentSinkError("something is bad")
        lost = tuple(place for place, position in enumerate(positions) if position in self.away)
        self.kept += [position for position in positions if position not in self.away]
        if lost:
            self.away.clear()
            raise TransientSinkError("503", failed=lost)

    def examine(self, positions: Sequence[int]) -> None:
        self.examined.append(list(positions))
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault

    def deliver(self, progress: Progress, items: int) -> None:
        deliver(self.write, self.examine, progress, items, always)


TABLE_ALTERED = PermanentSinkError("column x is REQUIRED", configuration=True)


def always() -> bool:
    return True


def fresh(items: int) -> Progress:
    return Progress(left=list(range(items)))


def test_all_items_in_one_write() -> None:
    """If all items are accepted in one write, the destination is not examined."""
    server, progress = Server(), fresh(64)

    server.deliver(progress, 64)

    assert (server.writes, server.kept, progress.left) == (1, list(range(64)), [])
    assert server.examined == []


def test_only_failed_items_are_retried() -> None:
    """If 2 of 64 blobs fail, the next run writes only those 2."""
    server, progress = Server(away=[5, 40]), fresh(64)

    with pytest.raises(TransientSinkError):
        server.deliver(progress, 64)
    assert progress.left == [5, 40]
    server.deliver(progress, 64)

    assert progress.left == []
    assert sorted(server.kept) == list(range(64))
    assert len(server.kept) == 64


@pytest.mark.parametrize("position", [0, 1, 137, 255])
def test_one_poison_item_is_found_by_halving(position: int) -> None:
    """One poison item is found with about two writes per halving, and every other item is written once.

    The destination is examined before and after the search.
    """
    server, progress = Server(poison=[position]), fresh(256)

    server.deliver(progress, 256)

    assert progress.refused == [(position, "something is bad")]
    assert sorted(server.kept) == [n for n in range(256) if n != position]
    assert server.writes <= 1 + 2 * math.log2(256)
    assert server.examined == [list(range(256)), [position]]


def test_a_single_poison_item_in_its_batch_is_refused() -> None:
    """If a poison item is the only item of its batch, no other item shows that the table works, so the table is
    examined.
    """
    server, progress = Server(poison=[0]), fresh(1)

    server.deliver(progress, 1)

    assert progress.refused == [(0, "something is bad")]


def test_named_items_are_removed_at_once() -> None:
    """If a server names the refused items, it has written the other items, so the named items are removed without
    a search.
    """
    server, progress = Server(poison=[3, 9], named=True), fresh(20)

    server.deliver(progress, 20)

    assert (server.writes, progress.left) == (1, [])
    assert [position for position, _ in progress.refused] == [3, 9]


def test_named_items_that_blocked_the_rest_cause_a_second_write() -> None:
    """If a refusal has `all_refused`, the server wrote nothing, so the items that it did not name are written
    again.
    """
    writes: list[list[int]] = []

    def write(positions: Sequence[int]) -> None:
        writes.append(list(positions))
        if 1 in positions:
            raise PermanentSinkError("no", failed=((positions.index(1), "bad"),), all_refused=True)

    progress = fresh(4)
    deliver(write, Server().examine, progress, 4, always)

    assert writes == [[0, 1, 2, 3], [0, 2, 3]]
    assert progress.refused == [(1, "bad")]


def test_only_the_group_with_refused_items_is_written_again() -> None:
    """Only the group with refused items is written again; rows of another table from the same call are already
    durable.
    """
    writes: list[list[int]] = []

    def write(positions: Sequence[int]) -> None:
        writes.append(list(positions))
        if 5 in positions:
            suspects = tuple(place for place, position in enumerate(positions) if position >= 4)
            raise PermanentSinkError("no", suspects=suspects)

    progress = fresh(8)
    deliver(write, Server().examine, progress, 8, always)

    assert writes == [[*range(8)], [4, 5], [4], [5], [6, 7]]
    assert progress.refused == [(5, "no")]
    assert progress.left == []


@pytest.mark.parametrize("named", [True, False])
def test_a_table_that_was_altered_blames_no_item(named: bool) -> None:
    """If the table was altered, it is examined before any item is blamed: after one write and one examination,
    nothing is refused.
    """
    server, progress = Server(poison=range(8), named=named, faults=[TABLE_ALTERED]), fresh(8)

    with pytest.raises(PermanentSinkError, match="REQUIRED") as caught:
        server.deliver(progress, 8)

    assert caught.value.configuration
    assert (server.writes, progress.refused, progress.left) == (1, [], list(range(8)))


def test_a_table_that_is_altered_during_the_search_blames_no_item() -> None:
    """If the table is altered during the search, the check at the end of the search fails, and refusals seen
    during the search are discarded.
    """
    server, progress = Server(poison=[0, 1, 2], faults=[None, TABLE_ALTERED]), fresh(16)

    with pytest.raises(PermanentSinkError, match="REQUIRED"):
        server.deliver(progress, 16)

    assert progress.refused == []
    assert progress.left == [0, 1, 2]


def test_a_failed_examination_blames_no_item() -> None:
    """If the examination fails, no item is blamed, and the next run examines the destination again."""
    away = TransientSinkError("503")
    server, progress = Server(poison=[2], faults=[away]), fresh(4)

    with pytest.raises(TransientSinkError):
        server.deliver(progress, 4)
    assert (progress.refused, progress.left) == ([], [0, 1, 2, 3])
    server.deliver(progress, 4)

    assert progress.refused == [(2, "something is bad")]


def test_an_interrupted_search_keeps_its_writes_and_discards_its_refusals() -> None:
    """If a search is interrupted, its writes are kept and its refusals are discarded.

    The table is repaired between the two runs, and every row that the table then accepts is written.
    """
    server = Server(poison=[0, 1])
    server.away = {12}
    progress = fresh(16)

    with pytest.raises(TransientSinkError):
        server.deliver(progress, 16)
    refused_before, kept_before = list(progress.refused), list(server.kept)
    server.poison.clear()
    server.deliver(progress, 16)

    assert (refused_before, progress.refused, progress.left) == ([], [], [])
    assert kept_before
    assert sorted(server.kept) == list(range(16))


def test_a_wrong_table_is_not_treated_as_poison() -> None:
    """If most of a large number of items are refused, no item is dead-lettered, because the table or our rows must
    be fixed.
    """
    server, progress = Server(poison=range(100), named=True), fresh(100)

    with pytest.raises(PermanentSinkError) as caught:
        server.deliver(progress, 100)

    assert caught.value.configuration
    assert (progress.refused, progress.left) == ([], list(range(100)))


@pytest.mark.parametrize("items", [40, 120, 500])
def test_the_search_ends_early_when_everything_is_refused(items: int) -> None:
    """If a healthy table refuses everything, our rows are at fault, and the search ends after about forty
    writes.
    """
    server, progress = Server(poison=range(items)), fresh(items)

    with pytest.raises(PermanentSinkError, match=f"{REFUSED_ITEMS_MIN} of {items}") as caught:
        server.deliver(progress, items)

    assert caught.value.configuration
    assert server.writes <= 40
    assert (progress.refused, progress.left) == ([], list(range(items)))


def test_many_poison_items_in_front_do_not_stop_the_batch() -> None:
    """If the first thirty rows of a batch are bad, for example because they all come from one message, a sample of
    the remaining rows is tried; the sample shows that the sink accepts other rows.
    """
    server, progress = Server(poison=range(30)), fresh(200)

    server.deliver(progress, 200)

    assert [position for position, _ in progress.refused] == list(range(30))
    assert sorted(server.kept) == list(range(30, 200))


def test_a_search_is_bounded_and_the_next_run_continues() -> None:
    """A search for scattered poison items is bounded; its conclusive results are kept for the next run, which
    continues the search.
    """
    poison = range(0, 600, 5)
    server, progress = Server(poison=poison), fresh(600)

    runs = 0
    while progress.left:
        runs += 1
        before = server.writes
        try:
            server.deliver(progress, 600)
        except TimeLimitReached:
            assert progress.refused
        assert server.writes - before <= WRITES_MAX

    assert 1 < runs < 10
    assert sorted(position for position, _ in progress.refused) == list(poison)
    assert len(server.kept) == len(set(server.kept)) == 480


def test_refusals_of_earlier_runs_count_when_most_are_refused() -> None:
    """If most items were refused, no item is blamed, even if some of the refusals are from earlier runs."""
    progress = Progress(left=list(range(25, 50)), refused=[(position, "bad") for position in range(25)])
    server = Server(poison=range(50), named=True)

    with pytest.raises(PermanentSinkError):
        server.deliver(progress, 50)

    assert (progress.refused, progress.left) == ([], list(range(50)))


def test_a_missing_bucket_is_not_the_items_fault() -> None:
    """An error with `configuration=True`, such as a missing bucket, is passed on: the batch is not bisected, and
    the destination is not examined.
    """
    calls: list[int] = []

    def write(positions: Sequence[int]) -> None:
        calls.append(len(positions))
        raise PermanentSinkError("no such bucket", configuration=True)

    server = Server()
    with pytest.raises(PermanentSinkError):
        deliver(write, server.examine, fresh(8), 8, always)
    assert calls == [8]
    assert server.examined == []


def test_a_run_ends_between_two_writes_when_its_time_is_up() -> None:
    """When its time has run out, a run ends between two writes and leaves the remaining items to the next run."""
    server, progress = Server(poison=[0]), fresh(8)
    times = iter([True, True, False])

    with pytest.raises(TimeLimitReached):
        deliver(server.write, server.examine, progress, 8, lambda: next(times))

    assert server.writes == 2
    assert progress.left == list(range(8))
