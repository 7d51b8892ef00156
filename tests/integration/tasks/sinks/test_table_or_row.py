"""Tests how a sink finds out whether the table or one row is at fault. The tests use real engines with altered
tables.

If the table is at fault, no row becomes a dead letter, the sink needs only a few requests to detect the fault, and
once the table is repaired, every row is written. A single poison row, among healthy rows or alone, still becomes a
dead letter.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from google.cloud import bigquery as official

from tasks.errors import PermanentSinkError
from tasks.migrate.bigquery import migrate_tables
from tasks.migrate.clickhouse import migrate_schema
from tasks.settings import Settings
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.clickhouse.table import COLUMNS
from tasks.staging import Progress
from tests.integration.tasks.sinks.test_sink_bigquery import fact
from tests.integration.tasks.sinks.test_sink_clickhouse import click
from tests.kit.delivering import deliver_to
from tests.kit.scripted_server import Answer, ReceivedRequest, answering, relay_to
from tests.kit.sink_answers import JSON

# The maximum number of requests during a delivery that ends with a parked batch.
REQUESTS_MAX = 10


@dataclass
class Rows:
    """A migrated ClickHouse database behind a proxy that records the sink's requests."""

    sink: Any
    requests: list[ReceivedRequest]
    owner: Any

    def execute(self, statement: str) -> None:
        """Executes a statement as the owner of the tables."""
        self.owner.command(statement)

    def count(self, table: str) -> int:
        return int(self.owner.command(f"SELECT count() FROM {table}"))


@pytest.fixture
def rows_place(settings: Callable[..., Settings], clickhouse_url: str) -> Iterator[Rows]:
    made = settings(clickhouse_url=clickhouse_url)
    list(migrate_schema(made, dry_run=False))
    owner = clickhouse.client(made)
    with answering(relay_to(clickhouse_url)) as (url, requests):
        sink = clickhouse.ClickHouseSink(made.model_copy(update={"clickhouse_url": url}))
        yield Rows(sink, requests, owner)
        sink.close()
    owner.close()


@dataclass
class Facts:
    """The BigQuery table behind a proxy that records the sink's requests."""

    sink: Any
    requests: list[ReceivedRequest]
    server: Any
    name: str

    def make(self, change: Callable[[list[dict[str, Any]]], None]) -> None:
        """Drops the table and creates it again, altered."""
        table = self.server.get_table(self.name)
        fields = [field.to_api_repr() for field in table.schema]
        change(fields)
        self.server.delete_table(self.name)
        made = official.Table(self.name, schema=[official.SchemaField.from_api_repr(field) for field in fields])
        self.server.create_table(made)

    def count(self) -> int:
        return sum(1 for _ in self.server.list_rows(self.name))


@pytest.fixture
def facts_place(settings: Callable[..., Settings], bigquery_endpoint: str) -> Iterator[Facts]:
    made = settings(bigquery_endpoint=bigquery_endpoint)
    list(migrate_tables(made, dry_run=False))
    server: Any = bigquery.client(made)
    with answering(relay_to(bigquery_endpoint)) as (url, requests):
        sink = bigquery.BigQuerySink(made.model_copy(update={"bigquery_endpoint": url}))
        yield Facts(sink, requests, server, f"{made.bigquery_project}.{made.bigquery_dataset}.replay_events")
        sink.close()
    server.close()


def field(fields: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in fields if entry["name"] == name)


def add_required(fields: list[dict[str, Any]]) -> None:
    fields.append({"name": "team", "type": "STRING", "mode": "REQUIRED"})


def require_what_may_be_missing(fields: list[dict[str, Any]]) -> None:
    field(fields, "retention_days")["mode"] = "REQUIRED"


def change_type(fields: list[dict[str, Any]]) -> None:
    field(fields, "replay_id")["type"] = "INTEGER"


