"""`replays-ingest erase` on real servers leaves nothing of the erased replay, and does not change its
neighbors.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner, Result

from ingest.cli.main import main
from ingest.core.model import Message, Reject, Segment, TopicPartition
from ingest.core.parse import parse
from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.load.produce import PROFILES, values
from ingest.local.servers.bigquery.server import BigQuery
from ingest.local.servers.processes import Children
from ingest.local.stack import Stack
from ingest.operate.erase import TABLES, EraseFailed, Eraser, Holdings, Objects, zero_spans
from ingest.reader.configuration import rules_of
from ingest.settings import Settings
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.migrate import migrate
from tasks.migrate.bigquery import migrate_tables
from tasks.sinks import build
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tasks.wire import DeadLetter, SinkName
from tests.kit.scripted_server import Answer, ReceivedRequest, answering
from tests.kit.store import Key, Store, batch_of, write

PARTS = ("kafka", "redis", "gcs", "clickhouse", "bigquery")
SEGMENTS = 24
DAY_SECONDS = 86_400
# A message of this age is no longer redelivered, but is still within every retention period.
OLD_SECONDS = 3 * DAY_SECONDS


@pytest.fixture(params=["packed", "segment"])
def store(request: pytest.FixtureRequest, stack: Stack, fresh_name: Callable[[str], str]) -> Iterator[Store]:
    """A store in each of the two layouts, `segment` and `packed`."""
    yield from make_store(stack, fresh_name("e"), request.param)


@pytest.fixture
def packed(stack: Stack, fresh_name: Callable[[str], str]) -> Iterator[Store]:
    yield from make_store(stack, fresh_name("e"), "packed")


@pytest.fixture(scope="module")
def untouched(stack: Stack) -> Iterator[Store]:
    """A store for tests that change nothing."""
    yield from make_store(stack, f"e_{uuid.uuid4().hex[:10]}", "packed")


def make_store(stack: Stack, name: str, layout: str) -> Iterator[Store]:
    """Parses generated messages, and writes the segments twice through the sinks, in two batches with different
    names."""
    stack.start(PARTS)
    env = {
        **stack.settings(),
        **isolated(name.replace("_", ""), stack.addresses["redis"], 11),
        "REPLAYS_SINKS": "gcs,clickhouse,bigquery,dead_letter",
        "REPLAYS_GCS_LAYOUT": layout,
        "REPLAYS_KEY_PREFIX": name,
    }
    settings = settings_of(env)
    for _ in migrate(settings, topics=True):
        pass
    segments = parsed(settings, int(time.time()) - OLD_SECONDS)
    for start in (0, 1000):  # the same recordings at other offsets, as after a client's retry
        write(settings, batch_of(segments, start))
    server = clickhouse.client(settings)
    for table in ("replay_objects", "replay_segments"):
        server.command(f"OPTIMIZE TABLE {table} FINAL")  # the index drops the first copies
    server.close()
    yield Store(env, settings, *choose_replays(segments))
    coordination: Any = connect(settings)
    coordination.delete(*coordination.keys(f"{name}:*"), f"{name}:audit")


def parsed(settings: Settings, started_at: int) -> list[Segment]:
    found = []
    for offset, value in enumerate(values(PROFILES["small"], SEGMENTS, 5, started_at)):
        message = Message(
            TopicPartition(settings.kafka_topic, 0), 1, offset, value, None, (), int(time.time() * 1000)
        )
        outcome = parse(message, rules_of(settings))
        if not isinstance(outcome, Reject) and outcome.blobs:
            found.append(outcome)
    return found


def choose_replays(segments: list[Segment]) -> tuple[Key, Key]:
    """Returns two replays of one retention class, which share packed objects; the first has several segments."""
    replays: dict[int, dict[Key, int]] = {}
    for segment in segments:
        keys = replays.setdefault(segment.retention_days, {})
        key = (segment.project_id, segment.replay_id)
        keys[key] = keys.get(key, 0) + 1
    most = max(replays.values(), key=len)
    first, second = sorted(most, key=lambda key: most[key], reverse=True)[:2]
    assert most[first] > 1
    return first, second


def test_an_erased_replay_is_gone_and_its_neighbor_unchanged(store: Store) -> None:
    """Both copies of each recording of the erased replay are removed, and outcomes are kept.

    The erasure is audited, and a second run succeeds without finding anything.
    """
    before, kept = store.everything(store.victim), store.everything(store.neighbor)
    recordings = [content for content in before["recordings"] if content]
    assert len(recordings) > 1
    assert all(content in store.bucket_bytes() for content in recordings)

    erased = store.erase("--json")

    assert erased.exit_code == 0, erased.output
    reported = json.loads(erased.stdout)
    assert reported["ok"]
    assert reported["left"] == []
    assert reported["found"]["bigquery_rows"] == before["facts"] > 0
    assert reported["found"]["objects" if store.settings.gcs_layout == "segment" else "packed_objects"] > 1
    after = store.everything(store.victim)
    assert after.pop("replay_outcomes") == before["replay_outcomes"]
    assert not any(after.values()), after
    bucket = store.bucket_bytes()
    assert not [content for content in recordings if content in bucket]
    assert store.everything(store.neighbor) == kept
    actions = Coordination(connect(store.settings), store.settings).audited()
    assert [action["what"] for action in actions] == ["erase ends", "erase begins"]
    assert {action["by"] for action in actions} == {"oncall"}
    again = store.erase()
    assert again.exit_code == 0, again.output
    assert "nothing is left" in again.output


def test_a_dry_run_or_an_unconfirmed_run_changes_nothing(untouched: Store) -> None:
    """A dry run, or a run that the operator does not confirm, changes nothing and leaves no tombstone."""
    before, bucket = untouched.everything(untouched.victim), untouched.bucket_bytes()

    reported = untouched.run("--dry-run")
    unconfirmed = untouched.run()

    assert reported.exit_code == 0, reported.output
    assert reported.output.startswith(f"would erase replay {untouched.victim[1]}")
    assert unconfirmed.exit_code == 2
    assert "add --yes" in unconfirmed.output
    assert untouched.everything(untouched.victim) == before
    assert untouched.bucket_bytes() == bucket
    assert Coordination(connect(untouched.settings), untouched.settings).audited() == []


def test_a_user_and_a_list_are_erased_in_bulk_with_a_certificate(packed: Store, tmp_path: Path) -> None:
    """A dry run changes nothing.

    The certificate lists what was removed for each replay. Other users' replays are kept.
    """
    project = packed.victim[0]
    server = clickhouse.client(packed.settings)
    named = (
        "SELECT user, uniqExact(replay_id) FROM replays WHERE project_id = {p:UInt64} AND user != '' GROUP BY user"
    )
    users = dict(server.query(named, parameters={"p": project}).result_rows)
    of_user = (
        "SELECT DISTINCT toString(replay_id) FROM replays WHERE project_id = {p:UInt64} AND user = {u:String}"
    )
    user = sorted(users)[0]
    theirs = [row[0] for row in server.query(of_user, parameters={"p": project, "u": user}).result_rows]
    every = "SELECT DISTINCT toString(replay_id) FROM replay_segments WHERE project_id = {p:UInt64}"
    others = {row[0] for row in server.query(every, parameters={"p": project}).result_rows} - set(theirs)
    server.close()
    papers, listed = tmp_path / "papers.json", tmp_path / "ids"
    command = ["erase", "--project", str(project), "--by", "oncall", "--rate", "100"]

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*command, *arguments], env=packed.env, catch_exceptions=False)

    dry = json.loads(run("--user", user, "--dry-run", "--json").stdout)
    before = {replay: packed.rows((project, replay), "replay_segments") for replay in (*theirs, *others)}
    erased = run("--user", user, "--yes", "--json", "--certificate", str(papers))
    assert papers.stat().st_mode & 0o077 == 0

    assert len(dry["replays"]) == len(theirs) == users[user]
    assert all(before.values())
    assert erased.exit_code == 0, erased.output
    certified = {erasure["replay_id"]: erasure for erasure in json.loads(papers.read_text())["erasures"]}
    assert set(certified) == {replay.replace("-", "") for replay in theirs}
    assert all(
        erasure["packed_parts"] and erasure["clickhouse_rows"]["replay_segments"] for erasure in certified.values()
    )
    for replay, count in before.items():
        assert packed.rows((project, replay), "replay_segments") == (0 if replay in theirs else count)

    rest = sorted(others)[:1]
    listed.write_text("\n".join(rest) + "\n")
    assert run("--list", str(listed), "--yes").exit_code == 0
    assert not any(packed.rows((project, replay), "replay_segments") for replay in rest)
    assert run("--list", str(listed), "--user", user, "--yes").exit_code == 2


def test_an_unknown_replay_is_reported_in_one_sentence(untouched: Store) -> None:
    """If the replay is not in the given project, the error names the right project. An invalid id is a usage
    error.
    """
    unknown = untouched.erase(key=(untouched.victim[0], "f" * 32))
    elsewhere = untouched.erase(key=(99, untouched.victim[1]))
    wrong = untouched.erase(key=(99, "not-an-id"))

    assert unknown.exit_code == 1
    assert f"nothing is stored of replay {'f' * 32} in project {untouched.victim[0]}" in unknown.output
    assert elsewhere.exit_code == 1
    assert f"it is stored in project {untouched.victim[0]}" in elsewhere.output
    assert wrong.exit_code == 2
    assert "is not a replay id" in wrong.output


def test_an_interrupted_erasure_is_finished_by_the_next_run(packed: Store) -> None:
    """If BigQuery becomes unavailable after the objects were overwritten, the erasure is finished by the next run.

    The interrupted run leaves the rows in place, so that the next run finds the remaining data.
    """
    bucket = packed.bucket_bytes()
    found = Eraser(packed.settings, *packed.victim).search()
    away = packed.settings.model_copy(
        update={"bigquery_endpoint": "http://127.0.0.1:1", "sink_timeout_seconds": 1}
    )

    with pytest.raises(EraseFailed, match="bigquery"):
        Eraser(away, *packed.victim).erase(found, by="oncall")
    cut_off = packed.rows(packed.victim, "replay_places")
    blanked = packed.bucket_bytes()
    second = packed.erase()

    assert blanked != bucket
    assert cut_off
    assert packed.bucket_bytes() == blanked
    assert not any(packed.rows(packed.victim, table) for table in TABLES)
    assert second.exit_code == 0, second.output


def test_two_erasures_in_one_object_do_not_undo_each_other(packed: Store) -> None:
    """If two replays in one object are erased at the same time, the second run reads the result of the first.

    The object keeps its labels, and its custom time is its original creation time; otherwise its other recordings
    would outlive their retention.
    """
    victims = (packed.victim, packed.neighbor)
    recordings = [content for key in victims for content in packed.recordings(key) if content]
    erasers = [Eraser(packed.settings, *key) for key in victims]
    found = [eraser.search() for eraser in erasers]
    server: Any = gcs.client(packed.settings)
    bucket = server.bucket(packed.settings.gcs_bucket)
    name = next(name for name in found[0].ranges if name in found[1].ranges)
    before = bucket.get_blob(name)
    born = before.time_created
    before.metadata = {"case": "7"}
    before.patch()
    threads = [
        threading.Thread(target=eraser.erase, args=(holdings,), kwargs={"by": "oncall"})
        for eraser, holdings in zip(erasers, found, strict=True)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    content = packed.bucket_bytes()
    assert not [recording for recording in recordings if recording in content]
    assert not any(packed.rows(key, table) for key in victims for table in TABLES)
    after = bucket.get_blob(name)
    server.close()
    assert after.generation != before.generation
    assert (after.size, after.content_type, after.metadata) == (before.size, before.content_type, {"case": "7"})
    assert after.custom_time == born


def test_undeletable_data_is_reported_and_the_rest_is_erased(
    packed: Store, children: Children, tmp_path: Path
) -> None:
    """Data that cannot be deleted is reported, and the rest is erased.

    BigQuery cannot delete recently streamed rows, Kafka cannot delete a single dead letter, and a parked batch may
    contain more of the replay. In each of these cases the exit code is 1, and the output says what to do.
    """
    server = BigQuery(children, tmp_path / "bigquery", streaming_buffer_seconds=3600)
    server.start()
    env = {**packed.env, "REPLAYS_BIGQUERY_ENDPOINT": server.address}
    buffered = replace(packed, env=env, settings=settings_of(env))
    for _ in migrate_tables(buffered.settings, dry_run=False):
        pass
    write_facts(buffered.settings, packed.victim)
    letters = build("dead_letter", packed.settings)
    letters.write([DeadLetter(None, b"...replay_id\xd9 " + packed.victim[1].encode(), (), 0)], "token", 60)
    letters.close()
    Coordination(connect(packed.settings), packed.settings).park("b", {"batch_id": "b", "parked_at": 1.0})

    erased = buffered.erase()

    assert erased.exit_code == 1
    assert "dead letters contain parts of it" in erased.output
    assert "do not replay them (0-0)" in erased.output
    assert "parked batches (1) may write more of it" in erased.output
    assert "streaming buffer" in erased.output
    assert "90 minutes" in erased.output
    assert buffered.facts(packed.victim) > 0
    assert not any(buffered.rows(packed.victim, table) for table in TABLES)


def test_a_lost_race_is_retried_and_older_generations_are_deleted(untouched: Store) -> None:
    """If another writer changes an object in the meantime, the overwrite is retried, and older generations are
    deleted.

    The responses of a versioned bucket with soft delete are scripted.

    The emulators keep neither old generations nor deleted objects.
    """
    name, others = "30/packed/b/0-d", "30/packed/b/0-d-too"
    uploads: list[ReceivedRequest] = []

    def answer(request: ReceivedRequest) -> Answer:
        path = unquote(request.path)
        if request.method == "DELETE":
            return Answer(204, b"")
        if path.startswith("/upload/"):
            uploads.append(request)
            return Answer(412) if len(uploads) == 1 else Answer(200, about(9))
        if path.startswith("/download/"):
            return Answer(200, b"Before" if not uploads else b"before")
        if "versions=" in path:
            found = [{"name": name, "generation": n} for n in ("7", "8", "9")]
            found.append({"name": others, "generation": "5"})
            return Answer(200, json.dumps({"items": found}).encode())
        if path.split("?")[0].endswith(name):
            return Answer(200, about(7 + len(uploads)))
        return Answer(200, b'{"softDeletePolicy": {"retentionDurationSeconds": "604800"}}')

    def about(generation: int) -> bytes:
        born = "2026-01-02T03:04:05.000Z"
        return json.dumps({"name": name, "generation": str(generation), "size": "6", "timeCreated": born}).encode()

    holdings = Holdings(*untouched.victim, ranges={name: ((1, 3),)})
    with answering(answer) as (url, requests):
        settings = untouched.settings.model_copy(update={"gcs_endpoint": url})
        left = Objects(settings).erase(holdings)

    assert ["ifGenerationMatch=7" in upload.path for upload in uploads] == [True, False]
    assert "ifGenerationMatch=8" in uploads[1].path
    assert b"b\0\0\0re" in uploads[1].body
    assert b"2026-01-02T03:04:05" in uploads[1].body
    deleted = [unquote(request.path) for request in requests if request.method == "DELETE"]
    assert [path.split("generation=")[1][0] for path in deleted] == ["7", "8"]
    assert all(f"/o/{name}?" in path for path in deleted)
    assert len(left) == 1
    assert "soft delete of gs://" in left[0]


def test_an_index_that_points_beyond_its_object_is_refused() -> None:
    """If an index row points beyond its object, nothing is overwritten, because an operator must investigate
    first.
    """
    content = bytearray(b"before")

    with pytest.raises(EraseFailed, match="6 bytes, but its index refers to byte 7"):
        zero_spans(content, [(5, 2)], "an object")

    assert content == b"before"


def write_facts(settings: Settings, key: Key) -> None:
    segments = [
        segment
        for segment in parsed(settings, int(time.time()) - OLD_SECONDS)
        if (segment.project_id, segment.replay_id) == key
    ]
    only = settings.model_copy(
        update={"sinks": (SinkName.BIGQUERY, SinkName.DEAD_LETTER), "gcs_layout": "segment"}
    )
    write(only, batch_of(segments, 5000))
