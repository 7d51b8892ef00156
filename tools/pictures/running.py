"""Runs `replays-ingest try` as a process, for programs that use its pages."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_SECONDS_MAX = 60.0
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""


@contextmanager
def run_try_command() -> Iterator[Any]:
    """Runs the command on a free port until the block ends, then stops it with Ctrl-C. Yields the command's JSON
    output; after the block, `said` has its progress messages.

    Raises RuntimeError if the command does not start, or does not end cleanly.
    """
    command = [sys.executable, "-m", "ingest.cli", "try", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(process.communicate(timeout=STOP_SECONDS_MAX)[1])
        state = json.loads(line)
        yield state
        process.send_signal(signal.SIGINT)
        more, state["said"] = process.communicate(timeout=STOP_SECONDS_MAX)
        if more:
            raise RuntimeError(f"printed more than one line of JSON: {more[:2000]}")
        if process.returncode != 0 or not state["said"].endswith("everything is stopped and removed\n"):
            raise RuntimeError(f"ended with {process.returncode}: {state['said'][-2000:]}")
    finally:
        process.kill()
        process.wait()
