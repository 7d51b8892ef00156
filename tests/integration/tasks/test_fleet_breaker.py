"""Tests the circuit breaker on a real Redis: when it opens, which call may probe, and that no guarantee depends on
it.
"""

from __future__ import annotations

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from tasks.breaker import Breaker, Permit, PermitKind, read_states
from tasks.connection import connect
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet


@pytest.fixture
def fleet_options() -> dict[str, str]:
    """Settings of a breaker that opens after 3 failures, with a cool-down of half a second to two seconds."""
    return {
        "BREAKER_FAILURES_MIN": "3",
        "BREAKER_COOL_SECONDS": "0.5",
        "BREAKER_COOL_SECONDS_MAX": "2",
        "TASK_RETRIES_MAX": "6",
    }


def state(fleet: Fleet, sink: str = "clickhouse") -> str:
    return read_states(fleet.client, "replays", [sink])[sink].state


def test_it_opens_cools_probes_and_closes(fleet: Fleet) -> None:
    """While the breaker is open, one probe runs at a time.

    A failed probe doubles the cool-down, and a successful probe closes the breaker for all workers.
    """
    first, second = (Breaker(connect(fleet.settings), fleet.settings) for _ in range(2))
    for _ in range(3):
        first.report("clickhouse", first.request_permit("clickhouse"), worked=False)

    assert state(fleet) == "open"
    assert not second.request_permit("clickhouse").granted
    assert second.request_permit("gcs").granted
    fleet.wait(lambda: state(fleet) == "half_open", "the cool-down")
    probe = first.request_permit("clickhouse")
    assert probe.kind == "probe"
    assert not second.request_permit("clickhouse").granted
    first.report("clickhouse", probe, worked=False)
    assert 0.5 < second.request_permit("clickhouse").wait_seconds <= 1.0
    fleet.wait(lambda: state(fleet) == "half_open", "the longer cool-down")
    second.report("clickhouse", second.request_permit("clickhouse"), worked=True)
    assert state(fleet) == "closed"
    assert first.request_permit("clickhouse").kind == "closed"


def test_a_failed_call_names_the_time_of_the_next_probe(fleet: Fleet) -> None:
    """Reporting a failure returns the wait until the next probe, or 0 while the breaker is closed."""
    breaker = Breaker(connect(fleet.settings), fleet.settings)
    waits = [
        breaker.report("clickhouse", breaker.request_permit("clickhouse"), worked=False, error="503")
        for _ in range(3)
    ]

    assert waits == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("fleet_options", [{"BREAKER_FAILURES_MIN": "1", "BREAKER_COOL_SECONDS_MAX": "0.5",
                                            "BREAKER_COOL_SECONDS": "0.5"}])  # fmt: skip
def test_a_probe_that_hangs_does_not_delay_the_next_one(fleet: Fleet) -> None:
    """A probe that has not ended after the longest cool-down does not block another probe. If the first probe is
    then abandoned, the cool-down is measured from the start of the second probe, and the success of the second
    probe closes the breaker.
    """
    breaker = Breaker(connect(fleet.settings), fleet.settings)
    breaker.report("clickhouse", breaker.request_permit("clickhouse"), worked=False)
    permits: list[Permit] = []

    def probed() -> bool:
        permit = breaker.request_permit("clickhouse")
        permits.extend([permit] * permit.granted)
        return len(permits) == 2

    fleet.wait(probed, "a second probe while the first one hangs")

    hung, newer = permits
    assert 0 < breaker.report("clickhouse", hung, worked=False) <= 0.5
    assert breaker.report("clickhouse", newer, worked=True) == 0.0
    assert state(fleet) == "closed"


def test_failures_among_more_successes_do_not_open_it(fleet: Fleet) -> None:
    """Failures that are outnumbered by successes do not open the breaker, because they do not mean that the sink
    is unavailable.
    """
    breaker = Breaker(connect(fleet.settings), fleet.settings)
    for _ in range(20):
        breaker.report("gcs", Permit(PermitKind.CLOSED), worked=False)
        if state(fleet, "gcs") == "open":
            break
        for _ in range(2):
            breaker.report("gcs", Permit(PermitKind.CLOSED), worked=True)

    assert state(fleet, "gcs") == "closed"


def test_a_result_from_before_it_opened_changes_nothing(fleet: Fleet) -> None:
    """A call that started before the breaker opened, and that succeeds later, does not close the breaker; only a
    probe does.
    """
    breaker = Breaker(connect(fleet.settings), fleet.settings)
    early = breaker.request_permit("clickhouse")
    for _ in range(3):
        breaker.report("clickhouse", Permit(PermitKind.CLOSED), worked=False)

    breaker.report("clickhouse", early, worked=True)

    assert state(fleet) == "open"


def test_without_redis_it_allows_every_call(fleet: Fleet) -> None:
    """Without Redis the breaker allows every call, because the breaker only saves work and no guarantee depends on
    it.
    """
    breaker = Breaker(connect(fleet.settings, retries=0), fleet.settings)
    fleet.redis.stop()

    permit = breaker.request_permit("clickhouse")
    breaker.report("clickhouse", permit, worked=False)

    assert permit.granted


def test_an_unavailable_sink_costs_only_probes_and_the_others_continue(fleet: Fleet) -> None:
    """While twenty batches wait for an unavailable ClickHouse, the other sinks continue.

    ClickHouse gets few calls, no worker sleeps, and all batches settle in the end.
    """
    fleet.script("clickhouse", "transient")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batches = [make_batch(start=1000 * n) for n in range(20)]
    for batch in batches:
        dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 60.0))
    fleet.wait(lambda: len(fleet.calls("bigquery")) == 20, "the other sinks to finish")
    fleet.wait(lambda: state(fleet) != "closed", "the breaker to open")
    called = len(fleet.calls("clickhouse", "began"))
    since = fleet.calls("clickhouse", "began")[-1]["at"]

    fleet.wait(lambda: len(fleet.calls("clickhouse", "began")) >= called + 2, "two probes")
    probes = [call for call in fleet.calls("clickhouse", "began") if call["at"] > since]
    fleet.script("clickhouse", "ok")
    events = [fleet.next_event(60) for _ in batches]

    assert called < 3 * len(batches)
    assert probes[-1]["at"] - probes[0]["at"] > 0.4
    assert {event.batch_id for event in events if isinstance(event, on.FlushSucceeded)} == {
        batch.id for batch in batches
    }
    assert len(fleet.calls("clickhouse")) == 20


def test_an_open_breaker_has_the_sinks_last_error(fleet: Fleet) -> None:
    """If the breaker blocks a batch, the batch's error is the last error of the sink."""
    breaker = Breaker(connect(fleet.settings), fleet.settings)
    for number in range(3):
        breaker.report("gcs", Permit(PermitKind.CLOSED), worked=False, error=f"gcs: HTTP 503 number {number}")

    assert breaker.request_permit("gcs").error == "gcs: HTTP 503 number 2"
    assert breaker.request_permit("clickhouse").error == ""
    fleet.wait(lambda: state(fleet, "gcs") == "half_open", "the cool-down")
    breaker.report("gcs", breaker.request_permit("gcs"), worked=True)
    assert breaker.request_permit("gcs").error == ""
