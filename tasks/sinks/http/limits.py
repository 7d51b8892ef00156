"""Maximum request body size, lowered for some time after a server or proxy refuses a body as too large."""

from __future__ import annotations

import time

LEARNED_LIMIT_SECONDS = 600.0
BODY_BYTES_MIN = 1024


class BodyLimit:
    """A size limit of `bytes_max`, or of half the refused size for ten minutes after a refusal. Thus, most
    writes stay below a server's limit, and a raised limit takes effect within ten minutes.

    Thread-safe: a race costs at most one more refused request.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._learned_bytes = bytes_max
        self._learned_until = 0.0

    @property
    def bytes_max(self) -> int:
        """Current maximum body size."""
        if time.monotonic() >= self._learned_until:
            self._learned_bytes = self._bytes_max
        return self._learned_bytes

    def refused(self, size_bytes: int) -> None:
        """Records that a body of this size was too large."""
        self._learned_bytes = max(BODY_BYTES_MIN, min(self.bytes_max, size_bytes // 2))
        self._learned_until = time.monotonic() + LEARNED_LIMIT_SECONDS
