"""Worker logs, metrics, probes and traces, connected to Celery's signals.

Records the outcome, the duration and the span of each flush run.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from celery import signals
from celery.exceptions import Ignore, Reject, Retry
from redis.exceptions import RedisError

from tasks import cores
from tasks.loading import load_fleet
from tasks.observe import celery_lines, logs, metrics, telemetry
from tasks.observe.metric_table import RunOutcome
from tasks.settings import Settings
from tasks.staging import Staging
from tasks.units import MiB
from tasks.wire import SinkName, TaskName, batch_id_of

log = structlog.get_logger(__name__)

RECENT_RUNS = 100
PUBLISH_SECONDS = 5.0
SINKS_EXPIRY_SECONDS = 86_400


@dataclass(slots=True)
class Watch:
    """Data about one run, for its log line and metrics. `called`: the sink was called."""

    already_done: bool = False
    called: bool = False
    items: int = 0
    size_bytes: int = 0
    error: str = ""


class RecentDurations:
    """Durations of this process's last runs per sink, published to Redis every PUBLISH_SECONDS.

    Processes overwrite each other's value; each value is still precise enough to show whether a sink takes
    milliseconds or half a minute.
    """

    def __init__(self) -> None:
        self._seconds: dict[SinkName, deque[float]] = {}
        self._published_at: dict[SinkName, float] = {}

    def add(self, sink: SinkName, seconds: float, staging: Staging, settings: Settings) -> None:
        """Adds the duration of a run that called its sink. Does not raise Redis errors."""
        runs = self._seconds.setdefault(sink, deque(maxlen=RECENT_RUNS))
        runs.append(seconds)
        now = time.monotonic()
        if now - self._published_at.get(sink, -PUBLISH_SECONDS) < PUBLISH_SECONDS:
            return
        self._published_at[sink] = now
        ordered = sorted(runs)
        details: dict[str, float] = {
            "p50_seconds": round(ordered[len(ordered) // 2], 4),
            "max_seconds": round(ordered[-1], 4),
            "runs": len(ordered),
        }
        with suppress(RedisError, OSError):
            details["at"] = staging.now()
            pipe = staging.client.pipeline(transaction=True)
            pipe.hset(sinks_key(settings), sink, msgspec.json.encode(details))
            pipe.expire(sinks_key(settings), SINKS_EXPIRY_SECONDS)
            pipe.execute()


_recent = RecentDurations()


def sinks_key(settings: Settings) -> str:
    """Returns the Redis hash of recent run durations per sink."""
    return f"{settings.key_prefix}:sinks"


@contextmanager
def observed_run(request: Any, batch: str, name: str, staging: Staging, settings: Settings) -> Iterator[Watch]:
    """Wraps one run and counts its outcome. Exceptions pass through."""
    sink, watch, started_at = TaskName.parse(name).sink, Watch(), time.perf_counter()
    outcome = RunOutcome.FAILED
    details = {"replays.batch": batch_id_of(batch), "replays.task": name}
    try:
        with telemetry.sink_span(request, sink, **details):
            yield watch
        outcome = RunOutcome.ALREADY_DONE if watch.already_done else RunOutcome.DONE
    except Retry:
        outcome = RunOutcome.PUT_OFF
        raise
    except (Ignore, Reject):
        outcome = RunOutcome.FAILED
        raise
    except Exception as error:
        outcome = getattr(error, "outcome", outcome)
        watch.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        run_seconds = time.perf_counter() - started_at
        seconds = run_seconds if watch.called else 0.0
        metrics.observe_flush(sink, outcome, seconds, watch.items, watch.size_bytes)
        if seconds:
            _recent.add(sink, seconds, staging, settings)
        log_run(batch, name, outcome, watch, run_seconds, int(getattr(request, "retries", 0) or 0))


def log_run(batch: str, name: str, outcome: RunOutcome, watch: Watch, seconds: float, retries: int) -> None:
    """Logs one line per flush run; a warning if the run gave up or failed."""
    details: dict[str, Any] = {
        "batch": batch_id_of(batch),
        "task": name,
        "outcome": outcome.value,
        "seconds": round(seconds, 4),
        "items": watch.items,
        "bytes": watch.size_bytes,
        "retries": retries,
    }
    if watch.error:
        details["error"] = watch.error
    write = log.warning if outcome in (RunOutcome.GAVE_UP, RunOutcome.FAILED) else log.info
    write("flush", **details)


def connect() -> None:
    """Called once by `tasks.celery`. Only workers send these signals."""
    signals.celeryd_init.connect(_on_start, weak=False)
    signals.setup_logging.connect(_on_logging, weak=False)
    signals.worker_init.connect(_on_worker, weak=False)
    signals.worker_process_init.connect(_on_worker, weak=False)
    signals.worker_ready.connect(_on_ready, weak=False)
    signals.worker_process_shutdown.connect(_on_end, weak=False)
    signals.worker_shutdown.connect(_on_end, weak=False)
    metrics.connect()


def _on_start(instance: Any = None, **_: Any) -> None:
    """Runs before Celery prints its banner and warnings, which are not JSON."""
    settings = load_fleet()
    if logs.as_json(settings, sys.stderr):
        instance.quiet = True
        logs.configure(settings)
        logging.captureWarnings(True)


def _on_logging(**_: Any) -> None:
    logs.configure(load_fleet())
    celery_lines.install()
    # Hides Celery's log lines "received" and "succeeded"; `log_run` replaces them.
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _on_worker(**_: Any) -> None:
    """Runs in the main process and in each pool process, because exporter threads do not survive a fork."""
    try:
        telemetry.configure(load_fleet(), service="replays-worker")
    except telemetry.TelemetryMissing as missing:
        missing.show()
        raise SystemExit(missing.exit_code) from missing  # Celery would log any other exception and continue


def _on_ready(sender: Any = None, **_: Any) -> None:
    """`sender` is Celery's consumer, which has a reference to the started pool."""
    pool = getattr(sender, "pool", None)
    forks = type(pool).__module__.endswith("prefork")
    report_size(int(getattr(pool, "limit", 0) or 0) if forks else 0, cores.memory_limit_bytes())


def report_size(processes: int, limit_bytes: int | None) -> None:
    """Logs the memory needed under load, as a warning if the container has less. `processes` is 0 if the pool is
    not prefork.
    """
    needed = cores.memory_needed_bytes(processes)
    details: dict[str, Any] = {"processes": processes, "memory_needed_mib": needed // MiB}
    if limit_bytes is not None:
        details["memory_limit_mib"] = limit_bytes // MiB
    log.info("worker_ready", **details)
    if limit_bytes is not None and needed > limit_bytes:
        log.warning("worker_memory_short", **details, advice="lower REPLAYS_WORKER_PROCESSES or raise the limit")


def _on_end(**_: Any) -> None:
    telemetry.flush()
