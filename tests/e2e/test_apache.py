"""Real reader processes in a real consumer group: Apache Kafka, kill -9, SIGSTOP, SIGTERM, rebalances, restarts.

One broker and one set of servers for all tests; each test has topics, tables, a bucket and a Redis database of
its own. Where a test stops the flush fleet, batches stay in flight for as long as it likes.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.core import record
from ingest.local.compare.metrics import read_metrics
from ingest.local.compare.offsets import Committed
from ingest.local.compare.reconcile import reconcile
from ingest.local.compare.report import Report
from ingest.local.fleet import SESSION_SECONDS, Fleet, is_up, isolated, said
from ingest.local.launch import temporary_files_in_memory
from ingest.local.load.expectation import SIZES, Expectation
from ingest.local.load.produce import PROFILES, Produced, produce
from ingest.local.servers import java_kafka
from ingest.local.servers.processes import Child, wait_until
from ingest.local.servers.statsd import Statsd
from ingest.local.stack import Stack
from tasks.connection import connect
from tasks.migrate.kafka import SOURCE_PARTITIONS

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(150)]
SETTLE_SECONDS_MAX = 60.0
UP_SECONDS_MAX = 30.0
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Everything, with Apache Kafka as the broker."""
    reason = java_kafka.available()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    with temporary_files_in_memory(wanted=True), Stack(kafka="apache") as running:
        yield running.start()


@pytest.fixture
def fleet(stack: Stack, tmp_path: Path) -> Iterator[Fleet]:
    """Migrated, nothing runs yet. Its processes end with the test."""
    with made(stack, {}) as found:
        yield found


@contextmanager
def made(stack: Stack, settings: dict[str, str]) -> Iterator[Fleet]:
    number = next(numbers)
    statsd = stack.servers["statsd"]
    assert isinstance(statsd, Statsd)
    statsd.reset()
    own = isolated(f"test{number}", stack.addresses["redis"], number)
    fleet = Fleet(stack, {**own, "REPLAYS_BATCH_MESSAGES_MAX": "20", **settings}, tag=f"test{number}-")
    fleet.migrate()
    try:
        yield fleet
    finally:
        for child in fleet.children.values():
            stack.children.release(child)
            child.kill()


class Load:
    """Messages at a steady rate from a thread, and afterwards the account."""

    def __init__(self, fleet: Fleet, directory: Path, count: int, rate: float | None = None) -> None:
        self.fleet, self.manifest = fleet, directory / "manifest.jsonl"
        self.produced: Produced | None = None
        self._count, self._rate = count, rate
        self._thread = threading.Thread(target=self._run)

    def start(self) -> Load:
        self._thread.start()
        return self

    def _run(self) -> None:
        self.produced = produce(
            self.fleet.settings,
            PROFILES["small"],
            self._count,
            3,
            manifest_path=self.manifest,
            rate=self._rate,
        )

    def end(self) -> Produced:
        """When every message is acknowledged."""
        self._thread.join()
        assert self.produced is not None
        return self.produced

    def settle(self) -> None:
        """Until every message is committed."""
        self.fleet.wait_committed(self.end().ends, SETTLE_SECONDS_MAX)

    def account(self, *, exactly: bool = False) -> Report:
        """`exactly`: nothing was done twice, metrics included."""
        settings = self.fleet.settings
        expected = Expectation.of_manifest(self.manifest, settings=settings)
        statsd_url = self.fleet.stack.addresses["statsd_query"]
        return reconcile(settings, expected, statsd_url=statsd_url, metrics_exactly=exactly)

    def share_twice(self) -> float:
        """Of the segments, by the one sink that cannot tell a repetition."""
        expected = Expectation.of_manifest(self.manifest, settings=self.fleet.settings)
        sent = read_metrics(self.fleet.stack.addresses["statsd_query"])
        return sent[SIZES + "size_compressed"].count / expected.metrics[SIZES + "size_compressed"].count - 1


