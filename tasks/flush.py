"""The Celery tasks of a batch: one per sink, and the two ends of their chord. `tasks.run` does the work.

flush_<sink>    writes one task's items to one sink
complete        the chord's body: reports the stage to the reader
chord_failed    its errback: the same, when a flush task failed
"""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.utils.log import get_task_logger

from tasks.celery import app
from tasks.names import ControlTask, flush_task
from tasks.observe import metrics
from tasks.run import run
from tasks.tools import tools
from tasks.wire import ChordName, SinkName, batch_id_of

log = get_task_logger(__name__)
NOBODY = "nobody"

# Bounded by `put_off`, which knows the deadline; Celery's own counter must not cut in.
OPTIONS: dict[str, Any] = {
    "bind": True,
    "max_retries": None,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "ignore_result": True,
}


@app.task(name=flush_task(SinkName.GCS), **OPTIONS)
def flush_gcs(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Recordings to Cloud Storage."""
    return run(self, batch, task, until)


@app.task(name=flush_task(SinkName.CLICKHOUSE), **OPTIONS)
def flush_clickhouse(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Replay rows to ClickHouse."""
    return run(self, batch, task, until)


@app.task(name=flush_task(SinkName.BIGQUERY), **OPTIONS)
def flush_bigquery(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Event analytics to BigQuery."""
    return run(self, batch, task, until)


@app.task(name=flush_task(SinkName.DATADOG), **OPTIONS)
def flush_datadog(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Product metrics to DataDog."""
    return run(self, batch, task, until)


@app.task(name=flush_task(SinkName.DEAD_LETTER), **OPTIONS)
def flush_dead_letter(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Rejected messages to the dead-letter topic."""
    return run(self, batch, task, until)


@app.task(name=ControlTask.COMPLETE.value, bind=True, ignore_result=True, acks_late=True)
def complete(self: Task[Any, Any]) -> str:
    """All tasks of the chord returned: tells the reader, if their marks say so too."""
    return tell(str(self.request.id), unexplained="has no done mark")


@app.task(name=ControlTask.CHORD_FAILED.value, bind=True, ignore_result=True, acks_late=True)
def chord_failed(self: Task[Any, Any], chord_id: str) -> str:
    """A task of the chord gave up, or Celery lost its answer: the marks say which."""
    return tell(chord_id, unexplained="ended without an error message")


def tell(chord_id: str, *, unexplained: str) -> str:
    """Tells the batch's reader how the stage stands; the marks decide, not who asks."""
    mine, chord = tools.get(), ChordName.parse(chord_id)
    report = mine.staging.report(chord, unexplained=unexplained)
    if report is None:
        metrics.observe_completion(NOBODY)
        log.warning("no reader waits for %s of %s any more", chord.stage, batch_id_of(chord.batch))
        return NOBODY
    mine.coordination.tell(report.reader, report.completion)
    metrics.observe_completion(report.completion.kind)
    return report.completion.kind.value
