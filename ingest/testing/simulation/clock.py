"""Simulated time. The clock of the simulation: scheduled calls run in order of time and then of insertion."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Call = Callable[..., None]


class Timeline:
    """The only clock of a world, in seconds from its start."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Call, tuple[Any, ...]]] = []
        self._put = 0

    def after(self, seconds: float, call: Call, *arguments: Any) -> None:
        """Schedules `call(*arguments)` for `seconds` from now."""
        self._put += 1
        heapq.heappush(self._heap, (self.now + seconds, self._put, call, arguments))

    def run_until(self, moment: float) -> None:
        """Runs all calls that are due up to `moment`.

        The function is reentrant, because a waiting process calls it from inside a scheduled call.
        """
        heap = self._heap
        while heap and heap[0][0] <= moment:
            when, _, call, arguments = heapq.heappop(heap)
            if when > self.now:
                self.now = when
            call(*arguments)
        if moment > self.now:
            self.now = moment
