"""A failed write is attributed to its cause, such as a proxy, the table, the size, or one bad row."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ingest.local.servers.tls import TlsProxy, make_certificates
from tasks.errors import PermanentSinkError, SinkError, TransientSinkError
from tasks.settings import Settings
from tasks.sinks import build
from tasks.sinks.http.answers import BLAME_BY_STATUS
from tasks.sinks.outcome import Action
from tasks.wire import Blob, Row
from tests.kit.scripted_server import Answer, answering, truncated_answer
from tests.kit.sink_answers import HTML, PORTAL_PAGE, PROOFS

ADDRESS = {"gcs": "gcs_endpoint", "clickhouse": "clickhouse_url", "bigquery": "bigquery_endpoint"}
PAGE = b"<html><head><title>%d from a proxy</title></head><body>\x1b[2J</body></html>"


def items_of(sink: str, count: int = 3) -> list[Any]:
    if sink == "gcs":
        return [Blob(f"30/1/abc/{n}", b"recording %d" % n, n) for n in range(count)]
    table = {"clickhouse": "replays", "bigquery": "replay_events"}[sink]
    return [Row(table, f"row-{n}", b'{"n":%d}' % n, n) for n in range(count)]


def written(sink: str, settings: Settings, count: int = 3, seconds: float = 5) -> None:
    made = build(sink, settings)
    try:
        made.write(items_of(sink, count), "token", seconds)
    finally:
        made.close()


@pytest.mark.parametrize("sink", PROOFS)
@pytest.mark.parametrize("status", [*BLAME_BY_STATUS, 418, 450, 520, 530, 599])
def test_a_status_of_a_proxy_is_classified(sink: str, status: int, settings: Callable[..., Settings]) -> None:
    """A status sent by a proxy never causes an item to be blamed, except 413 (the item is too large). The error
    contains the title of the proxy's page.
    """
    reply = Answer(status, PAGE % status, HTML)
    with answering(lambda request: reply) as (url, requests), pytest.raises(SinkError) as failed:
        written(sink, settings(**{ADDRESS[sink]: url}), count=1)

    error = failed.value
    blame = BLAME_BY_STATUS.get(status)
    action = blame.action if blame is not None else Action.RETRY
    if action is Action.RETRY:
        assert isinstance(error, TransientSinkError)
        assert error.failed == (0,)
    elif action is Action.SPLIT:
        assert isinstance(error, PermanentSinkError)
        assert error.failed is not None
        assert "too large" in str(error)
    else:
        assert isinstance(error, PermanentSinkError)
        assert error.configuration
    assert str(error).isprintable()
    if status != 304:
        assert f"{status} from a proxy" in str(error)
    assert requests


@pytest.mark.parametrize("sink", PROOFS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(sink: str, status: int, settings: Callable[..., Settings]) -> None:
    """A redirect is not followed, because the POST would become a GET, and the target is not the sink, even if its
    response looks like that of the sink.
    """
    with (
        answering(PROOFS[sink]) as (elsewhere, requests_elsewhere),
        answering(lambda request: Answer(status, b"", {"Location": elsewhere + request.path})) as (url, _),
        pytest.raises(PermanentSinkError) as refused,
    ):
        written(sink, settings(**{ADDRESS[sink]: url}))

    assert refused.value.configuration
    assert requests_elsewhere == []


@pytest.mark.parametrize("sink", PROOFS)
@pytest.mark.parametrize(
    ("status", "value", "seconds"),
    [
        (429, "7", 7.0),
        (503, "7", 7.0),
        (503, "Thu, 01 Jan 1970 00:00:00 GMT", None),
        (503, "Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        (429, "99999999999", 3600.0),
        (429, "soon", None),
    ],
)
def test_retry_after_is_honored_and_bounded(
    sink: str, status: int, value: str, seconds: float | None, settings: Callable[..., Settings]
) -> None:
    """Retry-After may be a number of seconds or a date.

    The wait is bounded, so that a batch is never postponed for days.
    """
    reply = Answer(status, b"later", {"Retry-After": value})
    with answering(lambda request: reply) as (url, _), pytest.raises(TransientSinkError) as failed:
        written(sink, settings(**{ADDRESS[sink]: url}), seconds=3)

    assert failed.value.retry_after_seconds == seconds


@pytest.mark.parametrize("sink", PROOFS)
def test_a_name_that_does_not_resolve_is_the_networks_fault(sink: str, settings: Callable[..., Settings]) -> None:
    with pytest.raises(TransientSinkError) as failed:
        written(sink, settings(**{ADDRESS[sink]: "http://no-such-host.invalid:8123"}))

    assert failed.value.failed == (0, 1, 2)


@pytest.mark.parametrize("sink", PROOFS)
def test_a_reset_during_the_response_is_a_network_failure(sink: str, settings: Callable[..., Settings]) -> None:
    with (
        answering(lambda request: truncated_answer(PORTAL_PAGE)) as (url, _),
        pytest.raises(TransientSinkError) as failed,
    ):
        written(sink, settings(**{ADDRESS[sink]: url}))

    assert failed.value.failed == (0, 1, 2)


@pytest.mark.parametrize("sink", PROOFS)
def test_a_reset_while_the_request_is_sent_is_the_networks_fault(
    sink: str, settings: Callable[..., Settings]
) -> None:
    """If the server closes the connection without reading the request, the error is a transient network error."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def refuse() -> None:
        while not ended.is_set():
            listener.settimeout(0.1)
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                continue
            accepted.close()

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    with closing(listener):
        with pytest.raises(TransientSinkError) as failed:
            written(sink, settings(**{ADDRESS[sink]: f"http://127.0.0.1:{listener.getsockname()[1]}"}))
        ended.set()
        thread.join(5)

    assert failed.value.failed == (0, 1, 2)


@pytest.mark.parametrize("sink", PROOFS)
def test_an_untrusted_certificate_needs_an_operator(
    sink: str, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """An untrusted certificate requires an operator: a retry never helps, and nothing is sent to that server."""
    with answering(PROOFS[sink]) as (url, requests):
        port = urlsplit(url).port
        assert port is not None
        with TlsProxy(port, make_certificates(tmp_path)) as proxy, pytest.raises(PermanentSinkError) as refused:
            written(sink, settings(**{ADDRESS[sink]: f"https://127.0.0.1:{proxy.port}"}))

    assert refused.value.configuration
    assert requests == []


@pytest.mark.parametrize("sink", PROOFS)
def test_a_slow_trickle_of_a_response_costs_at_most_the_deadline(
    sink: str, settings: Callable[..., Settings]
) -> None:
    """A response that arrives in small pieces is aborted at the call's deadline, although each piece resets the
    read timeout.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip() -> None:
        listener.settimeout(10)
        try:
            accepted, _ = listener.accept()
            with closing(accepted):
                accepted.sendall(b"HTTP/1.1 200 OK\r\n")
                while not ended.wait(0.05):
                    accepted.sendall(b"X-ClickHouse-Progress: {}\r\n")
        except OSError:
            pass

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    with closing(listener):
        with pytest.raises(TransientSinkError):
            written(sink, settings(**{ADDRESS[sink]: f"http://127.0.0.1:{listener.getsockname()[1]}"}), 1, 1.0)
        still_dripping = thread.is_alive()
        ended.set()
        thread.join(5)

    assert still_dripping or not thread.is_alive()