def stored(fleet: Fleet) -> dict[int, tuple[int, str]]:
    """What the group committed by partition: the offset, and the record of cuts that came with it."""
    consumer = Consumer(
        {"bootstrap.servers": fleet.settings.kafka_brokers, "group.id": fleet.settings.kafka_group}
    )
    try:
        asked = [KafkaPartition(fleet.settings.kafka_topic, number) for number in range(SOURCE_PARTITIONS)]
        return {p.partition: (p.offset, p.metadata or "") for p in consumer.committed(asked, timeout=10)}
    finally:
        consumer.close()


def recorded_batches(fleet: Fleet) -> set[str]:
    """The ids of the batches that a new owner would cut first, from the commit metadata alone."""
    topic, found = fleet.settings.kafka_topic, set()
    for partition, (offset, text) in stored(fleet).items():
        start = offset
        for stop in record.decode(offset, text) if offset >= 0 else ():
            found.add(f"{topic}-{partition}-{start}-{stop}")
            start = stop
    return found


def staged_batches(fleet: Fleet) -> set[str]:
    """The ids of the batches whose bytes lie in Redis: those that a reader has dispatched."""
    client = connect(fleet.settings)
    pattern = f"{fleet.settings.key_prefix}:batch:*"
    return {key.decode().split("{")[1].split("}")[0] for key in client.scan_iter(pattern, count=1000)}


def overlapping(batches: set[str]) -> list[tuple[str, str]]:
    """Neighbours that hold the same messages: a range was cut in two ways."""
    ranges = sorted((batch.rsplit("-", 2)[0], *map(int, batch.rsplit("-", 2)[1:]), batch) for batch in batches)
    return [
        (one[3], other[3]) for one, other in itertools.pairwise(ranges) if one[0] == other[0] and other[1] < one[2]
    ]


def up(child: Child) -> Child:
    wait_until(lambda: is_up(child), UP_SECONDS_MAX, f"{child.name} to be up")
    return child


def owned(child: Child) -> set[int]:
    """The partitions that a reader has, by its own log."""
    found: set[int] = set()
    for line in said_in_order(child):
        match line["event"]:
            case "partitions_assigned":
                found |= {int(partition) for partition in line["partitions"]}
            case "partitions_revoked" | "partitions_lost":
                found -= {int(partition) for partition in line["partitions"]}
            case "reader_started":
                found = set()
    return found


def said_in_order(child: Child) -> list[dict[str, Any]]:
    events = ("reader_started", "partitions_assigned", "partitions_revoked", "partitions_lost")
    lines = [line for event in events for line in said(child, event)]
    return sorted(lines, key=lambda line: line["timestamp"])


@contextmanager
def commits_never_fall(fleet: Fleet) -> Iterator[None]:
    """Looks all the time; fails when a committed offset is lower than it was."""
    over, falls = threading.Event(), []
    sources = [(fleet.settings.kafka_topic, number) for number in range(SOURCE_PARTITIONS)]

    def watch() -> None:
        asking, highest = Committed(fleet.settings), dict.fromkeys(sources, 0)
        while not over.wait(0.1):
            for source, offset in asking.of(sources).items():
                if offset < highest[source]:
                    falls.append((source, highest[source], offset))
                highest[source] = offset
        asking.close()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert falls == []


def test_a_new_owner_cuts_the_same_batches_also_after_a_second_crash(stack: Stack, tmp_path: Path) -> None:
    """Batches are cut by the clock under a trickle, their reader dies, twice; the ids stay, and nothing is twice.

    Without the record the second reader, which finds a backlog, would cut it into other ranges.
    """
    settings = {
        "REPLAYS_BATCH_AGE_SECONDS_MAX": "0.3",
        "REPLAYS_IN_FLIGHT_BATCHES_MAX": "128",
        "REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "3",
        "REPLAYS_DRAIN_DEADLINE_SECONDS": "2",
    }
    with made(stack, settings) as fleet:
        load = Load(fleet, tmp_path, 150, rate=60)
        first = up(fleet.reader("reader-1", keep=False))
        wait_until(lambda: len(owned(first)) == SOURCE_PARTITIONS, UP_SECONDS_MAX, "the partitions")
        load.start().end()
        wait_until(
            lambda: covers_all(fleet, load.end()), UP_SECONDS_MAX, "every message to be in a dispatched batch"
        )
        before = staged_batches(fleet)
        assert recorded_batches(fleet) == before
        assert len(before) > 2 * SOURCE_PARTITIONS

        for name in ("reader-2", "reader-3"):
            fleet.kill(next(child for child in fleet.children.values() if child.alive), keep=False)
            connect(fleet.settings).flushdb()
            up(fleet.reader(name, keep=False))
            wait_until(lambda: covers_all(fleet, load.end()), UP_SECONDS_MAX, "the successor to dispatch all")
            assert staged_batches(fleet) == before
            assert recorded_batches(fleet) == before

        fleet.worker("worker-1")
        load.settle()
        report = load.account(exactly=True)
        assert report.ok, report.failures()
        assert all(text == "" for _, text in stored(fleet).values())


