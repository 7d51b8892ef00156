"""Facts streamed to a BigQuery server, and the responses of a failing server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.cloud import bigquery

from ingest.core.parse.rows import moment
from ingest.testing.messages import recording
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.migrate.bigquery import migrate_tables
from tasks.settings import Settings
from tasks.sinks.bigquery.sink import BigQuerySink, client
from tasks.wire import Row
from tests.kit import write_streams
from tests.kit.parsing import parsed
from tests.kit.scripted_server import Answer, ReceivedRequest, answering
from tests.kit.sink_answers import rows_streamed

NOON = write_streams.NOON


def fact(number: int, table: str = "replay_events", **given: Any) -> Row:
    """Returns a valid row whose receive time is a whole number of seconds."""
    return write_streams.fact(number, table, **{"timestamp": moment(NOON + number)} | given)


@pytest.fixture
def migrated(settings: Callable[..., Settings], bigquery_endpoint: str) -> Settings:
    """Settings that point to a dataset in which all tables exist."""
    made = settings(bigquery_endpoint=bigquery_endpoint)
    list(migrate_tables(made, dry_run=False))
    return made


@pytest.fixture
def sink(migrated: Settings) -> Iterator[BigQuerySink]:
    made = BigQuerySink(migrated)
    yield made
    made.close()


def rows(made: Settings, select: str, table: str = "replay_events") -> list[tuple[Any, ...]]:
    server: Any = client(made)
    name = f"`{made.bigquery_project}.{made.bigquery_dataset}.{table}`"
    found = [tuple(row.values()) for row in server.query_and_wait(f"SELECT {select} FROM {name}")]
    server.close()
    return found


def test_facts_arrive_with_their_values(sink: BigQuerySink, migrated: Settings) -> None:
    """The stored rows equal the JSON that the reader produced, including quotes and umlauts."""
    sink.write([fact(1), fact(2)], "token", 20)

    select = "row_id, UNIX_SECONDS(timestamp), JSON_VALUE(attributes, '$.url')"
    assert sorted(rows(migrated, select)) == [
        ("row-1", NOON + 1, 'http://a/"ä'),
        ("row-2", NOON + 2, 'http://a/"ä'),
    ]


def test_a_repeated_write_within_the_window_leaves_one_copy(sink: BigQuerySink, migrated: Settings) -> None:
    """A write that is repeated within the window leaves one copy, because the insertId is the row's identity."""
    items = [fact(number) for number in range(100)]

    sink.write(items, "token", 20)
    sink.write(items, "token", 20)

    assert rows(migrated, "COUNT(*)") == [(100,)]


def test_two_projects_with_one_replay_id_keep_all_their_facts(sink: BigQuerySink, migrated: Settings) -> None:
    """If two projects have the same replay id, the table and the view `<table>_exact` have all facts of both.

    The two recordings differ only in their project and receive time, and are written within the insertId window.
    The lower project id belongs to the earlier recording in one case, and to the later recording in the other.
    """
    events = [{"type": 4, "timestamp": NOON * 1000, "data": {"href": "https://a/", "width": 1, "height": 1}}]
    for earlier, later in ((21, 22), (24, 23)):
        for project, received in ((earlier, NOON), (later, NOON + 90)):
            segment = parsed(recording(events, project_id=project, received=received))
            sink.write(segment.bigquery, f"token-{project}", 20)

    for table in ("replay_events", "replay_events_exact"):
        counted = Counter(project for (project,) in rows(migrated, "project_id", table))
        assert counted == {21: 2, 22: 2, 23: 2, 24: 2}, table


def test_migrations_change_a_view_of_an_older_release(migrated: Settings) -> None:
    """`migrate` replaces the view of an older release, which deduplicated by row_id alone.

    A second run has nothing to do.
    """
    server: Any = client(migrated)
    name = f"{migrated.bigquery_project}.{migrated.bigquery_dataset}.replay_events"
    view = server.get_table(f"{name}_exact")
    today = view.view_query
    view.view_query = f"SELECT * FROM `{name}` WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY row_id) = 1"
    server.update_table(view, ["view_query"])

    lines = list(migrate_tables(migrated, dry_run=False))

    assert any("change the query of view" in line for line in lines)
    assert server.get_table(f"{name}_exact").view_query == today
    assert all(line.startswith("=") for line in migrate_tables(migrated, dry_run=False))


