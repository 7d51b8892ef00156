"""In-memory sinks for tests and dry runs.

They behave like the real sinks: equal objects and row ids are stored once. Tests can make each sink fail: `fail`
makes the next writes raise the given errors, and `refuse` makes the sink refuse items permanently.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from tasks.errors import PermanentSinkError, SinkError, TransientSinkError
from tasks.sinks.base import Report
from tasks.wire import Blob, DeadLetter, Item, Metric, Row, SinkName


class MemorySink:
    """Stores everything that was written, by identity. Tests may read all attributes:

    `objects` maps names to bytes. `rows` maps each table and id to JSON bytes, and `row_writes` counts the copies
    that were sent. `metrics` and `dead_letters` are in the order of arrival, including repetitions, as in the real
    destinations. `calls` has the token and the number of items of every write, including failed writes.
    `examinations` counts the calls to `examine`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Resets to the initial state: nothing written, nothing scripted."""
        with self._lock:
            self.objects: dict[str, bytes] = {}
            self.rows: dict[tuple[str, str], bytes] = {}
            self.row_writes = 0
            self.metrics: list[Metric] = []
            self.dead_letters: list[DeadLetter] = []
            self.calls: list[tuple[str, int]] = []
            self.closed = 0
            self.examinations = 0
            self._fault: SinkError | None = None
            self._script: deque[SinkError | None] = deque()
            self._refuses: Callable[[Item], str | None] = lambda item: None
            self._names_refused = True

    def fail(self, *errors: SinkError | None) -> None:
        """Makes the next writes raise these errors, in this order; None makes a write succeed.

        A failed write stores the items that its error marks as durable: all items except those in `failed` or
        `suspects`. Nothing is stored if both are None, or if `all_refused` or `configuration` is set.
        """
        with self._lock:
            self._script.extend(errors)

    def refuse(self, reason: Callable[[Item], str | None], *, named: bool = True) -> None:
        """Refuses all further items for which `reason(item)` returns a string; the error states that string as the
        reason.

        `named`: the error lists the refused items and the rest is stored, as in BigQuery. Otherwise the whole
        write is refused without naming items, as in some ClickHouse errors.
        """
        with self._lock:
            self._refuses, self._names_refused = reason, named

    def write(self, items: Sequence[Item], token: str, deadline_seconds: float) -> None:
        """Stores the items, or fails as scripted."""
        with self._lock:
            self.calls.append((token, len(items)))
            error = self._script.popleft() if self._script else None
            if error is None:
                error = self._refusal(items)
            lost = _lost_positions(error, len(items))
            for position, item in enumerate(items):
                if position not in lost:
                    self._keep(item)
        if error is not None:
            raise error

    def _refusal(self, items: Sequence[Item]) -> PermanentSinkError | None:
        refused = tuple(
            (position, reason)
            for position, reason in ((position, self._refuses(item)) for position, item in enumerate(items))
            if reason is not None
        )
        if not refused:
            return None
        if self._names_refused:
            return PermanentSinkError(f"{self.name}: {len(refused)} refused", failed=refused)
        return PermanentSinkError(f"{self.name}: {refused[0][1]}")

    def _keep(self, item: Item) -> None:
        if isinstance(item, Blob):
            self.objects[item.name] = bytes(item.content)
        elif isinstance(item, Row):
            self.rows[item.table, item.id] = bytes(item.json)
            self.row_writes += 1
        elif isinstance(item, Metric):
            self.metrics.append(item)
        else:
            self.dead_letters.append(item)

    def counts(self) -> dict[str, int]:
        """Returns the counts of stored objects, rows per table, metrics and dead letters; zero counts are
        omitted.
        """
        with self._lock:
            counts = {
                "objects": len(self.objects),
                "metrics": len(self.metrics),
                "dead letters": len(self.dead_letters),
            }
            for table, _ in self.rows:
                counts[f"rows of {table}"] = counts.get(f"rows of {table}", 0) + 1
        return {what: count for what, count in counts.items() if count}

    def fault(self, error: SinkError | None) -> None:
        """Makes `examine` raise this error, as if the destination were at fault. None makes the destination
        healthy again.
        """
        with self._lock:
            self._fault = error

    def examine(self, items: Sequence[Item], deadline_seconds: float) -> None:
        """Raises the error given to `fault`."""
        with self._lock:
            self.examinations += 1
            if self._fault is not None:
                raise self._fault

    def check(self) -> Report:
        """Always passes."""
        stored = ", ".join(f"{count} {what}" for what, count in sorted(self.counts().items()))
        return Report(f"in memory: {stored or 'empty'}")

    def close(self) -> None:
        """Does nothing: written data stays readable."""
        self.closed += 1


_sinks: dict[str, MemorySink] = {name: MemorySink(name) for name in SinkName}


def sink(name: str) -> MemorySink:
    """Returns the process's single memory sink of that name."""
    if name not in _sinks:
        raise ValueError(f"no sink is called {name!r}")
    return _sinks[name]


def reset() -> None:
    """Resets all memory sinks."""
    for each in _sinks.values():
        each.reset()


def _lost_positions(error: SinkError | None, items: int) -> set[int]:
    """Returns the positions that this error leaves unwritten."""
    if error is None:
        return set()
    everything = set(range(items))
    if isinstance(error, TransientSinkError):
        return everything if error.failed is None else set(error.failed)
    assert isinstance(error, PermanentSinkError)
    if error.suspects is not None and not error.configuration:
        return set(error.suspects)
    if error.failed is None or error.all_refused or error.configuration:
        return everything
    return {position for position, _ in error.failed}
