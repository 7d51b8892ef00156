"""Celery tasks of the queue `control`: chord callbacks, and operator requests.

    complete         the chord's body: reports the stage to the batch's reader
    chord_failed     the chord's errback: reports the stage when a flush task failed
    retry_batch      POST /api/task/async-apply/retry_batch     {"args": ["<batch id>"], "kwargs": {"by": "me"}}
    abandon_batch    POST /api/task/async-apply/abandon_batch   {"args": ["<batch id>"],
                                                                 "kwargs": {"reason": "...", "by": "me"}}

These URL paths are endpoints of Flower's API. `tasks.staging` evaluates a chord, and `tasks.operate` implements
operator requests.
"""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.utils.log import get_task_logger

from tasks.celery import app
from tasks.names import ControlTask
from tasks.observe import metrics
from tasks.tools import tools
from tasks.wire import ChordName, SinkName, batch_id_of

log = get_task_logger(__name__)
NO_READER = "nobody"


@app.task(name=ControlTask.COMPLETE.value, bind=True, ignore_result=True, acks_late=True)
def complete(self: Task[Any, Any]) -> str:
    """Runs when all tasks of the chord have returned. Verifies their done marks and reports the stage to the
    reader.
    """
    return report_stage(str(self.request.id), unexplained="has no done mark")


@app.task(name=ControlTask.CHORD_FAILED.value, bind=True, ignore_result=True, acks_late=True)
def chord_failed(self: Task[Any, Any], chord_id: str) -> str:
    """Runs when a task of the chord has failed or Celery has lost the task's result. The done marks show which
    tasks are unfinished."""
    return report_stage(chord_id, unexplained="ended without an error message")


@app.task(name=ControlTask.RETRY_BATCH.value, ignore_result=True, acks_late=True)
def retry_batch(batch_id: str, by: str = "unknown") -> str:
    """Requests an immediate retry from the batch's reader."""
    from tasks.operate import retry  # loads the Kafka client, which the other tasks do not need

    return retry(tools.get().coordination, batch_id, by)


@app.task(name=ControlTask.ABANDON_BATCH.value, ignore_result=True, acks_late=True)
def abandon_batch(batch_id: str, reason: str, by: str = "unknown") -> str:
    """Turns the batch's messages into dead letters and notifies its reader, which continues without it."""
    from tasks.operate import abandon

    worker = tools.get()
    return abandon(worker.settings, worker.coordination, worker.sink(SinkName.DEAD_LETTER), batch_id, reason, by)


def report_stage(chord_id: str, *, unexplained: str) -> str:
    """Reports the stage to the batch's reader, based on done marks only."""
    worker, chord = tools.get(), ChordName.parse(chord_id)
    report = worker.staging.report(chord, unexplained=unexplained)
    if report is None:
        metrics.observe_completion(NO_READER)
        log.warning("no reader is waiting for %s of %s", chord.stage, batch_id_of(chord.batch))
        return NO_READER
    worker.coordination.send_completion(report.reader, report.completion)
    metrics.observe_completion(report.completion.kind)
    return report.completion.kind.value