def test_repetitions_past_the_window_are_stored_and_the_view_shows_each_once(
    sink: BigQuerySink, migrated: Settings
) -> None:
    """Rows that are resent after BigQuery's deduplication window are stored again (a known limitation), and the
    view shows each row once.

    The test simulates the end of the window by writing the same facts with different insert ids.
    """
    sink.write([fact(number) for number in range(10)], "token", 20)
    late = [Row(item.table, f"{item.id}-late", item.json, item.offset) for item in map(fact, range(10))]
    sink.write(late, "token", 20)

    assert rows(migrated, "COUNT(*)") == [(20,)]
    assert rows(migrated, "COUNT(*)", "replay_events_exact") == [(10,)]


def test_a_refused_row_does_not_block_its_neighbors(sink: BigQuerySink, migrated: Settings) -> None:
    """If BigQuery refuses one of 500 rows, the error contains the row's position and BigQuery's reason, and the
    other 499 rows are stored.
    """
    items = [fact(number) for number in range(500)]
    items[123] = fact(123, segment_id="many")

    with pytest.raises(PermanentSinkError) as refused:
        sink.write(items, "token", 20)

    error = refused.value
    assert error.failed is not None
    ((position, reason),) = error.failed
    assert position == 123
    assert "segment_id" in reason
    assert (error.all_refused, error.configuration) == (False, False)
    assert rows(migrated, "COUNT(*)") == [(499,)]


def test_a_column_that_the_table_lacks_blames_no_row(sink: BigQuerySink) -> None:
    """If the reader is newer than the schema, the batch waits for `migrate`, and no row is refused."""
    with pytest.raises(PermanentSinkError, match="migrate") as refused:
        sink.write([fact(1, brand_new=1)], "token", 20)

    assert refused.value.configuration


def test_a_missing_table_or_data_set_is_configuration(
    sink: BigQuerySink, settings: Callable[..., Settings], bigquery_endpoint: str
) -> None:
    empty = BigQuerySink(settings(bigquery_endpoint=bigquery_endpoint))

    with pytest.raises(PermanentSinkError) as no_table:
        sink.write([fact(1, table="nowhere")], "token", 20)
    with pytest.raises(PermanentSinkError) as no_set:
        empty.write([fact(1)], "token", 20)
    with pytest.raises(PermanentSinkError, match="migrate"):
        empty.check()

    assert (no_table.value.configuration, no_set.value.configuration) == (True, True)


def test_check_reports_a_missing_column_of_the_table(
    settings: Callable[..., Settings], bigquery_endpoint: str
) -> None:
    """If the table lacks a column of this release, `check` names the column, and `migrate` adds it."""
    made = settings(bigquery_endpoint=bigquery_endpoint)
    list(migrate_tables(made, dry_run=False))
    server: Any = client(made)
    table = server.get_table(f"{made.bigquery_project}.{made.bigquery_dataset}.replay_events")
    server.delete_table(table)
    last = table.schema[-1].name
    table.schema = table.schema[:-1]
    server.create_table(table)
    sink = BigQuerySink(made)

    with pytest.raises(PermanentSinkError, match=rf"lacks replay_events.{last}; run `replays-ingest migrate`"):
        sink.check()
    list(migrate_tables(made, dry_run=False))

    assert made.bigquery_dataset in sink.check().text


def test_migrating_creates_partitioned_and_clustered_tables_once(
    settings: Callable[..., Settings], bigquery_endpoint: str
) -> None:
    """`migrate --dry-run` only reports, a second `migrate` has nothing to do, and `check` then passes."""
    made = settings(bigquery_endpoint=bigquery_endpoint, bigquery_expiration_days=90)

    told = list(migrate_tables(made, dry_run=True))
    done = list(migrate_tables(made, dry_run=False))
    again = list(migrate_tables(made, dry_run=False))

    server: Any = client(made)
    table = server.get_table(f"{made.bigquery_project}.{made.bigquery_dataset}.replay_events")
    assert told == done
    assert [line for line in again if not line.startswith("=")] == []
    assert (table.time_partitioning.type_, table.time_partitioning.field) == ("DAY", "timestamp")
    assert table.time_partitioning.expiration_ms == 90 * 86_400_000
    assert table.clustering_fields == ["project_id", "event_type", "replay_id"]
    sink = BigQuerySink(made)
    assert made.bigquery_dataset in sink.check().text
    sink.close()
    sink.close()


def test_an_older_table_gets_the_columns_it_lacks(
    settings: Callable[..., Settings], bigquery_endpoint: str
) -> None:
    """`migrate` only adds the missing columns to an older table and keeps its rows and any additional columns."""
    made = settings(bigquery_endpoint=bigquery_endpoint)
    server: Any = client(made)
    name = f"{made.bigquery_project}.{made.bigquery_dataset}"
    server.create_dataset(name)
    fields = [bigquery.SchemaField("row_id", "STRING"), bigquery.SchemaField("theirs", "STRING")]
    server.create_table(bigquery.Table(f"{name}.replay_events", schema=fields))

    (line, _view) = migrate_tables(made, dry_run=False)

    columns = [field.name for field in server.get_table(f"{name}.replay_events").schema]
    assert line.startswith("add to table")
    assert columns[:2] == ["row_id", "theirs"]
    assert "attributes" in columns