def drop_column(fields: list[dict[str, Any]]) -> None:
    fields.remove(field(fields, "attributes"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (add_required, r"team is REQUIRED"),
        (require_what_may_be_missing, r"retention_days is REQUIRED"),
        (change_type, r"replay_id is INTEGER"),
        (drop_column, r"migrate"),
    ],
)
@pytest.mark.parametrize("count", [1, 8, 120])
def test_an_altered_table_of_bigquery_blames_no_row(
    facts_place: Facts, change: Callable[[list[dict[str, Any]]], None], error: str, count: int
) -> None:
    """No row is blamed if the table has a REQUIRED column that we do not write, has a column with a different type
    or mode, or lacks a column.
    """
    items = [fact(number) for number in range(count)]
    progress = Progress(left=list(range(count)))
    whole = [entry.to_api_repr() for entry in facts_place.server.get_table(facts_place.name).schema]
    facts_place.make(change)

    with pytest.raises(PermanentSinkError, match=error) as held:
        deliver_to(facts_place.sink, items, progress)

    assert held.value.configuration
    assert progress == Progress(left=list(range(count)))
    assert len(facts_place.requests) <= REQUESTS_MAX
    facts_place.make(lambda fields: fields.__setitem__(slice(None), whole))
    assert deliver_to(facts_place.sink, items, progress).refused == []
    assert facts_place.count() == count


def test_a_view_in_place_of_the_table_blames_no_row(facts_place: Facts) -> None:
    """If there is a view in place of the table, no row is blamed, because BigQuery cannot stream rows into a
    view.
    """
    facts_place.server.delete_table(facts_place.name)
    view = official.Table(facts_place.name)
    view.view_query = "SELECT 1 AS row_id"
    facts_place.server.create_table(view)

    with pytest.raises(PermanentSinkError) as held:
        deliver_to(facts_place.sink, [fact(1)])

    assert held.value.configuration


def test_a_table_that_is_gone_blames_no_row(facts_place: Facts) -> None:
    facts_place.server.delete_table(facts_place.name)

    with pytest.raises(PermanentSinkError) as held:
        deliver_to(facts_place.sink, [fact(1), fact(2)])

    assert held.value.configuration


