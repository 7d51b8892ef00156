"""Every exception class and error code of the client libraries is sorted; an upgrade that adds one fails here."""

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
from tasks.sinks.outcome import Kind


def exceptions_of(module: ModuleType) -> list[type[BaseException]]:
    """Exception classes that a module defines, warnings excepted: those are not raised."""
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Exception)
        and cls.__module__ == module.__name__
        and (not issubclass(cls, Warning) or module is from_clickhouse)
    ]


@pytest.mark.parametrize("module", [from_api, from_auth, requests.exceptions, urllib3.exceptions])
def test_each_exception_of_google_and_its_http_clients_is_sorted(module: ModuleType) -> None:
    """google-api-core, google-auth, requests, urllib3."""
    found = exceptions_of(module)

    assert len(found) > 10
    assert [cls.__name__ for cls in found if cls not in google_errors.KIND_OF_CLASS] == []


def test_each_exception_of_clickhouse_connect_is_sorted() -> None:
    found = exceptions_of(from_clickhouse)

    assert len(found) > 10
    assert [cls.__name__ for cls in found if cls not in clickhouse_errors.KIND_OF_CLASS] == []


def test_each_error_code_of_confluent_kafka_is_sorted_once() -> None:
    """Each name stands in exactly one set, and no set holds a name that does not exist."""
    names = {
        name
        for name in dir(KafkaError)
        if name.strip("_").isupper() and isinstance(getattr(KafkaError, name), int)
    }
    sets = (kafka_errors.CONFIGURATION, kafka_errors.TRANSIENT, kafka_errors.NOT_OURS)

    assert len(names) > 150
    assert names == set().union(*sets)
    assert len(names) == sum(len(each) for each in sets)


def test_what_is_not_known_is_transient_everywhere() -> None:
    """Bounded retries and then a parked batch: the one answer that loses nothing."""

    class FromTheFuture(Exception):
        pass

    for sort in (google_errors.sort, clickhouse_errors.sort, kafka_errors.sort):
        assert sort(FromTheFuture("?")).kind is Kind.TRANSIENT
    unknown_code = from_clickhouse.DatabaseError("Code: 99999", code=99999)
    assert clickhouse_errors.sort(unknown_code).kind is Kind.TRANSIENT


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "invalid", Kind.DATA),
        (401, "authError", Kind.CONFIGURATION),
        (403, "forbidden", Kind.CONFIGURATION),
        (403, "rateLimitExceeded", Kind.TRANSIENT),
        (403, "quotaExceeded", Kind.TRANSIENT),
        (404, "notFound", Kind.CONFIGURATION),
        (408, "requestTimeout", Kind.TRANSIENT),
        (412, "conditionNotMet", Kind.CONFIGURATION),
        (413, "uploadTooLarge", Kind.DATA),
        (418, "teapot", Kind.TRANSIENT),
        (429, "rateLimitExceeded", Kind.TRANSIENT),
        (500, "backendError", Kind.TRANSIENT),
        (501, "notImplemented", Kind.CONFIGURATION),
        (502, "badGateway", Kind.TRANSIENT),
        (503, "backendError", Kind.TRANSIENT),
        (504, "gatewayTimeout", Kind.TRANSIENT),
        (599, "whatever", Kind.TRANSIENT),
    ],
)
def test_an_answer_and_its_exception_are_sorted_alike(status: int, reason: str, kind: Kind) -> None:
    """Objects are uploaded without google-api-core, rows with it: both must mean the same."""
    body = f'{{"error":{{"code":{status},"message":"m","errors":[{{"reason":"{reason}"}}]}}}}'.encode()
    response = requests.Response()
    response.status_code = status
    response._content = body
    response.request = requests.Request("POST", "http://x/").prepare()
    response.headers["Retry-After"] = "7"

    from_bytes = google_errors.sort_answer(status, body, 7.0)
    from_exception = google_errors.sort(from_api.from_http_response(response))  # type: ignore[no-untyped-call]

    assert from_bytes.kind is from_exception.kind is kind
    assert from_bytes.retry_after_seconds == from_exception.retry_after_seconds == 7


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error":"text"}', b'{"error":{"errors":[1]}}', b"\xff"]
)
def test_an_answer_that_is_no_json_error_is_sorted_by_its_status(body: bytes) -> None:
    assert google_errors.sort_answer(503, body, None).kind is Kind.TRANSIENT
    assert google_errors.sort_answer(404, body, None).kind is Kind.CONFIGURATION


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), ("", None), ("12", 12.0), ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert google_errors.retry_after_seconds(value) == expected


def test_a_wrong_certificate_is_for_a_person() -> None:
    """It looks like a broken connection, but retrying never helps."""
    text = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"

    assert google_errors.sort(requests.exceptions.SSLError(text)).kind is Kind.CONFIGURATION
    assert clickhouse_errors.sort(from_clickhouse.OperationalError(text)).kind is Kind.CONFIGURATION


def test_clickhouse_errors_are_sorted_by_code() -> None:
    """Data, load, schema; and the URL with its host stays out of the text."""

    def sort(code: int, text: str = "x") -> Kind:
        return clickhouse_errors.sort(from_clickhouse.DatabaseError(text, code=code)).kind

    assert (sort(41), sort(252), sort(60)) == (Kind.DATA, Kind.TRANSIENT, Kind.CONFIGURATION)
    assert sort(117) is Kind.DATA
    assert sort(117, "Unknown field found while parsing JSONEachRow format: a") is Kind.CONFIGURATION
    error = from_clickhouse.DatabaseError("bad (for url http://host:1)", code=41)
    assert clickhouse_errors.sort(error).message == "bad"


@pytest.mark.parametrize(
    ("message", "row"),
    [("Cannot parse: (at row 3)\n: (in file)", 2), ("Cannot parse", None), ("(at row x)", None)],
)
def test_the_row_that_clickhouse_names_is_counted_from_zero(message: str, row: int | None) -> None:
    assert clickhouse_errors.row_of(message) == row


def test_kafka_errors_become_the_two_errors() -> None:
    """With the code's name in the text, so that a person can look it up."""
    too_large = kafka_errors.sort(KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)))
    away = kafka_errors.sort(KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)))

    assert isinstance(too_large.error(), PermanentSinkError)
    assert isinstance(away.error(), TransientSinkError)
    assert "ALL_BROKERS_DOWN" in str(away.error())
