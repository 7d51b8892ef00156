"""Runs programs with a time limit. If a program is stopped, its whole process group is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

GRACE_SECONDS = 5.0


def call(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a program to completion, whatever its exit code. Raises subprocess.TimeoutExpired after stopping the
    program's process group.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            printed, error = process.communicate(timeout=seconds)
        except BaseException:
            _end(process)
            raise
    return subprocess.CompletedProcess(list(command), process.returncode, printed, error)


def _end(process: subprocess.Popen[str]) -> None:
    """Sends SIGTERM, so that the program can clean up, then SIGKILL to the rest of its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
