"""A worker's presence in Redis: its queues and last heartbeat.

The main process writes it on each Celery heartbeat, so that a worker with a stuck event loop disappears. `check`,
`status`, `top`, the operator's page and the reader's metrics read it. A worker started with --without-heartbeat is
not listed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

import msgspec
from celery import signals
from redis.exceptions import RedisError

from tasks.connection import connect as connect_redis
from tasks.coordination import Coordination
from tasks.loading import load_fleet
from tasks.names import CONTROL_QUEUE, flush_queue
from tasks.release import RELEASE
from tasks.settings import Settings

CELERY_HEARTBEAT_SECONDS = 2.0
SILENT_HEARTBEATS_MAX = 3


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """The presence of one worker. Times are Unix seconds of the Redis clock. `bigquery_write`: the setting, empty
    if unknown.

    Other releases may read this entry, so fields are only added, each with a default.
    """

    host: str = ""
    pid: int = 0
    processes: int = 0
    started_at: float = 0.0
    seen_at: float = 0.0
    queues: tuple[str, ...] = ()
    release: str = ""
    bigquery_write: str = ""


class WorkerStatus(Presence, frozen=True, kw_only=True):
    """One worker. `silent_seconds`: seconds since its last heartbeat. `silent`: the worker is considered dead,
    because SILENT_HEARTBEATS_MAX heartbeats in a row are missing.
    """

    worker: str
    silent_seconds: float = 0.0
    silent: bool = False


def workers(coordination: Coordination, settings: Settings) -> tuple[WorkerStatus, ...]:
    """Returns every listed worker. Raises redis.exceptions.RedisError."""
    silent_seconds_max = SILENT_HEARTBEATS_MAX * max(settings.heartbeat_seconds, CELERY_HEARTBEAT_SECONDS)
    found = []
    for name, fields in coordination.workers().items():
        silent = fields["silent_seconds"] > silent_seconds_max
        with suppress(msgspec.ValidationError):  # skips entries that were not written by a worker
            found.append(
                msgspec.convert({**fields, "worker": name, "silent": silent}, type=WorkerStatus, strict=False)
            )
    return tuple(found)


def queues_of(sinks: Iterable[str]) -> tuple[str, ...]:
    """Returns the queues that need a worker when these sinks are enabled."""
    return (*map(flush_queue, sinks), CONTROL_QUEUE)  # type: ignore[arg-type]


def consumers(found: Collection[WorkerStatus], sinks: Iterable[str]) -> dict[str, int]:
    """Maps each queue to the number of active workers that consume it."""
    return {
        queue: sum(queue in worker.queues for worker in found if not worker.silent) for queue in queues_of(sinks)
    }


class _Writer:
    """Writes this worker's presence entry to Redis, at most once per `heartbeat_seconds`."""

    def __init__(self, worker: str, consumer: Any, settings: Settings) -> None:
        self._worker, self._consumer, self._settings = worker, consumer, settings
        self._coordination = Coordination(connect_redis(settings, retries=0), settings)
        self._started_at = 0.0
        self._written_at = -settings.heartbeat_seconds

    def write_if_due(self) -> None:
        now = time.monotonic()
        if now - self._written_at < self._settings.heartbeat_seconds:
            return
        self._written_at = now
        with suppress(RedisError, OSError):
            self._write(self._coordination.now())

    def _write(self, at: float) -> None:
        self._started_at = self._started_at or at
        presence = Presence(
            host=socket.gethostname(),
            pid=os.getpid(),
            processes=int(getattr(self._consumer.pool, "num_processes", 0) or 0),
            started_at=self._started_at,
            seen_at=at,
            queues=tuple(sorted(self._consumer.app.amqp.queues.consume_from)),
            release=RELEASE,
            bigquery_write=self._settings.bigquery_write,
        )
        self._coordination.publish_worker(self._worker, msgspec.json.encode(presence).decode())

    def remove(self) -> None:
        with suppress(RedisError, OSError):
            self._coordination.remove_worker(self._worker)


class _State:
    """The writer of this process; None before the worker is ready, and in every other process."""

    writer: _Writer | None = None


def connect() -> None:
    """Called once by `tasks.celery`. Only workers send these signals."""
    signals.worker_ready.connect(_on_ready, weak=False)
    signals.heartbeat_sent.connect(_on_heartbeat, weak=False)
    signals.worker_shutting_down.connect(_on_shutting_down, weak=False)
    signals.worker_shutdown.connect(_on_shutting_down, weak=False)


def _on_ready(sender: Any = None, **_: Any) -> None:
    _State.writer = _Writer(str(sender.hostname), sender, load_fleet())
    _State.writer.write_if_due()


def _on_heartbeat(**_: Any) -> None:
    if _State.writer is not None:
        _State.writer.write_if_due()


def _on_shutting_down(**_: Any) -> None:
    """Removes the worker's presence when its shutdown begins, because it takes no further tasks."""
    writer, _State.writer = _State.writer, None
    if writer is not None:
        writer.remove()
