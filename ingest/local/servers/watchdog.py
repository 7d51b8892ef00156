"""Kills processes that a parent left behind.

The module runs as a script, by path, and uses only the standard library.

One watchdog serves one parent. The watchdog reads commands from its standard input, one per line:

    +PGID     watch this process group
    -PGID     forget it
    *PATH     remove this directory at the end, if it is a temporary one

The kernel closes this pipe when the parent exits, even if it is killed with `kill -9`. The watchdog then kills
every process group that is still watched, removes the directories, and exits. The watchdog works on Linux and
macOS.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import tempfile
from pathlib import Path

# A forked copy of the parent could keep the pipe open. The change of the parent process id still reveals that
# the parent has exited.
PARENT_CHECK_SECONDS = 1.0


def execute(order: str, groups: set[int], directories: set[str]) -> None:
    """Executes one command."""
    verb, argument = order[:1], order[1:]
    if verb == "+":
        groups.add(int(argument))
    elif verb == "-":
        groups.discard(int(argument))
    elif verb == "*":
        directories.add(argument)


def clean_up(groups: set[int], directories: set[str]) -> None:
    """Sends SIGKILL to every group, and then removes the directories that are below the system's temporary
    directory.
    """
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    temporary = Path(tempfile.gettempdir()).resolve()
    for directory in directories:
        if temporary in Path(directory).resolve().parents:
            shutil.rmtree(directory, ignore_errors=True)
            # A process group that was just killed may have written another file during the first removal.
            shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Reads commands until the pipe closes or the id of the parent changes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = int(sys.argv[1])
    groups: set[int] = set()
    directories: set[str] = set()
    rest = b""
    while True:
        orphaned = os.getppid() != parent
        readable, _, _ = select.select([0], [], [], 0 if orphaned else PARENT_CHECK_SECONDS)
        if not readable:
            # The parent id is checked after reading, because a parent that died early may have left commands in
            # the pipe.
            if orphaned:
                break
            continue
        data = os.read(0, 65536)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            execute(line.decode("utf-8", "surrogateescape"), groups, directories)
    clean_up(groups, directories)


if __name__ == "__main__":
    main()
