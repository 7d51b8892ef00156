"""After half an hour without sinks, in simulated time and with the default limits, ingestion soon resumes."""

from __future__ import annotations

import os
import random

import pytest

from tests.kit.outage_world import OUTAGE_BEGINS_AT, Outage, first_after, outage_world

SEEDS = range(int(os.environ.get("OUTAGE_SEEDS", "2")))
FIRST_SECONDS_MAX = 20.0
STORED_SECONDS_MAX = 60.0
ALL_SINKS = ("gcs", "clickhouse", "bigquery", "datadog", "dead_letter")
OUTAGES = {
    "gcs refuses": Outage(("gcs",)),
    "clickhouse refuses": Outage(("clickhouse",)),
    "bigquery hangs": Outage(("bigquery",), hang_seconds=30.0),
    "gcs hangs": Outage(("gcs",), hang_seconds=30.0),
    "three sinks refuse": Outage(("gcs", "clickhouse", "bigquery")),
    "one message waits": Outage(ALL_SINKS, messages=1, readers=1),
    "three messages wait": Outage(ALL_SINKS, messages=3, readers=1),
    "a table is missing": Outage(("clickhouse",), misconfigured=True),
    "a table is missing, one message waits": Outage(ALL_SINKS, misconfigured=True, messages=1, readers=1),
    "dead letters are refused": Outage(("dead_letter",)),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OUTAGES)
def test_the_first_write_follows_within_20_seconds_of_the_recovery(name: str, seed: int) -> None:
    """Each of the sinks gets its first batch within 20 seconds of the end of the outage, and everything is stored
    and committed soon after that.

    In the second half of the outage, a sink that is unavailable gets at most five calls per minute from the whole
    fleet. A misconfigured sink, which responds but refuses everything, gets at most 30 calls per minute for each
    reader: one probe every 15 seconds, and about one call per minute for each batch in flight.
    """
    random.seed(seed)  # determines the jitter of `tasks.retries`
    outage = OUTAGES[name]
    world, fleet = outage_world(seed, outage)

    world.run()

    first = {
        sink: first_after(fleet.writes[sink], outage.ends_at) for sink in outage.sinks if sink in fleet.writes
    }
    assert first
    assert all(seconds <= FIRST_SECONDS_MAX for seconds in first.values()), first
    last = max(max(times) for times in fleet.writes.values())
    assert last - outage.ends_at <= STORED_SECONDS_MAX
    half = OUTAGE_BEGINS_AT + outage.seconds / 2
    for sink in outage.sinks:
        calls = [at for at in fleet.calls.get(sink, ()) if half <= at < outage.ends_at]
        per_minute = len(calls) / (outage.seconds / 2 / 60)
        assert per_minute <= (30.0 * outage.readers if outage.misconfigured else 5.0), (sink, per_minute)
