"""Supervised background loops, and guarded observers.

Every repeating thread is a `Loop`: a failed step is logged, counted and retried with exponential backoff; only
`stop` or `LoopEnded` ends a loop. `Guard` calls observers (metrics, traces, logs) and keeps their
exceptions from propagating.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import structlog

from tasks.errors import shortened

RETRY_SECONDS = 0.2
RETRY_SECONDS_MAX = 30.0
# A loop that keeps failing for longer than this makes readiness probes fail.
FAILING_SECONDS_MAX = 30.0
REPORTS_REMEMBERED_MAX = 100

log = structlog.get_logger(__name__)
_T = TypeVar("_T")
OnFailure = Callable[[str], None]


def ignore(name: str) -> None:
    """The default `on_failure`."""


class LoopEnded(Exception):
    """Raised by a step to end the loop without an error."""


class Loop:
    """A daemon thread that calls `step` until stopped.

    `interval_seconds`: wait between steps; 0 for a step that itself waits. After a failure the wait is
    `retry_seconds`, doubled per consecutive failure up to `retry_seconds_max`. `on_failure(name)` is called per
    failure, for a metric. An error is logged once per distinct text until the loop has succeeded again.
    `expected`: types of errors that are logged without a stack trace (such as an unreachable server).
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], object],
        interval_seconds: float,
        *,
        retry_seconds: float = RETRY_SECONDS,
        retry_seconds_max: float = RETRY_SECONDS_MAX,
        expected: tuple[type[Exception], ...] = (OSError,),
        on_failure: OnFailure = ignore,
    ) -> None:
        assert interval_seconds >= 0, interval_seconds
        assert 0 < retry_seconds <= retry_seconds_max, (retry_seconds, retry_seconds_max)
        self.name = name
        self.failures = 0
        """Consecutive failures; 0 after a successful step."""
        self._step = step
        self._interval_seconds = interval_seconds
        self._retry_seconds, self._retry_seconds_max = retry_seconds, retry_seconds_max
        self._expected = expected
        self._guard = Guard()
        self._on_failure = on_failure
        self._error = ""
        self._failing_since = 0.0
        self._reported: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread. Raises RuntimeError if it was already started."""
        self._thread.start()

    def stop(self, deadline_seconds: float) -> bool:
        """Asks the loop to stop and waits up to `deadline_seconds`. Returns True if the loop has ended or was
        never started.
        """
        self.request_stop()
        return self.join(deadline_seconds)

    def request_stop(self) -> None:
        """Asks the loop to stop after the current step. Returns immediately."""
        self._stopping.set()

    def join(self, deadline_seconds: float) -> bool:
        """Waits for the loop to end. Returns True if the loop has ended or was never started."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline_seconds))
        return not self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """True if the loop was asked to end."""
        return self._stopping.is_set()

    @property
    def running(self) -> bool:
        """True if the thread is alive."""
        return self._thread.is_alive()

    def failure_text(self) -> str:
        """Returns one line if the loop has failed for longer than FAILING_SECONDS_MAX, otherwise ""."""
        failures, error, since = self.failures, self._error, self._failing_since
        failing_seconds = time.monotonic() - since
        if not failures or failing_seconds < FAILING_SECONDS_MAX:
            return ""
        return f"has failed {failures} times in a row for {failing_seconds:.0f} s: {error}"

    def _run(self) -> None:
        wait_seconds = 0.0
        while not self._stopping.wait(wait_seconds):
            try:
                self._step()
            except LoopEnded:
                return
            except Exception as error:  # supervised: any failure is logged and counted, and the step is retried
                self._failed(error)
                doubled = self._retry_seconds * 2.0 ** min(self.failures - 1, 30)
                wait_seconds = max(self._interval_seconds, min(doubled, self._retry_seconds_max))
            else:
                self._succeeded()
                wait_seconds = self._interval_seconds

    def _failed(self, error: Exception) -> None:
        text = shortened(f"{type(error).__name__}: {error}")
        if not self.failures:
            self._failing_since = time.monotonic()
        self.failures += 1
        self._error = text
        if text not in self._reported and len(self._reported) < REPORTS_REMEMBERED_MAX:
            self._reported.add(text)
            log.warning("loop_failed", loop=self.name, error=text, exc_info=not isinstance(error, self._expected))
        self._guard.call("on_failure", self._on_failure, self.name)

    def _succeeded(self) -> None:
        if self.failures:
            log.info("loop_recovered", loop=self.name, failures=self.failures)
            self.failures, self._error = 0, ""
            self._reported.clear()


class Guard:
    """Calls observers. Each distinct exception of an observer is logged once. All exceptions are counted in
    `failures`, and none is propagated.
    """

    def __init__(self, on_failure: OnFailure = ignore) -> None:
        self.failures: Counter[str] = Counter()
        """Exceptions by name of the observer."""
        self._on_failure = on_failure
        self._reported: set[str] = set()

    def call(self, name: str, function: Callable[..., _T], *arguments: object) -> _T | None:
        """Returns the result of `function(*arguments)`, or None if it raised."""
        try:
            return function(*arguments)
        except Exception as error:
            self._failed(name, error)
            return None

    def _failed(self, name: str, error: Exception) -> None:
        self.failures[name] += 1
        text = shortened(f"{name}: {type(error).__name__}: {error}")
        if text not in self._reported and len(self._reported) < REPORTS_REMEMBERED_MAX:
            self._reported.add(text)
            log.error("observer_failed", observer=name, error=text, exc_info=True)
        try:
            self._on_failure(name)
        except Exception:
            self.failures["on_failure"] += 1
