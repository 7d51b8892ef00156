"""Keeps Flower's task history across restarts: task events are stored in a SQLite file and replayed at startup.

Flower's own `--persistent` option writes a shelve file, which contains pickles, and reading a pickle can run code.
The SQLite file contains the events as JSON text. The file is bounded by age and by size: the oldest events are
deleted, and SQLite itself enforces the size. A file that cannot be read is moved aside. Events of the last second
before a crash are lost; a task whose end Flower did not see keeps the last state that Flower saw.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.observe.loops import Loop, LoopEnded

log = logging.getLogger(__name__)
EVENT_CHARACTERS_MAX = 16_000
WAITING_EVENTS_MAX = 50_000
WRITE_INTERVAL_SECONDS = 1.0
PRUNE_SECONDS = 60.0
PAGE_BYTES = 4096
# The rest is reserved for SQLite's index and for pages that a transaction uses. Without it, deleting events could
# itself fail.
FULL_FILE_SHARE = 0.9
PRUNED_SHARE = 0.1
INSERT_BATCH_SIZE = 100
SHORTENED = ("traceback", "exception", "args", "kwargs", "result")
SHORTENED_CHARACTERS_MAX = 2000
VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, uuid TEXT NOT NULL, type TEXT NOT NULL, at REAL NOT NULL, event TEXT NOT NULL,
    UNIQUE (uuid, type, at))
"""
REQUIRED_FIELDS = ("uuid", "hostname", "timestamp", "type")


class HistoryError(Exception):
    """The file cannot be opened or created. The message contains the path."""


