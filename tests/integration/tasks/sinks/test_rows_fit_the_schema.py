"""The tables accept what the parser writes: rows of generated recordings are inserted twice into the real
engines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ingest.core.model import Message, Segment, TopicPartition, proto_rows
from ingest.core.parse import ParseRules, parse
from ingest.local.load.produce import PROFILES, values
from ingest.local.stack import Stack
from tasks.migrate import migrate
from tasks.settings import Settings
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.bigquery.storage_write import StorageWriteSink
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.wire import Row

SEGMENTS = 400
SOURCE = TopicPartition("source", 0)
RULES = ParseRules(sample_segment_rate=1.0, sample_event_rate=1.0)
MESSAGES = [
    Message(SOURCE, 1, offset, value) for offset, value in enumerate(values(PROFILES["small"], SEGMENTS, seed=7))
]


@pytest.fixture(scope="module")
def segments() -> list[Segment]:
    """Segments with every kind of event, all of them sampled."""
    parsed = [parse(message, RULES) for message in MESSAGES]
    return [outcome for outcome in parsed if isinstance(outcome, Segment)]


def items(rows: list[Any]) -> list[Row]:
    return [Row(row.table, row.id, row.json, row.offset) for row in rows]


def test_clickhouse_accepts_every_row_and_keeps_one_of_each(
    segments: list[Segment], settings: Callable[..., Settings], clickhouse_url: str
) -> None:
    """If the same rows are written twice, divided into different batches, as after a crash, FINAL shows each
    identity once, and the view has the same counts.
    """
    made = settings(clickhouse_url=clickhouse_url, sinks=("clickhouse", "dead_letter"))
    list(migrate_only(made, "clickhouse"))
    written = items([row for segment in segments for row in segment.clickhouse])
    sink = clickhouse.ClickHouseSink(made)

    sink.write(written, "one", 60)
    for cut in range(0, len(written), 500):
        sink.write(written[cut : cut + 500], f"other-{cut}", 60)

    server = clickhouse.client(made)
    for table in ("replays", "replay_segments", "replay_outcomes"):
        wanted = {item.id for item in written if item.table == table}
        assert wanted, table
        assert server.command(f"SELECT count() FROM {table} FINAL") == len(wanted)
    of_rows = "uniqExact(event_hash) FROM replays FINAL WHERE click_tag != '' OR click_node_id > 0"
    of_view = "uniqExactIfMerge(clicks) FROM replay_summaries"
    assert server.command(f"SELECT {of_rows}") == server.command(f"SELECT {of_view}") > 100
    dead = "SELECT uniqExact(event_hash) FROM replays FINAL WHERE click_is_dead"
    assert server.command(dead) == server.command("SELECT uniqExactIfMerge(dead_clicks) FROM replay_summaries") > 0
    server.close()
    sink.close()


def test_bigquery_stores_every_fact_once(
    segments: list[Segment], settings: Callable[..., Settings], bigquery_endpoint: str
) -> None:
    made = settings(bigquery_endpoint=bigquery_endpoint)
    list(migrate_only(made, "bigquery"))
    written = items([row for segment in segments for row in segment.bigquery])
    sink = bigquery.BigQuerySink(made)

    for _ in range(2):
        sink.write(written, "token", 60)

    server: Any = bigquery.client(made)
    table = f"`{made.bigquery_project}.{made.bigquery_dataset}.replay_events`"
    select = f"SELECT COUNT(*), COUNT(DISTINCT row_id), COUNT(DISTINCT event_type) FROM {table}"
    (row,) = server.query_and_wait(select)
    stored, distinct, kinds = row.values()
    assert stored == distinct == len({item.id for item in written})
    assert kinds > 15
    server.close()
    sink.close()


def test_bigquery_stores_every_fact_that_the_reader_encoded(
    segments: list[Segment], settings: Callable[..., Settings], stack: Stack, bigquery_endpoint: str
) -> None:
    """Every fact that the reader encoded as protobuf is stored once, with the same columns as the same fact in
    JSON.
    """
    made = settings(
        bigquery_endpoint=bigquery_endpoint,
        bigquery_storage_endpoint=stack.addresses["bigquery_storage"],
        bigquery_write="storage",
    )
    list(migrate_only(made, "bigquery"))
    rules = replace(RULES, bigquery_write="storage")
    encoded = [parse(message, rules) for message in MESSAGES]
    facts = proto_rows([outcome for outcome in encoded if isinstance(outcome, Segment)])
    streaming, storage = bigquery.BigQuerySink(made), StorageWriteSink(made)

    streaming.write(items([row for segment in segments for row in segment.bigquery]), "token", 60)
    storage.write(facts, "token", 60)

    server: Any = bigquery.client(made)
    table = f"`{made.bigquery_project}.{made.bigquery_dataset}.replay_events`"
    copies = f"SELECT COUNT(*) AS copies FROM (SELECT *, TO_JSON_STRING(attributes) AS a FROM {table}) GROUP BY"
    columns = "row_id, event_type, timestamp, org_id, project_id, replay_id, segment_id, retention_days, a"
    (row,) = server.query_and_wait(f"SELECT MIN(copies), COUNT(*), SUM(copies) FROM ({copies} {columns})")
    distinct = len({fact.id for fact in facts})
    assert row.values() == (2, distinct, distinct + len(facts))
    server.close()
    streaming.close()
    storage.close()


def migrate_only(made: Settings, sink: str) -> Any:
    """Migrates only that sink, because the servers of other sinks are not needed here."""
    return migrate(made.model_copy(update={"sinks": (sink,)}))
