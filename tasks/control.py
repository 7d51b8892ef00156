"""The Celery tasks of the queue `control`: the two ends of a chord, and what operators ask for.

    complete         the chord's body: reports the stage to the batch's reader
    chord_failed     its errback: the same, when a flush task failed
    retry_batch      POST /api/task/async-apply/retry_batch     {"args": ["<batch id>"], "kwargs": {"by": "me"}}
    abandon_batch    POST /api/task/async-apply/abandon_batch   {"args": ["<batch id>"],
                                                                 "kwargs": {"reason": "...", "by": "me"}}

The addresses are Flower's. `tasks.staging` decides how a chord stands, `tasks.operate` does what operators want.
"""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.utils.log import get_task_logger

from tasks.celery import app
from tasks.names import ControlTask
from tasks.observe import metrics
from tasks.operate import abandon, retry
from tasks.tools import tools
from tasks.wire import ChordName, SinkName, batch_id_of

log = get_task_logger(__name__)
NOBODY = "nobody"


@app.task(name=ControlTask.COMPLETE.value, bind=True, ignore_result=True, acks_late=True)
def complete(self: Task[Any, Any]) -> str:
    """All tasks of the chord returned: tells the reader, if their marks say so too."""
    return tell(str(self.request.id), unexplained="has no done mark")


@app.task(name=ControlTask.CHORD_FAILED.value, bind=True, ignore_result=True, acks_late=True)
def chord_failed(self: Task[Any, Any], chord_id: str) -> str:
    """A task of the chord gave up, or Celery lost its answer: the marks say which."""
    return tell(chord_id, unexplained="ended without an error message")


@app.task(name=ControlTask.RETRY_BATCH.value, ignore_result=True, acks_late=True)
def retry_batch(batch_id: str, by: str = "unknown") -> str:
    """Asks the batch's reader to try it now instead of at its next backoff."""
    return retry(tools.get().coordination, batch_id, by)


@app.task(name=ControlTask.ABANDON_BATCH.value, ignore_result=True, acks_late=True)
def abandon_batch(batch_id: str, reason: str, by: str = "unknown") -> str:
    """Moves the batch's messages to the dead letters and tells its reader to go on without it."""
    mine = tools.get()
    return abandon(mine.settings, mine.coordination, mine.sink(SinkName.DEAD_LETTER), batch_id, reason, by)


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