@pytest.mark.parametrize("bad", [[0], [3], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_bad_rows_of_bigquery_are_dead_letters_even_without_neighbours(facts_place: Facts, bad: list[int]) -> None:
    """If the table is healthy, bad rows become dead letters.

    The batch consists of eight rows, one of them bad, or of a single bad row, or of eight bad rows.
    """
    items = [fact(number, segment_id="many") if number in bad else fact(number) for number in range(8)]
    if bad == [0]:
        items = items[:1]

    progress = deliver_to(facts_place.sink, items)

    assert [position for position, _ in progress.refused] == bad
    assert facts_place.count() == len(items) - len(bad)
    assert facts_place.count() == len({row["row_id"] for row in facts_place.server.list_rows(facts_place.name)})


def test_a_bigquery_request_refused_as_a_whole_is_bisected_to_its_row(
    facts_place: Facts, bigquery_endpoint: str
) -> None:
    """If BigQuery responds with 400 and does not say which row it cannot parse, a bisection finds the row."""
    relay = relay_to(bigquery_endpoint)

    def refuse(request: ReceivedRequest) -> Answer:
        body = b'{"error":{"code":400,"message":"Invalid value","errors":[{"reason":"invalid"}]}}'
        return Answer(400, body, JSON) if b'"row-77"' in request.body else relay(request)

    with answering(refuse) as (url, requests):
        settings = facts_place.sink._settings.model_copy(update={"bigquery_endpoint": url})
        sink = bigquery.BigQuerySink(settings)
        progress = deliver_to(sink, [fact(number) for number in range(120)])
        sink.close()

    assert [position for position, _ in progress.refused] == [77]
    assert facts_place.count() == 119
    assert len(requests) <= 1 + 2 * 7 + 2 * 2


def test_a_bisection_that_refuses_everything_ends_early(facts_place: Facts, bigquery_endpoint: str) -> None:
    """If every one of 120 rows makes its request fail, the bisection ends early, and nothing is dead-lettered,
    because such a failure means that all our rows are wrong.
    """
    relay = relay_to(bigquery_endpoint)

    def refuse(request: ReceivedRequest) -> Answer:
        body = b'{"error":{"code":400,"message":"Invalid value","errors":[{"reason":"invalid"}]}}'
        return Answer(400, body, JSON) if b'"row-' in request.body else relay(request)

    with answering(refuse) as (url, requests):
        settings = facts_place.sink._settings.model_copy(update={"bigquery_endpoint": url})
        sink = bigquery.BigQuerySink(settings)
        with pytest.raises(PermanentSinkError, match="20 of 120") as held:
            deliver_to(sink, [fact(number) for number in range(120)])
        sink.close()

    assert held.value.configuration
    assert len(requests) <= 40 + REQUESTS_MAX


def test_a_probe_of_bigquery_stores_nothing(facts_place: Facts) -> None:
    """The probe stores nothing, because it sends a known good row together with a row that no table accepts."""
    facts_place.sink.examine([fact(1)], 10)
    report = facts_place.sink.check()

    assert facts_place.count() == 0
    assert sum("insertAll" in request.path for request in facts_place.requests) == 2
    assert (report.warnings, len(report.not_tested)) == ((), 1)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("ALTER TABLE replays ADD CONSTRAINT never CHECK project_id > 1000000", "never"),
        ("ALTER TABLE replays MODIFY COLUMN url UInt32", "url is UInt32"),
        ("ALTER TABLE replays DROP COLUMN click_text", "migrate"),
        ("ALTER TABLE replays RENAME COLUMN click_tag TO tag", "migrate"),
        ("DROP TABLE replay_summaries", "replay_summaries"),
        ("DROP TABLE replays", "replays"),
    ],
)
@pytest.mark.parametrize("count", [1, 8])
def test_an_altered_table_of_clickhouse_blames_no_row(
    rows_place: Rows, statement: str, error: str, count: int
) -> None:
    """No row is blamed if the table has a constraint that no row satisfies, has a column with a different type,
    lacks a column, or is missing, or if the target table of its materialized view is missing.
    """
    items = [click(number, click_text="x", url="http://a/") for number in range(count)]
    progress = Progress(left=list(range(count)))
    rows_place.execute(statement)

    with pytest.raises(PermanentSinkError, match=re.escape(error)) as held:
        deliver_to(rows_place.sink, items, progress)

    assert held.value.configuration
    assert progress == Progress(left=list(range(count)))
    assert len(rows_place.requests) <= REQUESTS_MAX


def test_a_dropped_constraint_loses_no_row(rows_place: Rows) -> None:
    """After the constraint has been dropped, the same batch is retried, and no row is lost."""
    items, progress = [click(number) for number in range(30)], Progress(left=list(range(30)))
    rows_place.execute("ALTER TABLE replays ADD CONSTRAINT never CHECK project_id > 1000000")
    with pytest.raises(PermanentSinkError):
        deliver_to(rows_place.sink, items, progress)
    rows_place.execute("ALTER TABLE replays DROP CONSTRAINT never")

    assert deliver_to(rows_place.sink, items, progress).refused == []
    assert rows_place.count("replays") == 30


