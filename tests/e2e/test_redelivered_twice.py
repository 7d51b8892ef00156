"""After every batch has been delivered again on real servers, each sink has the same contents.

The group's offsets are reset to the beginning while no reader runs, and a new reader reads everything again. The
broker is Apache Kafka, because Tansu does not store the cut record with an offset. The tests are independent of
their order, because each compares the sinks with their state before the test.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.core import cut_record
from ingest.local.compare.letters import read_letters
from ingest.local.load.expectation import Expectation
from ingest.local.servers import java_kafka
from ingest.reader.configuration import limits_of
from tasks.connection import connect
from tasks.sinks.bigquery.sink import client as bigquery_client
from tests.kit.whole_system import System

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]
SEGMENTS = 400
MESSAGES_IN_A_BATCH = 40

# Maps each table to the columns that identify a row. Rows from two messages may have the same values in these
# columns and different values in the other columns.
IDENTITIES = {
    "replays": "project_id, replay_id, event_hash, click_rank",
    "replay_segments": "project_id, replay_id, segment_id, object",
    "replay_outcomes": "org_id, project_id, replay_id, category, outcome, quantity",
}
SUMMARIES = (
    "SELECT project_id, toString(replay_id), day, max(retention_days), min(first_at), max(last_at), "
    "uniqExactMerge(segments), uniqExactIfMerge(clicks), uniqExactIfMerge(dead_clicks), "
    "uniqExactIfMerge(rage_clicks), uniqExactArrayMerge(errors), uniqExactArrayMerge(urls) "
    "FROM replay_summaries GROUP BY project_id, replay_id, day ORDER BY project_id, replay_id, day"
)


@dataclass(frozen=True)
class Census:
    """The contents of every sink."""

    objects: dict[str, tuple[str, int]]
    """Checksum and size of each object of Cloud Storage, by name."""
    generations: dict[str, str]
    """Generation of each object, by name: every write creates a new generation."""
    exact: dict[str, tuple[int, int]]
    """Row count with FINAL and a sum over identities, by table."""
    raw: dict[str, int]
    """Row count without FINAL, by table: merges are stopped, so it includes every row ever written."""
    summaries: list[tuple[Any, ...]]
    """The contents of the materialized view, one row per replay and day."""
    replays_billed: tuple[int, int]
    """Outcomes with FINAL, and distinct replays among them."""
    facts: int
    """Rows of BigQuery through the view that shows each fact once."""
    facts_raw: int
    letters: dict[Any, Any]
    letters_repeated: int
    packets: int
    """Metrics that the DogStatsD server received."""

    def after_deduplication(self) -> tuple[Any, ...]:
        """Returns the state that is visible to readers of the sinks, which redelivery must not change."""
        return (self.objects, self.exact, self.summaries, self.replays_billed, self.facts, self.letters)


@dataclass(frozen=True)
class LoadedSystem:
    """The system after its first pass over the load."""

    system: System
    cuts: frozenset[str]
    """References (batch id and digest) of the batches as they were cut the first time."""
    metrics: int
    """Metrics that one pass sends, according to the load's manifest."""


