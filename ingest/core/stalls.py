"""Detects stalled partitions, whose fetches return nothing although messages are available.

A client or broker can lose a partition's fetches without an error. Such a partition looks healthy to its group,
and its lag grows until fetching is restarted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DOUBLINGS_MAX = 5


@dataclass(slots=True)
class _Standstill:
    """One partition: its position, how long the position has not changed, and how often restarting its fetches did
    not help."""

    position: int
    seconds: float = 0.0
    restarts: int = 0


class Stalls:
    """`seconds_max`: how long a partition may stall; doubles after each restart that did not help.

    `look_seconds_max`: maximum time counted between two calls, because nothing was fetched in a longer gap.
    """

    def __init__(self, seconds_max: float, look_seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._look_seconds_max = look_seconds_max
        self._looked_at: float | None = None
        self._standing: dict[int, _Standstill] = {}

    def look(self, fetched: Mapping[int, tuple[int, int]], now: float) -> list[int]:
        """The partitions whose fetches must be restarted now.

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