class History:
    """The task history in one file. Any thread may call `add`, which never waits; a background thread writes."""

    def __init__(self, path: Path, *, age_seconds_max: float, bytes_max: int) -> None:
        self.path = path
        self._age_seconds_max = age_seconds_max
        self._bytes_max = bytes_max
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING_EVENTS_MAX)
        self._lost = 0
        self._pruned_at = -PRUNE_SECONDS
        self._loop = Loop("flower-history", self._write, 0.0, expected=(OSError, sqlite3.Error))
        self._prepare()

    def replay(self, apply: Callable[[dict[str, Any]], None], tasks_max: int) -> int:
        """Calls `apply` with the events of the last `tasks_max` tasks, oldest first; returns their number.

        `local_received` is 0, so that Celery's state does not consider a worker alive because of an old event.
        """
        count = 0
        with self._opened() as file:
            rows = file.execute(
                "SELECT event FROM events WHERE at >= ? AND uuid IN "
                "(SELECT uuid FROM events GROUP BY uuid ORDER BY max(number) DESC LIMIT ?) ORDER BY number",
                (time.time() - self._age_seconds_max, tasks_max),
            )
            for (text,) in rows:
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    apply({**_task_event(json.loads(text)), "local_received": 0})
                    count += 1
        return count

    def start(self) -> None:
        """Starts writing."""
        self._loop.start()

    def add(self, event: dict[str, Any]) -> None:
        """Queues a task event for writing; other events are ignored. If the queue is full, the event is dropped
        and counted."""
        if not str(event.get("type", "")).startswith("task-"):
            return
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self._lost += 1

    def stop(self) -> None:
        """Writes the waiting events and ends the thread, within a few seconds."""
        if self._loop.running:
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=1.0)
            self._loop.join(5.0)

    # The file

    def _prepare(self) -> None:
        """Creates the file, readable only by its owner. A foreign or damaged file at this path is moved aside."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            self._check()
        except (OSError, sqlite3.OperationalError) as error:
            raise HistoryError(f"the task history {self.path} cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            aside = self.path.with_name(f"{self.path.name}.unreadable")
            log.warning("%s is not a readable task history (%s): moved to %s", self.path, error, aside)
            try:
                self.path.replace(aside)
                self.path.touch(mode=0o600)
                self._check()
            except (OSError, sqlite3.Error) as again:
                raise HistoryError(f"the task history {self.path} cannot be written: {again}") from again

    def _check(self) -> None:
        with self._opened() as file:
            version = int(file.execute("PRAGMA user_version").fetchone()[0])
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"version {version} of a newer release")
            file.execute(_TABLE)
            file.execute("CREATE INDEX IF NOT EXISTS by_time ON events (at)")
            file.execute(f"PRAGMA user_version = {VERSION}")
            file.commit()
            found = file.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(str(found))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        file = sqlite3.connect(self.path, timeout=5.0)
        try:
            file.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            file.execute("PRAGMA auto_vacuum = FULL")
            file.execute("PRAGMA synchronous = NORMAL")
            file.execute(f"PRAGMA max_page_count = {max(64, self._bytes_max // PAGE_BYTES)}")
            yield file
        finally:
            file.close()

    # The writing thread

    def _write(self) -> None:
        """Waits for events and writes them. Raises LoopEnded after it has written the last events."""
        events, ends = self._next()
        try:
            with self._opened() as file:
                for start in range(0, len(events), INSERT_BATCH_SIZE):
                    if time.monotonic() - self._pruned_at >= PRUNE_SECONDS or self._is_full(file):
                        self._prune(file)
                        self._pruned_at = time.monotonic()
                    self._store(file, events[start : start + INSERT_BATCH_SIZE])
        except sqlite3.Error as error:
            log.warning("the task history %s: %s; %s events are lost", self.path, error, len(events))
        if self._lost:
            log.warning("the task history %s is too slow: %s events are lost", self.path, self._lost)
            self._lost = 0
        if ends:
            raise LoopEnded

    def _next(self) -> tuple[list[dict[str, Any]], bool]:
        """Waits for an event, then collects events for WRITE_INTERVAL_SECONDS. True if `stop` was called."""
        first = self._waiting.get()
        events, ends_at = ([] if first is None else [first]), time.monotonic() + WRITE_INTERVAL_SECONDS
        while first is not None and (left := ends_at - time.monotonic()) > 0:
            try:
                one = self._waiting.get(timeout=left)
            except queue.Empty:
                break
            if one is None:
                return events, True
            events.append(one)
        return events, first is None

    def _is_full(self, file: sqlite3.Connection) -> bool:
        used, free, most = (
            int(file.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "max_page_count")
        )
        return (used - free) > FULL_FILE_SHARE * most

    def _prune(self, file: sqlite3.Connection) -> None:
        """Deletes expired events. While the file is nearly full, also deletes the oldest PRUNED_SHARE of the
        rest."""
        file.execute("DELETE FROM events WHERE at < ?", (time.time() - self._age_seconds_max,))
        file.commit()
        while self._is_full(file) and _delete_oldest(file):
            pass

    def _store(self, file: sqlite3.Connection, events: list[dict[str, Any]]) -> None:
        """Inserts these events, and deletes the oldest ones for as long as SQLite reports that the file is
        full."""
        while True:
            try:
                return _insert(file, events)
            except sqlite3.OperationalError as error:
                file.rollback()
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not _delete_oldest(file):
                    raise


def _delete_oldest(file: sqlite3.Connection) -> bool:
    """Deletes the oldest PRUNED_SHARE of the events. Returns False if there are no events."""
    count = int(file.execute("SELECT count(*) FROM events").fetchone()[0])
    file.execute(
        "DELETE FROM events WHERE number IN (SELECT number FROM events ORDER BY number LIMIT ?)",
        (max(1, int(count * PRUNED_SHARE)),),
    )
    file.commit()
    return count > 0


def _insert(file: sqlite3.Connection, events: list[dict[str, Any]]) -> None:
    rows = []
    for event in events:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            one = _task_event(event)
            rows.append((str(one["uuid"]), str(one["type"]), float(one["timestamp"]), _text(one)))
    # Two Flower processes that share one file receive the same events.
    file.executemany("INSERT OR IGNORE INTO events (uuid, type, at, event) VALUES (?, ?, ?, ?)", rows)
    file.commit()


def _task_event(event: Any) -> dict[str, Any]:
    """Returns the event if it has all fields that Celery's state needs. Otherwise, raises ValueError or
    KeyError."""
    if not isinstance(event, dict) or not str(event["type"]).startswith("task-"):
        raise ValueError("not a task event")
    for name in REQUIRED_FIELDS:
        event[name]
    return event


def _text(event: dict[str, Any]) -> str:
    """Returns the event as JSON of at most EVENT_CHARACTERS_MAX, with long strings truncated. Raises ValueError if
    the result is still too long.
    """
    text = json.dumps(event, default=str)
    if len(text) > EVENT_CHARACTERS_MAX:
        cut = {
            name: str(value)[:SHORTENED_CHARACTERS_MAX] if name in SHORTENED else value
            for name, value in event.items()
        }
        text = json.dumps(cut, default=str)
    if len(text) > EVENT_CHARACTERS_MAX:
        raise ValueError("the event is too long")
    return text
