"""Tests that every exception class and error code of the client libraries is classified. The tests fail if an
upgrade of a library adds an unclassified one.
"""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest
import requests
import urllib3
from clickhouse_connect.driver import exceptions as from_clickhouse
from confluent_kafka import KafkaError, KafkaException
from google.api_core import exceptions as from_api
from google.auth import exceptions as from_auth

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.dead_letter import errors as kafka_errors
from tasks.sinks.google import errors as google_errors
from tasks.sinks.http.answers import Answer, retry_after_seconds
from tasks.sinks.outcome import Blame


def exceptions_of(module: ModuleType) -> list[type[BaseException]]:
    """Returns the exception classes that a module defines, except warnings, which are not raised."""
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Exception)
        and cls.__module__ == module.__name__
        and (not issubclass(cls, Warning) or module is from_clickhouse)
    ]


@pytest.mark.parametrize("module", [from_api, from_auth, requests.exceptions, urllib3.exceptions])
def test_each_exception_of_google_and_its_http_clients_is_classified(module: ModuleType) -> None:
    """Every exception of google-api-core, google-auth, requests and urllib3 is classified."""
    found = exceptions_of(module)

    assert len(found) > 10
    assert [cls.__name__ for cls in found if cls not in google_errors.BLAME_BY_CLASS] == []


def test_each_exception_of_clickhouse_connect_is_classified() -> None:
    found = exceptions_of(from_clickhouse)

    assert len(found) > 10
    assert [cls.__name__ for cls in found if cls not in clickhouse_errors.BLAME_BY_CLASS] == []


def test_each_error_code_of_confluent_kafka_is_classified_once() -> None:
    """Each error code of confluent_kafka is in exactly one set, and no set contains a name that does not exist."""
    names = {
        name
        for name in dir(KafkaError)
        if name.strip("_").isupper() and isinstance(getattr(KafkaError, name), int)
    }
    sets = (
        *(kafka_errors.CREDENTIALS, kafka_errors.TABLE, kafka_errors.REQUEST),
        *(kafka_errors.NETWORK, kafka_errors.SERVER, kafka_errors.OTHER_CLIENTS),
    )

    assert len(names) > 150
    assert names == set().union(*sets)
    assert len(names) == sum(len(each) for each in sets)


def test_unknown_errors_are_transient_everywhere() -> None:
    """An unknown error is transient: it is retried a bounded number of times, and then the batch is parked.

    Any other choice could lose data.
    """

    class FromTheFuture(Exception):
        pass

    for sort in (google_errors.classify, clickhouse_errors.classify, kafka_errors.classify):
        assert sort(FromTheFuture("?")).blame is Blame.SERVER
    unknown_code = from_clickhouse.DatabaseError("Code: 99999", code=99999)
    assert clickhouse_errors.classify(unknown_code).blame is Blame.SERVER


@pytest.mark.parametrize(
    ("status", "reason", "blame"),
    [
        (302, "redirect", Blame.REQUEST),
        (400, "invalid", Blame.BATCH),
        (400, "userProjectMissing", Blame.CREDENTIALS),
        (401, "authError", Blame.CREDENTIALS),
        (403, "forbidden", Blame.CREDENTIALS),
        (403, "rateLimitExceeded", Blame.SERVER),
        (403, "quotaExceeded", Blame.SERVER),
        (404, "notFound", Blame.TABLE),
        (407, "proxy", Blame.CREDENTIALS),
        (408, "requestTimeout", Blame.SERVER),
        (409, "conflict", Blame.SERVER),
        (412, "conditionNotMet", Blame.REQUEST),
        (413, "uploadTooLarge", Blame.SIZE),
        (418, "teapot", Blame.SERVER),
        (425, "tooEarly", Blame.SERVER),
        (429, "rateLimitExceeded", Blame.SERVER),
        (500, "backendError", Blame.SERVER),
        (501, "notImplemented", Blame.REQUEST),
        (502, "badGateway", Blame.SERVER),
        (503, "backendError", Blame.SERVER),
        (504, "gatewayTimeout", Blame.SERVER),
        (511, "portal", Blame.CREDENTIALS),
        (599, "whatever", Blame.SERVER),
    ],
)
def test_a_response_and_its_exception_are_classified_alike(status: int, reason: str, blame: Blame) -> None:
    """A response to a write is classified like the exception that google-api-core raises for the same response
    elsewhere.
    """
    body = f'{{"error":{{"code":{status},"message":"m","errors":[{{"reason":"{reason}"}}]}}}}'.encode()
    response = requests.Response()
    response.status_code = status
    response._content = body
    response.request = requests.Request("POST", "http://x/").prepare()
    response.headers["Retry-After"] = "7"

    from_bytes = google_errors.classify_answer(Answer(status, body, 7.0))
    from_exception = google_errors.classify(from_api.from_http_response(response))  # type: ignore[no-untyped-call]

    assert from_bytes.blame is from_exception.blame is blame
    assert from_bytes.retry_after_seconds == from_exception.retry_after_seconds == 7


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error":"text"}', b'{"error":{"errors":[1]}}', b"\xff"]
)
def test_a_response_without_a_json_error_is_classified_by_status(body: bytes) -> None:
    assert google_errors.classify_answer(Answer(503, body)).blame is Blame.SERVER
    assert google_errors.classify_answer(Answer(404, body)).blame is Blame.TABLE


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((None, None), ("", None), ("12", 12.0), ("soon", None), ("-3", None), ("1.5", None)),
        *(("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0)),
        *(("9" * 400, 3600.0), ("٣", None)),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(value: str | None, expected: float | None) -> None:
    assert retry_after_seconds(value) == expected


def test_a_wrong_certificate_needs_an_operator() -> None:
    """An invalid certificate is a configuration error: it looks like a broken connection, but retrying never
    helps.
    """
    text = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"

    assert google_errors.classify(requests.exceptions.SSLError(text)).blame is Blame.REQUEST
    assert clickhouse_errors.classify(from_clickhouse.OperationalError(text)).blame is Blame.REQUEST


def test_clickhouse_errors_are_classified_by_code() -> None:
    """ClickHouse errors are classified by code as data, load or schema errors.

    The message of the classified error does not contain the URL.
    """

    def sort(code: int, text: str = "x") -> Blame:
        return clickhouse_errors.classify(from_clickhouse.DatabaseError(text, code=code)).blame

    assert (sort(41), sort(252), sort(60)) == (Blame.BATCH, Blame.SERVER, Blame.TABLE)
    assert sort(117) is Blame.BATCH
    assert sort(117, "Unknown field found while parsing JSONEachRow format: a") is Blame.TABLE
    assert sort(376, "Cannot parse uuid: while pushing to view db.v (3f)") is Blame.TABLE
    error = from_clickhouse.DatabaseError("bad (for url http://host:1)", code=41)
    assert clickhouse_errors.classify(error).message == "bad"


@pytest.mark.parametrize(
    ("message", "row"),
    [("Cannot parse: (at row 3)\n: (in file)", 2), ("Cannot parse", None), ("(at row x)", None)],
)
def test_the_row_that_clickhouse_names_is_counted_from_zero(message: str, row: int | None) -> None:
    assert clickhouse_errors.row_of(message) == row


def test_kafka_errors_become_one_of_two_errors() -> None:
    """The message of a Kafka error contains the name of its code, so that an operator can look it up."""
    too_large = kafka_errors.classify(KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)))
    away = kafka_errors.classify(KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)))

    assert isinstance(too_large.error(), PermanentSinkError)
    assert isinstance(away.error(), TransientSinkError)
    assert "ALL_BROKERS_DOWN" in str(away.error())
