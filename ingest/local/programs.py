"""Runs the system's processes on a background stack: flush worker, reader, Flower and the web pages.

`replays-ingest local up --all` starts these processes. Each process is restarted when it ends. All web interfaces
have the same login.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from ingest.local.launch import celery, replays_ingest
from ingest.local.servers.base import answers_http
from ingest.local.servers.processes import (
    HOST,
    Child,
    LocalError,
    free_port,
    is_listening,
    private_opener,
    wait_until,
)
from ingest.local.stack import Part, Progress, Stack

PROGRAMS = ("worker", "reader", "flower", "web")
USER = "demo"
LOGIN_VARIABLE = "REPLAYS_FLOWER_BASIC_AUTH"
HISTORY_VARIABLE = "REPLAYS_FLOWER_HISTORY_PATH"
FLOWER_PORT = 5555
WEB_PORT = 8077
# Maps each program with a port to its preferred port (0 for any), in the order in which the programs are awaited.
PORTS = {"web": WEB_PORT, "flower": FLOWER_PORT, "reader": 0}
MIGRATE_SECONDS_MAX = 60.0
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 15.0
STARTS_MAX = 3  # a program that exits this many times during startup has failed


def login_of(directory: Path) -> str:
    """Returns `user:password` for the stack's Flower and web pages, which is generated once and kept in the
    stack's directory.
    """
    place = directory / "login"
    with suppress(OSError):
        return place.read_text().strip()
    login = f"{USER}:{secrets.token_urlsafe(12)}"
    with open(place, "w", opener=private_opener) as file:
        file.write(login)
    return login


class Programs:
    """The programs of a stack, which are started once, after the servers.

    `ports` contains the preferred ports by name, and is updated with the actual ports.

    `ending` returns true while the stack is being stopped; `start` then raises LocalError. `chosen` lists the
    programs to start.
    """

    def __init__(
        self,
        stack: Stack,
        settings: Mapping[str, str],
        ports: dict[str, int],
        *,
        progress: Progress,
        ending: Callable[[], bool],
        chosen: Collection[str] = PROGRAMS,
    ) -> None:
        self._stack = stack
        self._chosen = chosen
        self._ending = ending
        self._settings = settings
        self._ports = ports
        self._progress = progress
        self._migrated: frozenset[int] = frozenset()
        self._children: dict[str, Child] = {}
        self._urls: dict[str, str] = {}

    @property
    def addresses(self) -> dict[str, str]:
        """The URLs of the web interfaces by name."""
        return dict(self._urls)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The running programs as components of the stack."""
        return tuple(
            Part(name, self._urls.get(name, ""), child.pid, str(child.log_path))
            for name, child in self._children.items()
        )

    def migrate(self) -> None:
        """Creates tables, the bucket and topics, unless an earlier call did so for the same server processes,
        because a restarted Tansu has no topics.

        Raises LocalError with the tail of the log.
        """
        servers = frozenset(part.pid for part in self._stack.parts.values())
        if servers == self._migrated:
            return
        command = [*replays_ingest(), "migrate", "--topics"]
        migration = self._stack.children.start("migrate", command, env=self._settings)
        if migration.wait(MIGRATE_SECONDS_MAX) != 0:
            raise LocalError(f"migrate failed\n{migration.log_tail()}")
        self._migrated = servers
        self._progress("migrate    done")

    def start(self) -> None:
        """Runs the migrations, and then starts the programs.

        Raises LocalError with the tail of a log if one fails to start.
        """
        self.migrate()
        env = {"REPLAYS_WORKER_PROCESSES": os.environ.get("REPLAYS_WORKER_PROCESSES", "2"), **self._settings}
        children = self._stack.children
        ports = {name: self._port(name, default) for name, default in PORTS.items() if name in self._chosen}
        urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
        commands: dict[str, list[str]] = {
            "worker": [*celery(), "worker", "--loglevel=INFO"],
            "reader": replays_ingest(),
            "flower": [*celery(), "flower", f"--address={HOST}", f"--port={ports.get('flower')}"],
            "web": [*replays_ingest(), "web", "--port", str(ports.get("web"))],
        }
        for name in PROGRAMS:
            if name in self._chosen:
                self._children[name] = children.start(
                    name, commands[name], env={**env, **self._own(name, ports)}, keep=True
                )
        for name in urls:
            self._await(name, urls[name], partial(self._is_up, name, urls[name]))
        self._urls = {**urls, **({"operator": f"{urls['web']}/operate"} if "web" in urls else {})}

    def stop(self) -> None:
        """Stops all programs in parallel. A program that exceeds the deadline is killed."""
        for child in self._children.values():
            self._stack.children.release(child)
            child.signal(signal.SIGTERM)
        for child in self._children.values():
            with suppress(LocalError):
                child.wait(STOP_SECONDS_MAX)
            child.kill()
        self._children.clear()
        self._urls.clear()

    def _own(self, name: str, ports: Mapping[str, int]) -> dict[str, str]:
        """Returns the variables that only this program gets."""
        if name == "reader":
            return {"REPLAYS_HTTP_PORT": str(ports["reader"])}
        if name == "flower" and HISTORY_VARIABLE not in os.environ:
            return {HISTORY_VARIABLE: str(self._stack.directory / "flower.sqlite")}
        return {}

    def _is_up(self, name: str, url: str) -> bool:
        if name == "web":  # the pages require a login
            return is_listening(int(url.rpartition(":")[2]))
        return answers_http(f"{url}/{'healthcheck' if name == 'flower' else 'livez'}")

    def _await(self, name: str, url: str, is_up: Callable[[], bool]) -> None:
        child = self._children[name]

        def has_outcome() -> bool:
            return is_up() or child.starts > STARTS_MAX or self._ending()

        wait_until(has_outcome, READY_SECONDS_MAX, f"{name} to answer")
        if self._ending():
            raise LocalError("the stack was stopped while it was starting")
        if child.starts > STARTS_MAX:
            raise LocalError(f"{name} keeps ending\n{child.log_tail()}")
        self._progress(f"{name:<10} {url}")

    def _port(self, name: str, default: int) -> int:
        wanted = self._ports.get(name, default)
        self._ports[name] = wanted if wanted and is_free(wanted) else free_port()
        return self._ports[name]


def is_free(port: int) -> bool:
    """Returns whether a server can listen on this loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((HOST, port))
        except OSError:
            return False
    return True
