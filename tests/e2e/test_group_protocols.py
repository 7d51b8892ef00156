"""What a consumer group does to readers that die amid its rebalances, on Apache Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.local.fleet import Fleet, said
from ingest.local.servers.processes import wait_until
from ingest.local.stack import Stack
from tasks.kafka.cluster import Cluster
from tasks.migrate.kafka import SOURCE_PARTITIONS
from tests.kit.real_group import UP_SECONDS_MAX, Load, apache_stack, made, owned, staged_batches, up

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

UNOWNED_SECONDS_MAX = 3.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Everything, with Apache Kafka as the broker."""
    with apache_stack() as running:
        yield running


def owners(fleet: Fleet) -> list[int]:
    """The partitions that somebody owns, as the group's coordinator says; empty during a rebalance."""
    group = Cluster(fleet.settings).group(fleet.settings.kafka_group, fleet.settings.kafka_topic)
    return sorted(number for member in group.members for number in member.partitions) if group.stable else []


def test_a_partition_that_a_static_member_left_to_nobody_is_found_and_read(stack: Stack, tmp_path: Path) -> None:
    """A reader dies while it gives partitions back, and its successor is there before the group noticed."""
    settings = {
        "REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "20",
        "REPLAYS_DRAIN_DEADLINE_SECONDS": "10",
        "REPLAYS_KAFKA_UNOWNED_SECONDS_MAX": f"{UNOWNED_SECONDS_MAX:g}",
    }
    with made(stack, settings) as fleet:
        first = up(fleet.reader("reader-1", REPLAYS_KAFKA_INSTANCE_ID="one"))
        wait_until(lambda: len(owned(first)) == SOURCE_PARTITIONS, UP_SECONDS_MAX, "all partitions")
        load = Load(fleet, tmp_path, 150, rate=50).start()
        wait_until(lambda: staged_batches(fleet) != set(), UP_SECONDS_MAX, "batches in flight, to drain")
        second = up(fleet.reader("reader-2", REPLAYS_KAFKA_INSTANCE_ID="two"))
        wait_until(lambda: said(first, "partitions_revoked") != [], UP_SECONDS_MAX, "the first reader to drain")
        fleet.kill(first)
        up(first)
        both = (first, second)
        wait_until(
            lambda: any(said(r, "partitions_without_owner") for r in both), UP_SECONDS_MAX, "a reader to see"
        )

        wait_until(lambda: owners(fleet) == list(range(SOURCE_PARTITIONS)), UP_SECONDS_MAX, "an owner for each")
        assert any(said(reader, "rejoining_group") for reader in both)
        fleet.worker("worker-1")
        load.settle()
        report = load.account()
        assert report.ok, report.failures()
