"""The fault proxy: to a client, each fault looks like the failure of a real server."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import pytest

from ingest.local.servers.base import HttpServer
from ingest.local.servers.fault_proxy import (
    Errors,
    Fault,
    FaultProxy,
    Hang,
    Latency,
    LostReplies,
    NoFault,
    Refuse,
    Reset,
    SeveralErrors,
)


class Echo(BaseHTTPRequestHandler):
    """A server that returns the body of each POST, chunked if requested, and counts requests."""

    protocol_version = "HTTP/1.1"
    served: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.served.append(body)
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (body[:3], body[3:]):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def target() -> Iterator[str]:
    Echo.served.clear()
    server = HttpServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def post(connection: http.client.HTTPConnection, body: bytes, path: str = "/") -> tuple[int, bytes]:
    connection.request("POST", path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def client(proxy: FaultProxy, timeout_seconds: float = 5) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout_seconds)


@pytest.mark.parametrize("http_aware", [False, True])
def test_a_healthy_proxy_changes_nothing(target: str, http_aware: bool):
    """Without a fault, the proxy forwards bodies unchanged: chunked bodies, bodies of several megabytes, and the
    bodies of several requests on one connection.
    """
    with FaultProxy(target, http=http_aware) as proxy:
        connection = client(proxy)

        assert post(connection, b"abc") == (200, b"abc")
        assert post(connection, b"abcdef", "/chunked") == (200, b"abcdef")
        big = b"x" * 3_000_000
        assert (200, big) == post(connection, big)


@pytest.mark.parametrize(("fault", "error"), [(Refuse(), ConnectionRefusedError), (Reset(), OSError)])
def test_a_refused_or_reset_connection_fails_at_once_and_works_again_after(
    target: str, fault: Fault, error: type[Exception]
):
    """Refusing or resetting connections also closes open connections; the proxy later works again on the same
    port.
    """
    with FaultProxy(target) as proxy:
        open_one = client(proxy)
        post(open_one, b"before")
        proxy.set(fault)

        with pytest.raises((OSError, http.client.HTTPException)):
            post(open_one, b"cut")
        with pytest.raises(error):
            post(client(proxy), b"refused")
        proxy.set(NoFault())
        assert post(client(proxy), b"after") == (200, b"after")


@pytest.mark.parametrize("http_aware", [False, True])
def test_a_hung_server_responds_after_the_hang(target: str, http_aware: bool):
    """While the server hangs, a client with a short timeout gets an error, and a client that waits long enough
    gets its response.
    """
    with FaultProxy(target, http=http_aware) as proxy:
        proxy.set(Hang())
        with pytest.raises(TimeoutError):
            post(client(proxy, timeout_seconds=0.2), b"impatient")

        patient = client(proxy)
        patient.request("POST", "/", b"patient")
        proxy.set(NoFault())
        assert patient.getresponse().read() == b"patient"


def test_latency_delays_each_request(target: str):
    """A short latency only delays a request; if the client times out first, the request has not reached the
    server.
    """
    with FaultProxy(target, http=True) as proxy:
        proxy.set(Latency(30))
        with pytest.raises(TimeoutError):
            post(client(proxy, timeout_seconds=0.2), b"impatient")
        assert Echo.served == []

        proxy.set(Latency(0.01))
        assert post(client(proxy), b"slow") == (200, b"slow")
        assert proxy.counts["delayed"] == 2


def test_a_share_of_requests_fails_the_same_way_for_the_same_seed(target: str):
    """Two proxies with the same seed fail the same requests, and a failed request never reaches the server."""
    seen = []
    for _ in range(2):
        Echo.served.clear()
        with FaultProxy(target, http=True, seed=7) as proxy:
            proxy.set(Errors(503, share=0.4))
            connection = client(proxy)
            statuses = [post(connection, b"%d" % number)[0] for number in range(40)]
        seen.append(statuses)
        assert statuses.count(200) == len(Echo.served)
        assert proxy.counts["status 503"] == statuses.count(503)

    assert seen[0] == seen[1]
    assert 0 < seen[0].count(503) < 40


def test_several_errors_have_a_share_each(target: str):
    """With two configured errors, a quarter of the requests get the first error, half get the second, and the
    rest pass.
    """
    with FaultProxy(target, http=True, seed=3) as proxy:
        proxy.set(SeveralErrors((Errors(503, share=0.25), Errors(429, share=0.5))))
        connection = client(proxy)
        statuses = [post(connection, b"%d" % number)[0] for number in range(200)]

    counts = {status: statuses.count(status) for status in (503, 429, 200)}
    assert sum(counts.values()) == 200
    assert all(0.15 < counts[status] / 200 < 0.35 for status in (503, 200))
    assert 0.4 < counts[429] / 200 < 0.6


def test_the_request_of_a_lost_reply_was_executed(target: str):
    """If a reply is lost, the server has executed the request, but the client has not received the response."""
    with FaultProxy(target, http=True) as proxy:
        proxy.set(LostReplies())
        with pytest.raises((OSError, http.client.HTTPException)):
            post(client(proxy), b"was it done?")

    assert Echo.served == [b"was it done?"]
    assert proxy.counts["lost replies"] == 1


def test_an_http_fault_needs_a_proxy_that_reads_http(target: str):
    """An HTTP fault on a TCP proxy is an error; otherwise a chaos run would silently inject nothing."""
    with FaultProxy(target) as proxy, pytest.raises(ValueError, match="http=True"):
        proxy.set(Errors(500))


def test_bytes_of_any_protocol_pass():
    """In TCP mode, the proxy passes the bytes of any protocol, even if the server sends first."""
    listener = socket.create_server(("127.0.0.1", 0))
    with (
        listener,
        FaultProxy(f"127.0.0.1:{listener.getsockname()[1]}") as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as near,
    ):
        far, _ = listener.accept()
        with far:
            far.sendall(b"hello")
            assert near.recv(16) == b"hello"
            near.sendall(b"and back")
            assert far.recv(16) == b"and back"
