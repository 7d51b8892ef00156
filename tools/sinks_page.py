"""docs/sinks.md: what proves a write to each sink, and whose fault each failure is, by the tables of the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping

import pycurl

from tasks.bisection import REFUSED_MIN, REFUSED_SHARE, WRITES_MAX
from tasks.sinks import datadog
from tasks.sinks.bigquery import answers as bigquery
from tasks.sinks.clickhouse import answers as clickhouse
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.dead_letter import errors as kafka_errors
from tasks.sinks.dead_letter import sink as dead_letter
from tasks.sinks.gcs import objects
from tasks.sinks.google import errors as google_errors
from tasks.sinks.http import answers, transfers
from tasks.sinks.outcome import MEANING_OF, Action, Blame
from tasks.wire import SinkName

# Some codes have two names, of which these are the older ones.
CURL_CODE = re.compile("E_(?!MULTI|FTP|TFTP|URL_MALFORMAT_USER|UNKNOWN_TELNET_OPTION|SSL_PEER_CERT|SSL_CACERT$)")
PROOF_OF = {
    SinkName.GCS: objects.PROOF,
    SinkName.CLICKHOUSE: clickhouse.PROOF,
    SinkName.BIGQUERY: bigquery.PROOF,
    SinkName.DATADOG: datadog.PROOF,
    SinkName.DEAD_LETTER: dead_letter.PROOF,
}


def sinks_page() -> Iterator[str]:
    """The whole page."""
    yield "# Sinks: what proves a write, and whose fault a failure is"
    yield from _proofs()
    yield from _blames()
    yield from _statuses()
    yield from _google()
    yield from _clickhouse()
    yield from _kafka()
    yield from _network()


def _proofs() -> Iterator[str]:
    yield "## What proves a write"
    yield _text(
        """An item counts as durable when the answer proves it in the sink's own format. A status of success
        proves nothing: ClickHouse may send it before an insert fails, and proxies and portals answer with
        pages of their own. What lacks the proof is tried again, and one line in the worker's log says
        what came instead. Answers are read up to 64 KiB, and no redirect is followed."""
    )
    yield _table(("sink", "proof"), ((f"`{name}`", PROOF_OF[name]) for name in SinkName))


def _blames() -> Iterator[str]:
    yield "## Whose fault"
    yield _text(
        """Each failure is put down to one of these. The lists below say which status, code or reason is
        which; what is not listed is the server's fault, or the network's where there was no answer: tried
        again, then parked, never lost."""
    )
    rows = ((f"`{blame.value}`", MEANING_OF[blame], _sentence(blame.action)) for blame in Blame)
    yield _table(("at fault", "which means", "what happens"), rows)
    yield _text(
        f"""Before an item is blamed, the place itself is examined, and again after the last one was: what was
        refused without a healthy answer on both sides is forgotten. BigQuery and ClickHouse are asked for
        the table's type and columns and for their answer to rows that are known to be good, without
        storing them; Cloud Storage stores and deletes a small object. So a column that somebody added, or
        a constraint that nothing meets, parks the batch, and one poison row, alone in its batch even,
        becomes a dead letter. Refusals that name no row are halved, with at most {WRITES_MAX} writes per
        run; when {REFUSED_MIN} items or more and over {REFUSED_SHARE:.0%} of a task (or all of those
        tried all over it) are refused by a healthy place, our rows are wrong, and the batch parks."""
    )


def _statuses() -> Iterator[str]:
    yield "## HTTP statuses"
    yield _text(
        """Of proxies and gateways: an answer in which the server itself does not say what is wrong.
        `Retry-After`, a number of seconds or a date, is kept up to an hour. Statuses of success that
        prove nothing are `network`."""
    )
    yield _by_blame({str(status): blame for status, blame in answers.BLAME_OF_STATUS.items()}, "statuses")


def _google() -> Iterator[str]:
    yield "## Cloud Storage and BigQuery"
    yield _text(
        """A JSON error of Google's is judged by its reasons, then by its status as above, with two
        differences: 400 is `batch` (`row` for one object or one row), and `size` if its text says so. A
        403 or 412 to an upload is followed by a look at what is stored there: an equal object is success;
        another one that a retention policy or a hold protects is `row`. A packed object is never a dead
        letter, since a letter could not say which recordings are in it: it is held. A row that BigQuery
        refuses with `no such field` is `table`; `stopped` rows are written again without those that
        stopped them."""
    )
    yield _by_blame({f"`{reason}`": blame for reason, blame in google_errors.BLAME_OF_REASON.items()}, "reasons")


def _clickhouse() -> Iterator[str]:
    yield "## ClickHouse"
    yield _text(
        """By the exception's code, in its header or in the body, whatever the status. `batch` becomes `row`
        for the row that the server names (`at row N`), once it was refused alone. An exception about an
        unknown field, or one that was raised while pushing to a view, is `table`. A 413 is `size`
        whatever the code."""
    )
    codes = {f"{number} `{name}`": blame for (number, name), blame in clickhouse_errors.BLAME_OF_CODE.items()}
    yield _by_blame(codes, "codes")


def _kafka() -> Iterator[str]:
    yield "## Dead letters"
    yield _text(
        """By the name of librdkafka's error. No letter is ever blamed: it has no other place to go. Codes of
        consumers, transactions and administration, which a producer does not meet, are `server`."""
    )
    ours = {
        f"`{name}`": blame
        for name, blame in sorted(kafka_errors.BLAME_OF_NAME.items())
        if name not in kafka_errors.NOT_OURS
    }
    yield _by_blame(ours, "codes")


def _network() -> Iterator[str]:
    yield "## No answer"
    yield _text(
        """Ends of an HTTP request without an answer, by libcurl's code. A proxy that refuses the tunnel is
        judged by its status, as above."""
    )
    names = {getattr(pycurl, name): name for name in sorted(dir(pycurl)) if CURL_CODE.match(name)}
    yield _by_blame({f"`{names[code]}`": blame for code, blame in transfers.BLAME_OF_CODE.items()}, "codes")


def _by_blame(blames: Mapping[str, Blame], what: str) -> str:
    """A table with a row for each culprit, and all that is put down to it."""
    rows = (
        (f"`{blame.value}`", ", ".join(name for name, found in blames.items() if found is blame))
        for blame in Blame
        if blame in blames.values()
    )
    return _table(("at fault", what), rows)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sentence(action: Action) -> str:
    return f"{action.value[0].upper()}{action.value[1:]}."


def _text(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())
