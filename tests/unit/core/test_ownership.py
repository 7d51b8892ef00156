"""Tests which partitions have no owner, and which member makes the group reassign them."""

from __future__ import annotations

from ingest.core.ownership import GroupView, Ownership

ORPHANED = GroupView(3, {"a": frozenset({0, 1}), "b": frozenset()}, stable=True)
ALL_OWNED = GroupView(3, {"a": frozenset({0, 1}), "b": frozenset({2})}, stable=True)
REBALANCING = GroupView(3, {"a": frozenset({0, 1}), "b": frozenset()}, stable=False)


def watch() -> Ownership:
    return Ownership(unowned_seconds_max=30.0, turn_seconds=10.0)


def test_partitions_that_no_member_owns_are_named() -> None:
    """Partitions without an owner are reported only in a stable group; during a rebalance partitions may briefly
    be unassigned.
    """
    assert ORPHANED.unowned == (2,)
    assert ALL_OWNED.unowned == ()
    assert REBALANCING.unowned == ()
    assert GroupView(2, {"a": frozenset()}, stable=True).unowned == (0, 1)


def test_a_stable_group_without_members_is_no_evidence() -> None:
    """A description of a stable group without members does not show that partitions have no owner.

    Kafka reports a group without members as EMPTY; a server that reports it as stable does not list members.
    """
    empty = GroupView(2, {}, stable=True)
    a = watch()

    assert empty.unowned == ()
    assert not any(a.must_rejoin(empty, "a", now) for now in (0.0, 100.0, 1000.0))


def test_a_member_rejoins_when_a_partition_has_no_owner_for_too_long() -> None:
    """A member rejoins once, and only after a partition has had no owner for too long."""
    b = watch()

    assert not b.must_rejoin(ORPHANED, "b", 100.0)
    assert not b.must_rejoin(ORPHANED, "b", 129.9)
    assert b.must_rejoin(ORPHANED, "b", 130.0)
    assert not b.must_rejoin(ORPHANED, "b", 131.0)


def test_if_rejoining_did_not_help_it_rejoins_after_the_same_time() -> None:
    """If the partition still has no owner after the rejoin, the member rejoins again after the same interval."""
    b = watch()
    for now in (0.0, 30.0, 31.0):
        b.must_rejoin(ORPHANED, "b", now)

    assert not b.must_rejoin(ORPHANED, "b", 60.0)
    assert b.must_rejoin(ORPHANED, "b", 61.0)


def test_the_member_with_the_fewest_partitions_is_the_first() -> None:
    """The member with the fewest partitions rejoins first; all other members rejoin only if that does not help."""
    a = watch()
    a.must_rejoin(ORPHANED, "a", 0.0)

    assert not a.must_rejoin(ORPHANED, "a", 39.0)
    assert a.must_rejoin(ORPHANED, "a", 40.0)


def test_a_partition_with_an_owner_resets_its_timer() -> None:
    """The timer restarts when the partition gets an owner or a rebalance starts, so short gaps do not add up."""
    for between in (ALL_OWNED, REBALANCING):
        b = watch()
        b.must_rejoin(ORPHANED, "b", 0.0)
        b.must_rejoin(between, "b", 20.0)
        b.must_rejoin(ORPHANED, "b", 25.0)

        assert not b.must_rejoin(ORPHANED, "b", 50.0)


def test_a_reader_outside_the_group_does_nothing() -> None:
    """A reader outside the group, before its first join or after it was fenced, does nothing."""
    outsider = watch()
    outsider.must_rejoin(ORPHANED, "c", 0.0)

    assert not outsider.must_rejoin(ORPHANED, "c", 1000.0)
