"""Generates docs/sinks.md, the page on proofs of writes and causes of failures, from the tables in the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping

import pycurl

from tasks.bisection import REFUSED_ITEMS_MIN, REFUSED_SHARE, WRITES_MAX
from tasks.sinks import datadog
from tasks.sinks.bigquery import answers as bigquery
from tasks.sinks.bigquery import append_answers
from tasks.sinks.clickhouse import answers as clickhouse
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.dead_letter import errors as kafka_errors
from tasks.sinks.dead_letter import sink as dead_letter
from tasks.sinks.gcs import objects
from tasks.sinks.google import errors as google_errors
from tasks.sinks.http import answers, transfers
from tasks.sinks.outcome import BLAME_MEANINGS, Action, Blame
from tasks.wire import SinkName

# Excludes the older names of error codes that have two names.
CURL_CODE = re.compile("E_(?!MULTI|FTP|TFTP|URL_MALFORMAT_USER|UNKNOWN_TELNET_OPTION|SSL_PEER_CERT|SSL_CACERT$)")
PROOF_BY_SINK = {
    SinkName.GCS: objects.PROOF,
    SinkName.CLICKHOUSE: clickhouse.PROOF,
    SinkName.BIGQUERY: f"{bigquery.PROOF} {append_answers.PROOF}",
    SinkName.DATADOG: datadog.PROOF,
    SinkName.DEAD_LETTER: dead_letter.PROOF,
}


def sinks_page() -> Iterator[str]:
    """Yields the sections of the page."""
    yield "# Sinks: proof of writes, and causes of failures"
    yield from _proofs()
    yield from _causes()
    yield from _statuses()
    yield from _google()
    yield from _clickhouse()
    yield from _kafka()
    yield from _network()


def _proofs() -> Iterator[str]:
    yield "## What proves a write"
    yield _text(
        """An item counts as durable when the response proves it in the sink's own format. A success status alone
        proves nothing: ClickHouse may send 200 before an insert fails, and proxies and captive portals respond
        with their own pages. If the response does not prove a write, the write is retried, and the
        worker logs the response. At most 64 KiB of a response are read, and redirects are not followed."""
    )
    yield _table(("sink", "proof"), ((f"`{name}`", PROOF_BY_SINK[name]) for name in SinkName))


def _causes() -> Iterator[str]:
    yield "## Causes of failures"
    yield _text(
        """Each failure is assigned one cause, by the statuses, codes and reasons listed below. A failure that is
        not listed has the cause `server`, or `network` if there was no response. In both cases, the
        write is retried, and then its batch is parked; nothing is lost."""
    )
    rows = ((f"`{blame.value}`", BLAME_MEANINGS[blame], _sentence(blame.action)) for blame in Blame)
    yield _table(("cause", "meaning", "handling"), rows)
    yield _text(
        f"""The destination is checked before items are blamed, and once more after the last refusal. Refusals
        count only if the destination is healthy both times. BigQuery and ClickHouse are queried for the type and
        columns of the table, and tested with valid rows that are not stored; in Cloud Storage a small object is
        stored and deleted. An added column or a constraint that no row satisfies therefore parks the batch, and a
        bad row becomes a dead letter even if it is alone in its batch. If a refusal names no row, the batch is
        bisected, with at most {WRITES_MAX} writes per run. If a healthy destination refuses at least
        {REFUSED_ITEMS_MIN} items of a task, and these are either more than {REFUSED_SHARE:.0%} of the task's items
        or all items sent so far, including a sample of the rest, the problem is assumed to affect all items, and
        the batch is parked."""
    )


def _statuses() -> Iterator[str]:
    yield "## HTTP statuses"
    yield _text(
        """The table applies to responses that contain no error from the sink itself, such as responses from
        proxies and gateways. `Retry-After`, in seconds or as a date, is honored up to one hour. A success status
        without proof is classified as `network`."""
    )
    yield _table_by_blame({str(status): blame for status, blame in answers.BLAME_BY_STATUS.items()}, "statuses")


def _google() -> Iterator[str]:
    yield "## Cloud Storage and BigQuery"
    yield _text(
        """Google's JSON errors are classified by reason, then by status as above, with two exceptions. Status 400
        is classified as `batch` (`row` for a single object or row), or as `size` if the response text says that
        the request is too large. After a 403 or 412 for an upload, the stored object is compared: an equal object
        counts as a success, and a different object that is protected by a retention policy or hold is classified
        as `row`. A packed object never becomes a dead letter, because the letter could not name its recordings;
        its batch is parked instead. A row that BigQuery refuses with `no such field` is classified as `table`.
        Rows refused as `stopped` are written again, without the rows that caused the refusal."""
    )
    yield _table_by_blame(
        {f"`{reason}`": blame for reason, blame in google_errors.BLAME_BY_REASON.items()}, "reasons"
    )
    yield _text(
        """Responses of the Storage Write API are classified by the error code that BigQuery adds to them. Without
        such a code, the gRPC status is classified like the HTTP status that corresponds to it. Rows that a
        response names are classified as `row`, and other refusals of an append as `batch`. `OFFSET_ALREADY_EXISTS`
        counts as success, because it proves that the rows have been written. `STREAM_FINALIZED`,
        `STREAM_NOT_FOUND`, `INVALID_STREAM_STATE` and `OFFSET_OUT_OF_RANGE` are not refusals either: rows that
        were not stored are written to another stream."""
    )
    storage = {f"`{code.name}`": blame for code, blame in append_answers.BLAME_BY_CODE.items()}
    yield _table_by_blame(storage, "codes of the Storage Write API")


def _clickhouse() -> Iterator[str]:
    yield "## ClickHouse"
    yield _text(
        """Exceptions are classified by the code in the header or body, regardless of the status. `batch` becomes
        `row` for a row that the server named (`at row N`) and that was then refused in an insert of its own.
        Exceptions about an unknown field, and exceptions raised while pushing to a view, are classified as
        `table`. Status 413 is classified as `size` regardless of the code."""
    )
    codes = {f"{number} `{name}`": blame for (number, name), blame in clickhouse_errors.BLAME_BY_CODE.items()}
    yield _table_by_blame(codes, "codes")


def _kafka() -> Iterator[str]:
    yield "## Dead letters"
    yield _text(
        """Errors are classified by their librdkafka error name. Dead letters themselves are never blamed,
        because they have no other destination. Codes that concern consumers, transactions and administration do
        not occur in a producer and are classified as `server`."""
    )
    names_of_producers = {
        f"`{name}`": blame
        for name, blame in sorted(kafka_errors.BLAME_BY_NAME.items())
        if name not in kafka_errors.OTHER_CLIENTS
    }
    yield _table_by_blame(names_of_producers, "codes")


def _network() -> Iterator[str]:
    yield "## No response"
    yield _text(
        """HTTP requests that get no response are classified by libcurl's error code. A proxy's refusal to open a
        tunnel is classified by the HTTP status of the refusal, as above."""
    )
    names = {getattr(pycurl, name): name for name in sorted(dir(pycurl)) if CURL_CODE.match(name)}
    yield _table_by_blame({f"`{names[code]}`": blame for code, blame in transfers.BLAME_BY_CODE.items()}, "codes")


def _table_by_blame(blames: Mapping[str, Blame], what: str) -> str:
    """Returns a table with one row per cause."""
    rows = (
        (f"`{blame.value}`", ", ".join(name for name, found in blames.items() if found is blame))
        for blame in Blame
        if blame in blames.values()
    )
    return _table(("cause", what), rows)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sentence(action: Action) -> str:
    return f"{action.value[0].upper()}{action.value[1:]}."


def _text(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())
