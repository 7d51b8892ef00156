"""DogStatsD: a UDP listener that stores received metrics, so that tests can query them.

`StatsdServer` listens inside this process. `python -m ingest.local.servers.statsd` runs one as a separate process
that can be queried over HTTP: `GET /metrics` (one object per metric and set of tags), `GET /packets?since=N` (raw
lines), `POST /reset`. `Statsd` starts that separate process and queries it. The listener keeps sums indefinitely,
and a bounded number of raw lines.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

from ingest.local.servers.base import HttpServer, NonBrowserHandler, Server, answers_http
from ingest.local.servers.processes import HOST, Children, free_port
from tasks.units import MiB

PACKETS_KEPT_MAX = 100_000
SERIES_MAX = 100_000
VALUES_KEPT_MAX = 10_000
# The kernel buffers bursts that arrive faster than Python reads. The kernel may grant a smaller buffer.
RECEIVE_BUFFER_BYTES = 8 * MiB
DATAGRAM_BYTES_MAX = 65535
KINDS = frozenset({"c", "g", "ms", "h", "s", "d"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: `name:value|kind|@rate|#tag,tag`. A line may contain several values, separated by colons."""

    name: str
    kind: str
    values: tuple[str, ...]
    rate: float
    tags: tuple[str, ...]


@dataclass(slots=True)
class Series:
    """All samples with the same name, kind and set of tags."""

    name: str
    kind: str
    tags: tuple[str, ...]
    count: int = 0
    total: float = 0.0
    low: float = 0.0
    high: float = 0.0
    last: float = 0.0
    values: list[float] = field(default_factory=list)

    def add(self, value: float, rate: float) -> None:
        """Adds a sample. Scales counts by the sample rate, as the agent does."""
        self.low = value if not self.count else min(self.low, value)
        self.high = value if not self.count else max(self.high, value)
        self.count += 1
        self.total += value / rate if self.kind == "c" else value
        self.last = value
        if len(self.values) < VALUES_KEPT_MAX:
            self.values.append(value)

    def view(self) -> dict[str, Any]:
        """Returns the series as JSON values.

        `values` has the first VALUES_KEPT_MAX values, in order of arrival.
        """
        return {
            "name": self.name,
            "kind": self.kind,
            "tags": list(self.tags),
            "count": self.count,
            "sum": self.total,
            "min": self.low,
            "max": self.high,
            "last": self.last,
            "values": self.values,
        }


def parse_line(line: str) -> Sample | None:
    """Parses a sample.

    Returns None for all other lines: events (`_e{`), service checks (`_sc|`) and invalid lines.
    """
    name, colon, rest = line.partition(":")
    values, *parts = rest.split("|")
    if not colon or not name or name.startswith(("_e{", "_sc")) or not parts or parts[0] not in KINDS:
        return None
    rate = 1.0
    tags: tuple[str, ...] = ()
    for part in parts[1:]:
        if part.startswith("@"):
            try:
                rate = float(part[1:])
            except ValueError:
                return None
        elif part.startswith("#"):
            tags = tuple(sorted(part[1:].split(",")))
    return Sample(name, parts[0], tuple(values.split(":")), rate if 0 < rate <= 1 else 1.0, tags)


