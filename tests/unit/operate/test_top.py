"""Tests how the page of `status` and `top` shows a reader."""

from __future__ import annotations

import io
import os
import pty

import pytest
from rich.console import Console

from ingest.core.model import Stage
from ingest.observe.costs import ProjectCost
from ingest.observe.snapshot import PartitionState, ProjectRejects, RejectState, Snapshot
from ingest.operate.status import ParkedStatus, ReaderStatus, RedisStatus, SinkStatus, Status, costs
from ingest.operate.terminal import Terminal
from ingest.operate.top import _reader_line, can_refresh, page
from tasks.observe.presence import WorkerStatus
from tasks.wire import SinkName


def line(rejects: RejectState) -> str:
    reader = ReaderStatus(
        reader="r1", silent=False, silent_seconds=0.0, snapshot=Snapshot(now=0.0, rejects=rejects)
    )
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(_reader_line(reader))
    return drawn.getvalue()


@pytest.mark.parametrize(
    ("on_terminal", "environ", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_only_a_terminal_that_moves_its_cursor_is_refreshed(
    on_terminal: bool, environ: dict[str, str], expected: bool
) -> None:
    """If the output is not a terminal, `top` prints once, because rich would print nothing until the program
    ends.
    """
    other, output = pty.openpty() if on_terminal else os.pipe()
    try:
        with os.fdopen(output, "w") as file:
            assert can_refresh(Terminal(file=file, _environ=environ)) is expected
    finally:
        os.close(other)


def test_shed_projects_are_named() -> None:
    """Shed projects are named; other projects are not named, however many of their messages are rejects."""
    worst = (
        ProjectRejects(42, 100, 90, shed=True),
        ProjectRejects(43, 900, 80, shed=False),
        ProjectRejects(44, 50, 40, shed=True),
    )

    assert "SHED, mostly rejects: project 42, 44\n" in line(RejectState(worst, shed=2))
    assert "project 42, 44, ..." in line(RejectState(worst, shed=9))
    assert "SHED" not in line(RejectState(worst[1:2]))


@pytest.mark.parametrize(
    ("p50", "p99", "shown"),
    [
        (None, None, "in flight, 0 B\n"),
        (2.0, 60.0, "received to durable p50 <2 s, p99 <60 s\n"),
        (300.0, 14400.0, "received to durable p50 <5 min, p99 <4 h\n"),
        (86400.0, 86400.0, "received to durable p50 over 4 h, p99 over 4 h\n"),
        (0.5, None, "received to durable p50 <0.5 s, p99 over 4 h\n"),
    ],
)
def test_delays_are_shown_in_a_readable_unit(p50: float | None, p99: float | None, shown: str) -> None:
    """A delay in the last bucket, or above it, is shown as `over 4 h`.

    Without a durable segment no delay is shown.
    """
    reader = ReaderStatus(
        reader="r1", snapshot=Snapshot(now=0.0), end_to_end_p50_seconds=p50, end_to_end_p99_seconds=p99
    )
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(_reader_line(reader))

    assert drawn.getvalue().endswith(shown)


def test_figures_of_a_silent_reader_are_marked_as_old() -> None:
    """Partitions and batches of a silent reader are shown with the age of the data; those of other readers are
    shown without an age.
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


@pytest.mark.parametrize(
    ("partitions", "shown"),
    [
        (None, "lag unknown"),
        ((), "lag unknown"),
        ((PartitionState(0, 0, None), PartitionState(1, 9, 9, 9)), "lag unknown"),
        ((PartitionState(0, 9, 9, 9),), "lag 0 messages, 0 s"),
    ],
    ids=["no reader", "a reader that has just started", "a partition without a known end", "nothing waits"],
)
def test_the_lag_is_unknown_until_it_is_reported(
    partitions: tuple[PartitionState, ...] | None, shown: str
) -> None:
    """The lag is shown as unknown, not as 0, until a reader has reported the end offset of every partition."""
    readers = () if partitions is None else (ReaderStatus(reader="r1", snapshot=Snapshot(0.0, partitions)),)
    redis = RedisStatus(0, 0, "noeviction", unacknowledged_tasks=0, control_queue_depth=0)
    drawn = io.StringIO()

    Console(file=drawn, width=200).print(page(Status(0.0, readers, (), (), redis, {})))

    assert shown in drawn.getvalue()
    rows = [line.split() for line in drawn.getvalue().splitlines() if line.startswith(("0 ", "1 "))]
    assert all(("unknown" in row) == ("-" in row) for row in rows)


def test_cost_by_project_is_the_sum_over_readers() -> None:
    """The cost of a project is the sum over all readers, shown on one line as a share of the total.

    `other` comes last.
    """
    first = (ProjectCost("7", 0.03, 1024.0, 10.0), ProjectCost("none"), ProjectCost("other", 0.01, 1024.0, 1.0))
    second = (
        ProjectCost("9", 0.02, 1024.0, 5.0),
        ProjectCost("7", 0.01, 1024.0, 1.0),
        ProjectCost("other", 0.03, 0.0, 1.0),
    )
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


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_parked_batch_of_a_busy_system_fits_one_line(width: int) -> None:
    """A parked batch fits on one line, with the full id and worker name, because operators copy them into
    commands. The headline contains the last error, in as many lines as it needs.
    """
    batch_id = "ingest-replay-recordings-3-1234567-1235567"
    parked = ParkedStatus(batch_id, Stage.ROWS, 12, 1000, 9_000_000, 0.0, 99.0, "r1", "clickhouse is away " * 20)
    every = ("control", *(f"flush.{sink}" for sink in SinkName))
    fleet = (
        WorkerStatus(worker="celery@replays-worker-gcs-5d8f", queues=every, processes=4, started_at=-90_000.0),
        WorkerStatus(
            worker="celery@replays-worker-some-7c9b", queues=every[:3], processes=4, started_at=-90_000.0
        ),
    )
    sinks = tuple(SinkStatus(sink, switched_on=True) for sink in SinkName)
    redis = RedisStatus(0, 0, "noeviction", unacknowledged_tasks=0, control_queue_depth=0)
    drawn = io.StringIO()

    Console(file=drawn, width=width).print(page(Status(0.0, (), sinks, (parked,), redis, {}, fleet)))

    lines = [line.rstrip() for line in drawn.getvalue().splitlines()]
    (shown,) = (line for line in lines if line.startswith(f"{batch_id}  "))
    assert "clickhouse is away" in shown
    assert shown.endswith("…")
    assert any("parked: 1 batch, last error: clickhouse is away" in line for line in lines)
    assert [line.split()[1] for line in lines if line.startswith("celery@")] == ["all", every[0]]
    assert {line.split()[0] for line in lines if "celery@" in line} == {worker.worker for worker in fleet}
