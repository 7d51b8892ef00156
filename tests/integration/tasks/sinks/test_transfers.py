"""Tests libcurl requests: bodies of any size, dead connections, endless responses, TLS, and cancellation."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ingest.local.servers.tls import TlsProxy, make_certificates
from tasks.sinks.http.answers import Answer
from tasks.sinks.http.transfers import ANSWER_BYTES_MAX, WHOLE_BODY_BYTES_MAX, Proxies, Transfers
from tasks.sinks.outcome import Blame, Failure
from tasks.units import MiB
from tests.kit.scripted_server import Answer as Reply
from tests.kit.scripted_server import ReceivedRequest, answering

HEADERS = ["Content-Type: application/octet-stream", "Expect:"]
End = Answer | Failure


def next_results(transfers: Transfers, count: int, seconds_max: float = 20) -> dict[object, End]:
    """Waits for the next `count` results, and returns them by key."""
    found: dict[object, End] = {}
    deadline = time.monotonic() + seconds_max
    while len(found) < count and time.monotonic() < deadline:
        found.update(transfers.wait(0.5))
    return found


def test_bodies_of_any_size_arrive_whole() -> None:
    """A body arrives complete, whether it is sent at once or in chunks, and whether it is bytes or a memoryview.

    The sizes include zero and the threshold between the two modes.
    """
    bodies = {
        "empty": b"",
        "small": memoryview(b"<<view>>")[2:6],
        "bound": os.urandom(WHOLE_BODY_BYTES_MAX),
        "large": memoryview(os.urandom(3 * MiB + 7)),
    }
    with answering(lambda request: Reply(body=request.path.encode())) as (url, requests):
        transfers = Transfers(2)
        for again in range(2):  # The second round reuses the connections of the first.
            todo = list(bodies)
            found: dict[object, End] = {}
            while todo or transfers.running:
                while todo and transfers.room:
                    name = todo.pop()
                    transfers.start(name, f"{url}/{name}{again}", HEADERS, bodies[name], 20)
                found.update(transfers.wait(1))
            assert found == {name: Answer(200, f"/{name}{again}".encode()) for name in bodies}
        transfers.close()

    assert {request.path: request.body for request in requests} == {
        f"/{name}{again}": bytes(body) for name, body in bodies.items() for again in range(2)
    }


@pytest.mark.parametrize("size_bytes", [100, 2 * MiB])
def test_a_dead_reused_connection_causes_a_second_request(size_bytes: int) -> None:
    """If a reused connection is dead, the body is sent again from its start on a new connection, even if it is
    read in chunks.
    """
    body, cuts = os.urandom(size_bytes), iter([False, True, False])

    with answering(lambda request: Reply(cut=next(cuts))) as (url, requests):
        transfers = Transfers(1)
        for number in range(2):
            transfers.start(number, url, HEADERS, body, 20)
            assert next_results(transfers, 1) == {number: Answer(200, b"{}")}
        transfers.close()

    assert [request.body == body for request in requests] == [True] * 3


def test_an_endless_response_is_truncated_and_keeps_its_status() -> None:
    """An endless response is truncated, which bounds memory use, and keeps its status."""
    with answering(lambda request: Reply(502, b"x" * (3 * ANSWER_BYTES_MAX), {"Retry-After": "3"})) as (url, _):
        transfers = Transfers(1)
        transfers.start("a", url, HEADERS, b"body", 20)
        (end,) = next_results(transfers, 1).values()
        transfers.close()

    assert isinstance(end, Answer)
    assert (end.status, end.retry_after_seconds) == (502, 3.0)
    assert len(end.body) <= ANSWER_BYTES_MAX


def test_a_cancelled_request_has_no_result_and_the_next_one_works() -> None:
    """A cancelled request returns no result, and the next request succeeds even though the server has not
    responded to the cancelled one.
    """
    never = threading.Event()

    def reply(request: ReceivedRequest) -> Reply:
        return Reply(delay=never) if "hang" in request.path else Reply()

    with answering(reply) as (url, _):
        transfers = Transfers(2)
        transfers.start("hang", f"{url}/hang", HEADERS, b"body", 20)
        assert transfers.wait(0.3) == []
        assert transfers.running == ["hang"]
        transfers.abandon()
        transfers.start("next", url, HEADERS, b"body", 20)
        assert next_results(transfers, 1) == {"next": Answer(200, b"{}")}
        never.set()
        transfers.close()


def test_a_deadline_ends_a_request_that_hangs() -> None:
    """A request that hangs ends at its deadline, without being cancelled by the caller."""
    never = threading.Event()
    with answering(lambda request: Reply(delay=never)) as (url, _):
        transfers = Transfers(1)
        transfers.start("a", url, HEADERS, b"body", 0.3)
        (end,) = next_results(transfers, 1).values()
        never.set()
        transfers.close()

    assert isinstance(end, Failure)
    assert end.blame is Blame.NETWORK


def test_a_server_must_show_a_certificate_of_a_trusted_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate issued by an unknown authority is refused, and the error is classified as one that an operator
    must fix.

    An authority in SSL_CERT_FILE is trusted, as in Python itself.
    """
    certificates = make_certificates(tmp_path)
    with answering(lambda request: Reply()) as (url, requests):
        port = urlsplit(url).port
        assert port is not None
        with TlsProxy(port, certificates) as proxy:
            secure = f"https://127.0.0.1:{proxy.port}/"
            transfers = Transfers(1)
            transfers.start("strange", secure, HEADERS, b"body", 20)
            (end,) = next_results(transfers, 1).values()
            transfers.close()
            assert isinstance(end, Failure)
            assert end.blame is Blame.REQUEST
            assert requests == []

            monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
            transfers = Transfers(1)
            transfers.start("known", secure, HEADERS, b"body", 20)
            assert next_results(transfers, 1) == {"known": Answer(200, b"{}")}
            transfers.close()


