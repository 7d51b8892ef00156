"""Sinks' responses to a durable write, and 2xx responses that do not prove that the data was written.

`PROOFS` maps each sink to a function that builds a valid response to a write. `false_successes(sink)` returns a
dict of named scripts whose 2xx responses do not prove that the data was written.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c
import lz4.frame  # type: ignore[import-untyped]

from tests.kit.scripted_server import Answer, ReceivedRequest, Script, truncated_answer

HTML = {"Content-Type": "text/html; charset=utf-8"}
JSON = {"Content-Type": "application/json; charset=UTF-8"}
PORTAL_PAGE = Answer(
    200, b"<!doctype html><html><head><title>Sign in to Wi-Fi</title></head><body>Hello</body></html>", HTML
)
EXCEPTION = (
    b"Code: 241. DB::Exception: Memory limit (total) exceeded: would use 28.11 GiB, maximum: 28.00 GiB. "
    b"(MEMORY_LIMIT_EXCEEDED) (version 25.8.1.1)\n"
)
GENERATION = "1795765370548467"


def object_resource(request: ReceivedRequest) -> dict[str, Any]:
    """Returns the resource of the object that an upload creates."""
    url = urlsplit(request.path)
    checksum = base64.b64encode(google_crc32c.value(request.body).to_bytes(4, "big")).decode()
    return {
        "name": parse_qs(url.query)["name"][0],
        "bucket": unquote(url.path.split("/b/")[1].split("/")[0]),
        "generation": GENERATION,
        "size": str(len(request.body)),
        "crc32c": checksum,
    }


def object_stored(request: ReceivedRequest, **other: Any) -> Answer:
    """Returns Cloud Storage's response for a stored object; `other` replaces fields of the object's resource, and
    None omits a field.
    """
    found = {name: value for name, value in (object_resource(request) | other).items() if value is not None}
    return Answer(200, json.dumps(found).encode(), JSON)


def rows_of(request: ReceivedRequest) -> int:
    """Returns the number of lines in an INSERT."""
    body = request.body
    if request.headers.get("Content-Encoding") == "lz4":
        body = lz4.frame.decompress(body)
    return len(body.splitlines())


def rows_inserted(request: ReceivedRequest, **other: Any) -> Answer:
    """Returns ClickHouse's response for written rows; `other` replaces fields of the summary, and None omits a
    field.
    """
    summary: dict[str, Any] = {
        "read_rows": str(rows_of(request)),
        "read_bytes": "1",
        "written_rows": str(rows_of(request)),
        "written_bytes": "1",
        "total_rows_to_read": "0",
        "result_rows": "0",
        "result_bytes": "0",
        "elapsed_ns": "1",
    } | other
    fields = {name: value for name, value in summary.items() if value is not None}
    headers = {
        "X-ClickHouse-Summary": json.dumps(fields),
        "X-ClickHouse-Query-Id": "q",
        "X-ClickHouse-Timezone": "UTC",
    }
    return Answer(200, b"", {"Content-Type": "text/plain; charset=UTF-8", **headers})


def rows_streamed(request: ReceivedRequest, **other: Any) -> Answer:
    """Returns BigQuery's response for stored rows; `other` replaces or adds fields, and None omits a field."""
    found = {"kind": "bigquery#tableDataInsertAllResponse", **other}
    found = {name: value for name, value in found.items() if value is not None}
    return Answer(200, json.dumps(found).encode(), JSON)


PROOFS: dict[str, Callable[..., Answer]] = {
    "gcs": object_stored,
    "clickhouse": rows_inserted,
    "bigquery": rows_streamed,
}


def false_successes(sink: str) -> dict[str, Script]:
    """Returns named scripts whose 2xx responses do not prove that the data was written to this sink."""
    return {**_common_answers(sink), **_FALSE_ANSWERS_BY_SINK[sink]()}


def always_answer(answer: Answer) -> Script:
    """Returns a script that gives the same response to every request."""
    return lambda request: answer


def changed_proof(sink: str, **other: Any) -> Script:
    """Returns a script that gives the sink's valid response; `other` replaces fields of the response, and None
    omits a field.
    """
    return lambda request: PROOFS[sink](request, **other)


def altered_proof(sink: str, alter: Callable[[Answer], Answer]) -> Script:
    """Returns a script that sends the sink's valid response after `alter` has changed it."""
    return lambda request: alter(PROOFS[sink](request))


