"""The base class of all local servers, each of which has a child process and a port."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from ingest.local.servers.processes import (
    HOST,
    Child,
    Children,
    LocalError,
    free_port,
    private_directory,
    wait_until,
)

START_TRIES = 3
LOOPBACK_NAMES = frozenset((HOST, "localhost"))
# Browsers send at least one of these headers with every cross-site request.
BROWSER_FIELDS = ("Origin", "Sec-Fetch-Site", "Referer")
# Error messages of servers whose port was taken between the check and the bind.
PORT_IN_USE_ERRORS = ("in use", "AddrInUse", "EADDRINUSE")


class Server(ABC):
    """One local server.

    The server's data is stored in `directory`. The server keeps its port when it is restarted.

    `start` returns once the server is ready. Raises LocalError with the tail of the log if the server exits or
    does not become ready.
    """

    name: ClassVar[str]
    start_seconds_max: ClassVar[float] = 20.0

    def __init__(self, children: Children, directory: Path, *, name: str = "", port: int = 0) -> None:
        self.directory = directory
        self.port = port
        self._port_is_given = port != 0
        self._children = children
        self._label = name or self.name
        self._child: Child | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Returns the program and its arguments, for `self.port`."""

    def environment(self) -> Mapping[str, str]:
        """Returns environment variables of the program, in addition to the inherited ones."""
        return {}

    @abstractmethod
    def is_ready(self) -> bool:
        """Returns whether the server responds in its protocol.

        The method returns quickly, and returns False for any failure.
        """

    @property
    @abstractmethod
    def address(self) -> str:
        """The address for clients, in the form that their client library accepts."""

    @property
    def child(self) -> Child:
        """The process of the server, which exists only after start()."""
        assert self._child is not None, self.name
        return self._child

    def start(self) -> None:
        """Runs the server and waits until it is ready.

        If the port is taken and was not requested, other ports are tried.
        """
        private_directory(self.directory)
        for attempt in range(START_TRIES):
            if not self.port:
                self.port = free_port()
            if self._child is None:
                self._child = self._children.add(self._label, self.command(), env=self.environment())
            self._child.command, self._child.env = self.command(), dict(self.environment())
            self._child.start()
            try:
                self.wait_until_ready()
                return
            except LocalError as error:
                self._child.kill()
                taken = any(word in str(error) for word in PORT_IN_USE_ERRORS)
                if not taken or self._port_is_given or attempt == START_TRIES - 1:
                    raise
                self.port = 0

    def wait_until_ready(self) -> None:
        """Waits until the server is ready, for at most `start_seconds_max`."""
        child = self.child

        def ready() -> bool:
            if not child.alive:
                raise LocalError(f"{self._label} ended with code {child.returncode}\n{child.log_tail()}")
            return self.is_ready()

        try:
            wait_until(ready, self.start_seconds_max, f"{self._label} on {HOST}:{self.port}")
        except LocalError as error:
            raise LocalError(f"{error}\n{child.log_tail()}") from None

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Stops the server gracefully. The data is kept."""
        if self._child is not None:
            self._child.stop(grace_seconds)

    def kill(self) -> None:
        """Sends SIGKILL. Data that the server has written is kept."""
        self.child.kill()

    def restart(self, *, kill: bool = False) -> None:
        """Stops (or kills) the server and starts it on the same port with the same data."""
        if kill:
            self.kill()
        else:
            self.stop()
        # Clients use this port from now on, so it must not change.
        self._port_is_given = True
        self.start()

    def pause(self) -> None:
        """Suspends the server with SIGSTOP: connections stay open but get no response."""
        self.child.pause()

    def resume(self) -> None:
        """Sends SIGCONT."""
        self.child.resume()


class HttpServer(ThreadingHTTPServer):
    """The HTTP server that the emulators use, with one thread per connection. Disconnects are not logged."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class NonBrowserHandler(BaseHTTPRequestHandler):
    """A handler that refuses browsers, because a page on any website can send requests to local ports."""

    def parse_request(self) -> bool:
        """Checks the origin of a request. Returns False for a refused request, after sending the error."""
        if not super().parse_request():
            return False
        if is_from_browser(self.headers):
            self.close_connection = True
            self.send_error(403, "not for browsers")
            return False
        return True


def is_from_browser(headers: Message) -> bool:
    """Returns whether the request is from a browser, or from a client that uses another host name for this
    machine.
    """
    name = headers.get("Host", HOST).rpartition(":")[0] or headers.get("Host", HOST)
    return name.lower() not in LOOPBACK_NAMES or any(field in headers for field in BROWSER_FIELDS)


def answers_http(url: str) -> bool:
    """Returns whether a GET of this loopback URL succeeds."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(200 <= response.status < 300)
    except (OSError, urllib.error.URLError, ValueError):
        return False


__all__ = ["HOST", "HttpServer", "LocalError", "NonBrowserHandler", "Server", "answers_http"]