@pytest.mark.parametrize("bad", [[0], [3], [0, 1, 2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize("how", [{"timestamp": "yesterday"}, {"tags.key": ["a", "b"]}])
def test_bad_rows_of_clickhouse_are_dead_letters_even_without_neighbours(
    rows_place: Rows, bad: list[int], how: dict[str, Any]
) -> None:
    """If the table is healthy, bad rows become dead letters, whether the server names them or not.

    The batch consists of eight rows, one of them bad, or of a single bad row, or of eight bad rows.
    """
    items = [click(number, **how) if number in bad else click(number) for number in range(8)]
    if bad == [0]:
        items = items[:1]

    progress = deliver_to(rows_place.sink, items)

    assert [position for position, _ in progress.refused] == bad
    assert rows_place.count("replays") == len(items) - len(bad)


def test_a_row_that_violates_a_constraint_is_named(rows_place: Rows) -> None:
    """The server names a row that violates a constraint, so two inserts are enough to find it among a hundred."""
    rows_place.execute("ALTER TABLE replays ADD CONSTRAINT banned CHECK click_node_id != 666")
    items = [click(number, click_node_id=666 if number == 42 else 7) for number in range(100)]

    progress = deliver_to(rows_place.sink, items)

    ((position, reason),) = progress.refused
    assert position == 42
    assert "banned" in reason
    assert rows_place.count("replays") == 99
    assert sum("INSERT" in request.path for request in rows_place.requests) <= 3 + 2


def test_a_probe_of_clickhouse_stores_nothing(rows_place: Rows) -> None:
    """The probe stores nothing: its rows are parsed and checked, but then refused because they span two
    partitions.
    """
    rows_place.sink.examine([click(1)], 10)

    assert {rows_place.count(table) for table in clickhouse.TABLES} == {0}
    assert sum("INSERT" in request.path for request in rows_place.requests) == 1


def test_the_probed_columns_are_those_of_the_schema(rows_place: Rows) -> None:
    """The probed columns have the names and types that the migrations define. Materialized columns are not probed,
    because they are not written.
    """
    for table, columns in COLUMNS.items():
        found = rows_place.owner.query(
            "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String} "
            "AND default_kind NOT IN ('MATERIALIZED', 'ALIAS')",
            parameters={"table": table},
        ).result_rows
        assert {name: kind for name, (kind, _) in columns.items()} == dict(found)


def test_check_of_clickhouse_leaves_nothing_behind(rows_place: Rows) -> None:
    """`check` writes a row, reads it back and deletes it, and reports what it could not check."""
    report = rows_place.sink.check()

    assert "written, read back, deleted" in report.text
    assert report.warnings == ()
    assert ["replay_outcomes" in line for line in report.not_tested] == [True]
    assert {rows_place.count(table) for table in clickhouse.TABLES} == {0}


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("ALTER TABLE replay_objects DROP COLUMN name", "replay_objects.name; run `replays-ingest migrate`"),
        ("ALTER TABLE replay_objects ADD CONSTRAINT never CHECK project_id > 1000000", "never"),
        ("DROP TABLE replay_places", "lacks replay_places; run `replays-ingest migrate`"),
    ],
)
def test_check_of_clickhouse_finds_problems_before_a_batch_does(
    rows_place: Rows, statement: str, error: str
) -> None:
    rows_place.execute(statement)

    with pytest.raises(PermanentSinkError, match=re.escape(error)):
        rows_place.sink.check()


def test_check_of_clickhouse_refuses_a_table_that_stores_nothing(rows_place: Rows) -> None:
    """`check` rejects a table with the Null engine, which accepts and counts every row but stores nothing."""
    rows_place.execute("DROP TABLE replay_outcomes")
    rows_place.execute(
        "CREATE TABLE replay_outcomes (org_id UInt64, project_id UInt64, replay_id UUID, key_id Nullable(UInt64), "
        "category LowCardinality(String), outcome LowCardinality(String), quantity UInt32, timestamp DateTime) "
        "ENGINE = Null"
    )

    with pytest.raises(PermanentSinkError, match="Null"):
        rows_place.sink.check()


@pytest.mark.parametrize("number", [164, 497, 516])
def test_check_of_clickhouse_names_a_missing_permission(
    rows_place: Rows, clickhouse_url: str, number: int
) -> None:
    """With permission to insert but not to read or delete, `check` reports which parts it could not check.

    Writes work.
    """
    relay = relay_to(clickhouse_url)

    def limited(request: ReceivedRequest) -> Answer:
        if b"_partition_id" not in request.body:
            return relay(request)
        text = b"Code: %d. DB::Exception: worker: Not enough privileges. (ACCESS_DENIED)" % number
        return Answer(500, text, {"X-ClickHouse-Exception-Code": str(number)})

    with answering(limited) as (url, _):
        sink = clickhouse.ClickHouseSink(rows_place.sink._settings.model_copy(update={"clickhouse_url": url}))
        report = sink.check()
        sink.close()

    assert "a row was written" in report.text
    assert any("grant SELECT" in line for line in report.not_tested)


BODY_BYTES_MAX = 4000


def test_a_body_limit_before_clickhouse_halves_the_insert(rows_place: Rows, clickhouse_url: str) -> None:
    """If a body limit causes a 413, the insert is halved and all rows arrive; the next batch stays below the
    limit.
    """
    random_text = [os.urandom(200).hex() for _ in range(64)]  # random text, so that compression does not help
    items = [click(number, click_text=text) for number, text in enumerate(random_text)]
    with answering(relay_to(clickhouse_url), body_bytes_max=BODY_BYTES_MAX) as (url, requests):
        sink = clickhouse.ClickHouseSink(rows_place.sink._settings.model_copy(update={"clickhouse_url": url}))
        assert deliver_to(sink, items).refused == []
        first = len(requests)
        assert deliver_to(sink, [click(100 + number, click_text=text) for number, text in enumerate(random_text)])
        refused_again = sum(not request.body for request in requests[first:])
        sink.close()

    assert rows_place.count("replays") == 128
    assert first < 64
    assert refused_again == 0


def test_a_single_clickhouse_row_that_is_too_large_is_a_dead_letter(rows_place: Rows, clickhouse_url: str) -> None:
    items = [click(number, click_text=os.urandom(5000 if number == 3 else 20).hex()) for number in range(8)]
    with answering(relay_to(clickhouse_url), body_bytes_max=BODY_BYTES_MAX) as (url, _):
        sink = clickhouse.ClickHouseSink(rows_place.sink._settings.model_copy(update={"clickhouse_url": url}))
        progress = deliver_to(sink, items)
        sink.close()

    ((position, reason),) = progress.refused
    assert position == 3
    assert "too large" in reason
    assert rows_place.count("replays") == 7


@pytest.mark.parametrize("how", ["a proxy's page", "Google's own words"])
def test_a_body_limit_before_bigquery_halves_the_request(
    facts_place: Facts, bigquery_endpoint: str, how: str
) -> None:
    """After a 413, or a 400 from Google's front end, the request is split in half.

    A single row that is too large becomes a dead letter.
    """
    relay = relay_to(bigquery_endpoint)
    text = "Request payload size exceeds the limit: 10485760 bytes."
    body = json.dumps({"error": {"code": 400, "message": text, "status": "INVALID_ARGUMENT"}}).encode()

    def limited(request: ReceivedRequest) -> Answer:
        return Answer(400, body, JSON) if len(request.body) > BODY_BYTES_MAX else relay(request)

    proxied = how == "a proxy's page"
    items = [
        fact(number, attributes=json.dumps({"url": "x" * (9000 if number == 9 else 100)})) for number in range(40)
    ]
    script = relay if proxied else limited
    with answering(script, body_bytes_max=BODY_BYTES_MAX if proxied else None) as (url, requests):
        sink = bigquery.BigQuerySink(facts_place.sink._settings.model_copy(update={"bigquery_endpoint": url}))
        progress = deliver_to(sink, items)
        before = len(requests)
        deliver_to(sink, [fact(number) for number in range(100, 130)])
        second = len(requests) - before
        sink.close()

    assert [position for position, _ in progress.refused] == [9]
    assert "too large" in progress.refused[0][1]
    assert facts_place.count() == 39 + 30
    assert second <= 4