def head_of(answer: Answer) -> bytes:
    """Returns an HTTP response up to its last header, without the empty line that ends the headers."""
    lines = [f"HTTP/1.1 {answer.status} OK", *(f"{name}: {value}" for name, value in answer.headers.items())]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _common_answers(sink: str) -> dict[str, Script]:
    answers = {
        "a portal's page": PORTAL_PAGE,
        "a page without a content type": Answer(200, PORTAL_PAGE.body),
        "nothing": Answer(200, b""),
        "white space": Answer(200, b" \r\n"),
        "OK": Answer(200, b"OK\n", {"Content-Type": "text/plain"}),
        "an empty object": Answer(200, b"{}", JSON),
        "an empty list": Answer(200, b"[]", JSON),
        "null": Answer(200, b"null", JSON),
        "a number": Answer(200, b"4", JSON),
        "deep nesting": Answer(200, b"[" * 60_000, JSON),
        "bytes that are no text": Answer(200, bytes(range(128, 256)) * 8),
        "an endless page": Answer(200, b"x" * 300_000),
        "terminal codes": Answer(200, b"\x1b[31mred\x1b]0;title\x07\x00"),
        "an error with 200": Answer(200, b'{"error":{"code":503,"message":"backend error"}}', JSON),
        "a failure with 200": Answer(200, b'{"status":"error","message":"upstream is away"}', JSON),
        "an exception of ClickHouse": Answer(200, EXCEPTION),
        "a page that stops in the middle": truncated_answer(PORTAL_PAGE),
        "no content": Answer(204, b""),
        "a head that stops": Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"),
        "no HTTP": Answer(raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
    }
    found = {name: always_answer(answer) for name, answer in answers.items()}
    for status in (201, 202, 203, 204, 205, 206, 207, 226):
        found[f"the proof with {status}"] = altered_proof(sink, partial(replace, status=status))
    found["the proof, and more than is read"] = altered_proof(
        sink, lambda proof: replace(proof, body=proof.body + b" " * 300_000)
    )
    found["a proof whose head stops"] = altered_proof(sink, lambda proof: Answer(raw=head_of(proof)))
    for other in sorted(PROOFS.keys() - {sink}):
        found[f"the proof of {other}"] = partial(_proof_of_other_request, other)
    return found


def _proof_of_other_request(sink: str, request: ReceivedRequest) -> Answer:
    """Returns a valid answer that belongs to another request."""
    return PROOFS[sink](replace(request, path="/upload/storage/v1/b/bucket/o?name=object"))


def _partial_as_complete(proof: Answer) -> Answer:
    return replace(proof, body=proof.body[: len(proof.body) // 2])


def _gcs_answers() -> dict[str, Script]:
    fields: dict[str, dict[str, Any]] = {
        "another object": {"name": "30/1/another/0"},
        "another bucket": {"bucket": "another"},
        "a shorter object": {"size": "1"},
        "no size": {"size": None},
        "another checksum": {"crc32c": "AAAAAA=="},
        "no checksum": {"crc32c": None},
        "a checksum of zero": {"crc32c": 0},
        "no generation": {"generation": None},
        "generation 0": {"generation": "0"},
        "a negative generation": {"generation": "-1"},
        "no name": {"name": None},
        "no bucket": {"bucket": None},
    }
    return {name: changed_proof("gcs", **other) for name, other in fields.items()} | {
        "half of the proof": altered_proof("gcs", truncated_answer),
        "half of the proof as if it were all": altered_proof("gcs", _partial_as_complete),
        "a list of objects": altered_proof(
            "gcs", lambda proof: replace(proof, body=b'{"items":[%b]}' % proof.body)
        ),
    }


def _clickhouse_answers() -> dict[str, Script]:
    fields: dict[str, dict[str, Any]] = {
        "no row written": {"written_rows": "0"},
        "one row too few": {"written_rows": "3"},
        "a negative number of rows": {"written_rows": "-4"},
        "rows as a number": {"written_rows": 4},
        "no number of rows": {"written_rows": None},
        "all rows, in words": {"written_rows": "all"},
    }
    summaries = {"broken": '{"written_rows":"4"', "a number": "4", "empty": ""}
    tagged = b"\r\n__exception__\r\nrumfyutuqkncbgau\r\n%b150 rumfyutuqkncbgau\r\n__exception__\r\n" % EXCEPTION
    return (
        {name: changed_proof("clickhouse", **other) for name, other in fields.items()}
        | {
            f"a summary that is {name}": _with_header("X-ClickHouse-Summary", text)
            for name, text in summaries.items()
        }
        | {
            "an exception's code": _with_header("X-ClickHouse-Exception-Code", "241"),
            "progress, then an exception": altered_proof("clickhouse", partial(replace, body=EXCEPTION)),
            "an exception in a block of its own": altered_proof("clickhouse", partial(replace, body=tagged)),
            "a result": altered_proof("clickhouse", partial(replace, body=b"1\n")),
        }
    )


def _with_header(name: str, value: str) -> Script:
    return altered_proof("clickhouse", lambda proof: replace(proof, headers={**proof.headers, name: value}))


def _bigquery_answers() -> dict[str, Script]:
    fields: dict[str, dict[str, Any]] = {
        "another kind": {"kind": "bigquery#tableDataList"},
        "no kind": {"kind": None},
        "errors that are no list": {"insertErrors": {"index": 0}},
        "errors that are no objects": {"insertErrors": ["bad"]},
        "a row that was not sent": {"insertErrors": [{"index": 400, "errors": [{"reason": "invalid"}]}]},
        "a row before the first": {"insertErrors": [{"index": -1, "errors": [{"reason": "invalid"}]}]},
        "a row without a number": {"insertErrors": [{"index": "x", "errors": [{"reason": "invalid"}]}]},
    }
    return {name: changed_proof("bigquery", **other) for name, other in fields.items()} | {
        "half of the proof": altered_proof("bigquery", truncated_answer),
        "half of the proof as if it were all": altered_proof("bigquery", _partial_as_complete),
    }


_FALSE_ANSWERS_BY_SINK = {"gcs": _gcs_answers, "clickhouse": _clickhouse_answers, "bigquery": _bigquery_answers}
