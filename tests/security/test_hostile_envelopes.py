"""The endpoint of `replays-ingest try` refuses invalid input with a one-line error, counts it, and limits its
size.
"""

from __future__ import annotations

import gzip
import random
import re
import socket
import zlib
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from ingest.local.servers.processes import wait_until
from ingest.trial.endpoint.body import BODY_BYTES_MAX, ENVELOPE_BYTES_MAX
from ingest.trial.endpoint.handler import BUFFERED_BYTES_MAX
from ingest.trial.endpoint.refusals import Reason
from tasks.units import MiB
from tests.kit.envelopes import KEY, Receiver, envelope, item, receiving, sent_by_the_sdk
from tests.kit.parsing import parsed
from tests.kit.recordings import RECORDINGS
from tests.kit.web_pages import Client

SEED, ENVELOPES = 20_261_128, 300
SHOP = next(one for one in RECORDINGS if one.name == "v11-shop")
GOOD, _ = sent_by_the_sdk(SHOP, 0)
ONE_LINE = re.compile(r"[ -~]{1,200}")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """An endpoint that all tests in this file attack."""
    with receiving() as running:
        yield running


@pytest.fixture(autouse=True)
def still_works(receiver: Receiver) -> Iterator[None]:
    """Checks after every attack that the endpoint accepts a real envelope and retains no memory."""
    yield
    before = len(receiver.values)
    assert receiver.post(GOOD).status == 200
    assert len(receiver.values) == before + 1
    wait_until(lambda: receiver.endpoint.buffered_bytes == 0, 10, "the reservations to end")


def refused(receiver: Receiver, reason: Reason) -> int:
    return receiver.endpoint.refusals[reason.label]


def test_mutated_envelopes_are_accepted_or_refused_in_one_line(receiver: Receiver) -> None:
    """If bytes of an envelope are removed, repeated or changed, or its end is cut off, the response is 200 or 4xx,
    and every refusal is counted.
    """
    rng = random.Random(SEED)
    statuses: list[int] = []
    counted = sum(receiver.endpoint.refusals.values())
    for _ in range(ENVELOPES):
        content = bytearray(GOOD)
        for _ in range(rng.randrange(1, 4)):
            # Most mutations are near the beginning, where most of the structure is.
            place = rng.randrange(len(content) if rng.random() < 0.3 else min(len(content), 2600))
            match rng.randrange(4):
                case 0:
                    del content[place : place + rng.randrange(1, 40)]
                case 1:
                    content[place:place] = content[place : place + rng.randrange(1, 40)]
                case 2:
                    content[place] = rng.randrange(256)
                case _:
                    del content[place:]
                    content += b"\n"
        seen = receiver.post(bytes(content))
        statuses.append(seen.status)
        if seen.status != 200:
            assert ONE_LINE.fullmatch(seen.json["detail"])
            assert seen.headers["X-Sentry-Error"] == seen.json["detail"]

    assert set(statuses) == {200, 400}
    assert sum(receiver.endpoint.refusals.values()) - counted == statuses.count(400)
    for value in receiver.values:
        parsed(value)


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (gzip.compress(bytes(ENVELOPE_BYTES_MAX + 1), 9), "gzip", Reason.ENVELOPE_TOO_LARGE),
        (gzip.compress(GOOD)[:-9], "gzip", Reason.BODY_INVALID),
        (gzip.compress(GOOD) * 2, "gzip", Reason.BODY_INVALID),
        (GOOD, "gzip", Reason.BODY_INVALID),
        (zlib.compress(GOOD), "br", Reason.UNKNOWN_ENCODING),
        (gzip.compress(gzip.compress(GOOD)), "gzip, gzip", Reason.UNKNOWN_ENCODING),
        (bytes(BODY_BYTES_MAX + 1), "", Reason.BODY_TOO_LARGE),
    ],
    ids=lambda value: value.label if isinstance(value, Reason) else "",
)
def test_bodies_are_limited_before_and_after_decompression(
    receiver: Receiver, body: bytes, encoding: str, reason: Reason
) -> None:
    """Decompression of a bomb stops at the limit, and a body that is too long is refused because of its
    declared length.
    """
    before = refused(receiver, reason)

    seen = receiver.post(body, Content_Encoding=encoding) if reason is not Reason.BODY_TOO_LARGE else None
    if seen is None:  # the server does not read the body, so the client may not be able to send all of it
        seen_status, _ = announced(receiver, len(body))
        assert seen_status == 413
    else:
        assert (seen.status, bool(ONE_LINE.fullmatch(seen.json["detail"]))) == (reason.status, True)
    assert refused(receiver, reason) == before + 1


