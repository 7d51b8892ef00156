"""Reads the logs of a background stack: first the last lines of a file, then appended lines."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

COLORS = re.compile(r"\x1b\[[0-9;]*m")
LINE_BYTES_MAX = 64 * 1024  # longer lines are split


class Tail:
    """One log. Lines are decoded, stripped of line endings and color codes, and prefixed with `prefix`."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self._path = path
        self._prefix = prefix
        self._offset = 0

    def last(self, count: int) -> list[str]:
        """Returns the last `count` complete lines, in bounded memory."""
        return list(deque(self.new(), maxlen=count))

    def new(self) -> Iterator[str]:
        """Returns the complete lines appended since the last call; the first call returns all lines."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as log:
            log.seek(self._offset)
            while (line := log.readline(LINE_BYTES_MAX)) and (line.endswith(b"\n") or len(line) == LINE_BYTES_MAX):
                self._offset += len(line)
                yield self._prefix + COLORS.sub("", line.decode("utf-8", "replace").rstrip("\n"))
