"""Every metric of a flush worker, named and explained once, and the worker's /livez, /readyz and /metrics.

Functions here do nothing until a worker has called `install`, so flush code may call them anywhere. The pool's
processes write their numbers into files of one directory (the Prometheus client's own way); the worker's main
process adds them up when it is scraped.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import prometheus_client.values
from celery import signals
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from tasks.loading import load_fleet
from tasks.names import sink_of
from tasks.observe.meters import BYTES, COUNTS, SECONDS, Definition, Kind, Meters, dogstatsd
from tasks.observe.probes import Probes
from tasks.settings import Settings, share_metrics_directory
from tasks.wire import SinkName

_W = "replays.worker."
READY_SILENT_SECONDS_MAX = 15.0  # a worker shows itself to the broker every two seconds


class RunOutcome(StrEnum):
    """How a run of a flush task ended."""

    DONE = "done"
    ALREADY_DONE = "already_done"  # its mark was set: a repetition
    PUT_OFF = "put_off"  # tried again later
    GAVE_UP = "gave_up"  # the reader parks the batch
    FAILED = "failed"  # an error that no retry cures


DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        _W + "flushes",
        Kind.COUNTER,
        "runs",
        "Runs of flush tasks, by sink and outcome: done, already_done (its mark was set: a repetition), put_off "
        "(tried again later), gave_up (the reader parks the batch), failed (an error that no retry mends).",
        ("sink", "outcome"),
    ),
    Definition(
        _W + "flush_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Runs that got as far as calling the sink: from the start of the run to its end.",
        ("sink",),
        SECONDS,
    ),
    Definition(_W + "flush_items", Kind.HISTOGRAM, "items", "Items of a run that was done.", ("sink",), COUNTS),
    Definition(
        _W + "flush_bytes", Kind.HISTOGRAM, "bytes", "Staged bytes of a run that was done.", ("sink",), BYTES
    ),
    Definition(
        _W + "retries",
        Kind.COUNTER,
        "runs",
        "Runs that ended with Celery's retry (backoff with full jitter).",
        ("sink",),
    ),
    Definition(
        _W + "breaker_refusals",
        Kind.COUNTER,
        "runs",
        "Runs put off without a call, since the sink's circuit breaker was open.",
        ("sink",),
    ),
    Definition(
        _W + "items_refused",
        Kind.COUNTER,
        "items",
        "Items that a sink will never take; they became dead letters with the sink's error.",
        ("sink",),
    ),
    Definition(
        _W + "completions",
        Kind.COUNTER,
        "chords",
        "Ends of chords told to a reader: done, failed, or nobody (an older chord, or a batch that is gone).",
        ("kind",),
    ),
    Definition(
        _W + "busy_processes",
        Kind.GAUGE,
        "processes",
        "Pool processes (or threads) that run a flush task now, by sink.",
        ("sink",),
    ),
    Definition(
        _W + "heartbeat_seconds",
        Kind.GAUGE,
        "seconds",
        "Since the worker last showed itself to the broker. Over 15: it lost Redis.",
    ),
)


class _Worker:
    """The state of one worker process (or pool process): nothing before `install`."""

    meters: Meters | None = None
    directory: Path | None = None
    probes: Probes | None = None
    silent_seconds_max = 300.0
    seen_at = 0.0
    started = False


def install(settings: Settings) -> Path:
    """Makes the instruments, before the pool forks. Returns the directory that the processes share."""
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
    """Ends the probes and removes the shared directory."""
    if _Worker.probes is not None:
        _Worker.probes.close()
    if _Worker.directory is not None:
        shutil.rmtree(_Worker.directory, ignore_errors=True)
    _Worker.meters = _Worker.probes = _Worker.directory = None


# What flush tasks tell


def observe_flush(
    sink: str, outcome: RunOutcome, seconds: float = 0.0, items: int = 0, size_bytes: int = 0
) -> None:
    """One run of a flush task ended. `seconds` 0: the sink was not called."""
    meters = _Worker.meters
    if meters is None:
        return
    meters.count(_W + "flushes", 1, sink, outcome)
    if outcome is RunOutcome.PUT_OFF:
        meters.count(_W + "retries", 1, sink)
    if seconds:
        meters.observe(_W + "flush_seconds", seconds, sink)
    if outcome is RunOutcome.DONE:
        meters.observe(_W + "flush_items", items, sink)
        meters.observe(_W + "flush_bytes", size_bytes, sink)


def observe_breaker_refusal(sink: str) -> None:
    """A run was put off since the sink's breaker was open."""
    if _Worker.meters is not None:
        _Worker.meters.count(_W + "breaker_refusals", 1, sink)


def observe_refused(sink: str, items: int) -> None:
    """So many items became dead letters with the sink's error."""
    if _Worker.meters is not None:
        _Worker.meters.count(_W + "items_refused", items, sink)


def observe_completion(kind: str) -> None:
    """The end of a chord was told: done, failed, nobody."""
    if _Worker.meters is not None:
        _Worker.meters.count(_W + "completions", 1, kind)


# What is answered to probes


def registry() -> CollectorRegistry:
    """The numbers of all processes of this worker, added up now."""
    if _Worker.meters is not None:
        _Worker.meters.set(_W + "heartbeat_seconds", time.monotonic() - _Worker.seen_at)
    collected = CollectorRegistry()
    if _Worker.directory is not None:
        MultiProcessCollector(collected, path=str(_Worker.directory))  # type: ignore[no-untyped-call]
    return collected


def live() -> dict[str, str]:
    """Whether the worker is worth keeping: not after minutes without any sign of life."""
    silent_seconds = time.monotonic() - _Worker.seen_at
    silent = silent_seconds >= _Worker.silent_seconds_max
    return {"heartbeat": f"none for {silent_seconds:.0f} s" if silent else ""}


def ready() -> dict[str, str]:
    """Whether it takes tasks: it started, and reached the broker within the last seconds."""
    silent_seconds = time.monotonic() - _Worker.seen_at
    lost = silent_seconds >= READY_SILENT_SECONDS_MAX
    return {
        "started": "" if _Worker.started else "is still starting",
        "broker": f"not reached for {silent_seconds:.0f} s" if lost else "",
    }


# When Celery calls. Connected by `connect`, which `tasks.celery` calls once.


def connect() -> None:
    """Ties this module to the life of a worker. Importing it does nothing."""
    signals.worker_init.connect(_on_init, weak=False)
    signals.worker_ready.connect(_on_ready, weak=False)
    signals.heartbeat_sent.connect(_on_heartbeat, weak=False)
    signals.worker_process_shutdown.connect(_on_process_shutdown, weak=False)
    signals.worker_shutdown.connect(_on_shutdown, weak=False)
    signals.task_prerun.connect(_on_prerun, weak=False)
    signals.task_postrun.connect(_on_postrun, weak=False)


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
            meters.touch(_W + "flushes", sink, outcome)
        for name in ("retries", "breaker_refusals", "items_refused"):
            meters.touch(_W + name, sink)
    if settings.worker_http_port >= 0:
        _Worker.probes = Probes(settings.worker_http_host, settings.worker_http_port, live, ready, registry)


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
    if _Worker.meters is not None and sink:
        _Worker.meters.add(_W + "busy_processes", amount, sink)
