"""How long parsing may take: the child's limit, the reject and the liveness probe fire in this order.

They have one source, the setting of the liveness probe, so that changing it keeps the order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """`cpu_seconds` is whole, as RLIMIT_CPU is, and one more may pass before the kernel acts.

    `answer_seconds` is by the clock: a message is rejected after two of them at the latest, before
    `probe_seconds`.
    """

    cpu_seconds: int
    answer_seconds: float
    probe_seconds: float

    @classmethod
    def before(cls, probe_seconds: float) -> Deadlines:
        """Those of a reader whose loop fails its probe after `probe_seconds`, at least 6."""
        assert probe_seconds >= 6, probe_seconds
        return cls(max(1, int(probe_seconds / 6) - 1), probe_seconds / 2.5, probe_seconds)