class Recorder:
    """Stores received metrics. All methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str, tuple[str, ...]], Series] = {}
        self._packets: deque[str] = deque(maxlen=PACKETS_KEPT_MAX)
        self.received = 0
        self.malformed = 0

    def record(self, datagram: bytes) -> None:
        """Records one datagram, which may contain several lines."""
        for line in datagram.decode("utf-8", "replace").split("\n"):
            if line:
                with self._lock:
                    self._record(line)

    def _record(self, line: str) -> None:
        self.received += 1
        self._packets.append(line)
        sample = parse_line(line)
        if sample is None:
            self.malformed += not line.startswith(("_e{", "_sc"))
            return
        key = (sample.name, sample.kind, sample.tags)
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= SERIES_MAX:
                return
            series = self._series[key] = Series(sample.name, sample.kind, sample.tags)
        for text in sample.values:
            try:
                value = float(text) if sample.kind != "s" else 1.0
            except ValueError:
                self.malformed += 1
                continue
            series.add(value, sample.rate)

    def metrics(self, name: str = "") -> list[dict[str, Any]]:
        """Returns one entry per series, ordered by name and tags.

        If `name` is given, only series with that name are returned.
        """
        with self._lock:
            found = [series.view() for series in self._series.values() if name in ("", series.name)]
        return sorted(found, key=lambda entry: (entry["name"], entry["kind"], entry["tags"]))

    def packets(self, since: int = 0) -> tuple[int, list[str]]:
        """Returns the total number of received lines, and the stored lines after the first `since` lines."""
        with self._lock:
            first = self.received - len(self._packets)
            return self.received, list(self._packets)[max(0, since - first) :]

    def reset(self) -> None:
        """Deletes all received metrics."""
        with self._lock:
            self._series.clear()
            self._packets.clear()
            self.received = self.malformed = 0


class StatsdServer:
    """A listener in this process, used as a context manager. `port` is bound when the listener is constructed."""

    def __init__(self, port: int = 0) -> None:
        self.recorder = Recorder()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._socket.bind((HOST, port))
        self._socket.settimeout(0.2)
        self.port: int = self._socket.getsockname()[1]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="statsd", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(5)
        self._socket.close()

    def _receive(self) -> None:
        while not self._closed.is_set():
            try:
                datagram = self._socket.recv(DATAGRAM_BYTES_MAX)
            except TimeoutError:
                continue
            self.recorder.record(datagram)


def sum_of(metrics: Sequence[Mapping[str, Any]], name: str) -> float:
    """Returns the sum of a metric over all its tags."""
    return float(sum(entry["sum"] for entry in metrics if entry["name"] == name))


def count_of(metrics: Sequence[Mapping[str, Any]], name: str) -> int:
    """Returns the number of values received for a metric, over all its tags."""
    return int(sum(entry["count"] for entry in metrics if entry["name"] == name))


class Statsd(Server):
    """The listener as a separate process. `port` is the UDP port, and `http_port` serves queries."""

    name: ClassVar[str] = "statsd"

    def __init__(self, children: Children, directory: Path, *, name: str = "", port: int = 0) -> None:
        super().__init__(children, directory, name=name, port=port)
        self.http_port = 0

    def command(self) -> list[str]:
        """Returns the command line, with the UDP port and the HTTP port."""
        self.http_port = self.http_port or free_port()
        ports = ["--port", str(self.port), "--http-port", str(self.http_port)]
        return [sys.executable, "-m", "ingest.local.servers.statsd", *ports]

    def is_ready(self) -> bool:
        """Returns whether the listener responds over HTTP; its HTTP server starts after the UDP socket is
        bound."""
        return answers_http(f"{self.query_url}/health")

    @property
    def address(self) -> str:
        """The `host:port` of the UDP socket."""
        return f"{HOST}:{self.port}"

    @property
    def query_url(self) -> str:
        """The base URL for queries."""
        return f"http://{HOST}:{self.http_port}"

    def metrics(self, name: str = "") -> list[dict[str, Any]]:
        """See Recorder.metrics."""
        return query_metrics(self.query_url, name)

    def packets(self, since: int = 0) -> list[str]:
        """Returns the stored raw lines after the first `since` lines."""
        lines: list[str] = _ask(f"{self.query_url}/packets?since={since}")["packets"]
        return lines

    def reset(self) -> None:
        """Deletes all received metrics."""
        _ask(f"{self.query_url}/reset", post=True)

    def sum(self, name: str) -> float:
        """Returns the sum of a metric over all its tags."""
        return sum_of(self.metrics(name), name)

    def count(self, name: str) -> int:
        """Returns the number of values received for a metric, over all its tags."""
        return count_of(self.metrics(name), name)


def query_metrics(query_url: str, name: str = "") -> list[dict[str, Any]]:
    """Queries a listener in another process. Raises OSError if the listener does not respond."""
    found: list[dict[str, Any]] = _ask(f"{query_url}/metrics?name={name}")["metrics"]
    return found


def _ask(url: str, *, post: bool = False) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data=b"" if post else None), timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def handler_of(recorder: Recorder) -> type[BaseHTTPRequestHandler]:
    """Returns the class of HTTP handlers for one recorder."""

    class Handler(NonBrowserHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            if url.path == "/health":
                self._answer(200, {"received": recorder.received})
            elif url.path == "/metrics":
                metrics = recorder.metrics(query.get("name", ""))
                self._answer(
                    200, {"received": recorder.received, "malformed": recorder.malformed, "metrics": metrics}
                )
            elif url.path == "/packets" and query.get("since", "0").isdecimal():
                received, packets = recorder.packets(int(query.get("since", "0")))
                self._answer(200, {"received": received, "packets": packets})
            else:
                self._answer(404, {"error": f"no {self.path}"})

        def do_POST(self) -> None:
            if urlsplit(self.path).path == "/reset":
                recorder.reset()
                self._answer(200, {})
            else:
                self._answer(404, {"error": f"no {self.path}"})

        def _answer(self, status: int, body: Mapping[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Does not log requests."""

    return Handler


def main() -> None:
    """Runs the listener: `python -m ingest.local.servers.statsd --port UDP --http-port TCP`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    arguments = parser.parse_args()
    with StatsdServer(arguments.port) as server:
        HttpServer((HOST, arguments.http_port), handler_of(server.recorder)).serve_forever()


if __name__ == "__main__":
    main()
