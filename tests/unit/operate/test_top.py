"""How the page of `status` and `top` shows a reader."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ingest.observe.costs import CostOf
from ingest.observe.snapshot import PartitionState, RejectsOf, RejectState, Snapshot
from ingest.operate.status import ReaderStatus, RedisStatus, Status, costs
from ingest.operate.top import _reader_line, page


def line(rejects: RejectState) -> str:
    reader = ReaderStatus(
        reader="r1", silent=False, silent_seconds=0.0, snapshot=Snapshot(now=0.0, rejects=rejects)
    )
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(_reader_line(reader))
    return drawn.getvalue()


def test_shed_projects_are_named() -> None:
    """Projects that are not shed are not named, however many of their messages are rejects."""
    worst = (
        RejectsOf(42, 100, 90, shed=True),
        RejectsOf(43, 900, 80, shed=False),
        RejectsOf(44, 50, 40, shed=True),
    )

    assert "SHED, mostly rejects: project 42, 44\n" in line(RejectState(worst, shed=2))
    assert "project 42, 44, ..." in line(RejectState(worst, shed=9))
    assert "SHED" not in line(RejectState(worst[1:2]))


def test_figures_of_a_silent_reader_are_marked_as_old() -> None:
    """Partitions and batches of the silent reader are shown with the age of the data; those of another reader are
    not.
    """
    partitions = (PartitionState(0, 10, 10, 10, 0, 0.0), PartitionState(1, 10, 10, 10, 0, 0.0))
    readers = (
        ReaderStatus(reader="gone", silent=True, silent_seconds=90.0, snapshot=Snapshot(0.0, partitions[:1])),
        ReaderStatus(reader="here", silent=False, silent_seconds=1.0, snapshot=Snapshot(0.0, partitions[1:])),
    )
    redis = RedisStatus(0, 0, "noeviction", unacknowledged_tasks=0, control_queue_depth=0)
    drawn = io.StringIO()

    Console(file=drawn, width=200).print(page(Status(0.0, readers, (), (), redis, {})))

    assert "(90 s old) gone" in drawn.getvalue()
    assert "old) here" not in drawn.getvalue()


def test_cost_by_project_is_the_sum_over_readers() -> None:
    """A project that two readers list is shown on one line; `other` comes last, and the shares are of the
    total.
    """
    first = (CostOf("7", 0.03, 1024.0, 10.0), CostOf("none"), CostOf("other", 0.01, 1024.0, 1.0))
    second = (CostOf("9", 0.02, 1024.0, 5.0), CostOf("7", 0.01, 1024.0, 1.0), CostOf("other", 0.03, 0.0, 1.0))
    redis = RedisStatus(0, 0, "noeviction", unacknowledged_tasks=0, control_queue_depth=0)
    drawn = io.StringIO()

    found = costs([first, second])
    Console(file=drawn, width=200).print(page(Status(0.0, (), (), (), redis, {}, costs=found)))

    assert [cost.project for cost in found] == ["7", "9", "none", "other"]
    assert sum(cost.cpu_seconds for cost in found) == pytest.approx(0.1)
    rows = [line.split() for line in drawn.getvalue().splitlines() if line.startswith(("7 ", "9 ", "other "))]
    assert rows == [
        ["7", "40.0", "ms/s", "40%", "2.0", "KiB", "11"],
        ["9", "20.0", "ms/s", "20%", "1.0", "KiB", "5"],
        ["other", "40.0", "ms/s", "40%", "1.0", "KiB", "2"],
    ]
