"""Detects a stuck loop, and logs the stacks of all threads once per occurrence.

A thread reads the stacks with `sys._current_frames`, which is impossible while a C extension holds the GIL. Even
then, SIGQUIT makes `faulthandler` write the stacks.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
import traceback
from collections.abc import Callable

import structlog

from tasks.observe.loops import Loop

LINES_MAX = 200
CHECK_SECONDS_MAX = 1.0
log = structlog.get_logger(__name__)


def stacks() -> dict[str, list[str]]:
    """Returns the stack of every thread, by thread name: `file:line function`, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks_by_name: dict[str, list[str]] = {}
    for ident, frame in sys._current_frames().items():
        calls = traceback.extract_stack(frame)[-LINES_MAX:]
        name = f"{names.get(ident, 'unknown')}-{ident}"
        stacks_by_name[name] = [f"{call.filename}:{call.lineno} {call.name}" for call in calls]
    return stacks_by_name


class StuckDetector:
    """Watches a loop from a separate thread.

    `seconds_since_iteration()`: time since the loop's last iteration. `on_stuck` is called with the stacks each
    time the loop has been stuck for `silent_seconds_max`.
    """

    def __init__(
        self,
        seconds_since_iteration: Callable[[], float],
        silent_seconds_max: float,
        on_stuck: Callable[[dict[str, list[str]]], None],
    ) -> None:
        self._seconds_since_iteration = seconds_since_iteration
        self._silent_seconds_max = silent_seconds_max
        self._on_stuck = on_stuck
        self._reported = False
        self.loop = Loop("stuck-detector", self.check, min(CHECK_SECONDS_MAX, silent_seconds_max / 4))

    def start(self, *, signal_dumps: bool = False) -> None:
        """Starts watching. If `signal_dumps` is true, which only the main thread may request, SIGQUIT dumps the
        stacks.
        """
        if signal_dumps:
            faulthandler.register(signal.SIGQUIT, all_threads=True, chain=False)
        self.loop.start()

    def stop(self) -> None:
        """Ends the thread."""
        self.loop.stop(deadline_seconds=2.0)

    def check(self) -> bool:
        """Checks once. Returns True if the loop is stuck."""
        silent_seconds = self._seconds_since_iteration()
        if silent_seconds < self._silent_seconds_max:
            if self._reported:
                log.warning("loop_turns_again")
            self._reported = False
            return False
        if not self._reported:
            self._reported = True
            found = stacks()
            log.error("loop_stuck", silent_seconds=round(silent_seconds, 1), stacks=found)
            self._on_stuck(found)
        return True
