"""Runs the system's processes on a background stack: flush worker, reader, Flower and the web pages.

`replays-ingest local up --all` starts them. Each process is restarted when it ends. All share one login.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
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
FLOWER_PORT = 5555
WEB_PORT = 8077
MIGRATE_SECONDS_MAX = 60.0
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 15.0
STARTS_MAX = 3  # a program that exits this often during startup has failed


def login_of(directory: Path) -> str:
    """`user:password` of this stack's Flower and web pages, generated once and kept in its directory."""
    place = directory / "login"
    with suppress(OSError):
        return place.read_text().strip()
    login = f"{USER}:{secrets.token_urlsafe(12)}"
    with open(place, "w", opener=private_opener) as file:
        file.write(login)
    return login


class Programs:
    """The programs, started once after the servers. `ports`: preferred ports by name, updated with the actual
    ports.

    `ending` returns true while the stack is being stopped, which aborts a start.
    """

    def __init__(
        self,
        stack: Stack,
        settings: Mapping[str, str],
        ports: dict[str, int],
        *,
        progress: Progress,
        ending: Callable[[], bool],
    ) -> None:
        self._stack = stack
        self._ending = ending
        self._settings = settings
        self._ports = ports
        self._progress = progress
        self._children: dict[str, Child] = {}
        self._urls: dict[str, str] = {}

    @property
    def addresses(self) -> dict[str, str]:
        """URLs of the web interfaces by name."""
        return dict(self._urls)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The running programs as components of the stack."""
        return tuple(
            Part(name, self._urls.get(name, ""), child.pid, str(child.log_path))
            for name, child in self._children.items()
        )

    def start(self) -> None:
        """Migrates, then starts all programs. Raises LocalError with the tail of a log if one fails to start."""
        env = {"REPLAYS_WORKER_PROCESSES": os.environ.get("REPLAYS_WORKER_PROCESSES", "2"), **self._settings}
        children = self._stack.children
        migration = children.start("migrate", [*replays_ingest(), "migrate", "--topics"], env=env)
        if migration.wait(MIGRATE_SECONDS_MAX) != 0:
            raise LocalError(f"migrate failed\n{migration.log_tail()}")
        self._progress("migrate    done")
        web, flower, reader = (
            self._port(name, default)
            for name, default in (("web", WEB_PORT), ("flower", FLOWER_PORT), ("reader", 0))
        )
        self._keep("worker", [*celery(), "worker", "--loglevel=INFO"], env)
        self._keep("reader", replays_ingest(), {**env, "REPLAYS_HTTP_PORT": str(reader)})
        self._keep("flower", [*celery(), "flower", f"--address={HOST}", f"--port={flower}"], env)
        self._keep("web", [*replays_ingest(), "web", "--port", str(web)], env)
        urls = {
            name: f"http://{HOST}:{port}" for name, port in (("web", web), ("flower", flower), ("reader", reader))
        }
        # The pages require a login.
        self._await("web", urls["web"], lambda: is_listening(web))
        self._await("flower", urls["flower"], lambda: answers_http(f"{urls['flower']}/healthcheck"))
        self._await("reader", urls["reader"], lambda: answers_http(f"{urls['reader']}/livez"))
        self._urls = {**urls, "operator": f"{urls['web']}/operate"}

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

    def _keep(self, name: str, command: list[str], env: Mapping[str, str]) -> None:
        self._children[name] = self._stack.children.start(name, command, env=env, keep=True)

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
        self._ports[name] = wanted if wanted and _is_free(wanted) else free_port()
        return self._ports[name]


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((HOST, port))
        except OSError:
            return False
    return True