def covers_all(fleet: Fleet, produced: Produced) -> bool:
    """Whether the staged batches hold every offset."""
    reached = dict.fromkeys(produced.ends, 0)
    for batch_id in staged_batches(fleet):
        partition, start, stop = map(int, batch_id.rsplit("-", 3)[1:])
        reached[partition] += stop - start
    return reached == produced.ends


def test_a_member_with_an_instance_id_comes_back_without_a_rebalance(fleet: Fleet, tmp_path: Path) -> None:
    """kill -9 and a restart within the session: the other reader keeps its partitions and hears of nothing."""
    fleet.worker("worker-1")
    static = up(fleet.reader("reader-1", REPLAYS_KAFKA_INSTANCE_ID="one"))
    other = up(fleet.reader("reader-2", REPLAYS_KAFKA_INSTANCE_ID="two"))
    wait_until(lambda: len(owned(static)) == len(owned(other)) == 2, UP_SECONDS_MAX, "two partitions each")
    partitions, heard = owned(static), len(said_in_order(other))
    load = Load(fleet, tmp_path, 200, rate=100).start()

    fleet.kill(static)
    up(static)
    load.settle()

    assert owned(static) == partitions
    assert len(said_in_order(other)) == heard
    report = load.account()
    assert report.ok, report.failures()