def test_https_goes_through_the_proxy_of_the_environment_and_plain_http_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HTTPS requests go through the proxy that environment variables configure; plain HTTP requests do not.

    Requests to an emulator on the loopback interface bypass the proxy.
    """
    with (
        answering(lambda request: Reply(403)) as (proxy, _),
        answering(lambda request: Reply()) as (url, requests),
    ):
        monkeypatch.setenv("https_proxy", proxy)
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        transfers = Transfers(2)
        transfers.start("plain", url, HEADERS, b"body", 20)
        transfers.start("secure", "https://storage.invalid/", HEADERS, b"body", 20)
        found = next_results(transfers, 2)
        transfers.close()

    assert found["plain"] == Answer(200, b"{}")
    assert isinstance(found["secure"], Failure)
    assert "proxy" in found["secure"].message.lower() or "CONNECT" in found["secure"].message
    assert len(requests) == 1


def test_plain_http_uses_the_proxy_where_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain HTTP requests to ClickHouse go through the proxy that environment variables configure, as with
    ClickHouse's official client."""
    with answering(lambda request: Reply(body=request.path.encode())) as (proxy, requests):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        transfers = Transfers(1, proxies=Proxies.ALL)
        end = transfers.send("http://clickhouse.invalid:8123/?a=b", HEADERS, b"body", 20)
        transfers.close()

    assert end == Answer(200, b"http://clickhouse.invalid:8123/?a=b")
    assert len(requests) == 1


def test_a_proxy_that_requires_a_login_needs_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 407 for CONNECT comes from the proxy and not from the sink; it requires an operator, because a retry does
    not help.
    """
    with answering(lambda request: Reply(407)) as (proxy, _):
        monkeypatch.setenv("https_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        transfers = Transfers(1)
        end = transfers.send("https://storage.invalid/", HEADERS, b"body", 20)
        transfers.close()

    assert isinstance(end, Failure)
    assert end.blame is Blame.CREDENTIALS
    assert "407" in end.message
