"""Time limits for parsing a message: CPU time of the child process, time until the message is rejected,
and time until the liveness probe fails.

All three limits are derived from the liveness setting, so that they always expire in this order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """`cpu_seconds` is in whole seconds, like RLIMIT_CPU; the kernel may act one second late. `answer_seconds` is
    wall-clock time per attempt; a message is rejected after at most two attempts, which together take less than
    `probe_seconds`."""

    cpu_seconds: int
    answer_seconds: float
    probe_seconds: float

    @classmethod
    def before(cls, probe_seconds: float) -> Deadlines:
        """Limits of a reader whose liveness probe fails after `probe_seconds`, which is at least 6."""
        assert probe_seconds >= 6, probe_seconds
        return cls(max(1, int(probe_seconds / 6) - 1), probe_seconds / 2.5, probe_seconds)