def test_a_second_reader_takes_its_share_under_load_and_nothing_is_done_twice(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Cooperative rebalance, in and out: the first keeps half of its partitions all along; 0 % processed twice."""
    fleet.worker("worker-1")
    first = up(fleet.reader("reader-1"))
    wait_until(lambda: len(owned(first)) == SOURCE_PARTITIONS, UP_SECONDS_MAX, "all partitions")
    load = Load(fleet, tmp_path, 500, rate=80).start()

    second = up(fleet.reader("reader-2", keep=False))
    wait_until(lambda: len(owned(first)) == len(owned(second)) == 2, UP_SECONDS_MAX, "an even share")
    kept = owned(first)
    assert fleet.stop(second) == 0
    wait_until(lambda: len(owned(first)) == SOURCE_PARTITIONS, UP_SECONDS_MAX, "all partitions again")
    load.settle()

    taken = [line for line in said_in_order(first) if line["event"] == "partitions_revoked"]
    assert all(kept.isdisjoint(line["partitions"]) for line in taken)
    assert not said(first, "partitions_lost")
    assert load.share_twice() == 0
    report = load.account(exactly=True)
    assert report.ok, report.failures()


def test_sigterm_under_load_commits_what_settled_and_ends_with_zero(fleet: Fleet, tmp_path: Path) -> None:
    """Within the drain deadline; the next reader goes on where it ended, so nothing is done twice."""
    fleet.worker("worker-1")
    reader = up(fleet.reader("reader-1", keep=False))
    load = Load(fleet, tmp_path, 500, rate=100).start()
    wait_until(lambda: sum(fleet.committed().values()) > 100, UP_SECONDS_MAX, "some commits")

    code = fleet.stop(reader)

    assert code == 0
    assert said(reader, "reader_stopped")[-1]["clean"] is True
    assert recorded_batches(fleet) == set()
    up(fleet.reader("reader-1"))
    load.settle()
    report = load.account(exactly=True)
    assert report.ok, report.failures()


def test_sigterm_with_batches_that_do_not_settle_ends_with_zero_at_the_drain_deadline(
    fleet: Fleet, tmp_path: Path
) -> None:
    """What settled stays committed; what did not is left uncommitted, its ends recorded; nobody waits longer."""
    worker = fleet.worker("worker-1", keep=False)
    reader = up(fleet.reader("reader-1", keep=False))
    load = Load(fleet, tmp_path, 800, rate=100).start()
    wait_until(lambda: min(fleet.committed().values()) > 0, UP_SECONDS_MAX, "a commit of every partition")
    worker.pause()
    wait_until(lambda: len(recorded_batches(fleet)) >= 4, UP_SECONDS_MAX, "batches that do not settle")
    settled = fleet.committed()

    code = fleet.stop(reader)

    assert code == 0
    assert said(reader, "reader_stopped")[-1]["clean"] is False
    assert all(fleet.committed()[partition] >= offset for partition, offset in settled.items())
    left = recorded_batches(fleet)
    assert len(left) >= 4
    worker.resume()
    up(fleet.reader("reader-1"))
    load.settle()
    assert not overlapping(staged_batches(fleet)), "the next reader had the same batches"
    report = load.account()
    assert report.ok, report.failures()


def test_a_broker_that_is_killed_comes_back_and_nothing_is_missing(fleet: Fleet, tmp_path: Path) -> None:
    """kill -9 of the broker under load: the reader stays up, commits go on where they stood."""
    fleet.worker("worker-1")
    reader = up(fleet.reader("reader-1"))
    load = Load(fleet, tmp_path, 400, rate=60).start()
    fleet.wait_committed({0: 20}, UP_SECONDS_MAX)
    before = fleet.committed()

    fleet.stack.servers["kafka"].restart(kill=True)

    assert all(fleet.committed()[partition] >= offset for partition, offset in before.items())
    load.settle()

    assert fleet.own_ends() == {}
    assert reader.alive
    report = load.account()
    assert report.ok, report.failures()


def test_a_reader_that_sleeps_past_its_session_commits_nothing_as_a_zombie(stack: Stack, tmp_path: Path) -> None:
    """SIGSTOP with batches in flight. Another reader takes over; their chords end, and then the sleeper wakes up
    with completions waiting for it: its partitions are lost, committed offsets never fall, nothing is missing."""
    with made(stack, {"REPLAYS_BATCH_AGE_SECONDS_MAX": "0.3"}) as fleet:
        sleeper = up(fleet.reader("reader-1"))
        other = up(fleet.reader("reader-2"))
        wait_until(lambda: len(owned(sleeper)) == len(owned(other)) == 2, UP_SECONDS_MAX, "two partitions each")
        load = Load(fleet, tmp_path, 150, rate=100).start()
        load.end()
        wait_until(lambda: len(staged_batches(fleet)) >= 4, UP_SECONDS_MAX, "batches in flight")

        with commits_never_fall(fleet):
            sleeper.pause()
            fleet.worker("worker-1")
            wait_until(lambda: len(owned(other)) == 4, SESSION_SECONDS + UP_SECONDS_MAX, "the other to own all")
            load.settle()
            sleeper.resume()
            wait_until(lambda: bool(said(sleeper, "partitions_lost")), UP_SECONDS_MAX, "the sleeper to notice")
            wait_until(
                lambda: len(owned(sleeper)) == len(owned(other)) == 2, UP_SECONDS_MAX, "an even share again"
            )

        report = load.account()
        assert report.ok, report.failures()


def test_the_demo_runs_on_apache_kafka(stack: Stack, tmp_path: Path) -> None:
    """As a person starts it."""
    arguments = ["150", "--kafka", "apache", "--profile", "small", "--json", "--directory", str(tmp_path)]

    done = subprocess.run(
        [sys.executable, "-m", "ingest.local.demo", *arguments],
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )

    assert done.stdout.startswith("{"), done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert done.returncode == 0, outcome["error"]
    assert outcome["reconciliation"]["ok"]
