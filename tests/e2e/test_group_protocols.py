"""Tests how a consumer group on Apache Kafka treats readers that die during its rebalances."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.local.fleet import Fleet, log_lines_of
from ingest.local.servers.processes import wait_until
from ingest.local.stack import Stack
from tasks.kafka.cluster import Cluster
from tasks.migrate.kafka import SOURCE_PARTITIONS
from tests.kit.real_group import UP_SECONDS_MAX, Load, apache_stack, made, owned, staged_batches, wait_until_up

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

UNOWNED_SECONDS_MAX = 3.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The whole stack, with Apache Kafka as the broker."""
    with apache_stack() as running:
        yield running


def owners(fleet: Fleet) -> list[int]:
    """Returns the partitions with an owner, as the group's coordinator reports them; the result is empty during a
    rebalance.
    """
    group = Cluster(fleet.settings).group(fleet.settings.kafka_group, fleet.settings.kafka_topic)
    return sorted(number for member in group.members for number in member.partitions) if group.stable else []


def test_a_partition_orphaned_by_a_static_member_is_detected_and_read(stack: Stack, tmp_path: Path) -> None:
    """If a reader dies while it releases partitions and its successor starts before the group notices,
    partitions have no owner.

    The readers detect this, and the partitions are read.
    """
    settings = {
        "REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "20",
        "REPLAYS_DRAIN_DEADLINE_SECONDS": "10",
        "REPLAYS_KAFKA_UNOWNED_SECONDS_MAX": f"{UNOWNED_SECONDS_MAX:g}",
    }
    with made(stack, settings) as fleet:
        first = wait_until_up(fleet.reader("reader-1", REPLAYS_KAFKA_INSTANCE_ID="one"))
        wait_until(lambda: len(owned(first)) == SOURCE_PARTITIONS, UP_SECONDS_MAX, "all partitions")
        load = Load(fleet, tmp_path, 150, rate=50).start()
        wait_until(lambda: staged_batches(fleet) != set(), UP_SECONDS_MAX, "batches in flight, to drain")
        second = wait_until_up(fleet.reader("reader-2", REPLAYS_KAFKA_INSTANCE_ID="two"))
        wait_until(
            lambda: log_lines_of(first, "partitions_revoked") != [], UP_SECONDS_MAX, "the first reader to drain"
        )
        fleet.kill(first)
        wait_until_up(first)
        both = (first, second)
        wait_until(
            lambda: any(log_lines_of(r, "partitions_without_owner") for r in both),
            UP_SECONDS_MAX,
            "a reader to see",
        )

        wait_until(lambda: owners(fleet) == list(range(SOURCE_PARTITIONS)), UP_SECONDS_MAX, "an owner for each")
        assert any(log_lines_of(reader, "rejoining_group") for reader in both)
        fleet.worker("worker-1")
        load.settle()
        report = load.account()
        assert report.ok, report.failures()


@pytest.mark.parametrize("instances", [("", ""), ("one", "two")], ids=["dynamic", "static"])
def test_under_the_consumer_protocol_a_killed_reader_is_replaced(
    stack: Stack, tmp_path: Path, instances: tuple[str, str]
) -> None:
    """Under KIP-848, in which brokers assign partitions, a killed reader is replaced.

    A static member's successor waits until the session of its predecessor expires.
    """
    settings = {
        "REPLAYS_KAFKA_GROUP_PROTOCOL": "consumer",
        "REPLAYS_KAFKA_METADATA_REFRESH_SECONDS": "2",
        # The drain deadline is longer than the session timeout, because under this protocol only the poll interval
        # limits the drain.
        "REPLAYS_DRAIN_DEADLINE_SECONDS": "10",
    }
    with made(stack, settings) as fleet:
        fleet.worker("worker-1")
        readers = [
            wait_until_up(fleet.reader(f"reader-{number}", REPLAYS_KAFKA_INSTANCE_ID=instance))
            for number, instance in enumerate(instances, start=1)
        ]
        wait_until(lambda: all(owned(reader) for reader in readers), UP_SECONDS_MAX, "both to own partitions")
        load = Load(fleet, tmp_path, 200, rate=40).start()
        wait_until(lambda: staged_batches(fleet) != set(), UP_SECONDS_MAX, "batches in flight")

        fleet.kill(readers[0])
        wait_until_up(readers[0])
        load.settle()
        wait_until(lambda: owners(fleet) == list(range(SOURCE_PARTITIONS)), UP_SECONDS_MAX, "an owner for each")
        wait_until(lambda: owned(readers[0]) != set(), UP_SECONDS_MAX, "the successor to own partitions")

        assert fleet.unrequested_exits() == {}
        assert len(log_lines_of(readers[0], "instance_id_in_use")) <= 1
        assert [fleet.stop(reader) for reader in readers] == [0, 0]
        report = load.account()
        assert report.ok, report.failures()
