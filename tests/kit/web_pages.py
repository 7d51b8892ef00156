"""The pages' server in this process, and a client that sees what a browser would see of an answer."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ingest.settings import Settings
from ingest.web.server import serve

START_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """What it says is wrong."""
        return str(self.json["error"])


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one server, as `login` ("user:password") if that is given."""

    address: str
    login: str = ""

    def get(self, path: str, **headers: str) -> Seen:
        return self.ask("GET", path, b"", headers)

    def post(self, path: str, body: Any, **headers: str) -> Seen:
        """`body` is sent as JSON, bytes as they are."""
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Seen:
        """Underscores in the names of headers become hyphens."""
        place = urlsplit(self.address)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.login:
            sent["Authorization"] = "Basic " + base64.b64encode(self.login.encode()).decode()
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Seen(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


@contextmanager
def served(settings: Settings) -> Iterator[Client]:
    """A running server with these settings."""
    addresses: queue.SimpleQueue[str] = queue.SimpleQueue()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve(settings, 0, addresses.put, stop))
        loop.close()

    thread = threading.Thread(target=work, name="web", daemon=True)
    thread.start()
    try:
        yield Client(addresses.get(timeout=START_SECONDS_MAX))
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_SECONDS_MAX)
