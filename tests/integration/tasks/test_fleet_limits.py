"""Tests time limits and shutdowns, which end a task that does not end by itself."""

from __future__ import annotations

import signal

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet


@pytest.fixture
def fleet_options() -> dict[str, str]:
    """Time limits of 3.5 s (soft) and 5 s (hard)."""
    return {"SINK_TIMEOUT_SECONDS": "0.5", "TASK_VISIBILITY_SECONDS": "60", "TASK_RETRIES_MAX": "1"}


def test_a_sink_that_ignores_its_deadline_is_interrupted(fleet: Fleet) -> None:
    """A sink that ignores its deadline is interrupted by the soft limit.

    The task is postponed, and its next run succeeds. No worker process stays busy.
    """
    fleet.script("clickhouse", "slow 120")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch()
    dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 60.0))
    fleet.wait(lambda: bool(fleet.calls("clickhouse", "began")), "the flush to begin")

    fleet.script("clickhouse", "ok")

    assert fleet.next_event(15) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)
    assert len(fleet.calls("clickhouse", "began")) == 2


def test_a_sink_that_cannot_be_interrupted_is_killed(fleet: Fleet) -> None:
    """A sink that cannot be interrupted is killed with its process at the hard limit.

    The chord fails, the core retries it, and the worker replaces the killed process.
    """
    fleet.script("clickhouse", "stuck")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch()

    event = fleet.settle(dispatcher, batch, Stage.ROWS)
    fleet.script("clickhouse", "ok")

    assert isinstance(event, on.FlushFailed)
    assert "rows/clickhouse/0: ended without an error message" in event.error
    assert fleet.settle(dispatcher, batch, Stage.ROWS, 2) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)


def test_a_few_failed_items_do_not_fail_the_task(fleet: Fleet) -> None:
    """A few failed items do not fail the task: its runs get 64, 16, 4 and 1 items.

    A run that makes most of its items durable does not count as a failure.
    """
    fleet.script("gcs", "scattered")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch(64)

    assert fleet.settle(dispatcher, batch, Stage.BLOBS) == on.FlushSucceeded(batch.id, 1, Stage.BLOBS)

    began = [len(call["names"]) for call in fleet.calls("gcs", "began")]
    kept = [name for call in fleet.calls("gcs") for name in call["names"]]
    assert began == [64, 16, 4, 1]
    assert len(kept) == len(set(kept)) == 64


def test_a_worker_in_a_warm_shutdown_finishes_its_task(fleet: Fleet) -> None:
    """After SIGTERM a worker finishes its task in a warm shutdown, so nothing is lost or done twice."""
    fleet.script("clickhouse", "slow 1")
    dispatcher = fleet.dispatcher()
    worker = fleet.worker()
    batch = make_batch()
    dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 60.0))
    fleet.wait(lambda: bool(fleet.calls("clickhouse", "began")), "the flush to begin")

    assert worker.stop(20) == 0
    fleet.worker("next")

    assert fleet.next_event() == on.FlushSucceeded(batch.id, 1, Stage.ROWS)
    assert len(fleet.calls("clickhouse", "began")) == 1


def test_a_worker_in_a_soft_shutdown_requeues_its_task(fleet: Fleet) -> None:
    """After SIGQUIT, a worker requeues its running task during the soft shutdown, long before the visibility
    timeout ends.
    """
    fleet.script("clickhouse", "slow 3")
    dispatcher = fleet.dispatcher()
    worker = fleet.worker()
    batch = make_batch()
    dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 60.0))
    fleet.wait(lambda: bool(fleet.calls("clickhouse", "began")), "the flush to begin")

    worker.signal(signal.SIGQUIT)
    worker.wait(20)
    fleet.script("clickhouse", "ok")
    fleet.worker("next")

    assert fleet.next_event(20) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)
    assert len(fleet.calls("clickhouse")) == 1
