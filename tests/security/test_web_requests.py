"""A bad request is reported as the client's fault: whatever its bytes are, the response has a 4xx status, and the
server continues.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from ingest.settings import Settings
from ingest.web.base import TOKEN_HEADER
from tests.kit.web_pages import Client, served

SEED, REQUESTS = 20_260_711, 500
REPLAY = f"7/{'a' * 32}"
LONG_NUMBER = "9" * 5000
TARGETS = (
    "/static/%00",
    "/static/list.js%00",
    "/static/../server.py",
    "/static/%2e%2e/server.py",
    "/static/..%2fserver.py",
    "/static//etc/passwd",
    "/static/vendor",
    "/static/vendor/",
    "/static/%ff",
    "/static/%",
    "/%",
    "/%zz",
    "/%00",
    "//",
    "/replay/7/%00",
    f"/replay/{LONG_NUMBER}/{'a' * 32}",
    f"/api/replays/{'9' * 20}/{'a' * 32}",
    f"/api/replays/{'9' * 20}/{'a' * 32}/timeline",
    f"/api/replays/7/{'-' * 36}",
    f"/api/replays/7/{'a' * 33}",
    f"/api/replays/{REPLAY}/segments/{'9' * 18}",
    f"/api/replays/{REPLAY}/segments/-1",
    f"/api/replays?project={LONG_NUMBER}",
    "/api/replays?project=%D9%A7",  # This character is a digit, but not an ASCII digit.
    "/api/replays?project=%C2%B2",
    "/api/replays?limit=1e3",
    "/api/replays?limit=0x10",
    "/api/replays?offset=" + "9" * 19,
    "/api/replays?since=" + "9" * 30,
    "/api/replays?text=%ff%fe",
    "/api/replays?text=%",
    "/api/replays?text=%00",
    "/api/replays?text=" + "x" * 5000,
    "/api/replays?release=" + "x" * 5000,
    "/api/replays?text=%5C&release=%5CN",
    "/api/replays?text=%09%0a%0d%27%22%60%7B%7D",
    "/api/replays?" + "&".join(f"a{number}=1" for number in range(4000)),
    "/login?token=%ff",
    "/login?token=" + "x" * 5000,
    "/login?token=%C3%A9",
    "http://rebound.example/",
    "*",
)
BODIES = (
    b"[" * 100_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b'{"batch_id":' + b"9" * 10_000 + b"}",
    b'{"batch_id":"\\ud800"}',
    b'{"batch_id":["x"]}',
    b'{"batch_id":"' + b"x" * 200_000 + b'"}',
    b'{"ids":[' + b'"0-0",' * 20_000 + b'"0-0"]}',
    b'{"ids":["' + b"x" * 200_000 + b'"]}',
    b'{"ids":["\\u0000"]}',
    b'{"ids":[1e999]}',
    b"\xff\xfe",
    b"null",
    b"x" * 400_000,
)
HEADERS = (
    f"Range: bytes={LONG_NUMBER}-",
    f"Range: bytes=-{LONG_NUMBER}",
    "Range: bytes=\xb2-",
    "If-None-Match: \xff",
    "If-Modified-Since: Mon, 99 Foo 99999 99:99:99 GMT",
    "Cookie: a=\xff; replays_1=....",
    "Authorization: Basic =",
    "Authorization: Basic " + "A" * 4000,
    "Authorization: \xff\xfe",
    "Content-Length: -1",
    "Content-Length: x",
    "Transfer-Encoding: chunked, chunked",
    "Content-Type: multipart/form-data; boundary=",
    "Content-Type: application/x-www-form-urlencoded",
    "Expect: 100-continue",
    "Host: a, b",
    "X: " + "y" * 40_000,
    "no colon",
)


@pytest.fixture(scope="module")
def client(stored: Settings) -> Iterator[Client]:
    """A signed-in client of the web pages, which are connected to running servers."""
    with served(stored) as running:
        yield running


def status_of(client: Client, method: str, target: str, *headers: str, body: bytes = b"") -> int:
    """Sends raw bytes, and returns the status, or 400 if the server closes the connection instead."""
    place = urlsplit(client.address)
    lines = [f"{method} {target} HTTP/1.1", *headers, "Connection: close", f"Cookie: {client.cookie}"]
    if not any(header.lower().startswith("host:") for header in headers):
        lines.append(f"Host: {place.netloc}")
    if body and not any(header.lower().startswith("content-length:") for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        found = b""
        try:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            connection.shutdown(socket.SHUT_WR)
            while len(found) < 64 and (part := connection.recv(4096)):
                found = (found + part).removeprefix(b"HTTP/1.1 100 (Continue)\r\n\r\n")
        except OSError:  # also ENOTCONN, if the server has closed the connection before the shutdown
            pass
    return int(found.split(b" ")[1]) if found.startswith(b"HTTP/") else 400


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[:40])
def test_no_address_causes_a_server_error(client: Client, target: str):
    """Every requested path gets a status below 500, and no file outside the static directory is served."""
    assert 200 <= status_of(client, "GET", target) < 500
    if target.startswith("/static/"):
        assert status_of(client, "GET", target) >= 400


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_no_body_causes_a_server_error(client: Client, number: int):
    """Whatever its body, a request gets a 4xx status. It has the page's own token, so that the body is read."""
    token = f"{TOKEN_HEADER}: {client.get('/api/operate').json['token']}"
    for path in ("/api/operate/batches/retry", "/api/operate/batches/abandon", "/api/operate/letters"):
        sent = (token, "Content-Type: application/json")
        assert 400 <= status_of(client, "POST", path, *sent, body=BODIES[number]) < 500
        assert status_of(client, "POST", path, token, body=b"{}") == 415
        assert status_of(client, "POST", path, token, "Content-Type: text/plain", body=b"{}") == 415


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_no_header_causes_a_server_error(client: Client, number: int):
    """A request for a page, a file, a video or a missing path gets a status below 500, whatever headers it has."""
    for path in ("/", "/static/list.js", f"/api/replays/{REPLAY}/segments/0/video", "/login", "/nowhere"):
        assert 200 <= status_of(client, "GET", path, HEADERS[number]) < 500


