"""Classifies HTTP responses by status and describes responses that do not prove that a write succeeded.

Errors of the server itself (ClickHouse's exception code, Google's JSON errors) take precedence and are handled in
the sink's module; the table here covers proxies, gateways and captive portals.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.errors import shortened
from tasks.sinks.outcome import RETRY_AFTER_SECONDS_MAX, Blame, Failure

DESCRIBED_CHARACTERS_MAX = 160
DESCRIPTION_BYTES_MAX = 2048

BLAME_BY_STATUS: dict[int, Blame] = {
    # The address, or a proxy in front of it, is wrong. Redirects are not followed, because that would turn a POST
    # into a GET.
    300: Blame.REQUEST,
    301: Blame.REQUEST,
    302: Blame.REQUEST,
    303: Blame.REQUEST,
    304: Blame.REQUEST,
    305: Blame.REQUEST,
    307: Blame.REQUEST,
    308: Blame.REQUEST,
    400: Blame.REQUEST,  # sent by a proxy: servers report a bad item in their own format
    401: Blame.CREDENTIALS,
    402: Blame.CREDENTIALS,
    403: Blame.CREDENTIALS,
    404: Blame.TABLE,
    405: Blame.REQUEST,
    406: Blame.REQUEST,
    407: Blame.CREDENTIALS,
    408: Blame.SERVER,
    409: Blame.SERVER,
    410: Blame.TABLE,
    411: Blame.REQUEST,
    412: Blame.REQUEST,
    413: Blame.SIZE,
    414: Blame.REQUEST,
    415: Blame.REQUEST,
    416: Blame.REQUEST,
    417: Blame.REQUEST,
    421: Blame.NETWORK,
    422: Blame.REQUEST,
    423: Blame.SERVER,
    424: Blame.SERVER,
    425: Blame.SERVER,
    426: Blame.REQUEST,
    428: Blame.REQUEST,
    429: Blame.SERVER,
    431: Blame.REQUEST,
    451: Blame.CREDENTIALS,
    499: Blame.NETWORK,
    500: Blame.SERVER,
    501: Blame.REQUEST,
    502: Blame.SERVER,
    503: Blame.SERVER,
    504: Blame.SERVER,
    505: Blame.REQUEST,
    506: Blame.REQUEST,
    507: Blame.SERVER,
    508: Blame.REQUEST,
    510: Blame.REQUEST,
    511: Blame.CREDENTIALS,
}

_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response.

    `retry_after_seconds`: the wait requested by the server, or None. `whole`: False if the response was longer
    than the limit. `headers`: the last value of each header that the request asked to keep, by lower-case name.
    """

    status: int
    body: bytes
    retry_after_seconds: float | None = None
    content_type: str = ""
    whole: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the status is a success. The status alone does not prove that a write succeeded."""
        return 200 <= self.status <= 299

    def json_object(self) -> dict[str, Any] | None:
        """Returns the body as a JSON object; None for anything else, including a truncated object."""
        if not self.whole:
            return None
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


def blame_of_status(status: int) -> Blame:
    """Returns the cause that a status indicates. An unknown status counts as a server error: bounded retries, then
    a parked batch.
    """
    if status in BLAME_BY_STATUS:
        return BLAME_BY_STATUS[status]
    return Blame.SERVER if 400 <= status <= 599 else Blame.NETWORK


def failure_of_status(answer: Answer) -> Failure:
    """Returns a `Failure` for an error response whose body does not state the server's error."""
    assert not answer.ok, answer
    return Failure(
        blame_of_status(answer.status),
        f"HTTP {answer.status} with {describe_answer(answer)}",
        answer.retry_after_seconds,
    )


def unproven_success(answer: Answer, why: str) -> Failure:
    """Returns a `Failure` for a response that has a success status but does not prove that the write succeeded.
    `why` states what is missing.
    """
    text = f"HTTP {answer.status} does not prove the write: {why}; the response has {describe_answer(answer)}"
    return Failure(Blame.NETWORK, text, answer.retry_after_seconds, unproven=True)


def describe_answer(answer: Answer) -> str:
    """Returns a description of the response for operators: short, printable, without markup."""
    if not answer.body:
        return "an empty body"
    text = answer.body[:DESCRIPTION_BYTES_MAX].decode("utf-8", "replace")
    size = f"{len(answer.body)} bytes" if answer.whole else f"more than {len(answer.body)} bytes"
    kind = answer.content_type.partition(";")[0].strip().lower()
    if "html" in kind or text.lstrip()[:1] == "<":
        title = _TITLE.search(text)
        excerpt, what = title[1] if title else _TAG.sub(" ", text), "a web page" if "html" in kind else "markup"
    elif text.lstrip()[:1] in ("{", "["):
        excerpt, what = text, "JSON"
    else:
        excerpt, what = text, "the text"
    quoted = shortened(excerpt, DESCRIBED_CHARACTERS_MAX)
    return f"{what} ({size}): {quoted}" if quoted else f"{what} of {size}"


def retry_after_seconds(value: str | None) -> float | None:
    """Returns how many seconds to wait according to the value of a Retry-After header: a number of seconds or a
    date. Returns None for other values.
    """
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), RETRY_AFTER_SECONDS_MAX)
    try:
        at = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, at - time.time()), RETRY_AFTER_SECONDS_MAX)
