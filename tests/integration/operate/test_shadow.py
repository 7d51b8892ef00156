"""`replays-ingest shadow` on real servers finds stored data that differs from what the current release would
write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.cli.main import main
from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.load.produce import PROFILES, ProducedTotals, produce
from ingest.local.stack import Stack
from ingest.operate import reconcile
from ingest.operate.reconcile import Scope
from ingest.operate.shadow import run
from ingest.settings import Settings
from tasks.migrate import migrate
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs

COUNT = 60


@dataclass(frozen=True)
class LiveData:
    """Data that the live group has ingested and committed."""

    env: dict[str, str]
    settings: Settings
    produced: ProducedTotals

    def shadow(self, *arguments: str) -> Result:
        """Runs `shadow` with an unreachable Redis."""
        env = {**self.env, "REPLAYS_REDIS_URL": "redis://127.0.0.1:1/0"}
        return CliRunner().invoke(main, ["shadow", *arguments], env=env, catch_exceptions=False)

    def found(self, *arguments: str) -> dict[str, Any]:
        result = self.shadow("--json", *arguments)
        found: dict[str, Any] = json.loads(result.stdout)
        assert result.exit_code == (0 if found["ok"] else 1)
        return found

    def command(self, sql: str) -> None:
        server = clickhouse.client(self.settings)
        server.command(sql)
        server.close()

    def commit(self, partition: int, offset: int) -> None:
        """Commits an offset for the live group; the offset may be lower than the committed one."""
        group = {"bootstrap.servers": self.settings.kafka_brokers, "group.id": self.settings.kafka_group}
        consumer = Consumer(group)
        consumer.commit(offsets=[KafkaPartition(self.settings.kafka_topic, partition, offset)], asynchronous=False)
        consumer.close()

    def committed(self) -> list[int]:
        consumer = Consumer(
            {"bootstrap.servers": self.settings.kafka_brokers, "group.id": self.settings.kafka_group}
        )
        asked = [KafkaPartition(self.settings.kafka_topic, partition) for partition in self.produced.ends]
        offsets = [difference.offset for difference in consumer.committed(asked, timeout=20)]
        consumer.close()
        return offsets


@pytest.fixture(params=["segment", "packed"])
def live_data(
    request: pytest.FixtureRequest, stack: Stack, fresh_name: Callable[[str], str], tmp_path: Path
) -> LiveData:
    """A generated load, written to every sink and committed."""
    stack.start(("kafka", "redis", "gcs", "clickhouse"))
    env = {
        **stack.settings(),
        **isolated(fresh_name("s").replace("_", ""), stack.addresses["redis"], 9),
        "REPLAYS_SINKS": "gcs,clickhouse,dead_letter",
        "REPLAYS_GCS_LAYOUT": request.param,
    }
    settings = settings_of(env)
    for _ in migrate(settings, topics=True):
        pass
    produced = produce(settings, PROFILES["small"], COUNT, 7, manifest_path=tmp_path / "manifest.jsonl")
    consumer = Consumer({"bootstrap.servers": settings.kafka_brokers, "group.id": settings.kafka_group})
    ends = [KafkaPartition(settings.kafka_topic, partition, end) for partition, end in produced.ends.items()]
    consumer.commit(offsets=ends, asynchronous=False)
    consumer.close()
    assert reconcile.run(settings, Scope(), repair=True, per_second_max=1e6).ok
    return LiveData(env, settings, produced)


def test_only_injected_differences_are_found(live_data: LiveData) -> None:
    """A wrong row, an unexpected row, a lost row, a lost object, and an object with different bytes are found, and
    no other difference is reported.
    """
    before, offsets = live_data.found(), live_data.committed()
    wrong, lost, spoiled = inject(live_data)
    after = live_data.found()
    first = live_data.found("--limit", "1")
    shown = live_data.shadow()

    assert before["ok"], before["differences"][:3]
    assert before["messages"] == live_data.produced.messages
    assert before["sinks"]["clickhouse"]["compared"] > COUNT
    assert before["sinks"]["gcs"]["compared"] >= COUNT
    assert not after["ok"]
    by_sink = {
        (difference["sink"], difference["kind"], difference["replay_id"], difference["segment_id"]): difference
        for difference in after["differences"]
    }
    assert ("clickhouse", "differs", *wrong) in by_sink
    assert "differs in title" in by_sink[("clickhouse", "differs", *wrong)]["what"]
    assert ("clickhouse", "missing", *lost) in by_sink
    assert [difference["item"] for difference in after["differences"] if difference["kind"] == "unexpected"] == [
        f"replays/{EXTRA}"
    ]
    found = {kind: {(r, s) for sink, k, r, s in by_sink if (sink, k) == ("gcs", kind)} for kind in spoiled}
    assert found == spoiled
    assert all(
        difference["topic"] == live_data.settings.kafka_topic and difference["project_id"]
        for difference in by_sink.values()
    )
    assert first["sinks"] == after["sinks"]
    assert len(first["differences"]) == 2
    assert shown.exit_code == 1
    assert "DIFFERENT" in shown.stdout
    assert live_data.committed() == offsets


EXTRA = "12345678-1234-4234-8234-123456789abc"
Segment = tuple[str, int]


def inject(live_data: LiveData) -> tuple[Segment, Segment, dict[str, set[Segment]]]:
    """Returns (segment with a wrong row, segment without its row, segments per kind of damage to their
    recordings).
    """
    server = clickhouse.client(live_data.settings)
    columns = "replace(toString(replay_id), '-', ''), segment_id"
    rows = server.query(f"SELECT {columns}, object FROM replay_segments FINAL ORDER BY object").result_rows
    places = dict(server.query("SELECT name, object FROM replay_objects FINAL").result_rows)
    wrong, lost = (tuple(row[:2]) for row in rows[:2])
    of_wrong = f"replay_id = toUUID('{wrong[0]}') AND segment_id = {wrong[1]}"
    server.close()
    document = "click_tag = '' AND tap_view_id = '' AND tap_message = '' AND click_node_id = 0"
    for replaced in ("'injected' AS title", f"toUUID('{EXTRA}') AS event_hash"):
        live_data.command(
            f"INSERT INTO replays SELECT * REPLACE ({replaced}) FROM replays FINAL WHERE {of_wrong} AND {document}"
        )
    live_data.command(
        f"ALTER TABLE replay_segments DELETE WHERE replay_id = toUUID('{lost[0]}') AND segment_id = {lost[1]} "
        "SETTINGS mutations_sync = 2"
    )
    bucket = gcs.client(live_data.settings).bucket(live_data.settings.gcs_bucket)
    own = {name: places.get(name, name) for *_, name in rows}
    gone, other = sorted(set(own.values()))[-2:]
    bucket.blob(gone).delete()
    size = len(bucket.blob(other).download_as_bytes(raw_download=True))
    bucket.blob(other).upload_from_string(b"x" * size)
    spoiled = {
        kind: {(name.split("/")[2], int(name.split("/")[3])) for name, place in own.items() if place == where}
        for kind, where in (("missing", gone), ("differs", other))
    }
    return wrong, lost, spoiled  # type: ignore[return-value]


@pytest.mark.parametrize("live_data", ["segment"], indirect=True)
def test_it_follows_the_commits_of_the_group(live_data: LiveData) -> None:
    """Each round compares what the group has committed since the last round: first nothing, then half of a
    partition, then the rest.
    """
    end = live_data.produced.ends[0]
    live_data.commit(0, 2)
    commits = iter((None, end // 2, end))
    seen: list[int] = []

    def another_round() -> bool:
        if (offset := next(commits, -1)) == -1:
            return False
        if offset is not None:
            live_data.commit(0, offset)
        return True

    found = run(live_data.settings, Scope(0), another_round=another_round, progress=seen.append)
    ended = live_data.shadow("--follow", "30m", "--until", "1m")

    assert found.ok, found.differences[:3]
    assert seen == [end // 2 - 2, end - 2]
    assert [(span.partition, span.start, span.stop) for span in found.spans] == [(0, 2, end)]
    assert found.messages == end - 2
    assert ended.exit_code == 2


def test_a_missing_server_or_credentials_are_reported_in_one_line(kafka_brokers: str) -> None:
    """A missing server or missing credentials are reported in one line, without a traceback."""
    env = {"REPLAYS_KAFKA_BROKERS": kafka_brokers, "REPLAYS_SINKS": "gcs,clickhouse,dead_letter"}
    env |= {"GOOGLE_APPLICATION_CREDENTIALS": "", "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": "/nonexistent"}

    result = CliRunner().invoke(main, ["shadow"], env=env, catch_exceptions=False)

    assert result.exit_code == 1
    assert result.stderr.startswith("replays-ingest: ")
    assert "credentials" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("live_data", ["segment"], indirect=True)
def test_a_range_and_a_rate_limit_the_reading(live_data: LiveData) -> None:
    """Options restrict the range and the rate of reading; offsets without a partition are a usage error."""
    end = live_data.produced.ends[0]

    found = live_data.found("--partition", "0", "--start", "2", "--stop", str(end // 2), "--rate", "20")
    mixed = live_data.shadow("--start", "2")

    assert found["messages"] == end // 2 - 2
    assert found["seconds"] >= (found["messages"] - 1) / 20
    assert [(span["partition"], span["start"], span["stop"]) for span in found["spans"]] == [(0, 2, end // 2)]
    assert mixed.exit_code == 2
