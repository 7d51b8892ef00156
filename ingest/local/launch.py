"""Commands, settings and temporary files of the system's processes on an embedded stack."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ingest.settings import Settings
from tasks.units import GiB

# The emulators write one file per object and wait until it is on disk. With files in memory, the demo takes half
# the time.
MEMORY_DIRECTORY = Path("/dev/shm")
MEMORY_BYTES_FREE_MIN = 3 * GiB

# These times are shorter than in production, so that work lost with a killed process is detected within seconds.
SHORT_TIMEOUTS = {
    "REPLAYS_FLUSH_DEADLINE_SECONDS": "15",
    "REPLAYS_RETRY_BACKOFF_SECONDS": "1",
    "REPLAYS_RETRY_BACKOFF_SECONDS_MAX": "5",
    "REPLAYS_TASK_VISIBILITY_SECONDS": "15",
    "REPLAYS_BATCH_AGE_SECONDS_MAX": "1",
}


def settings_of(env: dict[str, str]) -> Settings:
    """Returns the settings of a process with these REPLAYS_* variables."""
    fields = {name.removeprefix("REPLAYS_").lower(): value for name, value in env.items()}
    make = cast("Callable[..., Settings]", Settings)
    return make(**fields)


@dataclass(frozen=True, slots=True)
class Installation:
    """An installed release: the interpreter of its environment and the working directory of its programs.

    If `folder` is None, the working directory is the current one. The working directory must not contain another
    release, which would be imported instead.
    """

    python: Path
    folder: Path | None = None

    def replays_ingest(self) -> list[str]:
        """Returns the command line of `replays-ingest`."""
        program = self.python.with_name("replays-ingest")
        return [str(program)] if program.exists() else [str(self.python), "-m", "ingest.cli"]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the release's programs, which prevent them from importing this process's
        release.
        """
        return {} if self.folder is None else {"PYTHONPATH": ""}

    def celery(self) -> list[str]:
        """Returns the command line of Celery with the flush application."""
        return [str(self.python), "-m", "celery", "-A", "tasks"]


CURRENT_INSTALLATION = Installation(Path(sys.executable))


def replays_ingest() -> list[str]:
    """Returns the command line of `replays-ingest` in this environment."""
    return CURRENT_INSTALLATION.replays_ingest()


def celery() -> list[str]:
    """Returns the command line of Celery with the flush application, in this environment."""
    return CURRENT_INSTALLATION.celery()


@contextmanager
def temporary_files_in_memory(*, wanted: bool) -> Iterator[None]:
    """Keeps temporary files of this process and its children in memory, if enough memory is free and TMPDIR is
    unset.
    """
    name = "TMPDIR"
    try:
        status = os.statvfs(MEMORY_DIRECTORY)
        free_bytes = status.f_bavail * status.f_frsize
    except OSError:
        free_bytes = 0
    if not wanted or name in os.environ or free_bytes < MEMORY_BYTES_FREE_MIN:
        yield
        return
    os.environ[name] = str(MEMORY_DIRECTORY)
    tempfile.tempdir = None
    try:
        yield
    finally:
        del os.environ[name]
        tempfile.tempdir = None
