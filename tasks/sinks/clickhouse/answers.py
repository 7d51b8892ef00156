"""Interprets a response to an INSERT, which either proves the write or names the cause of its failure.

With `wait_end_of_query`, a response proves a write if its status is 200, its body is empty, it has no exception
code, and the `written_rows` in its summary is at least the number of rows sent. The count includes rows of
materialized views. For rows that the server skips because of a repeated token, it may be 0; the insert is then
repeated with another token.
https://clickhouse.com/docs/interfaces/http
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from tasks.sinks.clickhouse.errors import failure_of_code
from tasks.sinks.http.answers import Answer, describe_answer, failure_of_status, unproven_success
from tasks.sinks.outcome import Blame, Failure

PROOF = (
    "Status 200 after the end of the insert (`wait_end_of_query`), a complete head, an empty body, no "
    "`X-ClickHouse-Exception-Code`, and an `X-ClickHouse-Summary` whose `written_rows` is at least the "
    "number of rows sent. If a response reports 0 written rows, the insert is repeated with another token."
)
EXCEPTION_CODE = "x-clickhouse-exception-code"
SUMMARY = "x-clickhouse-summary"
WANTED_HEADERS = frozenset((EXCEPTION_CODE, SUMMARY))
BODY_CHARACTERS_MAX = 4000

# `Code: 241. DB::Exception: ...`; old servers write `Code: 60, e.displayText() = DB::Exception: ...`
_EXCEPTION = re.compile(r"Code: (\d{1,5})[.,].{0,40}?DB::Exception.*", re.DOTALL)


def failure_of(answer: Answer, rows: int) -> Failure | None:
    """Returns a `Failure` if this response to an INSERT of `rows` rows does not prove that they are durable,
    otherwise None.
    """
    exception = exception_of(answer)
    if exception is not None:
        return exception
    if not answer.ok:
        return failure_of_status(answer)
    if answer.status != 200:
        return unproven_success(answer, "status")
    if answer.body:
        return unproven_success(answer, "a response to an INSERT must have an empty body")
    written = written_rows(answer)
    if written is None:
        return unproven_success(answer, f"{SUMMARY} is missing or unreadable")
    if written < rows:
        return unproven_success(answer, f"{SUMMARY} reports {written} of {rows} rows")
    return None


def exception_of(answer: Answer) -> Failure | None:
    """Returns the exception that the server reports in a header or the body of the response, regardless of the
    HTTP status. Returns None if there is no exception.
    """
    text = answer.body[:BODY_CHARACTERS_MAX].decode("utf-8", "replace")
    found = _EXCEPTION.search(text)
    code = answer.headers.get(EXCEPTION_CODE, "") or (found[1] if found else "")
    if not code.isdecimal():
        return None
    if answer.status == 413:  # the request as a whole is too large, regardless of the code
        return Failure(Blame.SIZE, f"HTTP 413: {text}")
    failure = failure_of_code(int(code), found[0] if found else f"Code: {code}, with {describe_answer(answer)}")
    if answer.ok:
        text = f"HTTP {answer.status} with an exception: {failure.message}"
        failure = replace(failure, message=text, unproven=True)
    return replace(failure, retry_after_seconds=answer.retry_after_seconds)


def written_rows(answer: Answer) -> int | None:
    """Returns the number of rows written, according to the response's summary header. Returns None if the header
    is missing or is not from ClickHouse."""
    try:
        written = json.loads(answer.headers.get(SUMMARY, ""))["written_rows"]
    except (ValueError, LookupError, TypeError):
        return None
    return int(written) if isinstance(written, str) and written.isdecimal() else None


def reports_zero_rows(answer: Answer) -> bool:
    """Returns whether an otherwise valid response reports zero rows, as when a server skips an insert because of
    a repeated token."""
    return answer.status == 200 and not answer.body and written_rows(answer) == 0
