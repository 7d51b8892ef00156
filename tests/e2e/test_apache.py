"""Tests real reader processes in a consumer group on Apache Kafka: kill -9, SIGSTOP, SIGTERM, rebalances,
restarts.

All tests share one broker and one set of servers; each test has its own topics, tables, bucket and Redis database.
If a test stops the flush fleet, batches stay in flight until the test starts the fleet again.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.local.fleet import SESSION_SECONDS, Fleet, log_lines_of
from ingest.local.servers.processes import wait_until
from ingest.local.stack import Stack
from tasks.connection import connect
from tasks.migrate.kafka import SOURCE_PARTITIONS
from tests.kit.prestarted import PARENTS
from tests.kit.real_group import (
    UP_SECONDS_MAX,
    Load,
    apache_stack,
    assignment_log_lines,
    commits_never_decrease,
    covers_all,
    made,
    overlapping,
    owned,
    recorded_batches,
    staged_batches,
    wait_until_up,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The whole stack, with Apache Kafka as the broker."""
    with apache_stack() as running:
        yield running


@pytest.fixture
def fleet(stack: Stack, tmp_path: Path) -> Iterator[Fleet]:
    """A migrated fleet with no process running yet. The processes of the fleet are stopped after the test."""
    with made(stack, {}) as found:
        yield found


def test_a_new_owner_cuts_the_same_batches_also_after_a_second_crash(stack: Stack, tmp_path: Path) -> None:
    """Messages arrive slowly, so batches are cut by age.

    If the reader is killed twice, the batch ids are unchanged and nothing is duplicated. Without the cut record,
    the second reader would find a backlog and cut different ranges.
    """
    settings = {
        "REPLAYS_BATCH_AGE_SECONDS_MAX": "0.3",
        "REPLAYS_IN_FLIGHT_BATCHES_MAX": "128",
        "REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "3",
        "REPLAYS_DRAIN_DEADLINE_SECONDS": "2",
    }
    with made(stack, settings) as fleet:
        load = Load(fleet, tmp_path, 150, rate=60)
        first = wait_until_up(fleet.reader("reader-1", keep=False))
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
            wait_until_up(fleet.reader(name, keep=False))
            wait_until(lambda: covers_all(fleet, load.end()), UP_SECONDS_MAX, "the successor to dispatch all")
            assert staged_batches(fleet) == before
            assert recorded_batches(fleet) == before

        fleet.worker("worker-1")
        load.settle()
        report = load.account(exact=True)
        assert report.ok, report.failures()
        assert recorded_batches(fleet) == set()


