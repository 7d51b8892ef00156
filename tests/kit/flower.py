"""A running Flower for tests of its pages, and a client that is signed in."""

from __future__ import annotations

import base64
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from ingest.local.servers.base import answers_http
from ingest.local.servers.processes import Child, free_port
from tests.kit.fleet import Fleet
from tests.kit.paths import ROOT

PASSWORD = "operator:correct-horse"
COMMANDS = {
    "celery": [sys.executable, "-m", "celery", "-A", "tasks", "flower"],
    "replays-ingest": [sys.executable, "-m", "ingest.cli", "flower"],
}


@dataclass
class FlowerClient:
    """A running Flower server. Calling the client with (path, body, **headers) sends a request, and returns the
    status and text of the response.
    """

    fleet: Fleet
    command: list[str]
    environment: dict[str, str]
    address: str
    _children: list[Child] = field(default_factory=list)

    def start(self) -> None:
        """Starts Flower, and returns once it responds."""
        name = f"flower-{len(self._children)}"
        child = self.fleet.children.start(name, self.command, env=self.environment, cwd=ROOT)
        self._children.append(child)
        self.fleet.wait(lambda: answers_http(f"{self.address}/healthcheck"), "flower")

    def restart(self) -> None:
        """Stops Flower as a deployment does, and starts it again."""
        self._children[-1].stop()
        self.start()

    def __call__(
        self, path: str, body: str | None = None, password: str | None = PASSWORD, **headers: str
    ) -> tuple[int, str]:
        request = urllib.request.Request(self.address + path, data=body.encode() if body is not None else None)
        if password:
            request.add_header("Authorization", "Basic " + base64.b64encode(password.encode()).decode())
        for name, value in headers.items():
            request.add_header(name, value)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def running(fleet: Fleet, command: str = "celery", **environment: Any) -> FlowerClient:
    """Starts Flower for this fleet with one of COMMANDS."""
    port = free_port()
    made = FlowerClient(
        fleet,
        COMMANDS[command],
        fleet.environment
        | {"REPLAYS_FLOWER_PORT": str(port), "REPLAYS_FLOWER_BASIC_AUTH": PASSWORD}
        | {name: str(value) for name, value in environment.items()},
        f"http://127.0.0.1:{port}",
    )
    made.start()
    return made
