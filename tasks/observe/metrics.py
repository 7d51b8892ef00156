"""Updates worker metrics and serves the worker's /livez, /readyz and /metrics.

Functions do nothing until a worker has called `install`, so flush code may call them anywhere. Pool processes
write to files in one directory (the Prometheus client's multiprocess mode); the main process aggregates them on
each scrape.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import prometheus_client.values
from celery import signals
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from tasks.loading import load_fleet
from tasks.names import sink_of
from tasks.observe.meters import Meters, dogstatsd
from tasks.observe.metric_table import DEFINITIONS, WORKER, RunOutcome
from tasks.observe.probe_server import ListenError, Probes, ensure_probes_can_listen
from tasks.seals import Purpose, warn
from tasks.settings import Settings, share_metrics_directory
from tasks.wire import SinkName

log = logging.getLogger(__name__)
HTTP_SETTING = "REPLAYS_WORKER_HTTP"
READY_SILENT_SECONDS_MAX = 15.0  # a worker sends a heartbeat every two seconds


class _Worker:
    """The state of a worker process or pool process; empty before `install`."""

    meters: Meters | None = None
    directory: Path | None = None
    probes: Probes | None = None
    silent_seconds_max = 300.0
    seen_at = 0.0
    started = False


def install(settings: Settings) -> Path:
    """Creates the instruments before the pool forks. Returns the shared directory."""
    directory = Path(tempfile.mkdtemp(prefix="replays-metrics-"))
    share_metrics_directory(directory)
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue()  # type: ignore[no-untyped-call]
    _Worker.directory = directory
    _Worker.silent_seconds_max = settings.worker_silent_seconds_max
    _Worker.meters = Meters(DEFINITIONS, CollectorRegistry(), dogstatsd(settings))
    _Worker.seen_at = time.monotonic()
    _Worker.started = False
    return directory


def uninstall() -> None:
    """Stops the probe server and removes the shared directory."""
    if _Worker.probes is not None:
        _Worker.probes.close()
    if _Worker.directory is not None:
        shutil.rmtree(_Worker.directory, ignore_errors=True)
    _Worker.meters = _Worker.probes = _Worker.directory = None


# Updates from flush tasks


def observe_flush(
    sink: SinkName, outcome: RunOutcome, seconds: float = 0.0, items: int = 0, size_bytes: int = 0
) -> None:
    """Counts a finished run of a flush task. `seconds` is 0 if the sink was not called."""
    meters = _Worker.meters
    if meters is None:
        return
    meters.count(WORKER + "flushes", 1, sink, outcome)
    if outcome is RunOutcome.PUT_OFF:
        meters.count(WORKER + "retries", 1, sink)
    if seconds:
        meters.observe(WORKER + "flush_seconds", seconds, sink)
    if outcome is RunOutcome.DONE:
        meters.observe(WORKER + "flush_items", items, sink)
        meters.observe(WORKER + "flush_bytes", size_bytes, sink)


def observe_breaker_refusal(sink: SinkName) -> None:
    """Counts a run that was postponed because the sink's breaker was open."""
    if _Worker.meters is not None:
        _Worker.meters.count(WORKER + "breaker_refusals", 1, sink)


def observe_refused_items(sink: SinkName, items: int) -> None:
    """Counts items that became dead letters because the sink refused them."""
    if _Worker.meters is not None:
        _Worker.meters.count(WORKER + "items_refused", items, sink)


def observe_completion(kind: str) -> None:
    """Counts a reported chord completion. `kind` is done, failed, or nobody (no reader is waiting for it)."""
    if _Worker.meters is not None:
        _Worker.meters.count(WORKER + "completions", 1, kind)


def observe_unverified_entry(purpose: Purpose) -> None:
    """Logs and counts a Redis entry that was ignored because it lacks a valid seal."""
    warn(purpose)
    if _Worker.meters is not None:
        _Worker.meters.count(WORKER + "unverified", 1, purpose)


# Probes


