"""The flush tasks, one per sink, and the chord callbacks. `tasks.run` does the work.

flush_<sink>    writes one task's items to one sink
complete        the chord's body: reports the stage to the reader
chord_failed    the chord's errback: reports the stage when a flush task failed
"""

from __future__ import annotations

from typing import Any

from celery import Task

from tasks.celery import app
from tasks.names import flush_task
from tasks.run import Held, run
from tasks.wire import SinkName

# `put_off` bounds retries by the batch's deadline instead of Celery's counter.
OPTIONS: dict[str, Any] = {
    "bind": True,
    "max_retries": None,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "ignore_result": True,
    # Parking is not a program error and is reported by the log line `flush`. Without this option, Celery would
    # also log a traceback.
    "throws": (Held,),
}


@app.task(name=flush_task(SinkName.GCS), **OPTIONS)
def flush_gcs(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Writes recordings to Cloud Storage."""
    return run(self, batch, task, until)


@app.task(name=flush_task(SinkName.CLICKHOUSE), **OPTIONS)
def flush_clickhouse(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Writes replay rows to ClickHouse."""
    return run(self, batch, task, until)


@app.task(name=flush_task(SinkName.BIGQUERY), **OPTIONS)
def flush_bigquery(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Writes event analytics to BigQuery."""
    return run(self, batch, task, until)


@app.task(name=flush_task(SinkName.DATADOG), **OPTIONS)
def flush_datadog(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Writes product metrics to Datadog."""
    return run(self, batch, task, until)


@app.task(name=flush_task(SinkName.DEAD_LETTER), **OPTIONS)
def flush_dead_letter(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Writes rejected messages to the dead-letter topic."""
    return run(self, batch, task, until)
