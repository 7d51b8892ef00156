"""Detects stalled partitions, whose fetches return nothing although messages are available.

A fault in the client or the broker can stop the fetching of a partition without an error. Such a partition looks
healthy to its group, and its lag grows until fetching is restarted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DOUBLINGS_MAX = 5


@dataclass(slots=True)
class _Stall:
    """One partition: its position, the seconds since the position changed or the fetch was restarted, and the
    number of restarts that did not help."""

    position: int
    seconds: float = 0.0
    restarts: int = 0


class Stalls:
    """`seconds_max`: how long a partition may stall; this is doubled after each restart that did not help.

    `gap_seconds_max`: maximum time between two calls that counts as stalled time; the rest of a longer gap
    does not count. A longer gap means that the process was stopped and fetched nothing.
    """

    def __init__(self, seconds_max: float, gap_seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._gap_seconds_max = gap_seconds_max
        self._checked_at: float | None = None
        self._stalls: dict[int, _Stall] = {}

    def check(self, fetched: Mapping[int, tuple[int, int]], now: float) -> list[int]:
        """Returns the partitions whose fetches must be restarted now.

        `fetched`: partition -> (next offset to fetch, end of its log), for each partition that is being fetched.
        `now`: monotonic seconds.
        """
        since = now if self._checked_at is None else self._checked_at
        elapsed_seconds, self._checked_at = min(now - since, self._gap_seconds_max), now
        former, self._stalls = self._stalls, {}
        overdue = []
        for partition, (position, end) in fetched.items():
            if position >= end:
                continue
            stall = former.get(partition)
            if stall is None or stall.position != position:
                self._stalls[partition] = _Stall(position)
                continue
            self._stalls[partition] = stall
            stall.seconds += elapsed_seconds
            if stall.seconds >= self._seconds_max * 2 ** min(stall.restarts, DOUBLINGS_MAX):
                stall.seconds, stall.restarts = 0.0, stall.restarts + 1
                overdue.append(partition)
        return overdue
