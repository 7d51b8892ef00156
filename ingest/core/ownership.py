"""Detects partitions without an owner, and decides when a member must force a rebalance.

A stable group can leave a partition without an owner: if a static member that must release a partition is replaced
between the two phases of a cooperative rebalance, its replacement has nothing to release, so no second rebalance
follows. The group assigns that partition as soon as any member rejoins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Delay between the rejoins of two members. A single rejoin normally suffices.
TURN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class GroupView:
    """The consumer group as described by its coordinator, for one topic.

    `partitions`: number of partitions of the topic. `members`: member id -> owned partitions. `stable`: no
    rebalance is in progress.
    """

    partitions: int
    members: Mapping[str, frozenset[int]]
    stable: bool

    @property
    def unowned(self) -> tuple[int, ...]:
        """Partitions without an owner, ascending; empty while that is unknown: during a rebalance, and for a
        stable group without members.

        Kafka reports a group without members as EMPTY; a server that reports it as stable (Tansu) does not
        describe members.
        """
        if not self.stable or not self.members:
            return ()
        owned = frozenset[int]().union(*self.members.values())
        return tuple(partition for partition in range(self.partitions) if partition not in owned)


class Ownership:
    """Tracks one member's views of its group."""

    def __init__(self, unowned_seconds_max: float, turn_seconds: float = TURN_SECONDS) -> None:
        self._unowned_seconds_max = unowned_seconds_max
        self._turn_seconds = turn_seconds
        self._since: dict[int, float] = {}

    def must_rejoin(self, view: GroupView, member_id: str, now: float) -> bool:
        """Returns True if this member must rejoin now because a partition has had no owner for too long.

        The member with the fewest partitions rejoins first, because its rejoin interrupts the fewest partitions.
        """
        self._since = {partition: self._since.get(partition, now) for partition in view.unowned}
        if not self._since or member_id not in view.members:
            return False
        order = sorted(view.members, key=lambda member: (len(view.members[member]), member))
        waits_seconds = self._unowned_seconds_max + order.index(member_id) * self._turn_seconds
        if now - min(self._since.values()) < waits_seconds:
            return False
        self._since = {}
        return True
