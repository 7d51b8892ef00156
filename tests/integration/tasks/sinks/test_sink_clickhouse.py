"""Rows in ClickHouse, tested with its real engine and the real driver."""

from __future__ import annotations

import json
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.migrate.clickhouse import migrate_schema
from tasks.settings import Settings
from tasks.sinks.clickhouse.errors import BLAME_BY_CODE
from tasks.sinks.clickhouse.sink import TABLES, ClickHouseSink, client
from tasks.wire import Row
from tests.kit.scripted_server import Answer, ReceivedRequest, answering

REPLAY = "0123456789abcdef0123456789abcdef"
MONDAY = 1_795_000_000


def click(number: int, **given: Any) -> Row:
    """Returns a sufficiently complete row of `replays`; `number` is its identity."""
    fields: dict[str, Any] = {
        "project_id": 1,
        "replay_id": str(uuid.UUID(REPLAY)),
        "event_hash": str(uuid.UUID(int=number)),
        "segment_id": number,
        "timestamp": MONDAY,
        "retention_days": 90,
        "click_node_id": 7,
        "click_tag": "button",
        "click_class": ["a", "b"],
        "tags.key": ["plan"],
        "tags.value": ["free"],
        "click_is_dead": 0,
        "click_is_rage": 0,
    } | given
    return Row("replays", fields["event_hash"], json.dumps(fields).encode(), number)


def outcome(number: int) -> Row:
    """Returns a row of `replay_outcomes`."""
    replay_id = str(uuid.UUID(int=number))
    fields = {
        "org_id": 1,
        "project_id": 1,
        "replay_id": replay_id,
        "category": "replay",
        "outcome": "accepted",
        "quantity": 1,
        "timestamp": MONDAY,
    }
    return Row("replay_outcomes", replay_id, json.dumps(fields).encode(), number)


@pytest.fixture
def migrated(settings: Callable[..., Settings], clickhouse_url: str) -> Settings:
    """Settings whose database has the whole schema."""
    made = settings(clickhouse_url=clickhouse_url)
    list(migrate_schema(made, dry_run=False))
    return made


@pytest.fixture
def server(migrated: Settings) -> Iterator[Any]:
    """A separate client of the same database."""
    connected = client(migrated)
    yield connected
    connected.close()


@pytest.fixture
def sink(migrated: Settings) -> Iterator[ClickHouseSink]:
    made = ClickHouseSink(migrated)
    yield made
    made.close()


def count(server: Any, table: str) -> int:
    return int(server.command(f"SELECT count() FROM {table}"))


def clicks(server: Any) -> tuple[int, ...]:
    """Returns the numbers of segments, clicks, dead clicks and rage clicks in the view."""
    query = (
        "SELECT uniqExactMerge(segments), uniqExactIfMerge(clicks), uniqExactIfMerge(dead_clicks), "
        "uniqExactIfMerge(rage_clicks) FROM replay_summaries"
    )
    return tuple(server.query(query).result_rows[0])


def test_rows_arrive_with_their_values(sink: ClickHouseSink, server: Any) -> None:
    """A query returns the values that the reader produced; omitted columns have their defaults."""
    sink.write([click(1, url="http://a/", ip_address_v4="10.1.2.3", user=None)], "token", 20)

    (row,) = server.query(
        "SELECT toString(replay_id), segment_id, url, toString(ip_address_v4), user, `tags.key`, click_class, "
        "title FROM replays"
    ).result_rows

    assert row == (str(uuid.UUID(REPLAY)), 1, "http://a/", "10.1.2.3", "", ["plan"], ["a", "b"], "")


def test_the_same_write_again_is_skipped_by_its_token(sink: ClickHouseSink, server: Any) -> None:
    """Within the deduplication window the server drops a repeated insert, so that there is one copy in the
    table and in the view.
    """
    items = [click(number) for number in range(1, 301)] + [outcome(number) for number in range(10)]

    sink.write(items, "batch-1", 20)
    sink.write(items, "batch-1", 20)

    assert (count(server, "replays"), count(server, "replay_outcomes")) == (300, 10)
    assert clicks(server) == (300, 300, 0, 0)


def test_the_same_rows_under_another_token_replace_each_other(sink: ClickHouseSink, server: Any) -> None:
    """If the same messages are cut differently, there are two copies on disk until a merge, but one copy with
    FINAL and in the view.
    """
    items = [click(number) for number in range(1, 21)]

    sink.write(items, "batch-1", 20)
    sink.write(items[:10], "batch-2", 20)
    sink.write(items[10:], "batch-3", 20)

    assert count(server, "replays") == 40
    assert count(server, "replays FINAL") == 20
    assert clicks(server) == (20, 20, 0, 0)


