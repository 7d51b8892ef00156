"""Background loops survive exceptions that their steps raise, and exceptions that observers raise do not
propagate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tasks.observe import loops
from tasks.observe.loops import Guard, Loop, LoopEnded
from tests.kit.paths import ROOT

DEADLINE_SECONDS = 20.0
# The embedded stack and the simulation run alongside the product and are not part of it.
FOR_TESTS = {("ingest", "local"), ("ingest", "testing")}


class Steps:
    """A step that follows its script and then always succeeds. A test can wait for the n-th call."""

    def __init__(self, *script: BaseException | None) -> None:
        self.calls = 0
        self._script = list(script)
        self._called = threading.Condition()

    def __call__(self) -> None:
        with self._called:
            self.calls += 1
            self._called.notify_all()
            error = self._script.pop(0) if self._script else None
        if error is not None:
            raise error

    def wait_for(self, calls: int) -> None:
        with self._called:
            assert self._called.wait_for(lambda: self.calls >= calls, DEADLINE_SECONDS)


def loop_of(steps: Callable[[], object], on_failure: Callable[[str], None] = loops.ignore) -> Loop:
    return Loop("sample", steps, 0.001, retry_seconds=0.001, retry_seconds_max=0.002, on_failure=on_failure)


@pytest.mark.parametrize("error", [ValueError("odd"), OSError("away"), MemoryError(), AssertionError()], ids=repr)
def test_a_loop_continues_after_any_exception(error: Exception) -> None:
    """After any exception the loop continues, and each failure is counted."""
    failed: list[str] = []
    steps = Steps(error, error, error)
    loop = loop_of(steps, failed.append)

    loop.start()
    steps.wait_for(5)

    assert loop.running
    assert failed == ["sample"] * 3
    assert loop.failures == 0
    assert loop.stop(DEADLINE_SECONDS)


def test_a_loop_survives_a_broken_failure_counter() -> None:
    """The loop continues even if counting a failed step raises an exception."""

    def broken(name: str) -> None:
        raise RuntimeError(name)

    steps = Steps(ValueError("odd"))
    loop = loop_of(steps, broken)

    loop.start()
    steps.wait_for(3)

    assert loop.stop(DEADLINE_SECONDS)


def test_a_loop_ends_when_its_step_raises_loop_ended() -> None:
    """If a step raises LoopEnded, the thread of the loop ends, and no failure is counted."""
    failed: list[str] = []
    loop = loop_of(Steps(None, LoopEnded()), failed.append)

    loop.start()

    assert loop.join(DEADLINE_SECONDS)
    assert failed == []


def test_a_loop_that_keeps_failing_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that keeps failing reports the reason until its step succeeds."""
    monkeypatch.setattr(loops, "FAILING_SECONDS_MAX", 0.0)
    gate = threading.Event()
    failing = threading.Semaphore(0)

    def step() -> None:
        failing.release()
        if not gate.is_set():
            raise OSError("server away")

    loop = loop_of(step)
    assert loop.failure_text() == ""
    loop.start()
    for _ in range(3):
        assert failing.acquire(timeout=DEADLINE_SECONDS)

    assert "server away" in loop.failure_text()
    gate.set()
    for _ in range(3):
        assert failing.acquire(timeout=DEADLINE_SECONDS)
    assert loop.failure_text() == ""
    assert loop.stop(DEADLINE_SECONDS)


def test_stopping_a_loop_that_never_started_is_harmless() -> None:
    assert loop_of(Steps()).stop(0.0)


def test_a_guard_returns_the_result_or_counts_the_exception() -> None:
    """A guarded call returns the result of the observer, or counts its exception under the observer's name."""
    failed: list[str] = []
    guard = Guard(failed.append)

    assert guard.call("adds", lambda a, b: a + b, 1, 2) == 3
    assert guard.call("breaks", {}.__getitem__, "missing") is None
    assert guard.failures == {"breaks": 1}
    assert failed == ["breaks"]


# The threads without a Loop, with the reason why they cannot end unnoticed.
OTHER_THREADS = {
    "tasks/observe/loops.py": "the Loop itself",
    "tasks/observe/probe_server.py": "serves until it is shut down, and each request has a handler of its own",
    "ingest/reader/parsing/fallback.py": "answers each message, with a reject whatever its parsing raised",
    "tasks/sinks/bigquery/streams.py": "reads the responses of one call, and passes on whatever ends it",
}


def test_every_thread_of_reader_and_worker_is_a_loop() -> None:
    """Every thread of the reader and the worker is a Loop, so that exceptions are handled in one place."""
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("ingest", "tasks")
        for path in (ROOT / package).rglob("*.py")
        if "Thread(" in path.read_text() and path.relative_to(ROOT).parts[:2] not in FOR_TESTS
    }

    assert found == OTHER_THREADS.keys()
