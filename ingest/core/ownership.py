"""Whether every partition of the topic has an owner, and when a member has to make the group assign it again.

A group can be stable and still leave a partition to nobody: when a static member that must give a partition back
is replaced by its successor between the two phases of a cooperative rebalance, the successor has nothing to give
back, so nobody joins again. Any member that joins again repairs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Members take turns, so that one of them repairs the group before all of them do.
TURN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class GroupView:
    """The consumer group as its coordinator describes it, as far as one topic is concerned.

    `partitions`: how many the topic has. `members`: member id -> the partitions that it owns. `stable`: no
    rebalance is going on.
    """

    partitions: int
    members: Mapping[str, frozenset[int]]
    stable: bool

    @property
    def unowned(self) -> tuple[int, ...]:
        """Partitions that no member owns, ascending; empty where the description proves nothing.

        That is while the group rebalances, and when it is said to be stable without members: Kafka calls such a
        group EMPTY, so that a server which answers so does not describe members at all (Tansu).
        """
        if not self.stable or not self.members:
            return ()
        owned = frozenset[int]().union(*self.members.values())
        return tuple(partition for partition in range(self.partitions) if partition not in owned)


class Ownership:
    """What one member makes of the views that it takes of its group."""

    def __init__(self, unowned_seconds_max: float, turn_seconds: float = TURN_SECONDS) -> None:
        self._unowned_seconds_max = unowned_seconds_max
        self._turn_seconds = turn_seconds
        self._since: dict[int, float] = {}

    def must_rejoin(self, view: GroupView, member_id: str, now: float) -> bool:
        """Whether this member has to join again now: a partition has had no owner for too long.

        The member with the fewest partitions is the first in turn, since it interrupts the least.
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