def registry() -> CollectorRegistry:
    """Returns the aggregated metrics of all processes of this worker."""
    if _Worker.meters is not None:
        _Worker.meters.set(WORKER + "heartbeat_seconds", time.monotonic() - _Worker.seen_at)
    collected = CollectorRegistry()
    if _Worker.directory is not None:
        MultiProcessCollector(collected, path=str(_Worker.directory))  # type: ignore[no-untyped-call]
    return collected


def live() -> dict[str, str]:
    """Returns the liveness checks, which fail after `worker_silent_seconds_max` without a heartbeat."""
    silent_seconds = time.monotonic() - _Worker.seen_at
    silent = silent_seconds >= _Worker.silent_seconds_max
    return {"heartbeat": f"none for {silent_seconds:.0f} s" if silent else ""}


def ready() -> dict[str, str]:
    """Returns the readiness checks, which fail until the worker has started and whenever it has not reached the
    broker recently."""
    silent_seconds = time.monotonic() - _Worker.seen_at
    lost = silent_seconds >= READY_SILENT_SECONDS_MAX
    return {
        "started": "" if _Worker.started else "is still starting",
        "broker": f"not reached for {silent_seconds:.0f} s" if lost else "",
    }


# Handlers of Celery signals, connected by `connect`, which `tasks.celery` calls once.


def connect() -> None:
    """Connects the handlers of this module to Celery's signals. Importing this module has no side effects."""
    signals.celeryd_init.connect(_on_start, weak=False)
    signals.worker_init.connect(_on_init, weak=False)
    signals.worker_ready.connect(_on_ready, weak=False)
    signals.heartbeat_sent.connect(_on_heartbeat, weak=False)
    signals.worker_process_shutdown.connect(_on_process_shutdown, weak=False)
    signals.worker_shutdown.connect(_on_shutdown, weak=False)
    signals.task_prerun.connect(_on_prerun, weak=False)
    signals.task_postrun.connect(_on_postrun, weak=False)


def _on_start(**_: Any) -> None:
    """Runs before Celery prints its banner. Another process may still take the port before `_serve` binds it."""
    settings = load_fleet()
    if settings.worker_http_port > 0:
        try:
            ensure_probes_can_listen(settings.worker_http_host, settings.worker_http_port, setting=HTTP_SETTING)
        except ListenError as error:
            _end(error)


def _on_init(**_: Any) -> None:
    settings = load_fleet()
    if settings.worker_http_port >= 0 or settings.metrics_dogstatsd:
        install(settings)


def _on_ready(**_: Any) -> None:
    settings = load_fleet()
    _Worker.started, _Worker.seen_at = True, time.monotonic()
    meters = _Worker.meters
    if meters is None:
        return
    for sink in SinkName:
        for outcome in RunOutcome:
            meters.touch(WORKER + "flushes", sink, outcome)
        for name in ("retries", "breaker_refusals", "items_refused"):
            meters.touch(WORKER + name, sink)
    if settings.worker_http_port >= 0:
        _Worker.probes = _serve(settings)


def _serve(settings: Settings) -> Probes:
    host, port = settings.worker_http_host, settings.worker_http_port
    try:
        return Probes(host, port, live, ready, registry, setting=HTTP_SETTING)
    except ListenError as error:
        _end(error)


def _end(error: ListenError) -> NoReturn:
    error.show()
    raise SystemExit(
        error.exit_code
    ) from error  # Celery would log any other exception, and continue without metrics


def _on_heartbeat(**_: Any) -> None:
    _Worker.seen_at = time.monotonic()


def _on_process_shutdown(pid: int = 0, **_: Any) -> None:
    if _Worker.directory is not None:
        with suppress(OSError):
            mark_process_dead(pid, path=str(_Worker.directory))  # type: ignore[no-untyped-call]


def _on_shutdown(**_: Any) -> None:
    uninstall()


def _on_prerun(task: Any = None, **_: Any) -> None:
    _busy(task, 1)


def _on_postrun(task: Any = None, **_: Any) -> None:
    _busy(task, -1)


def _busy(task: Any, amount: int) -> None:
    sink = sink_of(getattr(task, "name", ""))
    if _Worker.meters is not None and sink is not None:
        _Worker.meters.add(WORKER + "busy_processes", amount, sink)
