"""Clients of the probe port can neither block probes nor exhaust threads."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from ingest.local.servers.processes import wait_until
from tasks.observe import probe_server
from tasks.observe.probe_server import CONNECTIONS_MAX, Probes

SLOW_CLIENTS = 300


@pytest.fixture
def probes() -> Iterator[Probes]:
    """A running probe server."""
    served = Probes(
        "127.0.0.1", 0, lambda: {"x": ""}, lambda: {"x": ""}, CollectorRegistry, setting="REPLAYS_HTTP"
    )
    yield served
    served.close()


def slow_client(probes: Probes) -> socket.socket:
    """A client that begins a request and never completes it."""
    made = socket.create_connection(("127.0.0.1", probes.port), timeout=20)
    made.sendall(b"GET /livez HTTP/1.1\r\nX: ")
    return made


def probe_succeeds(probes: Probes) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{probes.port}/livez", timeout=10) as answer:
        return bool(answer.status == 200)


def threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_clients_that_never_end_their_request_do_not_keep_probes_out(probes: Probes):
    """While hundreds of clients never complete their requests, a probe gets its response, and the number of
    threads is bounded.
    """
    with ExitStack() as clients:
        for _ in range(SLOW_CLIENTS):
            clients.enter_context(slow_client(probes))
            assert threads() <= CONNECTIONS_MAX + 1
        assert probe_succeeds(probes)
        assert threads() <= CONNECTIONS_MAX + 1
    wait_until(lambda: threads() == 0, 20, "the threads to end")
    assert probe_succeeds(probes)


def test_a_slow_request_has_a_deadline(probes: Probes, monkeypatch: pytest.MonkeyPatch):
    """A slow request has a deadline, so sending an occasional byte does not keep a connection open."""
    monkeypatch.setattr(probe_server, "REQUEST_SECONDS_MAX", 0.5)
    gone = threading.Event()

    def drip() -> bool:
        try:
            client.sendall(b"y")
        except OSError:
            gone.set()
        return gone.is_set()

    with slow_client(probes) as client:
        wait_until(drip, 20, "the server to hang up")
    assert probe_succeeds(probes)
