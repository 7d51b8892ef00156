"""Compares what the sinks hold with what they should hold.

    report = reconcile(settings, Expectation.of_manifest(path), statsd_url=...)
    report.ok

Each `read_*` asks one server for everything that it holds; each `compare_*` is pure and gives one `Check`: how
much was expected and found, and examples of what is missing, unexpected or different. Sinks that are switched off
in the settings are not asked. Objects are downloaded and hashed; nothing is concluded from listings alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from uuid import UUID

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.local.load.expectation import Expectation, Flags, Letter, Object, Place, Total
from ingest.local.servers.statsd import query_metrics
from ingest.settings import Settings
from tasks.kafka.options import kafka_options
from tasks.sinks.clickhouse.sink import client as clickhouse_client
from tasks.sinks.gcs.sink import is_packed

EXAMPLES_MAX = 5
DOWNLOADS_AT_ONCE = 8
CALL_SECONDS_MAX = 30.0
LIST_PAGE = 1000
COORDINATOR_MOVES = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)

K = TypeVar("K")
V = TypeVar("V")


class ReconcileError(RuntimeError):
    """A server could not be asked. The text says which, and what it answered."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the reconciliation. `wrong`: there, but different. `note` explains what counts."""

    name: str
    expected: int
    found: int
    missing: int = 0
    extra: int = 0
    wrong: int = 0
    examples: tuple[str, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """Nothing is missing, unexpected or different."""
        return not (self.missing or self.extra or self.wrong)


@dataclass(frozen=True, slots=True)
class Report:
    """All checks, in the order in which data flows."""

    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Every check holds, and there is at least one."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [{**asdict(check), "ok": check.ok} for check in self.checks]
        return {"ok": self.ok, "seconds": round(self.seconds, 2), "checks": checks}

    def failures(self) -> str:
        """The checks that do not hold, a paragraph each; empty when all do."""
        return "\n".join(
            f"{check.name}: expected {check.expected}, found {check.found}, missing {check.missing}, "
            f"extra {check.extra}, wrong {check.wrong}\n  " + "\n  ".join(check.examples)
            for check in self.checks
            if not check.ok
        )


# ------------------------------------------------------------------------------------------------- comparisons


def compare_maps(
    name: str, expected: Mapping[K, V], found: Mapping[K, V], *, extra_matters: bool = True, note: str = ""
) -> Check:
    """Key by key and value by value."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected] if extra_matters else []
    wrong = [key for key, value in expected.items() if key in found and found[key] != value]
    examples = [f"missing: {_text(key)}" for key in missing[:EXAMPLES_MAX]]
    examples += [f"unexpected: {_text(key)}" for key in extra[:EXAMPLES_MAX]]
    examples += [
        f"{_text(key)}: {_text(found[key])} instead of {_text(expected[key])}" for key in wrong[:EXAMPLES_MAX]
    ]
    return Check(
        name, len(expected), len(found), len(missing), len(extra), len(wrong), tuple(examples[:EXAMPLES_MAX]), note
    )


def compare_sets(
    name: str, expected: Iterable[K], found: Iterable[K], *, extra_matters: bool = True, note: str = ""
) -> Check:
    """Member by member."""
    return compare_maps(
        name, dict.fromkeys(expected, 1), dict.fromkeys(found, 1), extra_matters=extra_matters, note=note
    )


def compare_facts(expected: Mapping[str, int], found: Mapping[str, int], *, extra_matters: bool = True) -> Check:
    """Rows of the analytics table by event type."""
    problems = []
    missing = extra = 0
    for name in sorted({*expected, *found}):
        wanted, have = expected.get(name, 0), found.get(name, 0)
        missing += max(0, wanted - have)
        extra += max(0, have - wanted) if extra_matters else 0
        if have < wanted or (have > wanted and extra_matters):
            problems.append(f"{name}: {have} rows instead of {wanted}")
    note = f"rows of {len(expected)} event types, distinct by row_id"
    sums = (sum(expected.values()), sum(found.values()))
    return Check("BigQuery facts", *sums, missing, extra, 0, tuple(problems[:EXAMPLES_MAX]), note)


def compare_metrics(expected: Mapping[str, Total], found: Mapping[str, Total], *, exactly: bool) -> Check:
    """Totals by name. A metric may come again after a crash, so without `exactly` more is allowed."""
    problems: list[str] = []
    missing = extra = wrong = 0
    for name, total in sorted(expected.items()):
        have = found.get(name, Total(0, 0.0))
        missing += max(0, total.count - have.count)
        extra += max(0, have.count - total.count) if exactly else 0
        differs = have.count == total.count and _sums_differ(have.sum, total.sum)
        wrong += differs
        if differs or have.count < total.count or (exactly and have.count != total.count):
            problems.append(
                f"{name}: {have.count} values, sum {have.sum:g}, instead of {total.count}, {total.sum:g}"
            )
    count = sum(total.count for total in expected.values())
    seen = sum(total.count for name, total in found.items() if name in expected)
    note = "values by name" + ("" if exactly else ", at least once")
    return Check("DataDog metrics", count, seen, missing, extra, wrong, tuple(problems[:EXAMPLES_MAX]), note)


def _sums_differ(found: float | None, expected: float | None) -> bool:
    return found is not None and expected is not None and abs(found - expected) > 1e-6 * max(1.0, abs(expected))


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(_text(part) for part in value)
    text = str(value)
    return text if len(text) <= 90 else text[:87] + "..."


# ------------------------------------------------------------------------------------------------- Cloud Storage


class _Storage:
    """Reads a bucket over the JSON API, one kept connection a thread."""

    def __init__(self, settings: Settings) -> None:
        self._base = urlsplit(settings.gcs_endpoint or "https://storage.googleapis.com")
        self._bucket = quote(settings.gcs_bucket, safe="")
        self._local = threading.local()
        self._headers = {} if settings.gcs_endpoint else _google_headers(settings)

    def names(self) -> Iterator[str]:
        """Every object of the bucket."""
        token = ""
        while True:
            fields = "&fields=items(name),nextPageToken"
            page = json.loads(
                self._get(
                    f"/storage/v1/b/{self._bucket}/o?maxResults={LIST_PAGE}&pageToken={quote(token)}{fields}"
                )
            )
            for item in page.get("items") or ():
                yield item["name"]
            token = page.get("nextPageToken") or ""
            if not token:
                return

    def content(self, name: str) -> bytes:
        """An object's bytes as they are stored."""
        return self._get(f"/storage/v1/b/{self._bucket}/o/{quote(name, safe='')}?alt=media")

    def _get(self, path: str) -> bytes:
        for attempt in (1, 2, 3):
            connection = self._connection()
            try:
                connection.request("GET", path, headers=self._headers)
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if attempt == 3:
                    raise ReconcileError(f"Cloud Storage at {self._base.geturl()}: {error}") from error
                continue
            if response.status == 200:
                return body
            raise ReconcileError(f"Cloud Storage: {response.status} for {path}: {body[:200]!r}")
        raise AssertionError("unreachable")

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._base.scheme == "https" else http.client.HTTPConnection
            connection = kind(self._base.hostname or "", self._base.port, timeout=CALL_SECONDS_MAX)
            self._local.connection = connection
        return connection


def _google_headers(settings: Settings) -> dict[str, str]:
    from google.auth.transport.requests import Request

    from tasks.sinks.gcs.sink import client

    headers: dict[str, str] = {}
    client(settings)._credentials.before_request(Request(), "GET", "https://storage.googleapis.com", headers)
    return headers


def _read_packed(storage: _Storage, settings: Settings, packed: list[str]) -> dict[str, bytes]:
    """The recordings that the index finds in these objects, under the names of the layout `segment`.

    An object that no row points into is no recording's place any more: redelivery under another release made it.
    """
    with contextlib.closing(clickhouse_client(settings)) as server:
        rows = server.query("SELECT name, object, start_bytes, length_bytes FROM replay_objects FINAL").result_rows
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="reconcile") as pool:
        contents = dict(zip(packed, pool.map(storage.content, packed), strict=True))
    return {
        name: contents[place][start : start + length] for name, place, start, length in rows if place in contents
    }


