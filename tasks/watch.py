"""A worker as operators see it: its logs, metrics, probes and traces, tied to its life by Celery's signals.

One run of a flush task is watched from here: its outcome and time in the metrics, its work as a span.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import signals
from celery.exceptions import Ignore, Reject, Retry

from tasks import logs, metrics, telemetry
from tasks.settings import Settings, load_as
from tasks.wire import batch_id_of


@dataclass(slots=True)
class Watch:
    """What the run itself tells. `called`: it got as far as its sink."""

    already_done: bool = False
    called: bool = False
    items: int = 0
    size_bytes: int = 0


@contextmanager
def watched(request: Any, batch: str, name: str) -> Iterator[Watch]:
    """Around one run. How it ends says which outcome is counted; what it raises goes on unchanged."""
    sink, watch, started_at = name.split("/")[1], Watch(), time.perf_counter()
    outcome = "failed"
    about = {"replays.batch": batch_id_of(batch), "replays.task": name}
    try:
        with telemetry.sink_span(request, sink, **about):
            yield watch
        outcome = "already_done" if watch.already_done else "done"
    except Retry:
        outcome = "put_off"
        raise
    except (Ignore, Reject):
        outcome = "failed"
        raise
    except Exception as error:
        outcome = str(getattr(error, "outcome", outcome))
        raise
    finally:
        seconds = time.perf_counter() - started_at if watch.called else 0.0
        metrics.observe_flush(sink, outcome, seconds, watch.items, watch.size_bytes)


def connect() -> None:
    """Called once by `tasks.celery`. Only workers send these signals: a publisher is not touched."""
    signals.setup_logging.connect(_on_logging, weak=False)
    signals.worker_init.connect(_on_worker, weak=False)
    signals.worker_process_init.connect(_on_worker, weak=False)
    signals.worker_process_shutdown.connect(_on_end, weak=False)
    signals.worker_shutdown.connect(_on_end, weak=False)
    metrics.connect()


def _on_logging(**_: Any) -> None:
    logs.configure(load_as(Settings, refuse_unknown=False))


def _on_worker(**_: Any) -> None:
    """In the main process, and again in each process of the pool: exporters have threads, which do not fork."""
    telemetry.configure(load_as(Settings, refuse_unknown=False), service="replays-worker")


def _on_end(**_: Any) -> None:
    telemetry.flush()
