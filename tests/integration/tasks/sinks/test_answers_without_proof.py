"""After a 2xx response that does not prove that the write succeeded, no sink counts any item as durable, and the
error describes the response.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from tasks.errors import TransientSinkError
from tasks.settings import Settings
from tasks.sinks import build
from tasks.wire import Blob, Row
from tests.kit.scripted_server import Answer, answering, answers_in_order
from tests.kit.sink_answers import PORTAL_PAGE, PROOFS, false_successes

ADDRESS = {"gcs": "gcs_endpoint", "clickhouse": "clickhouse_url", "bigquery": "bigquery_endpoint"}
CASES = [pytest.param(sink, name, id=f"{sink}: {name}") for sink in PROOFS for name in false_successes(sink)]


def items_of(sink: str) -> list[Any]:
    if sink == "gcs":
        return [Blob(f"30/1/abc/{n}", b"recording %d" % n, n) for n in range(4)]
    table = {"clickhouse": "replays", "bigquery": "replay_events"}[sink]
    return [Row(table, f"row-{n}", b'{"n":%d}' % n, n) for n in range(4)]


@pytest.mark.parametrize(("sink", "false_success"), CASES)
def test_a_response_without_proof_is_not_a_success(
    sink: str, false_success: str, settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    """If a 2xx response does not prove that the items were written, all items are retried, and the error message
    is short and printable."""
    with answering(false_successes(sink)[false_success]) as (url, _):
        made = build(sink, settings(**{ADDRESS[sink]: url}))
        with pytest.raises(TransientSinkError) as failed, caplog.at_level(logging.WARNING):
            made.write(items_of(sink), "token", 5)
        made.close()

    assert failed.value.failed == (0, 1, 2, 3)
    message = str(failed.value)
    assert message.startswith(f"{sink}: ")
    assert message.isprintable()
    assert len(message) <= 500


@pytest.mark.parametrize("sink", PROOFS)
def test_a_valid_proof_is_accepted(sink: str, settings: Callable[..., Settings]) -> None:
    """If the response proves that the items were written, no request is repeated."""
    with answering(PROOFS[sink]) as (url, requests):
        made = build(sink, settings(**{ADDRESS[sink]: url}))
        made.write(items_of(sink), "token", 5)
        made.close()

    assert len(requests) == (4 if sink == "gcs" else 1)


@pytest.mark.parametrize("sink", PROOFS)
def test_after_a_false_response_the_same_write_works(
    sink: str, settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    """After a response that does not prove that the items were written, a repeated write to the same sink
    succeeds; the logged warning contains the title of the HTML page that was received.
    """
    portal = True
    with answering(lambda request: PORTAL_PAGE if portal else PROOFS[sink](request)) as (url, _):
        made = build(sink, settings(**{ADDRESS[sink]: url}))
        with pytest.raises(TransientSinkError, match="Sign in to Wi-Fi"):
            made.write(items_of(sink), "token", 5)
        portal = False
        made.write(items_of(sink), "token", 5)
        made.close()

    assert any("Sign in to Wi-Fi" in record.getMessage() for record in caplog.records)


def test_a_count_of_zero_is_retried_with_another_token(settings: Callable[..., Settings]) -> None:
    """If the response to an insert reports zero rows, as it does for a repeated token, the insert is retried with
    a different token.

    Only a response with a positive row count proves that the rows were written.
    """
    zero = PROOFS["clickhouse"]
    with answering(answers_in_order([lambda request: zero(request, written_rows="0"), PROOFS["clickhouse"]])) as (
        url,
        requests,
    ):
        sink = build("clickhouse", settings(clickhouse_url=url))
        sink.write(items_of("clickhouse"), "token", 5)
        sink.close()

    tokens = [request.path.split("insert_deduplication_token=")[1].split("&")[0] for request in requests]
    assert len(requests) == 2
    assert tokens[0] != tokens[1]


def test_an_insert_gets_its_response_only_when_it_is_complete(settings: Callable[..., Settings]) -> None:
    """The response to an insert starts only when the insert is complete, because the sink requests no progress
    headers.
    """
    with answering(PROOFS["clickhouse"]) as (url, requests):
        sink = build("clickhouse", settings(clickhouse_url=url))
        sink.write(items_of("clickhouse"), "token", 5)
        sink.close()

    assert "wait_end_of_query=1" in requests[0].path
    assert "send_progress_in_http_headers=0" in requests[0].path
    assert "async_insert=0" in requests[0].path


def test_100_continue_is_not_a_response(settings: Callable[..., Settings]) -> None:
    """A `100 Continue` before the response does not count as the response."""

    def continued(request: Any) -> Answer:
        body = PROOFS["bigquery"](request).body
        early = b"HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\n"
        return Answer(raw=early + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    with answering(continued) as (url, _):
        sink = build("bigquery", settings(bigquery_endpoint=url))
        sink.write(items_of("bigquery"), "token", 5)
        sink.close()
