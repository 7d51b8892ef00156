"""If messages of an erased replay are delivered again, on any path, nothing of the replay is restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from ingest.local.servers.processes import wait_until
from ingest.operate.erase import TABLES
from ingest.web.model import ReplayErased
from ingest.web.reads import Reads
from tasks.connection import connect
from tasks.kafka.letters import Label, Origin
from tasks.kafka.options import kafka_options
from tasks.kafka.ranges import RangeReader
from tasks.sinks import build
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.gcs import sink as gcs
from tasks.wire import DeadLetter
from tests.kit.whole_system import System


def count_items(system: System, project: int, replay_id: str) -> dict[str, int]:
    """Returns the number of items of a replay in each store."""
    where = f"WHERE project_id = {project} AND replay_id = toUUID('{replay_id}')"
    found = {table: int(system.query(f"SELECT count() FROM {table} {where}")[0][0]) for table in TABLES}
    storage: Any = gcs.client(system.settings)
    names = [blob.name for blob in storage.list_blobs(system.settings.gcs_bucket)]
    found["objects"] = sum(f"/{project}/{replay_id}/" in name for name in names)
    storage.close()
    facts: Any = bigquery.client(system.settings)
    table = f"`{system.settings.bigquery_project}.{system.settings.bigquery_dataset}.replay_events`"
    of_it = f"WHERE project_id = {project} AND replay_id = '{replay_id}'"
    found["facts"] = int(next(iter(facts.query_and_wait(f"SELECT COUNT(*) AS n FROM {table} {of_it}")))["n"])
    facts.close()
    return found


def rewind(system: System) -> None:
    """Resets the group's offsets to the beginning, as anyone with permission to commit for the group can do."""
    consumer = Consumer({**kafka_options(system.settings), "group.id": system.settings.kafka_group})
    wanted = [TopicPartition(topic, partition, 0) for topic, partition in system.ends]
    consumer.commit(offsets=wanted, asynchronous=False)
    consumer.close()
    wait_until(lambda: system.committed() == 0, 20, "the offsets to be back")


def dead_letter_messages_of(system: System, replay_id: str) -> int:
    """Writes every message of the replay as a dead letter, as if its batch had been abandoned."""
    sink = build("dead_letter", system.settings)
    letters = []
    with RangeReader(system.settings, system.settings.kafka_topic) as topic:
        for record in topic.read_all():
            if replay_id.encode() in record.value:
                origin = Origin(record.topic, record.partition, record.offset)
                label = Label("abandoned", "a test", origin, "b", record.timestamp_ms)
                letters.append(DeadLetter(record.key, record.value, label.encode(), record.offset))
    sink.write(letters, "buried", 30)
    sink.close()
    return len(letters)


def test_an_erased_replay_does_not_come_back(tmp_path: Path) -> None:
    """An erased replay is not restored when offsets are reset, Redis is emptied, dead letters are replayed, or
    losses are repaired.

    No store has any data of the replay, all other replays are complete, and `reconcile` counts the missing data as
    erased, not as lost.
    """
    with System(tmp_path) as system:
        system.load(60)
        system.wait_until_committed()
        project, replay_id = system.query(
            "SELECT project_id, replaceAll(toString(replay_id), '-', '') FROM replay_segments "
            "GROUP BY project_id, replay_id ORDER BY count() DESC, replay_id LIMIT 1"
        )[0]
        before = count_items(system, project, replay_id)
        assert before["objects"]
        assert before["facts"]
        others = system.query(f"SELECT count() FROM replay_segments FINAL WHERE replay_id != '{replay_id}'")

        paper = tmp_path / "certificate.json"
        arguments = ("--project", str(project), replay_id, "--by", "ann", "--certificate", str(paper))
        reported = json.loads(system.command("erase", *arguments, "--yes", "--json"))

        assert reported["ok"], reported
        (certified,) = json.loads(paper.read_text())["erasures"]
        assert len(certified["objects"]) == before["objects"]
        assert certified["bigquery_rows"] == before["facts"]
        assert certified["complete"]
        assert not any(count_items(system, project, replay_id).values())
        reads = Reads(system.settings)
        with pytest.raises(ReplayErased, match="was erased on"):
            reads.replay(replay_id, project)
        reads.close()

        assert system.stop_reader() == 0
        rewind(system)
        connect(system.settings).flushall()
        system.start_reader()
        system.wait_until_committed()
        assert not any(count_items(system, project, replay_id).values())

        assert dead_letter_messages_of(system, replay_id) > 0
        system.command("dlq", "replay", "--reason", "abandoned", "--yes", ok=False)
        account = json.loads(system.command("reconcile", "--repair", "--json", "--by", "ann"))
        assert account["ok"]
        assert account["erased"] > 0
        assert not any(count_items(system, project, replay_id).values())
        assert others == system.query(
            f"SELECT count() FROM replay_segments FINAL WHERE replay_id != '{replay_id}'"
        )