@pytest.fixture(scope="module")
def loaded_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedSystem]:
    """A system that has committed several batches on four partitions, including videos, duplicates and rejects.

    The load is sent in two halves: the last batches of the first half are cut by age, which redelivery would not
    repeat.
    """
    reason = java_kafka.available()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    directory, in_a_batch = tmp_path_factory.mktemp("system"), str(MESSAGES_IN_A_BATCH)
    with System(directory, kafka="apache", batch_messages_max=in_a_batch) as system:
        system.query("SYSTEM STOP MERGES")
        for seed in (1, 2):
            made = system.load(SEGMENTS // 2, seed)
            assert made.rejects > 0
            assert made.duplicates > 0
            system.wait_until_committed()
        cuts = batches(system)
        assert len(cuts) >= SEGMENTS / MESSAGES_IN_A_BATCH
        assert any(cut_early(stops) for stops in ends_by_partition(cuts).values())
        assert system.query("SELECT count() FROM replay_segments WHERE size_video > 0")[0][0] > 0
        expected = Expectation.from_manifest(*(path for path, _ in system.produced), settings=system.settings)
        yield LoadedSystem(system, cuts, sum(total.count for total in expected.metrics.values()))


def test_with_marks_no_sink_is_called_again(loaded_system: LoadedSystem) -> None:
    """While Redis still has the done marks, redelivering the same batches only commits their offsets: no sink
    receives a request, a packet or a dead letter.
    """
    system = loaded_system.system
    before, requests_before = census(system), requests(system)

    redeliver(system, loaded_system.cuts)

    assert requests(system) == requests_before
    assert census(system) == before
    assert batches(system) >= loaded_system.cuts
    system.assert_whole()


def test_without_marks_the_same_cuts_leave_no_duplicates(loaded_system: LoadedSystem) -> None:
    """Redis restarts empty.

    Each object is overwritten with the same bytes, so there is one object per name, with a new generation.

    ClickHouse skips every repeated insert because of its token. BigQuery drops duplicates within its deduplication
    window, and the view hides the other duplicates. Datadog cannot deduplicate, so it gets every packet again, and
    the dead-letter topic gets every record again.
    """
    system = loaded_system.system
    before, requests_before = census(system), requests(system)
    connect(system.settings).flushall()

    redeliver(system, loaded_system.cuts)

    after = census(system)
    assert all(requests(system)[sink] > count for sink, count in requests_before.items()), (
        "each sink got requests again"
    )
    assert batches(system) == loaded_system.cuts, "the same ranges with the same content"
    assert after.after_deduplication() == before.after_deduplication()
    assert after.generations.keys() == before.generations.keys()
    assert after.raw == before.raw, "no row was inserted twice"
    assert after.letters_repeated >= before.letters_repeated + len(before.letters)
    assert after.packets >= before.packets + loaded_system.metrics
    system.assert_whole()


def test_without_a_cut_record_other_cuts_leave_no_duplicates_after_deduplication(
    loaded_system: LoadedSystem,
) -> None:
    """The cut record was lost and batches are cut differently, so neither marks nor tokens match.

    The object names, keys and row ids, however, are the same. Rows are inserted again, and merges or FINAL remove
    them.
    """
    system = loaded_system.system
    before = census(system)

    redeliver(system, None, batch_messages_max="23")

    after = census(system)
    others = batches(system) - loaded_system.cuts
    assert len(others) >= SEGMENTS / MESSAGES_IN_A_BATCH, "other ranges than the first time"
    assert after.after_deduplication() == before.after_deduplication()
    assert after.raw["replay_segments"] > before.raw["replay_segments"], "the rows were inserted again"
    assert after.facts_raw >= before.facts_raw
    system.assert_whole()


# Redelivery


def redeliver(system: System, cuts: frozenset[str] | None, **settings: str) -> None:
    """Stops the reader, resets the offsets, starts a new reader, and waits until everything is committed again.

    `cuts` contains the batches whose ends are recorded with the offsets, as after a crash. None means that there
    is no record.
    """
    assert system.stop_reader() == 0
    topic = system.settings.kafka_topic
    stops = ends_by_partition(cuts or frozenset())
    start = [
        KafkaPartition(
            topic,
            partition,
            0,
            cut_record.encode(
                0,
                cut_record.Record(stops=tuple(stops.get(partition, ()))),
                limits_of(system.settings).cut_record_bytes_max,
            ),
        )
        for _, partition in system.ends
    ]
    group = {"bootstrap.servers": system.settings.kafka_brokers, "group.id": system.settings.kafka_group}
    consumer = Consumer({**group, "enable.auto.commit": False})
    try:
        consumer.commit(offsets=start, asynchronous=False)
    finally:
        consumer.close()
    assert system.committed() == 0
    system.start_reader(**settings)
    system.wait_until_committed()


def ends_by_partition(references: frozenset[str]) -> dict[int, list[int]]:
    """Returns the ends of the given batches by partition, in ascending order."""
    found: dict[int, list[int]] = {}
    for reference in references:
        partition, _, stop = (int(part) for part in reference.split(":")[0].rsplit("-", 3)[1:])
        found.setdefault(partition, []).append(stop)
    return {partition: sorted(stops) for partition, stops in found.items()}


def cut_early(stops: list[int]) -> bool:
    """Returns whether a batch before the last one was cut by age."""
    sizes = [stop - start for start, stop in pairwise([0, *stops])]
    return any(size < MESSAGES_IN_A_BATCH for size in sizes[:-1])


def batches(system: System) -> frozenset[str]:
    """Returns references to the batches in Redis, found by their remaining marks."""
    pattern = f"{system.settings.key_prefix}:batch:*"
    keys = connect(system.settings).scan_iter(pattern, count=1000)
    return frozenset(key.decode().split(":batch:")[1].translate({ord("{"): None, ord("}"): None}) for key in keys)


# State of the sinks


def census(system: System) -> Census:
    """Queries every sink, bypassing the proxies."""
    identities = {
        table: f"SELECT count(), sum(cityHash64({columns})) FROM {table}" for table, columns in IDENTITIES.items()
    }
    objects = list_objects(system)
    letters, repeated = read_letters(system.settings)
    billed = system.query("SELECT count(), uniqExact(project_id, replay_id) FROM replay_outcomes FINAL")[0]
    assert billed[0] == billed[1], "one outcome per replay"
    return Census(
        objects={name: (item["crc32c"], int(item["size"])) for name, item in objects.items()},
        generations={name: str(item["generation"]) for name, item in objects.items()},
        exact={table: tuple(system.query(f"{sql} FINAL")[0]) for table, sql in identities.items()},  # type: ignore[misc]
        raw={table: system.query(sql)[0][0] for table, sql in identities.items()},
        summaries=system.query(SUMMARIES),
        replays_billed=(billed[0], billed[1]),
        facts=facts(system, "replay_events_exact"),
        facts_raw=facts(system, "replay_events"),
        letters=letters,
        letters_repeated=repeated,
        packets=packets(system),
    )


def list_objects(system: System) -> dict[str, dict[str, Any]]:
    """Maps the name of each object to its metadata in Cloud Storage."""
    settings, token = system.settings, ""
    found: dict[str, dict[str, Any]] = {}
    while True:
        url = f"{settings.gcs_endpoint}/storage/v1/b/{settings.gcs_bucket}/o?maxResults=1000&pageToken={token}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            page = json.load(answer)
        found.update({item["name"]: item for item in page.get("items", ())})
        token = page.get("nextPageToken", "")
        if not token:
            return found


def facts(system: System, table: str) -> int:
    """Returns the rows of a BigQuery table or view."""
    settings = system.settings
    connected = bigquery_client(settings)
    try:
        name = f"`{settings.bigquery_project}.{settings.bigquery_dataset}.{table}`"
        (row,) = connected.query_and_wait(f"SELECT COUNT(*) AS n FROM {name}")
        return int(row["n"])
    finally:
        connected.close()  # type: ignore[no-untyped-call]


def packets(system: System) -> int:
    """Returns the number of metrics received so far."""
    with urllib.request.urlopen(f"{system.stack.addresses['statsd_query']}/metrics", timeout=10) as answer:
        return int(json.load(answer)["received"])


def requests(system: System) -> dict[str, int]:
    """Returns the number of requests so far to each sink that is behind a proxy."""
    return {part: proxy.counts["requests"] for part, proxy in system.proxies.items()}
