"""Tests which part of Flower's task history a restart restores, and how the size of its file is bounded."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from celery.events.state import State

from tasks.flower.history import History, HistoryError
from tasks.units import MiB

DAY_SECONDS = 86_400.0


def event(kind: str, uuid: str = "a", at: float | None = None, **more: Any) -> dict[str, Any]:
    """Returns an event as Celery sends it."""
    at = time.time() if at is None else at
    return {
        "type": f"task-{kind}",
        "uuid": uuid,
        "hostname": "worker@host",
        "timestamp": at,
        "local_received": at,
        "clock": 1,
        "name": "flush_clickhouse",
        **more,
    }


def history(path: Path, *, age_seconds_max: float = DAY_SECONDS, bytes_max: int = MiB) -> History:
    return History(path, age_seconds_max=age_seconds_max, bytes_max=bytes_max)


def record(path: Path, events: list[dict[str, Any]], **bounds: Any) -> None:
    """Runs a Flower process that receives the given events, and stops it."""
    kept = history(path, **bounds)
    kept.start()
    for one in events:
        kept.add(one)
    kept.stop()


def restored(path: Path, tasks_max: int = 100, **bounds: Any) -> State:
    """Returns the state of a Flower process that starts with the given file."""
    state = State()
    history(path, **bounds).replay(state.event, tasks_max)
    return state


def test_a_restart_restores_every_task(tmp_path: Path):
    """After a restart, each task has its state, error, arguments and runtime.

    The worker of an old event is not shown as alive.
    """
    path = tmp_path / "flower" / "history.sqlite3"
    failed = event("failed", exception="TransientSinkError('away')", traceback="Traceback")
    record(path, [event("received", kwargs="{'batch': 'b-0-0-1'}"), event("started"), failed])

    state = restored(path)

    task = state.tasks["a"]
    assert (task.state, task.exception, task.kwargs) == (
        "FAILURE",
        "TransientSinkError('away')",
        "{'batch': 'b-0-0-1'}",
    )
    assert not state.workers["worker@host"].alive


def test_the_file_is_text_that_only_its_owner_reads(tmp_path: Path):
    """The file contains JSON, not pickles, and only its owner can read it."""
    path = tmp_path / "history.sqlite3"
    record(path, [event("received")])

    (text,) = sqlite3.connect(path).execute("SELECT event FROM events").fetchone()

    assert text.startswith('{"type": "task-received"')
    assert path.stat().st_mode & 0o077 == 0


def test_two_flowers_with_one_file_keep_each_event_once(tmp_path: Path):
    """If two Flower processes that receive the same events share one file, each event is stored once."""
    path, same = tmp_path / "history.sqlite3", event("received", at=time.time())
    record(path, [same])
    record(path, [same, event("started")])

    assert sqlite3.connect(path).execute("SELECT count(*) FROM events").fetchone() == (2,)


def test_old_events_are_deleted(tmp_path: Path):
    """Events older than the maximum age are neither restored nor kept in the file."""
    path = tmp_path / "history.sqlite3"
    record(path, [event("received", "old", time.time() - 7200), event("received", "new")])

    assert set(restored(path, age_seconds_max=3600).tasks) == {"new"}
    record(path, [event("received", "newer")], age_seconds_max=3600)
    left = sqlite3.connect(path).execute("SELECT uuid FROM events ORDER BY number").fetchall()
    assert left == [("new",), ("newer",)]


def test_the_file_has_a_maximum_size_and_keeps_the_latest_events(tmp_path: Path):
    """If there are more events than fit into the file, the oldest are deleted."""
    path = tmp_path / "history.sqlite3"
    many = [event("received", str(number), kwargs="x" * 1000) for number in range(3000)]
    record(path, many, bytes_max=MiB)

    kept = set(restored(path, tasks_max=10_000).tasks)

    assert path.stat().st_size <= MiB
    assert "2999" in kept
    assert "0" not in kept
    assert len(kept) > 300


def test_only_the_latest_tasks_are_restored(tmp_path: Path):
    """Only as many tasks are restored as Flower keeps in memory, the latest first."""
    path = tmp_path / "history.sqlite3"
    record(path, [event("received", str(number)) for number in range(20)])

    assert set(restored(path, tasks_max=3).tasks) == {"17", "18", "19"}


def test_a_huge_event_is_stored_with_its_texts_cut(tmp_path: Path):
    """A huge event, such as one with a long traceback, is stored with its strings truncated."""
    path = tmp_path / "history.sqlite3"
    record(path, [event("failed", exception="e" * 100_000, traceback="t" * 1_000_000)])

    assert len(restored(path).tasks["a"].traceback) == 2000


@pytest.mark.parametrize("content", [b"not a database" * 100, b"\x80\x04\x95pickle" * 50])
def test_a_file_that_is_no_history_is_moved_aside(tmp_path: Path, content: bytes):
    """If the file is not a history, it is moved aside for examination, and Flower starts with an empty history."""
    path = tmp_path / "history.sqlite3"
    path.write_bytes(content)
    record(path, [event("received")])

    assert set(restored(path).tasks) == {"a"}
    assert (tmp_path / "history.sqlite3.unreadable").read_bytes() == content


def test_events_that_are_none_are_ignored(tmp_path: Path):
    """Workers' heartbeats are not stored, and a row that Flower did not write does not prevent Flower from
    starting.
    """
    path = tmp_path / "history.sqlite3"
    record(path, [{"type": "worker-heartbeat", "hostname": "w"}, {"type": "task-received"}, event("received")])
    file = sqlite3.connect(path)
    file.execute("INSERT INTO events (uuid, type, at, event) VALUES ('x', 'y', ?, '[1]')", (time.time(),))
    file.execute("INSERT INTO events (uuid, type, at, event) VALUES ('z', 'y', ?, '{')", (time.time(),))
    file.commit()

    assert set(restored(path).tasks) == {"a"}


def test_a_path_that_cannot_be_written_is_an_error(tmp_path: Path):
    """If the file cannot be written, the error contains its path."""
    (tmp_path / "file").write_text("")

    with pytest.raises(HistoryError, match="history"):
        history(tmp_path / "file" / "history.sqlite3")
