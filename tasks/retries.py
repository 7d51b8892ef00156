"""Retries of flush tasks.

Retries wait with exponential backoff and full jitter, and are bounded by `task_retries_max` and the batch's
deadline. When a task has used up its retries, its chord fails and the reader parks the batch.
"""

from __future__ import annotations

import random
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Reject, Retry
from celery.utils.log import get_task_logger

from tasks.observe.metric_table import RunOutcome
from tasks.settings import Settings
from tasks.staging import Progress, Staging

log = get_task_logger(__name__)


class Later(Exception):
    """The run did not finish; the next run continues from `progress`.

    `wait_seconds`: minimum wait, or None for backoff alone. `counts`: whether the run counts against
    `task_retries_max`. Runs that were postponed or made progress are bounded only by the batch's deadline.
    """

    def __init__(
        self,
        error: str,
        wait_seconds: float | None = None,
        progress: Progress | None = None,
        *,
        counts: bool = True,
    ) -> None:
        super().__init__(error)
        self.wait_seconds = wait_seconds
        self.progress = progress
        self.counts = counts


class GaveUp(Exception):
    """A flush task used up its retries or its time in this attempt of its batch. The reader parks the batch and
    retries it.
    """

    outcome = RunOutcome.GAVE_UP


def put_off(
    task: Task[Any, Any], staging: Staging, settings: Settings, batch: str, name: str, until: int, later: Later
) -> NoReturn:
    """Ends the run: raises Celery's Retry, or GaveUp if the retries or the batch's time are used up."""
    tries = int(task.request.retries or 0)
    wait_seconds = backoff_seconds(tries, later.wait_seconds, settings)
    exhausted = (later.counts and tries >= settings.task_retries_max) or staging.now() + wait_seconds > until
    error = f"{later} (gave up after {tries + 1} runs)" if exhausted else str(later)
    staging.put_off(batch, name, str(task.request.id), error, later.progress)
    if exhausted:
        raise GaveUp(error) from later
    log.info("%s of %s again in %.1f s: %s", name, batch, wait_seconds, later)
    if later.counts or task.request.is_eager:
        raise task.retry(exc=later, countdown=wait_seconds)
    # Does the same as `Task.retry`, but does not enforce Celery's retry count.
    signature = task.signature_from_request(countdown=wait_seconds, retries=tries)
    try:
        signature.apply_async()
    except Exception as error:
        raise Reject(error, requeue=False) from error
    raise Retry(exc=later, when=wait_seconds, sig=signature)  # type: ignore[arg-type]


def backoff_seconds(tries: int, asked_seconds: float | None, settings: Settings) -> float:
    """Returns a wait with full jitter below an upper bound that doubles per retry. A wait requested by the server
    is the minimum.

    The wait is at most half of the visibility timeout, because a waiting task is an unacknowledged message.
    """
    ceiling = min(settings.task_backoff_seconds * 2.0**tries, settings.task_backoff_seconds_max)
    wait_seconds = random.uniform(0, ceiling)
    if asked_seconds is not None:
        wait_seconds = asked_seconds + random.uniform(0, min(ceiling, max(asked_seconds, 0.1)))
    return min(wait_seconds, settings.task_visibility_seconds / 2)
