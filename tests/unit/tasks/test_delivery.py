"""Getting items into a sink: partial success is kept, poison is found, a wrong table is not poison."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tasks.delivery import OutOfTime, deliver
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.staging import Progress


class Server:
    """Keeps positions; `poison` are refused, named or not; `away` fail once each for now."""

    def __init__(self, poison: Sequence[int] = (), away: Sequence[int] = (), named: bool = False) -> None:
        self.poison, self.away, self.named = set(poison), set(away), named
        self.kept: list[int] = []
        self.writes = 0

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


def always() -> bool:
    return True


def fresh(items: int) -> Progress:
    return Progress(left=list(range(items)))


def test_all_items_in_one_write() -> None:
    """The ordinary case."""
    server, progress = Server(), fresh(64)

    deliver(server.write, progress, 64, always)

    assert (server.writes, server.kept, progress.left) == (1, list(range(64)), [])


def test_only_what_failed_is_tried_again() -> None:
    """Of 64 blobs 2 fail: the next run writes 2."""
    server, progress = Server(away=[5, 40]), fresh(64)

    with pytest.raises(TransientSinkError):
        deliver(server.write, progress, 64, always)
    assert progress.left == [5, 40]
    deliver(server.write, progress, 64, always)

    assert progress.left == []
    assert sorted(server.kept) == list(range(64))
    assert len(server.kept) == 64


@pytest.mark.parametrize("position", [0, 1, 137, 255])
def test_one_poison_item_is_found_by_halving(position: int) -> None:
    """About two writes a halving; every other item is written once."""
    server, progress = Server(poison=[position]), fresh(256)

    deliver(server.write, progress, 256, always)

    assert progress.refused == [(position, "something is bad")]
    assert sorted(server.kept) == [n for n in range(256) if n != position]
    assert server.writes <= 1 + 2 * math.log2(256)


def test_named_items_are_taken_out_at_once() -> None:
    """A server that names them has written the rest."""
    server, progress = Server(poison=[3, 9], named=True), fresh(20)

    deliver(server.write, progress, 20, always)

    assert (server.writes, progress.left) == (1, [])
    assert [position for position, _ in progress.refused] == [3, 9]


def test_named_items_that_kept_the_rest_out_are_followed_by_a_second_write() -> None:
    """`all_refused`: the server named the bad ones and wrote nothing."""
    writes: list[list[int]] = []

    def write(positions: Sequence[int]) -> None:
        writes.append(list(positions))
        if 1 in positions:
            raise PermanentSinkError("no", failed=((positions.index(1), "bad"),), all_refused=True)

    progress = fresh(4)
    deliver(write, progress, 4, always)

    assert writes == [[0, 1, 2, 3], [0, 2, 3]]
    assert progress.refused == [(1, "bad")]


def test_an_interruption_in_the_middle_of_the_search_keeps_what_was_found() -> None:
    """Poison that is known, and halves that are written, are not looked at again."""
    server = Server(poison=[0])
    server.away = {12}
    progress = fresh(16)

    with pytest.raises(TransientSinkError):
        deliver(server.write, progress, 16, always)
    known = list(progress.refused)
    deliver(server.write, progress, 16, always)

    assert known == [(0, "something is bad")] == progress.refused
    assert sorted(server.kept) == list(range(1, 16))


def test_a_wrong_table_is_not_poison() -> None:
    """When most of many items are refused nobody is dead-lettered: a person mends the table."""
    server, progress = Server(poison=range(100), named=True), fresh(100)

    with pytest.raises(PermanentSinkError) as caught:
        deliver(server.write, progress, 100, always)

    assert caught.value.configuration


def test_a_missing_bucket_is_not_the_items_fault() -> None:
    """configuration=True passes through, nothing is bisected."""
    calls: list[int] = []

    def write(positions: Sequence[int]) -> None:
        calls.append(len(positions))
        raise PermanentSinkError("no such bucket", configuration=True)

    with pytest.raises(PermanentSinkError):
        deliver(write, fresh(8), 8, always)
    assert calls == [8]


def test_a_run_ends_between_two_writes_when_its_time_is_up() -> None:
    """What is left is for the next run."""
    server, progress = Server(poison=[0]), fresh(8)
    times = iter([True, True, False])

    with pytest.raises(OutOfTime):
        deliver(server.write, progress, 8, lambda: next(times))

    assert server.writes == 2
    assert progress.left == list(range(8))
