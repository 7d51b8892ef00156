"""Time limits of parsing: the child's limit, the reject and the liveness probe, in this order.

All are derived from the liveness setting, so that changing it keeps the order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """`cpu_seconds` is whole, like RLIMIT_CPU; the kernel may act one second late.

    `answer_seconds` is wall-clock time: a message is rejected after at most two of them, before `probe_seconds`.
    """

    cpu_seconds: int
    answer_seconds: float
    probe_seconds: float

    @classmethod
    def before(cls, probe_seconds: float) -> Deadlines:
        """Limits of a reader whose probe fails after `probe_seconds`, at least 6."""
        assert probe_seconds >= 6, probe_seconds
        return cls(max(1, int(probe_seconds / 6) - 1), probe_seconds / 2.5, probe_seconds)
