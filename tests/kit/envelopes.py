"""Envelopes as SDKs send them, and an endpoint in this process that receives them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ingest.settings import Settings
from ingest.trial import server
from ingest.trial.endpoint.handler import Endpoint
from ingest.trial.endpoint.messages import Project
from ingest.trial.sessions import Sessions
from ingest.trial.shop import Trial
from ingest.web.login import Login
from ingest.web.reads import Reads
from tests.kit.recordings import Recording
from tests.kit.web_pages import Client, SeenResponse

KEY = "5" * 32
PROJECT = Project(project_id=1)
STOP_SECONDS_MAX = 30.0


def item(kind: str, payload: bytes, *, length: bool = True, **header: Any) -> bytes:
    """Returns one item of an envelope."""
    about = {"type": kind, **({"length": len(payload)} if length else {}), **header}
    return json.dumps(about).encode() + b"\n" + payload + b"\n"


def envelope(*items: bytes, event_id: str = "a" * 32, **header: Any) -> bytes:
    """Returns an envelope with the given items."""
    return json.dumps({"event_id": event_id, **header}).encode() + b"\n" + b"".join(items)


def sent_by_the_sdk(recorded: Recording, number: int) -> tuple[bytes, dict[str, Any]]:
    """Returns the envelope from which a recorded Kafka value was made, and the normalized replay event in that
    value.
    """
    value = msgspec.msgpack.decode(recorded.values[number])
    normalized = json.loads(value["replay_event"])
    event = json.loads(value["replay_event"])
    if "tags" in event:
        event["tags"] = dict(event["tags"])
    event["request"]["headers"] = dict(event["request"]["headers"])
    del event["user"]["ip_address"]
    if not event["user"]:
        del event["user"]
    for name in ("browser", "os", "device"):
        del event["contexts"][name]
    content = envelope(
        item("replay_event", json.dumps(event).encode(), length=False),
        item("replay_recording", value["payload"]),
        event_id=value["replay_id"],
        sdk={"name": "sentry.javascript.browser", "version": "11.12.0"},
    )
    return content, normalized


@dataclass
class Receiver:
    """A running endpoint, and the Kafka values that it produced."""

    address: str
    endpoint: Endpoint
    values: list[bytes] = field(default_factory=list)

    @property
    def host(self) -> tuple[str, int]:
        place = urlsplit(self.address)
        return place.hostname or "", place.port or 0

    def post(self, body: bytes, *, key: str = KEY, project: str = "1", **headers: str) -> SeenResponse:
        """Sends an envelope."""
        return Client(self.address).ask("POST", f"/api/{project}/envelope/?sentry_key={key}", body, headers)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Runs an endpoint that collects its Kafka values instead of producing them to a broker."""
    (sockets, stop, loop) = (server.bound("127.0.0.1", 0), asyncio.Event(), asyncio.new_event_loop())
    address = "http://{}:{}".format(*sockets[0].getsockname())
    settings = Settings()
    sessions = Sessions(settings, PROJECT.project_id)
    values: list[bytes] = []
    endpoint = Endpoint(PROJECT, KEY, values.append, sessions.add, names=server.LOOPBACK)
    trial = Trial(
        endpoint,
        sessions,
        Reads(settings),
        Login(settings),
        server.LOOPBACK,
        "dsn",
        "",
        "replays_0",
        lambda *_: None,
    )

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(server.serve(trial, sockets, stop))
        loop.close()

    thread = threading.Thread(target=work, name="endpoint", daemon=True)
    thread.start()
    try:
        yield Receiver(address, endpoint, values)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(STOP_SECONDS_MAX)
        trial.reads.close()
