"""After a failure or a missed deadline: when to try the batch again."""

from __future__ import annotations

from zlib import crc32

from ingest.core.limits import Limits


def retry_seconds(batch_id: str, failures: int, first_seconds: float, cap_seconds: float) -> float:
    """Seconds to wait after the `failures`-th failure in a row: doubling from `first_seconds`, capped, for ever.

    The jitter (half to whole of the ceiling) comes from the batch's id, so the core stays deterministic
    while batches that failed together do not come back together.
    """
    ceiling = min(first_seconds * 2.0 ** min(failures - 1, 30), cap_seconds)
    return ceiling * (0.5 + crc32(f"{batch_id}/{failures}".encode()) / 2**33)


class RejectRatio:
    """The share of rejects among the last messages: past the limit it is a bad deploy, not bad messages.

    docs/decisions/007-dead-letters-are-a-sink.md
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._window = bytearray(limits.reject_window)
        self._seen = 0
        self._rejects = 0

    def exceeded(self, rejected: bool) -> bool:
        """Counts one message; True when the window is full and holds too many rejects."""
        slot = self._seen % len(self._window)
        self._rejects += rejected - self._window[slot]
        self._window[slot] = rejected
        self._seen += 1
        return self._seen >= len(self._window) and self._rejects > self._limits.reject_ratio_max * len(
            self._window
        )

    @property
    def ratio(self) -> float:
        """Rejects among the last messages, 0 to 1."""
        return self._rejects / max(1, min(self._seen, len(self._window)))
