"""A small HTTP server for /livez, /readyz and /metrics, used by readers and workers.

The server listens on the loopback interface by default, serves no other paths, and accepts only GET and HEAD.
Clients can neither exhaust threads nor block probes: at most CONNECTIONS_MAX connections are served at once, each
for at most REQUEST_SECONDS_MAX; when all are in use, the oldest is closed.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tasks.loading import SettingsError

# Total time per request. Kubernetes allows one second per probe, and Prometheus ten seconds per scrape.
REQUEST_SECONDS_MAX = 10.0
CONNECTIONS_MAX = 16
# Maximum time for the thread of a closed connection to end.
FREE_SLOT_SECONDS_MAX = 1.0


class ListenError(SettingsError):
    """The address is in use or not local. The message names the address and states what to do."""

    def __init__(self, host: str, port: int, setting: str, error: Exception) -> None:
        super().__init__(
            f"cannot serve probes and metrics on {host}:{port} ({error}): set {setting}_PORT and "
            f"{setting}_HOST to a free address of this machine, or stop the process that uses it"
        )


def ensure_free(host: str, port: int) -> None:
    """Raises OSError or OverflowError if this process cannot listen on the address. The socket opened for the
    check is closed again. Port 0 stands for any free port, so it is never in use.
    """
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:1]:
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)


def ensure_probes_can_listen(host: str, port: int, *, setting: str) -> None:
    """Raises ListenError if `Probes` could not listen on this address. Called before anything else starts."""
    try:
        ensure_free(host, port)
    except (OSError, OverflowError) as error:
        raise ListenError(host, port, setting, error) from error


Checks = Mapping[str, str]  # maps the name of each check to "" if it is healthy, otherwise to the problem


class Probes:
    """Serves until `close`. `live` and `ready` return checks; if any of them fails, the status is 503.

    `setting` is the common prefix of the host and port settings, for the text of ListenError. `registry` is
    called for each scrape. Responses are JSON: {"ok": bool, "checks": {name: "" | what is wrong}}.
    """

    def __init__(
        self,
        host: str,
        port: int,
        live: Callable[[], Checks],
        ready: Callable[[], Checks],
        registry: Callable[[], CollectorRegistry],
        *,
        setting: str,
    ) -> None:
        probes = self

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS_MAX
            server_version = "replays-ingest"
            sys_version = ""

            def do_GET(self) -> None:
                status, kind, body = probes._answer(self.path.split("?")[0], self.headers.get("Accept") or "")
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Probes are not logged."""

        self._live, self._ready, self._registry = live, ready, registry
        try:
            self._server = _Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ListenError(host, port, setting, error) from error
        self.host = host
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2.0)

    def _answer(self, path: str, accept: str) -> tuple[int, str, bytes]:
        try:
            if path == "/metrics":
                encode, kind = choose_encoder(accept)
                return 200, kind, encode(self._registry())
            if path in ("/livez", "/readyz"):
                checks = self._live() if path == "/livez" else self._ready()
                ok = not any(checks.values())
                body = msgspec.json.encode({"ok": ok, "checks": dict(checks)})
                return 200 if ok else 503, "application/json", body
        except Exception as failure:  # respond with an error instead of closing the connection
            return 500, "text/plain; charset=utf-8", f"{type(failure).__name__}: {failure}\n".encode()
        return 404, "text/plain; charset=utf-8", b"/livez /readyz /metrics\n"


class _Server(ThreadingHTTPServer):
    """A server with one thread per connection. The number and the duration of connections are limited."""

    daemon_threads = True
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.Semaphore(CONNECTIONS_MAX)
        self._lock = threading.Lock()
        self._began: dict[socket.socket, float] = {}  # start times of connections, in order of arrival
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Called by the accepting thread."""
        if not self._room.acquire(blocking=False):
            self._hang_up(1)
            if not self._room.acquire(timeout=FREE_SLOT_SECONDS_MAX):
                self.shutdown_request(request)
                return
        with self._lock:
            self._began[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system cannot start another thread
            self._ended(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._ended(request)

    def service_actions(self) -> None:
        """Called by `serve_forever` after each new connection, and every 0.5 s while there is none."""
        started_before = time.monotonic() - REQUEST_SECONDS_MAX
        with self._lock:
            expired = sum(began < started_before for began in self._began.values())
        self._hang_up(expired)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Closed connections are not logged."""

    def _hang_up(self, count: int) -> None:
        """Closes the oldest connections; their threads then end."""
        with self._lock:
            for request in list(self._began)[:count]:
                del self._began[request]
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def _ended(self, request: Any) -> None:
        with self._lock:
            self._began.pop(request, None)
        self._room.release()