def test_a_member_with_an_instance_id_returns_without_a_rebalance(fleet: Fleet, tmp_path: Path) -> None:
    """If a reader is killed with kill -9 and restarts within its session timeout, it gets its partitions back.

    The other reader keeps its partitions, and there is no rebalance.
    """
    fleet.worker("worker-1")
    session = {"REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "60"}  # A busy machine starts processes slowly.
    static = wait_until_up(fleet.reader("reader-1", REPLAYS_KAFKA_INSTANCE_ID="one", **session))
    other = wait_until_up(fleet.reader("reader-2", REPLAYS_KAFKA_INSTANCE_ID="two", **session))
    wait_until(lambda: len(owned(static)) == len(owned(other)) == 2, UP_SECONDS_MAX, "two partitions each")
    partitions, events_before = owned(static), len(assignment_log_lines(other))
    load = Load(fleet, tmp_path, 200, rate=100).start()

    fleet.kill(static)
    wait_until_up(static)
    load.settle()

    assert owned(static) == partitions
    assert len(assignment_log_lines(other)) == events_before
    report = load.account()
    assert report.ok, report.failures()


def test_a_second_reader_takes_its_share_under_load_without_duplicates(fleet: Fleet, tmp_path: Path) -> None:
    """If a second reader joins and leaves under load, the first reader keeps half of its partitions throughout.

    No message is processed twice.
    """
    fleet.worker("worker-1")
    first = wait_until_up(fleet.reader("reader-1"))
    wait_until(lambda: len(owned(first)) == SOURCE_PARTITIONS, UP_SECONDS_MAX, "all partitions")
    load = Load(fleet, tmp_path, 500, rate=80).start()

    second = wait_until_up(fleet.reader("reader-2", keep=False))
    wait_until(lambda: len(owned(first)) == len(owned(second)) == 2, UP_SECONDS_MAX, "an even share")
    kept = owned(first)
    assert fleet.stop(second) == 0
    wait_until(lambda: len(owned(first)) == SOURCE_PARTITIONS, UP_SECONDS_MAX, "all partitions again")
    load.settle()

    taken = [line for line in assignment_log_lines(first) if line["event"] == "partitions_revoked"]
    assert all(kept.isdisjoint(line["partitions"]) for line in taken)
    assert not log_lines_of(first, "partitions_lost")
    assert load.share_sent_twice() == 0
    report = load.account(exact=True)
    assert report.ok, report.failures()


def test_sigterm_under_load_commits_settled_batches_and_exits_with_zero(stack: Stack, tmp_path: Path) -> None:
    """After SIGTERM under load, the reader exits within the drain deadline.

    The next reader continues from the committed offsets, so nothing is processed twice.
    """
    settings = {"REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "30", "REPLAYS_DRAIN_DEADLINE_SECONDS": "25"}
    with made(stack, settings) as fleet:
        fleet.worker("worker-1")
        reader = wait_until_up(fleet.reader("reader-1", keep=False))
        load = Load(fleet, tmp_path, 500, rate=100).start()
        wait_until(lambda: sum(fleet.committed().values()) > 100, UP_SECONDS_MAX, "some commits")

        code = fleet.stop(reader)

        assert code == 0
        assert log_lines_of(reader, "reader_stopped")[-1]["clean"] is True
        assert recorded_batches(fleet) == set()
        wait_until_up(fleet.reader("reader-1"))
        load.settle()
        report = load.account(exact=True)
        assert report.ok, report.failures()


def test_sigterm_with_unsettled_batches_exits_with_zero_at_the_drain_deadline(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Settled batches stay committed. Unsettled batches stay uncommitted, with their ends recorded."""
    worker = fleet.worker("worker-1", keep=False)
    reader = wait_until_up(fleet.reader("reader-1", keep=False))
    load = Load(fleet, tmp_path, 800, rate=100).start()
    wait_until(lambda: min(fleet.committed().values()) > 0, UP_SECONDS_MAX, "a commit of every partition")
    worker.pause()
    wait_until(lambda: len(recorded_batches(fleet)) >= 4, UP_SECONDS_MAX, "batches that do not settle")
    settled = fleet.committed()

    code = fleet.stop(reader)

    assert code == 0
    assert log_lines_of(reader, "reader_stopped")[-1]["clean"] is False
    assert all(fleet.committed()[partition] >= offset for partition, offset in settled.items())
    left = recorded_batches(fleet)
    assert len(left) >= 4
    worker.resume()
    wait_until_up(fleet.reader("reader-1"))
    load.settle()
    assert not overlapping(staged_batches(fleet)), "the next reader had the same batches"
    report = load.account()
    assert report.ok, report.failures()


def test_a_killed_broker_returns_and_nothing_is_missing(fleet: Fleet, tmp_path: Path) -> None:
    """If the broker is killed with kill -9 under load and restarted, the reader keeps running, and commits
    continue from the last offsets.
    """
    fleet.worker("worker-1")
    reader = wait_until_up(fleet.reader("reader-1"))
    load = Load(fleet, tmp_path, 400, rate=60).start()
    fleet.wait_until_committed({0: 20}, UP_SECONDS_MAX)
    before = fleet.committed()

    fleet.stack.servers["kafka"].restart(kill=True)

    assert all(fleet.committed()[partition] >= offset for partition, offset in before.items())
    load.settle()

    assert fleet.unrequested_exits() == {}
    assert reader.alive
    report = load.account()
    assert report.ok, report.failures()


def test_a_reader_suspended_past_its_session_commits_nothing(stack: Stack, tmp_path: Path) -> None:
    """A reader is suspended with SIGSTOP while batches are in flight.

    Another reader takes over, the chords of the suspended reader complete, and the suspended reader then resumes
    with completions pending. The suspended reader has lost its partitions, committed offsets never decrease, and
    nothing is missing.
    """
    with made(stack, {"REPLAYS_BATCH_AGE_SECONDS_MAX": "0.3"}) as fleet:
        suspended = wait_until_up(fleet.reader("reader-1"))
        other = wait_until_up(fleet.reader("reader-2"))
        wait_until(lambda: len(owned(suspended)) == len(owned(other)) == 2, UP_SECONDS_MAX, "two partitions each")
        load = Load(fleet, tmp_path, 150, rate=100).start()
        load.end()
        wait_until(lambda: len(staged_batches(fleet)) >= 4, UP_SECONDS_MAX, "batches in flight")

        with commits_never_decrease(fleet):
            suspended.pause()
            fleet.worker("worker-1")
            wait_until(lambda: len(owned(other)) == 4, SESSION_SECONDS + UP_SECONDS_MAX, "the other to own all")
            load.settle()
            suspended.resume()
            wait_until(
                lambda: bool(log_lines_of(suspended, "partitions_lost")), UP_SECONDS_MAX, "the sleeper to notice"
            )
            wait_until(
                lambda: len(owned(suspended)) == len(owned(other)) == 2, UP_SECONDS_MAX, "an even share again"
            )

        report = load.account()
        assert report.ok, report.failures()


def test_the_demo_runs_on_apache_kafka(stack: Stack, tmp_path: Path) -> None:
    """The demo, started as a user would start it, runs on Apache Kafka."""
    arguments = ["150", "--kafka", "apache", "--profile", "small", "--json", "--directory", str(tmp_path)]
    command, sockets = PARENTS.share_with("ingest.local.demo", *arguments)

    result = subprocess.run(
        command,
        pass_fds=sockets,
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )

    assert result.stdout.startswith("{"), result.stdout + result.stderr
    outcome = json.loads(result.stdout)
    assert result.returncode == 0, outcome["error"]
    assert outcome["reconciliation"]["ok"]