def test_other_rows_of_the_same_batch_are_not_skipped(sink: ClickHouseSink, server: Any) -> None:
    """Other rows of the same batch are not skipped, because the token depends on the content and the table."""
    sink.write([click(1), outcome(1)], "token-a", 20)
    sink.write([click(2), outcome(2)], "token-b", 20)

    assert (count(server, "replays"), count(server, "replay_outcomes")) == (2, 2)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 0)])
def test_a_dead_click_stays_dead_in_any_order_of_its_rows(
    sink: ClickHouseSink, server: Any, order: tuple[int, ...]
) -> None:
    """A dead click stays dead, in whichever order its rows arrive.

    A click and its later slow click share an identity, and a redelivered click must not replace the slow click.
    """
    rows = (click(1), click(1, click_is_dead=1))

    for number, which in enumerate(order):
        sink.write([rows[which]], f"token-{number}", 20)

    assert server.query("SELECT click_is_dead FROM replays FINAL").result_rows == [(1,)]
    assert clicks(server) == (1, 1, 1, 0)


def test_a_bad_row_is_named_and_the_others_are_written(sink: ClickHouseSink, server: Any) -> None:
    """If two of fifty rows are bad in different ways, only these two are refused and named.

    The other rows, including one of another table, are stored.
    """
    items = [click(number) for number in range(1, 51)] + [outcome(1)]
    items[7] = click(8, timestamp="yesterday")
    items[30] = click(31, ip_address_v4="10.1")

    with pytest.raises(PermanentSinkError) as refused:
        sink.write(items, "token", 20)

    error = refused.value
    assert error.failed is not None
    assert [position for position, _ in error.failed] == [7, 30]
    assert "timestamp" in error.failed[0][1]
    assert (error.all_refused, error.configuration) == (False, False)
    assert (count(server, "replays"), count(server, "replay_outcomes")) == (48, 1)


def test_after_a_bad_row_the_same_write_still_leaves_one_copy(sink: ClickHouseSink, server: Any) -> None:
    """If a write that contains a bad row is repeated, the other rows are stored only once, because they are
    inserted with the same token each time.
    """
    items = [click(number) for number in range(1, 11)]
    items[3] = click(4, timestamp="yesterday")

    for _ in range(2):
        with pytest.raises(PermanentSinkError):
            sink.write(items, "token", 20)

    assert count(server, "replays") == 9


def test_rows_that_the_server_does_not_name_are_left_to_the_caller(sink: ClickHouseSink, server: Any) -> None:
    """If the server reports an error without a row number, as it does for arrays of different lengths, nothing is
    written.
    """
    items = [click(1), click(2, **{"tags.key": ["a", "b"]}), click(3)]

    with pytest.raises(PermanentSinkError) as refused:
        sink.write(items, "token", 20)

    assert refused.value.failed is None
    assert not refused.value.configuration
    assert count(server, "replays") == 0


def test_a_single_bad_row_is_always_named(sink: ClickHouseSink) -> None:
    """A single bad row is always named, so that the caller's bisection ends."""
    with pytest.raises(PermanentSinkError) as refused:
        sink.write([click(2, **{"tags.key": ["a", "b"]})], "token", 20)

    assert refused.value.failed is not None
    assert [position for position, _ in refused.value.failed] == [0]


def test_many_bad_rows_end_in_a_bisection_by_the_caller(sink: ClickHouseSink) -> None:
    """The sink identifies only a limited number of bad rows, because each one costs two inserts; beyond the limit,
    the caller bisects.
    """
    with pytest.raises(PermanentSinkError) as refused:
        sink.write([click(number, timestamp="x") for number in range(1, 40)], "token", 20)

    assert refused.value.failed is None


def test_a_column_that_the_table_lacks_blames_no_row(sink: ClickHouseSink) -> None:
    """If the reader is newer than the schema, the error is a configuration error.

    The batch waits for `migrate`, and no row becomes a dead letter.
    """
    with pytest.raises(PermanentSinkError, match="migrate") as refused:
        sink.write([click(1), click(2, brand_new=1)], "token", 20)

    assert refused.value.configuration


def test_a_missing_table_or_database_is_configuration(
    sink: ClickHouseSink, settings: Callable[..., Settings], clickhouse_url: str
) -> None:
    """A missing table or database is a configuration error that says what to do."""
    with pytest.raises(PermanentSinkError) as no_table:
        sink.write([Row("nowhere", "1", b"{}", 1)], "token", 20)
    empty = ClickHouseSink(settings(clickhouse_url=clickhouse_url))
    with pytest.raises(PermanentSinkError) as no_database:
        empty.write([click(1)], "token", 20)
    on_default = ClickHouseSink(settings(clickhouse_url=clickhouse_url, clickhouse_database="default"))
    with pytest.raises(PermanentSinkError, match="migrate"):
        on_default.check()

    assert (no_table.value.configuration, no_database.value.configuration) == (True, True)


