"""Tests the simulation of a deployment on several machines, and how the check judges its cost model."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.scale_out import ROLES, judged, numbers
from benchmarks.scale_out_model import Cost, Inputs, batch_segments, plan, wait_seconds, with_costs
from ingest.core.limits import Limits

INPUTS = Inputs()


def test_the_simulated_limits_are_those_of_the_core() -> None:
    """The simulation cuts batches with the defaults of the core."""
    assert INPUTS.limits == Limits()


def test_without_early_cuts_a_batch_holds_what_arrives_in_two_seconds() -> None:
    inputs = replace(INPUTS, limits=Limits(batch_age_idle_seconds=2.0))

    assert batch_segments(inputs, 1, 40.0) == pytest.approx(81, rel=0.03)
    assert batch_segments(inputs, 8, 40.0) == pytest.approx(81, rel=0.03)


def test_more_readers_have_smaller_batches() -> None:
    """With fewer partitions, a reader more often has only a few batches in flight, so it cuts more batches early,
    after half a second.
    """
    one_at_a_time = replace(INPUTS, limits=Limits(early_cut_in_flight_max=1))
    sizes = [batch_segments(one_at_a_time, 8 / readers, 37.5) for readers in (1, 2, 4, 8)]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == pytest.approx(0.5 * 37.5 + 1, rel=0.2)


def test_a_batch_is_never_larger_than_its_limit() -> None:
    """At a high rate, batches are cut when they are full."""
    assert batch_segments(INPUTS, 1, 2000.0) == INPUTS.batch_segments_max
    assert batch_segments(replace(INPUTS, value_bytes=1000.0), 1, 5000.0) == 1000


def test_the_queue_of_one_server_is_m_d_1() -> None:
    """At half load, the mean wait is half a service time; it grows without bound towards full load."""
    assert wait_seconds(0.5, 2.0) == pytest.approx(1.0)
    assert wait_seconds(0.0, 2.0) == 0
    assert wait_seconds(1.0, 2.0) == math.inf


def test_a_larger_pool_waits_less() -> None:
    waits = [wait_seconds(0.6, 1.0, servers) for servers in (1, 2, 8, 64)]

    assert waits == sorted(waits, reverse=True)


def test_costs_are_split_by_two_batch_sizes() -> None:
    """The costs per segment and per batch are computed from two observations, which may be in either order."""
    cost = Cost(500.0, 3000.0)
    small, large = (10.0, cost.at(10)), (100.0, cost.at(100))

    for found in (Cost.through(small, large), Cost.through(large, small)):
        assert (found.segment, found.batch) == (pytest.approx(500), pytest.approx(3000))


def test_a_cost_that_does_not_fall_with_the_batch_is_per_segment() -> None:
    assert Cost.through((10.0, 500.0), (100.0, 510.0)) == Cost(505.0, 0.0)


@pytest.mark.parametrize("rate", [350.0, 10_000.0, 1_000_000.0])
def test_a_plan_has_room_on_every_part(rate: float) -> None:
    """No reader, worker or Redis shard exceeds the chosen utilization, and every reader has a partition."""
    found = plan(rate, INPUTS)

    assert max(found.reader_load, found.worker_load, found.redis_load) <= INPUTS.utilization
    assert found.partitions >= found.readers
    assert found.shard_rate * found.redis_shards == pytest.approx(rate)
    assert all(math.isfinite(wait) for wait in found.wait_ms.values())


def test_a_million_segments_need_more_than_a_bucket_accepts_at_first() -> None:
    """With one object per segment, the load on a new bucket may double only every 20 minutes; packed objects need
    far fewer writes.
    """
    segment = plan(1_000_000.0, INPUTS).sinks["gcs writes/s"]
    packed = plan(1_000_000.0, replace(INPUTS, layout="packed")).sinks["gcs writes/s"]

    assert segment["ratio"] == 1000
    assert segment["ramp_minutes"] == pytest.approx(20 * math.log2(1000))
    assert packed["ratio"] < 5


def test_measured_costs_replace_the_documented_ones() -> None:
    costs = {role: {"segment": 100.0, "batch": 10.0} for role in ("reader", "worker", "redis")}

    assert plan(10_000.0, with_costs(INPUTS, costs)).readers < plan(10_000.0, INPUTS).readers


def row(mode: str, kind: str, number: int, micros: float, idle: float = 0.0) -> dict[str, Any]:
    """A run of the check, in which each role has the same cost."""
    found: dict[str, Any] = {"mode": mode, "kind": kind, "number": number}
    return found | {"micros": dict.fromkeys(ROLES, micros), "idle": dict.fromkeys(ROLES, idle)}


def test_equal_batches_may_not_cost_more_with_more_parts() -> None:
    rows = [row("equal batches", "readers", 1, 100.0), row("equal batches", "readers", 8, 140.0)]

    judged(rows, 300.0, tolerance=0.3)

    assert [one["is_within"] for one in rows] == [True, False]
    assert rows[1]["ratio"] == pytest.approx(1.4)


def test_added_processes_may_cost_what_they_need_without_load() -> None:
    """Even without load, eight readers need eight times the CPU time of one reader; the prediction takes this into
    account.
    """
    rows = [row("equal batches", "readers", 1, 110.0, 10.0), row("equal batches", "readers", 8, 180.0, 80.0)]

    judged(rows, 300.0, tolerance=0.01)

    assert rows[1]["predicted"] == pytest.approx(3 * 180)
    assert rows[1]["is_within"]


def test_growth_with_early_cuts_must_be_predicted() -> None:
    """The model is derived from the first and the last run, and a run in between that differs from the model is
    reported.
    """
    cost = Cost(100.0, 2000.0)
    sizes = {number: batch_segments(INPUTS, 8 / number, 37.5) for number in (1, 2, 4, 8)}
    rows = [row("early cuts", "readers", number, cost.at(size) + 5, 5.0) for number, size in sizes.items()]
    rows[2] = row("early cuts", "readers", 4, 2 * cost.at(sizes[4]), 5.0)

    costs = judged(rows, 300.0, tolerance=0.3)

    assert costs["worker"]["batch"] == pytest.approx(2000)
    assert [one["is_within"] for one in rows] == [True, True, False, True]


@pytest.mark.parametrize("text", ["", "1,x", "0", "-1,2"])
def test_a_list_with_anything_but_numbers_above_0_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a list of numbers"):
        numbers(text)