@pytest.mark.parametrize("sent", ["", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_a_client_that_sends_no_request_keeps_no_connection(
    stored: Settings, monkeypatch: pytest.MonkeyPatch, sent: str
):
    """A connection on which no complete request arrives is closed when REQUEST_SECONDS_MAX has passed.

    Otherwise, clients without a login could use up the limited number of connections.
    """
    monkeypatch.setattr("ingest.web.server.REQUEST_SECONDS_MAX", 0.2)
    with served(stored) as running:
        place = urlsplit(running.address)
        with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
            connection.sendall(sent.encode())
            assert connection.recv(100) == b""
        assert running.get("/").status == 200


def test_random_requests_cause_no_server_error(client: Client):
    """Random combinations of parts of valid and invalid requests get a status below 500."""
    chosen = random.Random(SEED)
    pieces = ["/", "/api", "/replays", "/7", "/" + "a" * 32, "/static", "/operate", "/segments", "/0", "/timeline"]
    pieces += [
        "%00",
        "%ff",
        "%2f",
        "..",
        ";",
        "?",
        "&",
        "=",
        "#",
        "\\",
        "\xe9",
        "project",
        "text",
        "raw=1",
        "9" * 25,
    ]
    for number in range(REQUESTS):
        target = "/" + "".join(chosen.choices(pieces, k=chosen.randint(1, 9)))
        method = chosen.choice(
            ("GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "\x01")
        )
        header = chosen.choice(HEADERS)
        status = status_of(client, method, target, header, body=chosen.choice((b"", b"", b"{}", b"\x00")))
        assert 200 <= status < 500, (SEED, number, method, target, header)
    assert client.get("/").status == 200
