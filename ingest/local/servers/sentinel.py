"""Redis with Sentinel: a primary, a replica, and three Sentinels that perform failovers.

Valkey's server program also runs as its Sentinel. Nothing is written to disk, so a killed primary restarts empty,
as a replica of the new primary. Timeouts are shorter than in production: a failover takes 2 to 4 s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from ingest.local.servers.base import HOST, Server
from ingest.local.servers.processes import Child, Children, LocalError, wait_until
from ingest.local.servers.redis import Redis, binary, send_command

MASTER = "replays"
SENTINELS = 3
QUORUM = 2
DOWN_MS = 1000
FAILOVER_MS = 3000
READY_SECONDS_MAX = 30.0


class Sentinel(Server):
    """One Sentinel that monitors the primary at `primary_port`."""

    name: ClassVar[str] = "sentinel"

    def __init__(
        self,
        children: Children,
        directory: Path,
        primary_port: Callable[[], int],
        *,
        name: str = "",
        password: str = "",
        sentinel_password: str = "",
        quorum: int = QUORUM,
    ) -> None:
        """`password` is for the Redis servers, and `sentinel_password` for the Sentinels and the connections
        between them.
        """
        super().__init__(children, directory, name=name)
        self._primary_port = primary_port
        self._password, self._sentinel_password, self._quorum = password, sentinel_password, quorum

    def command(self) -> list[str]:
        """Returns the command line.

        The configuration file is written only once, because Sentinel then keeps its state in it.
        """
        file = self.directory / "sentinel.conf"
        if not file.exists() or f"port {self.port}\n" not in file.read_text():
            file.write_text(self._configuration())
        return [str(binary()), str(file), "--sentinel"]

    def _configuration(self) -> str:
        lines = [
            f"port {self.port}",
            f"bind {HOST}",
            f"dir {self.directory}",
            "loglevel notice",
            f"sentinel monitor {MASTER} {HOST} {self._primary_port()} {self._quorum}",
            f"sentinel down-after-milliseconds {MASTER} {DOWN_MS}",
            f"sentinel failover-timeout {MASTER} {FAILOVER_MS}",
        ]
        if self._password:
            lines.append(f"sentinel auth-pass {MASTER} {self._password}")
        if self._sentinel_password:
            lines += [
                f"requirepass {self._sentinel_password}",
                f"sentinel sentinel-pass {self._sentinel_password}",
            ]
        return "\n".join(lines) + "\n"

    def send_command(self, *words: str) -> Any:
        """Sends one command and returns the response. Raises OSError, or LocalError for an error response."""
        return send_command(self.port, words, self._sentinel_password)

    def is_ready(self) -> bool:
        """Returns whether the Sentinel has found the primary."""
        try:
            return bool(self.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER))
        except (OSError, LocalError):
            return False

    @property
    def address(self) -> str:
        """The part of a sentinel:// URL for this Sentinel, without a password."""
        return f"sentinel://{HOST}:{self.port}"


