"""Finds the directories of background stacks, and records the most recently started stack.

With this record, commands in other folders use the running stack instead of starting an empty one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ingest.local.servers.processes import LocalError, private_directory, private_opener

DIRECTORY_VARIABLE = "REPLAYS_LOCAL_DIRECTORY"


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns REPLAYS_LOCAL_DIRECTORY if it is set, otherwise .local/stack in a checkout, otherwise the user's
    state directory.
    """
    if environ.get(DIRECTORY_VARIABLE):
        return Path(environ[DIRECTORY_VARIABLE])
    if Path("pyproject.toml").exists() and Path("celeryconfig.py").exists():
        return Path(".local/stack").absolute()
    return _state_home(environ) / "stack"


def directory_of(chosen: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the chosen directory, otherwise that of a running stack started elsewhere, otherwise the default.

    Raises LocalError if another user may change the files in that directory.
    """
    place = _find_directory(chosen, environ)
    require_own_directory(place)
    return place


def _find_directory(chosen: Path | None, environ: Mapping[str, str]) -> Path:
    if chosen is not None or environ.get(DIRECTORY_VARIABLE):
        return (chosen or default_directory(environ)).absolute()
    place = default_directory(environ).absolute()
    if not is_locked(place):
        with contextlib.suppress(OSError):
            recorded = Path(_record_path(environ).read_text().strip())
            if recorded.is_absolute() and is_locked(recorded):
                return recorded
    return place


def require_own_directory(place: Path) -> None:
    """Raises LocalError if another user may change files in this directory.

    The files contain ids of processes to stop, variables to export, a login, and the servers' data."""
    with contextlib.suppress(FileNotFoundError):
        found = place.stat()
        if found.st_uid != os.geteuid():
            raise LocalError(
                f"{place} belongs to another user, who may change its files: choose another directory"
            )
        shared = stat.S_IWOTH if found.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP
        if found.st_mode & shared:
            raise LocalError(
                f"other users may change the files in {place}: run `chmod go-w` on it, or choose another"
            )


def record_running_stack(place: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Records a stack for commands in other folders, unless its directory was chosen explicitly."""
    if place != default_directory(environ).absolute() or environ.get(DIRECTORY_VARIABLE):
        return
    private_directory(_record_path(environ).parent)
    with open(_record_path(environ), "w", opener=private_opener) as note:
        note.write(str(place))


def is_locked(directory: Path) -> bool:
    """Returns whether the supervisor of this directory is running.

    The kernel releases a supervisor's lock when the supervisor exits, even if it is killed.
    """
    with contextlib.suppress(FileNotFoundError), (directory / "lock").open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _record_path(environ: Mapping[str, str]) -> Path:
    return _state_home(environ) / "running"


def _state_home(environ: Mapping[str, str]) -> Path:
    state = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "replays-ingest"