def test_a_column_of_another_type_needs_a_person(
    settings: Callable[..., Settings], bigquery_endpoint: str
) -> None:
    made = settings(bigquery_endpoint=bigquery_endpoint)
    server: Any = client(made)
    name = f"{made.bigquery_project}.{made.bigquery_dataset}"
    server.create_dataset(name)
    server.create_table(
        bigquery.Table(f"{name}.replay_events", schema=[bigquery.SchemaField("row_id", "INTEGER")])
    )

    with pytest.raises(PermanentSinkError, match=r"row_id is INTEGER, needed is STRING"):
        list(migrate_tables(made, dry_run=False))


def refusing(*entries: dict[str, Any]) -> Callable[[ReceivedRequest], Answer]:
    return lambda asked: rows_streamed(asked, insertErrors=list(entries))


def entry(index: int, reason: str) -> dict[str, Any]:
    return {"index": index, "errors": [{"reason": reason, "message": f"about {reason}", "location": ""}]}


def test_stopped_rows_are_not_refused(settings: Callable[..., Settings]) -> None:
    """If the server refuses a whole request because of one row, only this row counts as refused; the caller sends
    the other rows again without it.
    """
    with answering(refusing(entry(0, "stopped"), entry(1, "invalid"), entry(2, "stopped"))) as (url, _):
        sink = BigQuerySink(settings(bigquery_endpoint=url))
        with pytest.raises(PermanentSinkError) as refused:
            sink.write([fact(0), fact(1), fact(2)], "token", 5)

    assert refused.value.failed is not None
    assert [position for position, _ in refused.value.failed] == [1]
    assert refused.value.all_refused


def test_rows_with_backend_errors_are_retried(settings: Callable[..., Settings]) -> None:
    """If some rows fail with backend errors, all failed rows are retried. This includes invalid rows, because
    the response to the retry reports them again.
    """
    with answering(refusing(entry(0, "backendError"), entry(2, "invalid"))) as (url, _):
        sink = BigQuerySink(settings(bigquery_endpoint=url))
        with pytest.raises(TransientSinkError) as failed:
            sink.write([fact(0), fact(1), fact(2)], "token", 5)

    assert failed.value.failed == (0, 2)


def test_an_exhausted_quota_is_transient_and_a_missing_permission_is_not(
    settings: Callable[..., Settings],
) -> None:
    """An exhausted quota is a transient error, and a missing permission is not, although both give 403
    responses.
    """

    reasons = iter(["quotaExceeded", "accessDenied"])

    def answer(asked: ReceivedRequest) -> Answer:
        reason = next(reasons)
        body = {"error": {"code": 403, "message": "no", "errors": [{"reason": reason}]}}
        return Answer(403, json.dumps(body).encode())

    with answering(answer) as (url, _):
        sink = BigQuerySink(settings(bigquery_endpoint=url))
        with pytest.raises(TransientSinkError) as failed:
            sink.write([fact(0)], "token", 5)
        with pytest.raises(PermanentSinkError) as refused:
            sink.write([fact(0)], "token", 5)

    assert failed.value.failed == (0,)
    assert refused.value.configuration


def test_a_large_write_is_split_and_only_the_failed_part_is_listed(settings: Callable[..., Settings]) -> None:
    """A large write is split into independent requests below 10 MB, and the error lists only the items of a failed
    request.
    """
    answers = iter([rows_streamed, lambda asked: Answer(503, b"later"), rows_streamed])
    items = [fact(number, padding="x" * 100_000) for number in range(250)]

    with answering(lambda asked: next(answers)(asked)) as (url, asked):
        sink = BigQuerySink(settings(bigquery_endpoint=url))
        with pytest.raises(TransientSinkError) as failed:
            sink.write(items, "token", 20)

    sizes = [len(json.loads(request.body)["rows"]) for request in asked]
    assert failed.value.failed == tuple(range(sizes[0], sizes[0] + sizes[1]))
    assert sum(sizes) == 250
    assert max(len(request.body) for request in asked) < 10_000_000


def test_refused_connections_are_transient(settings: Callable[..., Settings]) -> None:
    sink = BigQuerySink(settings(bigquery_endpoint="http://127.0.0.1:1", sink_timeout_seconds=2))

    with pytest.raises(TransientSinkError) as failed:
        sink.write([fact(0), fact(1)], "token", 2)
    with pytest.raises(TransientSinkError):
        sink.check()

    assert failed.value.failed == (0, 1)