def read_objects(settings: Settings, expected: Mapping[str, Object]) -> dict[str, Object]:
    """Every object of the bucket; those that are expected are downloaded and hashed the way they are expected."""
    storage = _Storage(settings)
    names = list(storage.names())
    packed = [name for name in names if is_packed(name)]
    within = _read_packed(storage, settings, packed) if packed else {}
    names = [name for name in names if not is_packed(name)] + list(within)

    def hashed(name: str) -> tuple[str, Object]:
        wanted = expected.get(name)
        if wanted is None:
            return name, Object("", True)
        content = within[name] if name in within else storage.content(name)
        if not wanted.exact:
            try:
                content = zlib.decompress(content)
            except zlib.error as error:
                return name, Object(f"not a zlib stream: {error}", False)
        return name, Object(hashlib.sha256(content).hexdigest(), wanted.exact)

    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="reconcile") as pool:
        return dict(pool.map(hashed, names, chunksize=16))


# ---------------------------------------------------------------------------------------------------- ClickHouse


@dataclass(slots=True)
class Rows:
    """What ClickHouse holds, exact under FINAL."""

    clicks: dict[str, Flags] = field(default_factory=dict)
    taps: set[str] = field(default_factory=set)
    replay_events: set[tuple[int, str, int]] = field(default_factory=set)
    segments: set[tuple[int, str, int]] = field(default_factory=set)
    outcomes: dict[str, str] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)
    """Identities that FINAL shows more than once, by table: must be empty."""


