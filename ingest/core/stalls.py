"""Which partitions have to be fetched anew: messages lie ahead of them, they are fetched, and none ever comes.

A client or a broker can lose track of one partition's fetches without an error. Such a partition looks healthy to
its group, and its lag grows until the reader is restarted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DOUBLINGS_MAX = 5


@dataclass(slots=True)
class _Standstill:
    """Of one partition: where it stands, for how long, and how often that did not end by fetching anew."""

    position: int
    seconds: float = 0.0
    restarts: int = 0


class Stalls:
    """`seconds_max`: how long a partition may stand still; twice as long after each restart that did not help.

    `look_seconds_max`: no more than this counts between two looks, because nobody fetched in a longer gap.
    """

    def __init__(self, seconds_max: float, look_seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._look_seconds_max = look_seconds_max
        self._looked_at: float | None = None
        self._standing: dict[int, _Standstill] = {}

    def look(self, fetched: Mapping[int, tuple[int, int]], now: float) -> list[int]:
        """The partitions to fetch anew now.

        `fetched`: partition -> (next offset to fetch, end of its log), of those that are being fetched. `now`:
        monotonic seconds.
        """
        since = now if self._looked_at is None else self._looked_at
        elapsed_seconds, self._looked_at = min(now - since, self._look_seconds_max), now
        former, self._standing = self._standing, {}
        due = []
        for partition, (position, end) in fetched.items():
            if position >= end:
                continue
            seen = former.get(partition)
            if seen is None or seen.position != position:
                self._standing[partition] = _Standstill(position)
                continue
            self._standing[partition] = seen
            seen.seconds += elapsed_seconds
            if seen.seconds >= self._seconds_max * 2 ** min(seen.restarts, DOUBLINGS_MAX):
                seen.seconds, seen.restarts = 0.0, seen.restarts + 1
                due.append(partition)
        return due
