"""A small HTTP server for /livez, /readyz and /metrics, the same in the reader and in a worker.

Loopback unless told otherwise, no other path, GET and HEAD only, a few threads at most at a time.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tasks.loading import SettingsError

REQUEST_SECONDS_MAX = 10.0


class CannotListen(SettingsError):
    """The address is in use or not ours. The text says which and what to do."""

    def __init__(self, host: str, port: int, setting: str, error: Exception) -> None:
        super().__init__(
            f"cannot serve probes and metrics on {host}:{port} ({error}): set {setting}_PORT and "
            f"{setting}_HOST to a free address of this machine, or stop the process that uses it"
        )


def ensure_free(host: str, port: int) -> None:
    """Raises OSError or OverflowError when nothing can listen there now. Keeps nothing open; port 0 is free."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:1]:
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)


def ensure_probes_can_listen(host: str, port: int, *, setting: str) -> None:
    """Raises CannotListen when `Probes` could not listen there now: known before anything else is started."""
    try:
        ensure_free(host, port)
    except (OSError, OverflowError) as error:
        raise CannotListen(host, port, setting, error) from error


Checks = Mapping[str, str]  # name of what was looked at -> "" when well, else what is wrong


class Probes:
    """Serves until `close`. `live` and `ready` return their checks; any wrong one makes the answer 503.

    `setting` names the settings of host and port for errors (CannotListen). `registry` is called at each scrape.
    Answers are JSON: {"ok": bool, "checks": {name: "" | what is wrong}}.
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
                """A probe every few seconds is not worth a line."""

        self._live, self._ready, self._registry = live, ready, registry
        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise CannotListen(host, port, setting, error) from error
        self._server.daemon_threads = True
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
        except Exception as failure:  # a probe that fails must say so, not hang up
            return 500, "text/plain; charset=utf-8", f"{type(failure).__name__}: {failure}\n".encode()
        return 404, "text/plain; charset=utf-8", b"/livez /readyz /metrics\n"
