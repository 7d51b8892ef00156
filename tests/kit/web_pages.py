"""The web pages' server, run in this process, and a client that reads responses as a browser does."""

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
class SeenResponse:
    """A response as the client receives it."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error message in the response."""
        return str(self.json["error"])


@dataclass(frozen=True, slots=True)
class Client:
    """A client of one server that signs in as `login` ("user:password"), or uses the session of `cookie` if that
    is given.
    """

    address: str
    login: str = ""
    cookie: str = ""

    def get(self, path: str, **headers: str) -> SeenResponse:
        return self.ask("GET", path, b"", headers)

    def post(self, path: str, body: Any, **headers: str) -> SeenResponse:
        """Sends a POST. `body` is sent as JSON, or unchanged if it is bytes."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, sent, {"Content-Type": "application/json", **headers})

    def ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> SeenResponse:
        """Sends a request. Underscores in header names become hyphens."""
        place = urlsplit(self.address)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.login:
            sent["Authorization"] = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.cookie:
            sent["Cookie"] = self.cookie
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return SeenResponse(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


def signed_in(address: str, link: str) -> Client:
    """Returns a client that is signed in with the printed link."""
    seen = Client(address).get(link)
    return Client(address, cookie=(seen.headers["Set-Cookie"] or "").partition(";")[0])


@contextmanager
def running(settings: Settings, *, login: bool = True) -> Iterator[queue.SimpleQueue[tuple[str, str]]]:
    """Runs a server with the given settings, and yields a queue that receives its (address, link)."""
    announced: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def announce(address: str, link: str) -> None:
        announced.put((address, link))

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve(settings, 0, announce, stop, login=login))
        loop.close()

    thread = threading.Thread(target=work, name="web", daemon=True)
    thread.start()
    try:
        yield announced
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_SECONDS_MAX)


@contextmanager
def served(settings: Settings) -> Iterator[Client]:
    """Runs a server with the given settings, and yields a client that is signed in with its link."""
    with running(settings) as announced:
        yield signed_in(*announced.get(timeout=START_SECONDS_MAX))