def test_scattered_timestamps_do_not_block_the_batch(sink: ClickHouseSink, server: Any) -> None:
    """Rows that span more weeks than the server accepts in one insert by default are written."""
    week = 7 * 86400
    sink.write([click(number, timestamp=MONDAY + number * week) for number in range(1, 151)], "token", 20)

    assert count(server, "replays") == 150


def test_refused_connections_and_proxy_errors_are_transient(settings: Callable[..., Settings]) -> None:
    """Refused connections, 502 pages, and "too many parts" are all transient."""
    dead = ClickHouseSink(settings(clickhouse_url="http://127.0.0.1:1"))
    with pytest.raises(TransientSinkError) as failed:
        dead.write([click(1), click(2)], "token", 5)
    with pytest.raises(TransientSinkError):
        dead.check()
    with answering(lambda request: Answer(502, b"<html>bad gateway</html>")) as (url, _):
        proxied = ClickHouseSink(settings(clickhouse_url=url))
        with pytest.raises(TransientSinkError):
            proxied.write([click(1)], "token", 5)

    assert failed.value.failed == (0, 1)


def test_a_login_page_is_configuration(settings: Callable[..., Settings]) -> None:
    """A 401 response with a login page is a configuration error."""
    with answering(lambda request: Answer(401, b"who are you")) as (url, _):
        sink = ClickHouseSink(settings(clickhouse_url=url))
        with pytest.raises(PermanentSinkError) as refused:
            sink.write([click(1)], "token", 5)

    assert refused.value.configuration


def test_migrating_again_changes_nothing(settings: Callable[..., Settings], clickhouse_url: str) -> None:
    """`migrate --dry-run` only reports, a second `migrate` has nothing to do, and `check` passes afterwards."""
    made = settings(clickhouse_url=clickhouse_url)

    planned = list(migrate_schema(made, dry_run=True))
    done = list(migrate_schema(made, dry_run=False))
    again = list(migrate_schema(made, dry_run=False))

    assert planned == done
    assert [line for line in again if not line.startswith("=")] == []
    sink = ClickHouseSink(made)
    assert f"{len(TABLES)} tables" in sink.check().text
    sink.close()


def test_an_edited_migration_is_refused(migrated: Settings, server: Any) -> None:
    """A migration file that was edited after it was applied is refused, because its checksum has changed."""
    server.command("INSERT INTO schema_migrations (version, name, checksum) VALUES (1, 'x', 'another')")

    with pytest.raises(PermanentSinkError, match="edited"):
        list(migrate_schema(migrated, dry_run=False))


def test_error_codes_match_the_server(server: Any) -> None:
    """The codes and names of the classified errors match those that the server itself reports."""
    numbers = ", ".join(str(number) for number, _ in BLAME_BY_CODE)
    rows = server.query(f"SELECT arrayJoin([{numbers}]) AS n, errorCodeToName(n)").result_rows

    assert {(int(number), name) for number, name in rows} == set(BLAME_BY_CODE)


def test_a_hanging_server_costs_at_most_the_deadline(migrated: Settings, clickhouse_url: str) -> None:
    """If the server accepts the connection but does not respond, all items are reported as failed when the
    deadline passes.
    """
    never = threading.Event()
    hanging = False

    def relay(request: ReceivedRequest) -> Answer:
        if hanging:
            return Answer(delay=never)
        forwarded = urllib.request.Request(clickhouse_url + request.path, request.body or None, request.headers)
        with urllib.request.urlopen(forwarded) as answer:
            return Answer(answer.status, answer.read(), dict(answer.headers.items()))

    with answering(relay) as (url, _):
        sink = ClickHouseSink(migrated.model_copy(update={"clickhouse_url": url}))
        sink.write([click(1)], "token-1", 10)
        hanging = True
        with pytest.raises(TransientSinkError) as failed:
            sink.write([click(2), click(3)], "token-2", 0.5)
        never.set()  # a write that waited for the server would have received its response without an error
        sink.close()

    assert failed.value.failed == (0, 1)


def test_writes_at_the_same_time_do_not_disturb_each_other(sink: ClickHouseSink, server: Any) -> None:
    """Writes by several threads that share one client do not affect each other."""
    batches = [[click(100 * batch + number) for number in range(1, 21)] for batch in range(8)]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda batch: sink.write(batch, f"token-{batch[0].id}", 20), batches))

    assert count(server, "replays") == 160
