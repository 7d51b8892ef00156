"""Two releases share one Redis, schema and group.

Fields that the newer release adds are tolerated, and new format versions are refused.

The old release is this code, and the newer releases are this code with patches (tools/mixed/planted.py). `make
mixed-versions` does the same with the previous release from git.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.local.fleet import Fleet, isolated, log_lines_of
from ingest.local.launch import CURRENT_INSTALLATION
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.statsd import Statsd
from ingest.local.stack import Stack
from tasks.release import RELEASE
from tasks.sinks.clickhouse import sink as clickhouse
from tests.kit.prestarted import COMMAND, PARENTS, READER
from tools.mixed.account import REFUSED
from tools.mixed.build import Release
from tools.mixed.fleet import MixedFleet
from tools.mixed.phases import LOSSY, SHORT, Phase, ReleaseName
from tools.mixed.planted import COLUMN, Kind, planted
from tools.mixed.result import Result
from tools.mixed.run import SETTINGS, Plan, Run

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

REDIS_DATABASE = 13
PHASE_SECONDS = 1.5
MESSAGES_PER_SECOND = 20.0

Mixed = Callable[..., MixedFleet]


@pytest.fixture
def mixed(
    stack: Stack, apache_kafka: JavaKafka, statsd: Statsd, fresh_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Mixed]:
    """Creates a fleet that uses the test session's servers and can run this code and patched copies of this code.

    The broker is Apache Kafka, which keeps commit metadata, so that each release can read the cut records of the
    other releases.
    """
    PARENTS.prepare("celery", READER, COMMAND)
    tag = fresh_name("mixed").replace("_", "")
    redis = stack.start(("redis", "gcs", "clickhouse", "bigquery")).addresses["redis"]
    own = {**isolated(tag, redis, REDIS_DATABASE), "REPLAYS_KAFKA_BROKERS": apache_kafka.address}
    fleet = Fleet(stack, {**SETTINGS, **own}, tag=f"{tag}-")

    def make(**kinds: Kind) -> MixedFleet:
        newer = {ReleaseName(name): planted(kind, tmp_path) for name, kind in kinds.items()}
        return MixedFleet(fleet, {ReleaseName.OLD: Release(RELEASE, CURRENT_INSTALLATION), **newer})

    yield make
    for child in fleet.children.values():
        stack.children.release(child)
        child.kill()


def run_phases(fleet: MixedFleet, phases: tuple[Phase, ...], into: Path, *, expects_refusal: bool) -> Result:
    """Runs all phases and returns the result."""
    plan = Plan(phases, PHASE_SECONDS, MESSAGES_PER_SECOND, 1, "apache", expects_refusal, check_once=True)
    return Run(fleet, plan, into).run()


def test_additions_are_tolerated_and_a_new_version_is_refused_with_a_reason(mixed: Mixed, tmp_path: Path) -> None:
    """Under load, processes are replaced by those of another release, first in the wrong order, and then back
    again.

    Nothing is lost or duplicated.
    """
    fleet = mixed(additive=Kind.ADDITIVE, new=Kind.NEWER)

    result = run_phases(fleet, SHORT, tmp_path, expects_refusal=True)

    assert result.ok, json.dumps(result.as_dict(), indent=2, default=str)
    assert (result.lost, result.duplicates, result.violations) == (0, 0, [])
    (wrong_order,) = [line for line in result.lines if line.phase.newer]
    assert wrong_order.refused > 0
    assert any("version 2 of the wire format, this release reads 1 to 1" in reason for reason in result.reasons)
    assert refused_by(fleet, "reader-1") == 0  # the release that only adds fields
    assert refused_by(fleet, "reader-2") > 0
    for version in (f"this command: {RELEASE}+newer", f": {RELEASE}+additive", f"worker-1@127.0.0.1: {RELEASE}"):
        assert version in (wrong_order.check or "")
    assert written_with_the_new_column(fleet.fleet) > 0


def test_a_release_that_loses_rows_fails_the_run(mixed: Mixed, tmp_path: Path) -> None:
    """If the newer release settles batches before their rows are durable, the run fails.

    The run reports the lost rows.
    """
    result = run_phases(mixed(new=Kind.LOSSY), LOSSY, tmp_path, expects_refusal=False)

    assert not result.ok
    assert result.lost > 0
    assert result.lines[-1].lost > 0


def refused_by(fleet: MixedFleet, reader: str) -> int:
    """Returns how many of this reader's batches the workers refused because of their format version."""
    return sum(REFUSED in line["error"] for line in log_lines_of(fleet.readers[reader], "batch_parked"))


def written_with_the_new_column(fleet: Fleet) -> int:
    """Returns how many rows, including duplicates, have a value in the column that the newer release added."""
    server = clickhouse.client(fleet.settings)
    try:
        return int(server.query(f"SELECT count() FROM replay_segments WHERE {COLUMN} = 1").result_rows[0][0])
    finally:
        server.close()
