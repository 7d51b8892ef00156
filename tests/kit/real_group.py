"""Real reader processes in one consumer group on Apache Kafka: fleet, load, and observations of the group."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from ingest.core import cut_record
from ingest.local.compare.metrics import read_metrics
from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.reconcile import reconcile
from ingest.local.compare.report import Report
from ingest.local.fleet import Fleet, is_up, isolated, log_lines_of
from ingest.local.launch import temporary_files_in_memory
from ingest.local.load.expectation import SIZES, Expectation
from ingest.local.load.produce import PROFILES, ProducedTotals, produce
from ingest.local.servers import java_kafka
from ingest.local.servers.processes import Child, wait_until
from ingest.local.servers.statsd import Statsd
from ingest.local.stack import Stack
from tasks.connection import connect
from tasks.migrate.kafka import SOURCE_PARTITIONS
from tests.kit.servers import kill_all

SETTLE_SECONDS_MAX = 60.0
UP_SECONDS_MAX = 30.0
numbers = itertools.count(1)


@contextmanager
def apache_stack() -> Iterator[Stack]:
    """The whole stack with Apache Kafka as the broker.

    The fixture skips the test with a reason if Kafka cannot run; in CI it must run.
    """
    reason = java_kafka.available()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    with temporary_files_in_memory(wanted=True), Stack(kafka="apache") as running:
        yield running.start()
        kill_all(running.children)


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
    """Produces messages at a steady rate from a thread, and afterwards compares the sinks with these messages."""

    def __init__(self, fleet: Fleet, directory: Path, count: int, rate: float | None = None) -> None:
        self.fleet, self.manifest = fleet, directory / "manifest.jsonl"
        self.produced: ProducedTotals | None = None
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

    def end(self) -> ProducedTotals:
        """Stops producing, and returns when every message is acknowledged."""
        self._thread.join()
        assert self.produced is not None
        return self.produced

    def settle(self) -> None:
        """Waits until every message is committed."""
        self.fleet.wait_until_committed(self.end().ends, SETTLE_SECONDS_MAX)

    def account(self, *, exact: bool = False) -> Report:
        """Compares the contents of the sinks with the manifest of the produced messages.

        If `exact` is true, nothing may have been written twice, not even metrics.
        """
        settings = self.fleet.settings
        expected = Expectation.from_manifest(self.manifest, settings=settings)
        statsd_url = self.fleet.stack.addresses["statsd_query"]
        return reconcile(settings, expected, statsd_url=statsd_url, exact_metrics=exact)

    def share_sent_twice(self) -> float:
        """Returns the share of segments that were sent twice, measured at the only sink that does not
        deduplicate.
        """
        expected = Expectation.from_manifest(self.manifest, settings=self.fleet.settings)
        sent = read_metrics(self.fleet.stack.addresses["statsd_query"])
        return sent[SIZES + "size_compressed"].count / expected.metrics[SIZES + "size_compressed"].count - 1


def stored(fleet: Fleet) -> dict[int, tuple[int, str]]:
    """Maps each partition to the group's commit, as offset and cut record."""
    consumer = Consumer(
        {"bootstrap.servers": fleet.settings.kafka_brokers, "group.id": fleet.settings.kafka_group}
    )
    try:
        asked = [KafkaPartition(fleet.settings.kafka_topic, number) for number in range(SOURCE_PARTITIONS)]
        return {p.partition: (p.offset, p.metadata or "") for p in consumer.committed(asked, timeout=10)}
    finally:
        consumer.close()


def recorded_batches(fleet: Fleet) -> set[str]:
    """Returns the ids of the batches that a new owner would cut first, from the commit metadata alone."""
    topic, found = fleet.settings.kafka_topic, set()
    for partition, (offset, text) in stored(fleet).items():
        start = offset
        for stop in cut_record.decode(offset, text).stops if offset >= 0 else ():
            found.add(f"{topic}-{partition}-{start}-{stop}")
            start = stop
    return found


def staged_batches(fleet: Fleet) -> set[str]:
    """Returns the ids of the dispatched batches whose bytes are in Redis."""
    client = connect(fleet.settings)
    pattern = f"{fleet.settings.key_prefix}:batch:*"
    return {key.decode().split("{")[1].split("}")[0] for key in client.scan_iter(pattern, count=1000)}


def overlapping(batches: set[str]) -> list[tuple[str, str]]:
    """Returns the pairs of adjacent batches that have messages in common, which means that a range was cut in two
    ways.
    """
    ranges = []
    for batch in batches:
        source, start, stop = batch.rsplit("-", 2)
        ranges.append((source, int(start), int(stop), batch))
    pairs = itertools.pairwise(sorted(ranges))
    return [(this[3], after[3]) for this, after in pairs if this[0] == after[0] and after[1] < this[2]]


def wait_until_up(child: Child) -> Child:
    wait_until(lambda: is_up(child), UP_SECONDS_MAX, f"{child.name} to be up")
    return child


def owned(child: Child) -> set[int]:
    """Returns the partitions that a reader owns, according to its log."""
    found: set[int] = set()
    for line in assignment_log_lines(child):
        match line["event"]:
            case "partitions_assigned":
                found |= {int(partition) for partition in line["partitions"]}
            case "partitions_revoked" | "partitions_lost":
                found -= {int(partition) for partition in line["partitions"]}
            case "reader_started":
                found = set()
    return found


def assignment_log_lines(child: Child) -> list[dict[str, Any]]:
    events = ("reader_started", "partitions_assigned", "partitions_revoked", "partitions_lost")
    lines = [line for event in events for line in log_lines_of(child, event)]
    return sorted(lines, key=lambda line: line["timestamp"])


@contextmanager
def commits_never_decrease(fleet: Fleet) -> Iterator[None]:
    """Polls the committed offsets continuously, and fails when an offset decreases."""
    over, falls = threading.Event(), []
    sources = [(fleet.settings.kafka_topic, number) for number in range(SOURCE_PARTITIONS)]

    def watch() -> None:
        asking, highest = CommittedOffsets(fleet.settings), dict.fromkeys(sources, 0)
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


def covers_all(fleet: Fleet, produced: ProducedTotals) -> bool:
    """Returns whether the staged batches cover every offset."""
    reached = dict.fromkeys(produced.ends, 0)
    for batch_id in staged_batches(fleet):
        partition, start, stop = map(int, batch_id.rsplit("-", 3)[1:])
        reached[partition] += stop - start
    return reached == produced.ends
