"""Retries of flush tasks.

Retries wait with exponential backoff and full jitter, and are bounded by `task_retries_max` and the batch's
deadline. While the sink's breaker is open, retries instead wait for the breaker's next probe, so that waits do not
add up. When a task has used up its retries, its chord fails and the reader parks the batch.
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

# Tasks that wait for the same probe are spread over this period. The first of these tasks becomes the probe.
PROBE_SPREAD_SECONDS = 2.0


class RetryLater(Exception):
    """The run did not finish; the next run continues from `progress`.

    `wait_seconds`: minimum wait, or None for backoff alone. `probe_seconds`: time until the next probe if the
    sink's breaker is open, otherwise 0; it replaces the backoff. `counts`: whether the run counts against
    `task_retries_max`. Runs that were postponed or made progress are bounded only by the batch's deadline.
    """

    def __init__(
        self,
        error: str,
        wait_seconds: float | None = None,
        progress: Progress | None = None,
        *,
        probe_seconds: float = 0.0,
        counts: bool = True,
    ) -> None:
        super().__init__(error)
        self.wait_seconds = wait_seconds
        self.probe_seconds = probe_seconds
        self.progress = progress
        self.counts = counts


class GaveUp(Exception):
    """A flush task used up the retries or the time that it had for the current attempt to flush its batch. The
    reader parks the batch and retries it.
    """

    outcome = RunOutcome.GAVE_UP


def put_off(
    task: Task[Any, Any],
    staging: Staging,
    settings: Settings,
    batch: str,
    name: str,
    until: int,
    retry_later: RetryLater,
) -> NoReturn:
    """Ends the run: raises Celery's Retry, or GaveUp if the retries or the batch's time are used up."""
    tries = int(task.request.retries or 0)
    wait_seconds = retry_wait_seconds(tries, retry_later, settings)
    exhausted = is_exhausted(tries, retry_later, wait_seconds, until - staging.now(), settings)
    error = f"{retry_later} (gave up after {tries + 1} runs)" if exhausted else str(retry_later)
    staging.put_off(batch, name, str(task.request.id), error, retry_later.progress)
    if exhausted:
        raise GaveUp(error) from retry_later
    log.info("%s of %s again in %.1f s: %s", name, batch, wait_seconds, retry_later)
    if retry_later.counts or task.request.is_eager:
        raise task.retry(exc=retry_later, countdown=wait_seconds)
    # Does the same as `Task.retry`, but does not enforce Celery's retry count.
    signature = task.signature_from_request(countdown=wait_seconds, retries=tries)
    try:
        signature.apply_async()
    except Exception as error:
        raise Reject(error, requeue=False) from error
    raise Retry(exc=retry_later, when=wait_seconds, sig=signature)  # type: ignore[arg-type]


def is_exhausted(
    tries: int, retry_later: RetryLater, wait_seconds: float, remaining_seconds: float, settings: Settings
) -> bool:
    """Returns True if the run must not be repeated: its retries are used up, or the wait would exceed the time
    left.
    """
    return (retry_later.counts and tries >= settings.task_retries_max) or wait_seconds > remaining_seconds


def retry_wait_seconds(tries: int, retry_later: RetryLater, settings: Settings) -> float:
    """Returns the wait before the next run: if the breaker is open, the time until its next probe, otherwise the
    backoff. A longer wait requested by the server takes precedence.
    """
    if not retry_later.probe_seconds:
        return backoff_seconds(tries, retry_later.wait_seconds, settings)
    wait_seconds = max(retry_later.probe_seconds, retry_later.wait_seconds or 0.0) + random.uniform(
        0, PROBE_SPREAD_SECONDS
    )
    return min(wait_seconds, settings.task_visibility_seconds / 2)


def backoff_seconds(tries: int, requested_seconds: float | None, settings: Settings) -> float:
    """Returns a wait with full jitter below an upper bound that doubles per retry. A wait requested by the server
    is the minimum.

    The wait is at most half of the visibility timeout, because a waiting task is an unacknowledged message.
    """
    ceiling = min(settings.task_backoff_seconds * 2.0**tries, settings.task_backoff_seconds_max)
    wait_seconds = random.uniform(0, ceiling)
    if requested_seconds is not None:
        wait_seconds = requested_seconds + random.uniform(0, min(ceiling, max(requested_seconds, 0.1)))
    return min(wait_seconds, settings.task_visibility_seconds / 2)
