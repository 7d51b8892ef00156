"""Confines a local server to its own directory, so that its clients cannot reach other files.

ClickHouse's SQL can read and write files (`file`, INTO OUTFILE), and the Cloud Storage server accepts `..` in an
object's name. Both servers listen without a password. With Landlock, the process and its children may write only
below its directory, and may read only that directory, the interpreter, its packages and the system's libraries.

    python -I -S confinement.py DIRECTORY PROGRAM [ARGUMENT]...

runs a confined program, and `confine` confines this process. Landlock version 3 (Linux 6.2) or newer is required;
on other systems, processes are not confined. This module uses only the standard library.
https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import site
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# System call numbers, which are the same on every Linux architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
PR_SET_NO_NEW_PRIVS = 38
VERSION_MIN = 3  # older versions forbid renames from one directory to another

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
ALL_RIGHTS = (1 << 15) - 1
"""All access rights of version 3. Each is refused unless a rule below allows it."""
READ_RIGHTS = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/nix/store", "/proc", "/sys")
DEVICES = "/dev"
PACKAGES = Path(__file__).resolve().parents[3]


def is_supported() -> bool:
    """Returns whether this kernel can confine a process."""
    if not sys.platform.startswith("linux"):
        return False
    return _call(ctypes.CDLL(None), CREATE_RULESET, None, 0, RULESET_VERSION) >= VERSION_MIN


def confine(directory: Path, *readable: Path) -> bool:
    """Permanently confines this thread and its children to `directory`. Returns False if this is not supported.

    `readable` lists paths that may be read besides those of the interpreter, its packages and the system.

    The function must be called before another thread starts. Raises OSError if the kernel refuses.
    """
    if not is_supported():
        return False
    library = ctypes.CDLL(None, use_errno=True)
    handled = struct.pack("=Q", ALL_RIGHTS)
    ruleset = _checked(_call(library, CREATE_RULESET, handled, len(handled), 0))
    try:
        for path in (*_readable_paths(), *map(str, readable)):
            _allow(library, ruleset, path, READ_RIGHTS)
        _allow(library, ruleset, DEVICES, READ_RIGHTS | WRITE_FILE)
        _allow(library, ruleset, str(directory), ALL_RIGHTS)
        _checked(library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_call(library, RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def confined(directory: Path, command: list[str]) -> list[str]:
    """Returns a command that runs `command` confined, under the same process id."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(directory), *command]


def _readable_paths() -> Iterable[str]:
    """Returns the paths of the Python interpreter and its packages.

    The current directory, which may be the home directory, is excluded.
    """
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    places = {*SYSTEM, *user, sys.prefix, sys.base_prefix, str(PACKAGES)}
    return sorted(place for place in places if os.path.exists(place))


def _allow(library: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = rights if os.path.isdir(path) else rights & FILE_RIGHTS
        rule = struct.pack("=Qi", allowed, handle)
        _checked(_call(library, ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(handle)


def _call(library: ctypes.CDLL, number: int, *arguments: int | bytes | None) -> int:
    result: int = library.syscall(ctypes.c_long(number), *arguments)
    return result


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    return result


def main() -> None:
    """Replaces this process with the program on the command line."""
    directory, program, *arguments = sys.argv[1:]
    confine(Path(directory), Path(program).resolve().parent)
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
