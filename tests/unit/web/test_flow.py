"""Tests under which conditions the operator's page shows a bottleneck or an alert."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ingest.core.flight import Phase
from ingest.core.model import Stage
from ingest.observe.heartbeat import UnownedPartition
from ingest.observe.snapshot import FlightState, PartitionState, Snapshot
from ingest.operate.status import ParkedStatus, ReaderStatus, RedisStatus, SinkStatus, Status
from ingest.web.flow import READER, Bottleneck, Severity, alerts, bottleneck
from tasks.breaker import BreakerPhase
from tasks.observe.presence import WorkerStatus
from tests.kit.paths import ROOT

NOW = 1000.0
FLIGHT = FlightState("b-0-0-1", 0, Phase.FLUSHING, Stage.ROWS, 1, 0, 1, 10, 1.0, 1.0, 0.0, "")
PARKED = ParkedStatus("b-0-0-1", Stage.ROWS, 3, 10, 100, 900.0, 1010.0, "reader-1", "away", 400.0)


def reader(lag_seconds: float = 0.0, **changed: Any) -> ReaderStatus:
    """Returns a reader of one partition. `changed` alters the reader's snapshot, or makes the reader silent."""
    partition = PartitionState(0, 10, 5, 10, 5, lag_seconds)
    fields = {"now": 0.0, "partitions": (partition,), **changed}
    silent = fields.pop("silent", False)
    return ReaderStatus(reader="reader-1", silent=silent, snapshot=Snapshot(**fields))


def sink(name: str, **changed: Any) -> SinkStatus:
    return msgspec.structs.replace(SinkStatus(name, True, workers=2), **changed)


def status(**changed: Any) -> Status:
    """Returns the status of a healthy system with two sinks."""
    healthy = Status(
        at=NOW,
        readers=(reader(),),
        sinks=(sink("gcs"), sink("clickhouse")),
        parked=(),
        redis=RedisStatus(
            used_bytes=10, max_bytes=100, policy="noeviction", unacknowledged_tasks=0, control_queue_depth=0
        ),
        rejects={},
        workers=(WorkerStatus(worker="worker@host", queues=("flush.gcs",)),),
    )
    return msgspec.structs.replace(healthy, **changed)


OPEN = sink("clickhouse", breaker=BreakerPhase.OPEN, error="timed out")
CASES = [
    ({}, "", []),
    ({"readers": ()}, READER, ["ReplaysNoReader"]),
    ({"readers": (reader(silent=True),)}, READER, ["ReplaysNoReader"]),
    ({"readers": (reader(), reader(silent=True))}, "", ["ReplaysReaderDown"]),
    ({"readers": (reader(halted="too many rejects"),)}, READER, ["ReplaysHalted"]),
    ({"unowned": (UnownedPartition(3, 10),)}, "", ["ReplaysPartitionUnowned"]),
    ({"sinks": (sink("gcs"), OPEN)}, "clickhouse", ["ReplaysSinkSick"]),
    ({"workers": ()}, "", ["ReplaysNobodyFlushes"]),
    (
        {"sinks": (sink("gcs", workers=0), OPEN), "queues_without_worker": ("flush.gcs",)},
        "gcs",
        ["ReplaysQueueWithoutWorker", "ReplaysSinkSick"],
    ),
    ({"sinks": (sink("gcs", switched_on=False, workers=0), sink("clickhouse"))}, "", []),
    ({"parked": (PARKED,)}, "", ["ReplaysBatchParked"]),
    (
        {"readers": (reader(paused=True),), "sinks": (sink("gcs", queue_depth=3), sink("clickhouse"))},
        "gcs",
        ["ReplaysBackpressure"],
    ),
    ({"sinks": (sink("gcs", queue_depth=80), sink("clickhouse", queue_depth=20))}, "gcs", []),
    ({"readers": (reader(90.0),)}, READER, ["ReplaysLag"]),
    (
        {"readers": (reader(30.0, flights=(FLIGHT,)),), "sinks": (sink("gcs"), sink("clickhouse", queue_depth=9))},
        "clickhouse",
        [],
    ),
    (
        {
            "redis": RedisStatus(
                used_bytes=90, max_bytes=100, policy="", unacknowledged_tasks=0, control_queue_depth=0
            )
        },
        "",
        ["ReplaysRedisFull"],
    ),
]


@pytest.mark.parametrize(("changed", "slowest", "names"), CASES)
def test_the_page_marks_the_slowest_part_and_names_what_needs_attention(
    changed: dict[str, Any], slowest: str, names: list[str]
):
    """The page marks the slowest part and lists alerts; for a healthy system it does neither."""
    state = status(**changed)

    assert bottleneck(state).where == slowest
    assert [one.name for one in alerts(state)] == names


def test_what_must_be_acted_on_comes_first():
    """Alerts that need action come first; backpressure comes later, because it is a consequence."""
    found = alerts(status(readers=(reader(paused=True),), parked=(PARKED,)))

    assert [one.severity for one in found] == [Severity.ACTION_REQUIRED, Severity.WATCH]
    assert "the first for 600 s" in found[0].text


def test_causes_come_before_their_consequences():
    """The lag alert is listed after the alerts that explain it: here, no worker is running, so nothing is
    committed.
    """
    found = alerts(status(readers=(reader(73.0),), workers=()))

    assert [one.name for one in found] == ["ReplaysNobodyFlushes", "ReplaysLag"]


def test_the_error_of_an_open_breaker_is_shown():
    """The alert for an open circuit breaker shows its error, which says what to fix."""
    (found,) = alerts(status(sinks=(OPEN,)))

    assert found.text == "The breaker of clickhouse is open: timed out"
    assert bottleneck(status(sinks=(OPEN,))) == Bottleneck("clickhouse", "breaker open")


def test_every_alert_has_a_section_in_the_runbook():
    """Every alert has a section in the runbook, to which the page links."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    page = (ROOT / "ingest" / "web" / "static" / "runbook.html").read_text()

    for name in {name for _, _, names in CASES for name in names}:
        assert f"### {name}\n" in runbook
        assert f'<h3 id="{name.lower()}">' in page