def read_rows(settings: Settings) -> Rows:
    """Every row of the three tables, one query a table."""
    from tasks.sinks.clickhouse.sink import client

    rows = Rows()
    server = client(settings)
    try:
        for hash_, dead, rage, is_click, is_tap, project, replay, segment in server.query(
            "SELECT toString(event_hash), click_is_dead, click_is_rage, click_tag != '' OR click_node_id > 0, "
            "tap_view_id != '' OR tap_message != '', project_id, toString(replay_id), segment_id "
            "FROM replays FINAL"
        ).result_rows:
            if is_click:
                _note(rows, "replays", hash_ in rows.clicks)
                rows.clicks[hash_] = Flags(dead, rage)
            elif is_tap:
                _note(rows, "replays", hash_ in rows.taps)
                rows.taps.add(hash_)
            else:
                key = (project, UUID(replay).hex, segment)
                _note(rows, "replays", key in rows.replay_events)
                rows.replay_events.add(key)
        for project, replay, segment in server.query(
            "SELECT project_id, toString(replay_id), segment_id FROM replay_segments FINAL"
        ).result_rows:
            key = (project, UUID(replay).hex, segment)
            _note(rows, "replay_segments", key in rows.segments)
            rows.segments.add(key)
        for replay, category, quantity in server.query(
            "SELECT toString(replay_id), category, quantity FROM replay_outcomes FINAL WHERE outcome = 'accepted'"
        ).result_rows:
            name = UUID(replay).hex
            _note(rows, "replay_outcomes", name in rows.outcomes or quantity != 1)
            rows.outcomes[name] = category
    finally:
        server.close()
    return rows


def _note(rows: Rows, table: str, doubled: bool) -> None:
    if doubled:
        rows.doubled[table] = rows.doubled.get(table, 0) + 1


# --------------------------------------------------------------------------------------- BigQuery, DataDog, Kafka


def read_facts(settings: Settings) -> Counter[str]:
    """Rows of the analytics table by event type, each identity once."""
    from tasks.sinks.bigquery.sink import client

    table = f"`{settings.bigquery_project}.{settings.bigquery_dataset}.replay_events`"
    connected = client(settings)
    try:
        answer = connected.query_and_wait(
            f"SELECT event_type, COUNT(DISTINCT row_id) AS n FROM {table} GROUP BY event_type"
        )
        return Counter({row["event_type"]: row["n"] for row in answer})
    finally:
        connected.close()  # type: ignore[no-untyped-call]


def read_metrics(statsd_url: str) -> dict[str, Total]:
    """What the DogStatsD listener received, over all tags."""
    totals: dict[str, Total] = {}
    for series in query_metrics(statsd_url, ""):
        old = totals.get(series["name"], Total(0, 0.0))
        totals[series["name"]] = Total(old.count + series["count"], (old.sum or 0.0) + series["sum"])
    return totals


def read_letters(settings: Settings, deadline_seconds: float = 60.0) -> tuple[dict[Place, Letter], int]:
    """The rejects of the dead-letter topic by the place of their original, and how many records repeat one."""
    found: dict[Place, Letter] = {}
    repeats = 0
    for value, headers in _records(settings, settings.dlq_topic, deadline_seconds):
        if "sink" in headers or "reason" not in headers:
            continue
        place = (headers["topic"], int(headers["partition"]), int(headers["offset"]))
        repeats += place in found
        found[place] = Letter(headers["reason"], hashlib.sha256(value).hexdigest())
    return found, repeats