def head(length: int) -> bytes:
    """Returns the beginning of a request that announces a body of the given length."""
    lines = (f"POST /api/1/envelope/?sentry_key={KEY} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def announced(receiver: Receiver, length: int) -> tuple[int, bytes]:
    """Announces a body of the given length without sending it, and returns the status and body of the response."""
    with socket.create_connection(receiver.host, timeout=10) as connection:
        connection.sendall(head(length))
        answer = connection.recv(65536)
    return int(answer.split()[1]), answer


def test_recordings_are_limited_before_and_after_decompression(receiver: Receiver) -> None:
    """A decompression bomb is refused, and so is a recording whose stream is longer than Relay accepts."""
    bomb = b'{"segment_id":0}\n' + zlib.compress(b"[" + b" " * (100 * MiB) + b"]", 1)
    noise = b'{"segment_id":0}\n' + zlib.compress(b"[" + random.Random(1).randbytes(11 * MiB), 0)
    before = refused(receiver, Reason.RECORDING_TOO_LARGE)

    for recording in (bomb, noise):
        seen = receiver.post(envelope(item("replay_recording", recording)))
        assert (seen.status, "recording" in seen.json["detail"]) == (413, True)
    assert refused(receiver, Reason.RECORDING_TOO_LARGE) == before + 2


def test_bodies_that_are_being_received_share_a_bound(receiver: Receiver) -> None:
    """Clients that announce large bodies and send nothing cannot reserve more memory than the limit."""
    held: list[socket.socket] = []
    before = refused(receiver, Reason.BUSY)
    try:
        for _ in range(BUFFERED_BYTES_MAX // BODY_BYTES_MAX):
            held.append(socket.create_connection(receiver.host, timeout=10))
            held[-1].sendall(head(BODY_BYTES_MAX))
            wait_until(
                lambda: receiver.endpoint.buffered_bytes >= len(held) * BODY_BYTES_MAX, 10, "the reservation"
            )
        status, answer = announced(receiver, BODY_BYTES_MAX)
        assert (status, b"Retry-After" in answer) == (503, True)
        assert refused(receiver, Reason.BUSY) == before + 1
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: receiver.endpoint.buffered_bytes == 0, 10, "the reservations to end")


@pytest.mark.parametrize("key", ["", "6" * 32, KEY[:-1], "%00", "é", "5" * 5000])
def test_only_the_key_of_the_dsn_is_accepted(receiver: Receiver, key: str) -> None:
    """Only the key of the DSN is accepted, in the query, in a header or in the envelope; a page without the DSN
    cannot guess the key.
    """
    content = envelope(dsn=f"http://{key}@127.0.0.1/1")
    assert receiver.post(content, key=quote(key)).status == 403
    assert Client(receiver.address).ask("POST", "/api/1/envelope/", content, {}).status == 403
    header = {"X-Sentry-Auth": f"Sentry sentry_version=7, sentry_key={quote(key)}"}
    assert Client(receiver.address).ask("POST", "/api/1/envelope/", content, header).status == 403


def test_the_key_may_be_in_a_header_or_in_the_envelope(receiver: Receiver) -> None:
    """The key may be in a header (as server SDKs send it) or in a DSN in the envelope (as tunnels send it)."""
    header = {"X-Sentry-Auth": f"Sentry sentry_version=7, sentry_key={KEY}, sentry_client=x"}
    assert Client(receiver.address).ask("POST", "/api/1/envelope/", envelope(), header).status == 200
    content = envelope(dsn=f"http://{KEY}@127.0.0.1/1")
    assert Client(receiver.address).ask("POST", "/api/1/envelope", content, {}).status == 200


def test_requests_for_other_hosts_and_projects_are_refused(receiver: Receiver) -> None:
    """Requests for other hosts and projects are refused, even if the host name resolves to this machine (DNS
    rebinding).
    """
    assert receiver.post(GOOD, Host="rebound.example").status == 421
    assert receiver.post(GOOD, project="2").status == 403
    assert Client(receiver.address).get("/api/1/envelope/").status == 405


def test_any_page_may_send_and_none_may_read_the_shop(receiver: Receiver) -> None:
    """Any page may send requests to the endpoint: all of its responses have CORS headers, including errors and
    responses to preflight requests.

    The pages of the shop require the printed link.
    """
    client = Client(receiver.address)
    preflight = client.ask("OPTIONS", "/api/1/envelope/", b"", {"Origin": "https://app.example"})
    assert (preflight.status, preflight.headers["Access-Control-Allow-Origin"]) == (204, "*")
    assert receiver.post(b"[]").headers["Access-Control-Allow-Origin"] == "*"

    for path in ("/", "/counts", "/static/shop.js", "/shop/items", f"/watch/{'a' * 32}", "/login?token=x"):
        seen = client.get(path)
        assert (seen.status, seen.headers["Access-Control-Allow-Origin"]) == (401, None)
    assert client.get("/static/..%2fserver.py").status in (401, 404)
