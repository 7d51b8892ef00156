"""Tests how the tasks of a batch are found in Flower."""

from __future__ import annotations

from typing import Any

import pytest
from celery.events.state import State

from tasks.flower.parked import batch_of, runs_of

BATCH = "recordings-0-0-3"
CHORD = f"{BATCH}:digest~rows~2~token"


def state(*events: dict[str, Any]) -> State:
    """Returns the state of a Flower process that received the given events."""
    found = State()
    for number, event in enumerate(events, 1):
        common = {"hostname": "w@h", "timestamp": float(number), "local_received": 0, "clock": number}
        found.event({**common, **event})
    return found


def received(uuid: str, name: str, args: str = "()", kwargs: str = "{}") -> dict[str, Any]:
    return {"type": "task-received", "uuid": uuid, "name": name, "args": args, "kwargs": kwargs}


def flush(uuid: str, batch: str = BATCH) -> dict[str, Any]:
    return received(uuid, "flush_clickhouse", kwargs=str({"batch": batch, "task": "rows/clickhouse/0"}))


@pytest.mark.parametrize(
    "callback", [received(CHORD, "complete"), received("random", "chord_failed", args=f"('{CHORD}',)")]
)
def test_runs_of_a_batch_have_their_chord_and_attempt(callback: dict[str, Any]):
    """The runs of a batch are found, each with its chord and attempt, because a task's id contains the chord's
    token, and the callback contains the chord's name.
    """
    failed = {"type": "task-failed", "uuid": "token-0", "exception": "away \x1b[31m", "traceback": ""}
    known = state(flush("token-0"), failed, callback, flush("other-0", "recordings-0-3-9"))

    task, last = runs_of(known.tasks, BATCH)

    assert (task.chord, task.task, task.state) == ("rows, attempt 2", "rows/clickhouse/0", "FAILURE")
    assert "\x1b" not in task.exception
    assert last.chord == "rows, attempt 2"


@pytest.mark.parametrize(
    "event",
    [
        received("a", "flush_clickhouse", kwargs="{'batch': 1}"),
        received("a", "flush_clickhouse", kwargs="{'batch': "),
        received("a", "flush_clickhouse", kwargs="[" * 5000),
        received("a", "flush_clickhouse", kwargs="['batch']"),
        received("a", "chord_failed", args="()"),
        received("a", "chord_failed", args="('a~b~c~d',)"),
        received("a", "another_task", kwargs=str({"batch": BATCH})),
    ],
)
def test_a_task_with_other_arguments_belongs_to_no_batch(event: dict[str, Any]):
    """A task with unexpected arguments belongs to no batch, because anybody who can reach the broker can send
    events.
    """
    assert batch_of(state(event).tasks["a"]) is None
