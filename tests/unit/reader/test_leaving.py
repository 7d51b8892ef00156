"""If a consumer cannot leave its group, the process still ends (ingest.reader.leaving)."""

from __future__ import annotations

import subprocess
import sys

HANGING_PROGRAM = """
import ctypes
from ingest.reader import leaving

class Consumer:
    def poll(self, seconds):
        return None

    def close(self):
        ctypes.PyDLL(None).pause()  # in C, with the interpreter's lock, until a signal

leaving.close(Consumer(), 0.5)
"""


def test_a_close_that_never_returns_ends_the_process_with_its_stacks() -> None:
    """If the client's `close` never returns and holds the interpreter's lock, the process prints its stacks and
    ends.
    """
    ended = subprocess.run(
        [sys.executable, "-c", HANGING_PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "in close" in ended.stderr