class RedisGroup(Server):
    """All five processes as one server, whose `kill`, `pause` and `child` apply to the current primary."""

    name: ClassVar[str] = "redis"

    def __init__(
        self, children: Children, directory: Path, *, password: str = "", sentinel_password: str = ""
    ) -> None:
        super().__init__(children, directory)
        self.password, self.sentinel_password = password, sentinel_password
        secrets = ("--requirepass", password, "--masterauth", password) if password else ()
        quick = ("--repl-diskless-sync-delay", "0", *secrets)
        self.servers = [
            Redis(children, directory / f"redis-{number}", name=f"redis-{number}", options=quick)
            for number in (1, 2)
        ]
        self.sentinels = [
            Sentinel(
                children,
                directory / f"sentinel-{number}",
                lambda: self.servers[0].port,
                name=f"sentinel-{number}",
                password=password,
                sentinel_password=sentinel_password,
            )
            for number in range(1, SENTINELS + 1)
        ]

    def start(self) -> None:
        """Starts all processes that are not running. The method returns once a failover is possible."""
        for server in self.servers:
            if not self._is_running(server):
                server.start()
        if not self._is_running(self.sentinels[0]):
            first, second = self.servers
            send_command(second.port, ["REPLICAOF", HOST, str(first.port)], self.password)
            for sentinel in self.sentinels:
                sentinel.start()
        self._child = self.primary.child
        self.port = self.sentinels[0].port
        self.wait_until_failover_possible()

    @staticmethod
    def _is_running(server: Server) -> bool:
        return server._child is not None and server.child.alive

    def wait_until_failover_possible(self) -> None:
        """Waits until every Sentinel reports the same primary, a replica that follows it, and the other
        Sentinels.
        """
        wait_until(self.can_fail_over, READY_SECONDS_MAX, "the Sentinels to agree")

    def can_fail_over(self) -> bool:
        """Returns whether a failover can currently succeed."""
        try:
            seen = {tuple(s.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)) for s in self.sentinels}
            return len(seen) == 1 and all(self._sees_all_servers(sentinel) for sentinel in self.sentinels)
        except (OSError, LocalError):
            return False

    def _sees_all_servers(self, sentinel: Sentinel) -> bool:
        master = _fields(sentinel.send_command("SENTINEL", "MASTER", MASTER))
        replicas = [_fields(each) for each in sentinel.send_command("SENTINEL", "REPLICAS", MASTER)]
        usable = [each for each in replicas if each["flags"] == "slave" and each["master-link-status"] == "ok"]
        return (
            master["flags"] == "master"
            and len(usable) == 1
            and int(master["num-other-sentinels"]) == SENTINELS - 1
        )

    @property
    def primary(self) -> Redis:
        """The primary that the Sentinels report. Raises LocalError if no Sentinel reports a primary."""
        for sentinel in self.sentinels:
            with contextlib.suppress(OSError, LocalError, TypeError):
                _, port = sentinel.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
                return next(server for server in self.servers if server.port == int(port))
        raise LocalError("no Sentinel names a primary")

    def failover(self) -> None:
        """Runs a planned failover and waits until it is done.

        The old primary keeps running as a read-only replica.
        """
        old = self.primary
        self.wait_until_failover_possible()
        wait_until(self._has_failover_begun, READY_SECONDS_MAX, "a Sentinel to begin a failover")
        wait_until(lambda: self.primary is not old, READY_SECONDS_MAX, "another primary")
        self._child = self.primary.child

    def _has_failover_begun(self) -> bool:
        try:
            self.sentinels[0].send_command("SENTINEL", "FAILOVER", MASTER)
        except LocalError:  # a failover is in progress, or the replica was recently unreachable
            return False
        return True

    def kill_primary(self) -> None:
        """Sends SIGKILL to the primary, which the Sentinels detect after 1 s.

        The method returns when there is a new primary and the old one has restarted.
        """
        old = self.primary
        self.wait_until_failover_possible()
        old.kill()
        wait_until(lambda: self.primary is not old, READY_SECONDS_MAX, "another primary")
        old.restart()
        self._child = self.primary.child

    @property
    def child(self) -> Child:
        """The primary's process."""
        return self.primary.child

    def command(self) -> list[str]:
        """Returns the command line of the primary."""
        return self.primary.command()

    def is_ready(self) -> bool:
        """Returns whether the primary responds."""
        return self.primary.is_ready()

    @property
    def address(self) -> str:
        """The sentinel:// URL of database 0, with all hosts and the password of Redis."""
        first, *following = self.sentinels
        secret = f":{self.password}@" if self.password else ""
        return ";".join([f"sentinel://{secret}{HOST}:{first.port}", *(s.address for s in following)]) + "/0"

    @property
    def variables(self) -> dict[str, str]:
        """The REPLAYS_* variables for this server."""
        found = {"REPLAYS_REDIS_URL": self.address, "REPLAYS_REDIS_SENTINEL_MASTER": MASTER}
        return found | (
            {"REPLAYS_REDIS_SENTINEL_PASSWORD": self.sentinel_password} if self.sentinel_password else {}
        )

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Stops all five processes."""
        for server in (*self.sentinels, *self.servers):
            server.stop(grace_seconds)

    def kill(self) -> None:
        """Sends SIGKILL to the primary alone."""
        self.primary.kill()


def _fields(answer: Any) -> dict[str, str]:
    return dict(zip(answer[::2], answer[1::2], strict=True))