def _records(settings: Settings, topic: str, deadline_seconds: float) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Every record of a topic, from the beginning to the end as the broker tells it while fetching."""
    consumer = Consumer(
        {
            "group.id": f"{settings.kafka_group}-reconcile",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
            **kafka_options(settings),
        }
    )
    ends_at = time.monotonic() + deadline_seconds
    try:
        partitions = consumer.list_topics(topic, timeout=CALL_SECONDS_MAX).topics[topic].partitions
        open_partitions = set(partitions)
        consumer.assign([KafkaPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        while open_partitions:
            if time.monotonic() > ends_at:
                raise ReconcileError(f"topic {topic} was not read to its end within {deadline_seconds:g} s")
            record = consumer.poll(0.5)
            if record is None:
                continue
            error = record.error()
            if error is None:
                yield _value(record), _headers(record)
            elif error.code() == KafkaError._PARTITION_EOF:
                open_partitions.discard(record.partition())
            else:
                raise ReconcileError(f"topic {topic}: {error.str()}")
    except KafkaException as error:
        raise ReconcileError(f"topic {topic}: {error}") from error
    finally:
        consumer.close()


def _value(record: Message) -> bytes:
    value = record.value()
    return value if isinstance(value, bytes) else b""


def _headers(record: Message) -> dict[str, str]:
    pairs: list[Any] = list(record.headers() or ())
    return {name: (value or b"").decode("utf-8", "replace") for name, value in pairs}


class Committed:
    """Asks for the group's committed offsets, with one client for many questions."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = Consumer(
            {"group.id": settings.kafka_group, "enable.auto.commit": False, **kafka_options(settings)}
        )

    def of(self, sources: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Committed offset by (topic, partition); 0 where there is none. Raises ReconcileError."""
        asked = [KafkaPartition(topic, partition) for topic, partition in sources]
        ends_at = time.monotonic() + CALL_SECONDS_MAX
        while True:
            try:
                answer = self._consumer.committed(asked, timeout=max(0.1, ends_at - time.monotonic()))
                break
            except KafkaException as error:
                # A broker that has just started does not know its groups yet.
                if error.args[0].code() not in COORDINATOR_MOVES or time.monotonic() > ends_at:
                    raise ReconcileError(f"committed offsets: {error}") from error
                time.sleep(0.1)
        return {(one.topic, one.partition): max(one.offset, 0) for one in answer}

    def close(self) -> None:
        """Leaves."""
        self._consumer.close()


# ------------------------------------------------------------------------------------------------------- together


def reconcile(
    settings: Settings,
    expected: Expectation,
    *,
    statsd_url: str = "",
    metrics_exactly: bool = False,
    extra_matters: bool = True,
    progress: Callable[[str], None] = lambda name: None,
) -> Report:
    """Asks every sink that is switched on, and Kafka. Raises ReconcileError when a server cannot be asked.

    `extra_matters=False` where the sinks hold more than this load on purpose. `metrics_exactly` after a run
    without any crash. Without `statsd_url` metrics are not checked: an agent does not tell.
    """
    began = time.monotonic()
    checks: list[Check] = []

    def add(*more: Check) -> None:
        checks.extend(more)
        for check in more:
            progress(check.name)

    if "gcs" in settings.sinks:
        objects = read_objects(settings, expected.objects)
        add(
            compare_maps(
                "GCS objects",
                expected.objects,
                objects,
                extra_matters=extra_matters,
                note="byte for byte (SHA-256)",
            )
        )
    if "clickhouse" in settings.sinks:
        add(*_row_checks(expected, read_rows(settings), extra_matters))
    if "bigquery" in settings.sinks:
        add(compare_facts(expected.facts, read_facts(settings), extra_matters=extra_matters))
    if "datadog" in settings.sinks and statsd_url:
        add(compare_metrics(expected.metrics, read_metrics(statsd_url), exactly=metrics_exactly))
    letters, repeats = read_letters(settings)
    note = "original bytes and reason, each once" + (f"; {repeats} repeated records" if repeats else "")
    add(compare_maps("dead letters", expected.letters, letters, extra_matters=extra_matters, note=note))
    committed = Committed(settings)
    try:
        found = committed.of(sorted(expected.ends))
    finally:
        committed.close()
    add(compare_maps("committed offsets", expected.ends, found, note="log end on every partition"))
    return Report(tuple(checks), time.monotonic() - began)


def _row_checks(expected: Expectation, rows: Rows, extra_matters: bool) -> list[Check]:
    """The ClickHouse lines."""
    dead = {name for name, flags in expected.clicks.items() if flags.dead}
    found_dead = {name for name, flags in rows.clicks.items() if flags.dead}

    def sets(name: str, left: Iterable[K], right: Iterable[K], note: str) -> Check:
        return compare_sets(name, left, right, extra_matters=extra_matters, note=note)

    return [
        sets("ClickHouse segments", expected.segments, rows.segments, "one row a segment"),
        sets("ClickHouse replay events", expected.segments, rows.replay_events, "one row a segment"),
        compare_maps(
            "ClickHouse clicks",
            expected.clicks,
            rows.clicks,
            extra_matters=extra_matters,
            note="event_hash with its dead and rage flags",
        ),
        sets("ClickHouse dead clicks", dead, found_dead, "event_hash"),
        sets("ClickHouse taps", expected.taps, rows.taps, "event_hash"),
        compare_maps(
            "billing outcomes", expected.outcomes, rows.outcomes, extra_matters=extra_matters, note="one a replay"
        ),
        compare_maps("ClickHouse doubles", {}, rows.doubled, note="identities that FINAL shows twice"),
    ]
