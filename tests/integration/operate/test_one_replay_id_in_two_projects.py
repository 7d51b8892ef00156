"""If two projects record under the same replay_id (anyone who knows an id can reuse it), every sink keeps the data
of both projects.

The messages differ only in one string, so every identity within the replay (clicks, facts, segments, the outcome)
is the same in both projects.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.core.model import Message, Segment, TopicPartition
from ingest.core.parse import parse
from ingest.local.compare.reconcile import reconcile as compare
from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.load.expectation import Expectation
from ingest.local.servers.bigquery.server import BigQuery
from ingest.local.servers.processes import Children
from ingest.local.stack import Stack
from ingest.operate import reconcile
from ingest.operate.reconcile import Scope
from ingest.reader.configuration import rules_of
from ingest.settings import Settings
from ingest.testing.messages import click_event, console_event, envelope, rage_click_event, recording, tap_event
from ingest.web.reads import Reads
from tasks.connection import connect
from tasks.kafka.letters import REFUSED, Kind, Label, Origin, Refusal
from tasks.migrate import migrate
from tasks.sinks import build
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.wire import DeadLetter
from tests.kit.store import Key, Store, batch_of, write

PARTS = ("kafka", "redis", "gcs", "clickhouse", "bigquery")
REPLAY_ID = "c0ffee00000000000000000000000014"
OLD_SECONDS = 3 * 86_400  # This time is so far in the past that redelivery is impossible.
SEGMENTS = 2
GAPS = {"seconds": 5, "minutes": 300}


@dataclass(frozen=True)
class TwoProjects(Store):
    """A replay to erase and its neighbor, which have the same replay_id.

    `segments` maps each project to its parsed segments.
    """

    segments: dict[int, list[Segment]]
    expected: Expectation


BOTH_ORDERS = [(gap, order) for gap in GAPS for order in ((11, 12), (12, 11))]


@pytest.fixture
def two_projects(
    request: pytest.FixtureRequest,
    stack: Stack,
    children: Children,
    tmp_path: Path,
    fresh_name: Callable[[str], str],
) -> Iterator[TwoProjects]:
    """Stores to which the replays of both projects were written, one after the other: either seconds apart (within
    BigQuery's insertId window) or minutes apart (outside it)."""
    gap, order = request.param
    stack.start(PARTS)
    name = fresh_name("two")
    env = {
        **stack.settings(),
        **isolated(name.replace("_", ""), stack.addresses["redis"], 12),
        "REPLAYS_SINKS": "gcs,clickhouse,bigquery,dead_letter",
        "REPLAYS_KEY_PREFIX": name,
        "REPLAYS_SAMPLE_SEGMENT_RATE": "1",
    }
    if gap == "minutes":
        forgetful = BigQuery(children, tmp_path / "bigquery", insert_id_window_seconds=0)
        forgetful.start()
        env["REPLAYS_BIGQUERY_ENDPOINT"] = forgetful.address
    settings = settings_of(env)
    for _ in migrate(settings, topics=True):
        pass
    began = int(time.time()) - OLD_SECONDS
    sent = [
        message(project, segment_id, began + later * GAPS[gap])
        for later, project in enumerate(order)
        for segment_id in range(SEGMENTS)
    ]
    segments = produce(settings, sent)
    expected = Expectation()
    for segment in segments:
        write(settings, batch_of([segment], segment.offset))
        expected.add_outcome(TopicPartition(settings.kafka_topic, 0), segment.offset, segment)
    by_project = {project: [segment for segment in segments if segment.project_id == project] for project in order}
    yield TwoProjects(env, settings, (11, REPLAY_ID), (12, REPLAY_ID), by_project, expected)
    coordination: Any = connect(settings)
    coordination.delete(*coordination.keys(f"{name}:*"), f"{name}:audit")


def message(project_id: int, segment_id: int, received: int) -> bytes:
    """Builds a segment that differs between the projects only in the console's text and the arrival time."""
    events = [click_event(), rage_click_event(8), tap_event(), console_event(f"I am project {project_id}")]
    return recording(events, segment_id, project_id=project_id, replay_id=REPLAY_ID, received=received)


def produce(settings: Settings, values: list[bytes]) -> list[Segment]:
    """Produces the values to partition 0, commits as a reader would, and returns the parsed segments."""
    producer = Producer({"bootstrap.servers": settings.kafka_brokers})
    for value in values:
        producer.produce(settings.kafka_topic, value, partition=0)
    assert producer.flush(30) == 0
    consumer = Consumer({"bootstrap.servers": settings.kafka_brokers, "group.id": settings.kafka_group})
    consumer.commit(offsets=[KafkaPartition(settings.kafka_topic, 0, len(values))], asynchronous=False)
    consumer.close()
    source = TopicPartition(settings.kafka_topic, 0)
    found = [parse(Message(source, 1, at, value), rules_of(settings)) for at, value in enumerate(values)]
    return [outcome for outcome in found if isinstance(outcome, Segment)]


def facts(settings: Settings, table: str) -> Counter[tuple[int, str, str]]:
    """Returns the number of copies of each (project, row_id, event_type) in a BigQuery table or view."""
    connected: Any = bigquery.client(settings)
    name = f"`{settings.bigquery_project}.{settings.bigquery_dataset}.{table}`"
    rows = connected.query_and_wait(f"SELECT project_id, row_id, event_type FROM {name}")
    found = Counter((row["project_id"], row["row_id"], row["event_type"]) for row in rows)
    connected.close()
    return found


@pytest.mark.parametrize("two_projects", BOTH_ORDERS, indirect=True, ids=str)
def test_each_is_complete_in_every_sink_and_erasing_one_leaves_the_other(two_projects: TwoProjects) -> None:
    """Each project's replay is complete in every sink: the rows per project equal the parsed data.

    Erasing one project's replay leaves the other project's replay unchanged. A dead letter of the other project
    does not prevent the erasure from completing.
    """
    rows = [
        msgspec.json.decode(row.json)
        for segments in two_projects.segments.values()
        for segment in segments
        for row in segment.bigquery
    ]
    expected = Counter((row["project_id"], row["row_id"], row["event_type"]) for row in rows)
    assert len(expected) == len(rows) == 2 * len({row["row_id"] for row in rows})

    assert facts(two_projects.settings, "replay_events") == expected
    assert facts(two_projects.settings, "replay_events_exact") == expected
    report = compare(two_projects.settings, two_projects.expected)
    assert report.ok, report.failures()
    account = reconcile.run(two_projects.settings, Scope())
    assert account.ok, account.examples
    assert all(account.sinks[sink].checked for sink in ("gcs", "clickhouse", "bigquery"))
    for which in (two_projects.victim, two_projects.neighbor):
        assert_shown(two_projects, which)

    kept = two_projects.everything(two_projects.neighbor)
    value = envelope(b"no header", project_id=two_projects.neighbor[0], replay_id=REPLAY_ID)
    label = Label("no_header", "", Origin(two_projects.settings.kafka_topic, 0, 9), "b")
    letter(two_projects, DeadLetter(None, value, label.encode(), 9))
    refuse_outcome(two_projects, two_projects.neighbor)

    erased = two_projects.erase()

    assert erased.exit_code == 0, erased.output
    gone = two_projects.everything(two_projects.victim)
    assert gone.pop("replay_outcomes") == 1
    assert not any(gone.values()), gone
    assert two_projects.everything(two_projects.neighbor) == kept
    assert_shown(two_projects, two_projects.neighbor)
    exact = facts(two_projects.settings, "replay_events_exact")
    assert exact == Counter({row: n for row, n in expected.items() if row[0] == two_projects.neighbor[0]})


@pytest.mark.parametrize("two_projects", BOTH_ORDERS[:1], indirect=True, ids=str)
def test_missing_rows_of_one_are_reported_regardless_of_the_other(two_projects: TwoProjects) -> None:
    """If facts and an outcome of one project are deleted, they are reported as missing.

    They are reported even though the other project has rows with the same identities, one of which a sink refused.
    """
    delete_some(two_projects, two_projects.neighbor)
    refuse_outcome(two_projects, two_projects.victim)

    account = reconcile.run(two_projects.settings, Scope())

    assert account.sinks["bigquery"].left == sum(
        len(segment.bigquery) for segment in two_projects.segments[two_projects.neighbor[0]]
    )
    assert account.sinks["clickhouse"].left == 1
    assert {item.segment.split("/")[0] for item in account.examples} == {str(two_projects.neighbor[0])}


def assert_shown(two_projects: TwoProjects, which: Key) -> None:
    """Asserts that both ways of reading return the project's recordings, and that the project's row in the
    materialized view is correct.
    """
    blobs = [bytes(segment.blobs[0].content) for segment in two_projects.segments[which[0]]]
    assert two_projects.recordings(which) == blobs
    reads = Reads(two_projects.settings)
    seen = reads.segments(reads.replay(which[1], which[0]))
    assert [content for _, content in reads.recordings(seen)] == blobs
    reads.close()
    assert summary(two_projects, which[0]) == (SEGMENTS, *clicks(two_projects, which[0]))


def summary(two_projects: TwoProjects, project: int) -> tuple[int, ...]:
    """Returns the numbers of segments, clicks, dead clicks and rage clicks in the materialized view."""
    server: Any = clickhouse.client(two_projects.settings)
    found = server.query(
        "SELECT uniqExactMerge(segments), uniqExactIfMerge(clicks), uniqExactIfMerge(dead_clicks), "
        f"uniqExactIfMerge(rage_clicks) FROM replay_summaries WHERE project_id = {project} "
        f"AND replay_id = toUUID('{REPLAY_ID}')"
    ).result_rows
    server.close()
    return tuple(found[0])


def clicks(two_projects: TwoProjects, project: int) -> tuple[int, int, int]:
    """Returns the expected numbers of clicks, dead clicks and rage clicks for a project."""
    flags = [flags for (owner, _), flags in two_projects.expected.clicks.items() if owner == project]
    return len(flags), sum(flag.dead for flag in flags), sum(flag.rage for flag in flags)


def delete_some(two_projects: TwoProjects, which: Key) -> None:
    """Deletes all facts and the outcome of a replay."""
    connected: Any = bigquery.client(two_projects.settings)
    table = f"`{two_projects.settings.bigquery_project}.{two_projects.settings.bigquery_dataset}.replay_events`"
    connected.query_and_wait(f"DELETE FROM {table} WHERE project_id = {which[0]}")
    connected.close()
    server: Any = clickhouse.client(two_projects.settings)
    outcomes = f"ALTER TABLE replay_outcomes DELETE WHERE project_id = {which[0]}"
    server.command(f"{outcomes} SETTINGS mutations_sync = 2")
    server.close()


def refuse_outcome(two_projects: TwoProjects, which: Key) -> None:
    """Writes a dead letter for a replay's row in `replay_outcomes`, as if ClickHouse had refused the row."""
    (row,) = [
        row
        for segment in two_projects.segments[which[0]]
        for row in segment.clickhouse
        if row.table == "replay_outcomes"
    ]
    origin = Origin(two_projects.settings.kafka_topic, 0, row.offset)
    label = Label(REFUSED, "", origin, "b", refusal=Refusal("clickhouse", Kind.ROW, f"{row.table}/{row.id}"))
    letter(two_projects, DeadLetter(None, row.json, label.encode(), row.offset))


def letter(two_projects: TwoProjects, record: DeadLetter) -> None:
    sink = build("dead_letter", two_projects.settings)
    sink.write([record], "token", 60)
    sink.close()
