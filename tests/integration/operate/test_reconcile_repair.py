"""`replays-ingest reconcile` on real servers finds missing items, and repairs only those."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as KafkaPartition
from rich.console import Console

from ingest.local.compare.reconcile import reconcile as compare
from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, ProducedTotals, produce
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.stack import Stack
from ingest.operate import reconcile
from ingest.operate.reconcile import ReconcileFailed, Scope
from ingest.settings import Settings
from ingest.testing.messages import recording
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.migrate import migrate
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs

PARTS = ("kafka", "redis", "gcs", "clickhouse", "bigquery")
COUNT = 80
UNLIMITED_RATE = 1e6


@dataclass(frozen=True)
class System:
    """Servers whose topic contains a generated load. All offsets of the load are committed, although nothing was
    written to any sink.
    """

    settings: Settings
    produced: ProducedTotals
    expected: Expectation


@pytest.fixture
def system(stack: Stack, fresh_name: Callable[[str], str], tmp_path: Path) -> Iterator[System]:
    yield from load_system(stack, fresh_name("r"), tmp_path, {})


@pytest.fixture
def system_on_apache(
    stack: Stack, apache_kafka: JavaKafka, fresh_name: Callable[[str], str], tmp_path: Path
) -> Iterator[System]:
    yield from load_system(stack, fresh_name("r"), tmp_path, {"REPLAYS_KAFKA_BROKERS": apache_kafka.address})


def load_system(stack: Stack, name: str, tmp_path: Path, others: dict[str, str]) -> Iterator[System]:
    stack.start(PARTS)
    own = isolated(name.replace("_", ""), stack.addresses["redis"], 9) | others
    settings = settings_of({**stack.settings(), **own, "REPLAYS_SINKS": "gcs,clickhouse,bigquery,dead_letter"})
    for _ in migrate(settings, topics=True):
        pass
    manifest = tmp_path / "manifest.jsonl"
    produced = produce(settings, PROFILES["small"], COUNT, 7, manifest_path=manifest)
    commit(settings, produced.ends)
    yield System(settings, produced, Expectation.from_manifest(manifest, settings=settings))
    connect(settings).flushdb()


@pytest.fixture
def packed_system(stack: Stack, fresh_name: Callable[[str], str], tmp_path: Path) -> Iterator[System]:
    yield from load_system(stack, fresh_name("r"), tmp_path, {"REPLAYS_GCS_LAYOUT": "packed"})


def commit(settings: Settings, ends: dict[int, int]) -> None:
    consumer = Consumer({"bootstrap.servers": settings.kafka_brokers, "group.id": settings.kafka_group})
    offsets = [KafkaPartition(settings.kafka_topic, partition, end) for partition, end in ends.items()]
    consumer.commit(offsets=offsets, asynchronous=False)
    consumer.close()


def missing_counts(account: reconcile.Account) -> dict[str, int]:
    return {name: tally.left for name, tally in account.sinks.items()}


def test_a_completely_lost_load_is_found_and_repaired(system: System) -> None:
    """If every segment is missing from every sink, all are reported, and after the repair every sink is
    complete.
    """
    before = reconcile.run(system.settings, Scope())
    found = before.examples

    assert not before.ok
    assert before.messages == system.produced.messages
    assert {item.item for item in found if item.sink == "gcs"} == set(system.expected.objects)
    assert {item.segment for item in found if item.sink == "gcs"} == {
        f"{project}/{replay}/{segment}" for project, replay, segment in system.expected.segments
    }
    assert missing_counts(before)["dead_letter"] == system.produced.rejects

    repaired = reconcile.run(system.settings, Scope(), repair=True, per_second_max=UNLIMITED_RATE, by="a test")

    console = Console(width=150, record=True, file=io.StringIO())
    console.print(reconcile.render(before))
    assert "NOT OK" in console.export_text()
    assert repaired.ok, (missing_counts(repaired), repaired.failures)
    report = compare(system.settings, system.expected)
    assert report.ok, report.failures()
    after = reconcile.run(system.settings, Scope())
    assert after.ok, after.examples[:3]
    assert all(tally.checked and not tally.missing for tally in after.sinks.values())


def test_only_deleted_items_are_repaired_and_audited(system: System) -> None:
    """If objects, rows and facts are deleted and one object is corrupted, only these items are repaired.

    If the same damage occurs again, it is repaired again.
    """
    settings = system.settings
    reconcile.run(settings, Scope(), repair=True, per_second_max=UNLIMITED_RATE)
    # In the second round, the deduplication tokens of the first repair must not make ClickHouse skip the insert.
    for _ in range(2):
        gone = damage(settings, sorted(system.expected.objects))

        account = reconcile.run(settings, Scope(), repair=True, per_second_max=UNLIMITED_RATE, by="oncall")

        assert account.ok, (missing_counts(account), account.failures)
        assert {name: tally.repaired for name, tally in account.sinks.items()} == gone
        assert account.sinks["gcs"].differs == 1
        report = compare(settings, system.expected)
        assert report.ok, report.failures()
    actions = Coordination(connect(settings), settings).audited()
    assert [action["what"] for action in actions[:2]] == ["reconcile ends", "reconcile begins"]
    assert actions[0]["by"] == "oncall"
    assert actions[0]["gcs"] == "3 of 3"


def damage(settings: Settings, names: list[str]) -> dict[str, int]:
    """Deletes two objects and some rows of each table, overwrites one object, and returns the number of affected
    items per sink.
    """
    bucket = gcs.client(settings).bucket(settings.gcs_bucket)
    for name in names[:2]:
        bucket.blob(name).delete()
    bucket.blob(names[2]).upload_from_string(b"not what was here")
    server = clickhouse.client(settings)
    deleted = 0
    for table in ("replays", "replay_segments", "replay_outcomes"):
        # Only distinct identities are counted, so unmerged duplicates count once.
        server.command(f"OPTIMIZE TABLE {table} FINAL")
        where = "cityHash64(replay_id) % 4 = 1"
        deleted += server.query(f"SELECT count() FROM {table} WHERE {where}").result_rows[0][0]
        server.command(f"ALTER TABLE {table} DELETE WHERE {where} SETTINGS mutations_sync = 2")
    server.close()
    connected = bigquery.client(settings)
    table = f"`{settings.bigquery_project}.{settings.bigquery_dataset}.replay_events`"
    where = "event_type = 'console'"
    rows = next(iter(connected.query_and_wait(f"SELECT COUNT(DISTINCT row_id) AS n FROM {table} WHERE {where}")))
    connected.query_and_wait(f"DELETE FROM {table} WHERE {where}")
    connected.close()
    assert deleted
    assert rows["n"]
    return {"gcs": 3, "clickhouse": deleted, "bigquery": rows["n"], "dead_letter": 0}


def test_recordings_in_packed_objects_are_found_by_their_index(packed_system: System) -> None:
    """With packed objects, a lost object, a corrupted object and a lost index row are detected and repaired."""
    settings, expected = packed_system.settings, packed_system.expected
    written = reconcile.run(settings, Scope(), repair=True, per_second_max=UNLIMITED_RATE)

    stored = reconcile.run(settings, Scope())
    gone = damage_packed(settings)
    found = reconcile.run(settings, Scope())
    repaired = reconcile.run(settings, Scope(), repair=True, per_second_max=UNLIMITED_RATE)

    assert written.ok, written.failures
    assert stored.ok, stored.examples[:3]
    assert stored.sinks["gcs"].checked >= len(expected.objects)
    assert {item.item for item in found.examples if item.problem == "missing"} == gone["missing"]
    assert {item.item for item in found.examples if item.problem == "differs"} == gone["differs"]
    assert {item.sink for item in found.examples} == {"gcs"}
    assert repaired.ok, (missing_counts(repaired), repaired.failures)
    report = compare(settings, expected)
    assert report.ok, report.failures()


def damage_packed(settings: Settings) -> dict[str, set[str]]:
    """Deletes one object, overwrites another, and deletes one index row of a third.

    Returns the names of the affected recordings, keyed by fault (`missing`, `differs`).
    """
    bucket, server = gcs.client(settings).bucket(settings.gcs_bucket), clickhouse.client(settings)
    members: dict[str, set[str]] = {}
    for name, place in server.query("SELECT name, object FROM replay_objects FINAL").result_rows:
        members.setdefault(place, set()).add(name)
    lost, spoiled, whole = sorted(members)[:3]
    bucket.blob(lost).delete()
    blob = bucket.blob(spoiled)
    blob.upload_from_string(b"x" * len(blob.download_as_bytes(raw_download=True)))
    unlisted = min(members[whole])
    server.command(
        "ALTER TABLE replay_objects DELETE WHERE name = {name:String} SETTINGS mutations_sync = 2",
        parameters={"name": unlisted},
    )
    server.close()
    return {"missing": members[lost] | {unlisted}, "differs": members[spoiled]}


def test_only_the_requested_range_is_checked(system: System) -> None:
    """If the requested range is half of one partition, nothing else is checked.

    Uncommitted messages are listed but not checked, and nothing is written without `--repair`.
    """
    end = system.produced.ends[0]

    account = reconcile.run(system.settings, Scope(partition=0, start=2, stop=end // 2))
    beyond = reconcile.run(system.settings, Scope(partition=0, start=end))

    assert [(span.partition, span.start, span.stop) for span in account.spans] == [(0, 2, end // 2)]
    assert account.messages == end // 2 - 2
    assert all(2 <= item.offset < end // 2 for item in account.examples)
    assert beyond.ok
    assert beyond.messages == 0
    assert any("nothing was checked" in note for note in beyond.notes)
    assert not any("nothing was checked" in note for note in account.notes)
    assert not gcs.client(system.settings).bucket(system.settings.gcs_bucket).get_blob(account.examples[0].item)


def test_refused_and_disabled_items_are_not_losses(system: System) -> None:
    """A missing item that a dead letter or a kill switch explains does not count as a loss."""
    from ingest.reader.tenant_rules import TenantStore

    projects = {project for project, _, _ in system.expected.segments}
    store = TenantStore(connect(system.settings), system.settings)
    for project in projects:
        store.kill(project, "oncall")

    account = reconcile.run(system.settings, Scope())

    assert account.shed
    assert missing_counts(account)["gcs"] == 0


def test_a_rule_in_force_is_named_when_items_are_missing(system: System) -> None:
    """If items are missing, the report names each project that was disabled or limited earlier, and the latest
    change to the project's rules, because messages dropped by such a rule look lost.
    """
    coordination = Coordination(connect(system.settings), system.settings)
    for what in ("tenant_kill", "tenant_revive"):
        coordination.audit({"what": what, "project": 4242, "by": "oncall"})

    account = reconcile.run(system.settings, Scope())

    assert not account.ok
    (note,) = [note for note in account.notes if "4242" in note]
    assert "tenant_revive by oncall" in note


def test_a_segment_sent_again_later_is_not_missing(system: System) -> None:
    """A segment that the SDK sent twice, one minute apart, to two partitions is not missing if the sinks have
    one copy.
    """
    first, later = int(time.time()) - 60, int(time.time())
    ends = dict(system.produced.ends)
    producer = Producer({"bootstrap.servers": system.settings.kafka_brokers})
    for partition, received in ((0, first), (1, later)):
        value = recording(replay_id="c0ffee00000000000000000000000001", segment_id=0, received=received)
        producer.produce(system.settings.kafka_topic, value, partition=partition)
    assert producer.flush(30) == 0
    commit(system.settings, {partition: ends[partition] + 1 for partition in (0, 1)})
    before, after = (Scope(partition, ends[partition], ends[partition] + 1) for partition in (0, 1))
    written = reconcile.run(system.settings, before, repair=True, per_second_max=UNLIMITED_RATE)

    account = reconcile.run(system.settings, after)

    assert written.ok
    assert account.ok, account.examples
    assert account.sinks["clickhouse"].checked
    assert account.sinks["bigquery"].checked


def test_a_missing_topic_is_reported_in_one_sentence(system: System) -> None:
    with pytest.raises(ReconcileFailed, match="nowhere"):
        reconcile.run(system.settings.model_copy(update={"kafka_topic": "nowhere"}), Scope())


def test_offsets_and_times_cannot_be_combined() -> None:
    """A range of offsets cannot be combined with a range of times."""
    with pytest.raises(ValueError, match="require a partition"):
        Scope(start=3)
    with pytest.raises(ValueError, match="either"):
        Scope(partition=0, start=3, since=5.0)


@pytest.mark.kafka
def test_a_window_of_time_selects_by_the_timestamps_of_messages(system_on_apache: System) -> None:
    """On every partition, a window of time starts at the first message that is recent enough and ends before
    the first message that is too recent.
    """
    settings, now = system_on_apache.settings, time.time()

    everything = reconcile.run(settings, Scope(since=now - 600, until=now + 600))
    nothing = [reconcile.run(settings, scope) for scope in (Scope(since=now + 600), Scope(until=now - 600))]

    assert everything.messages == system_on_apache.produced.messages
    assert [account.messages for account in nothing] == [0, 0]
