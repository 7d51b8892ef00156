"""The flush tasks: one doorway a sink, the work of all of them below, and the two ends of their chord.

A run of a task: is it done already (its mark)? may the sink be called (its breaker)? then load the staged bytes,
write them, set the mark. What fails is either put off (the machine tries again: backoff with full jitter, bounded
by `task_retries_max` and by the batch's deadline) or fails for good (the chord fails, the reader parks the batch).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import msgspec
import xxhash
from celery import Task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from tasks.breaker import Breaker
from tasks.celery import app
from tasks.delivery import OutOfTime, deliver
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.observe import metrics
from tasks.observe.watch import Watch, watched
from tasks.refused import dead_letter, revive
from tasks.settings import Settings, load_as
from tasks.sinks import build
from tasks.sinks.base import Sink
from tasks.sinks.per_process import PerProcess
from tasks.staging import Begun, Progress, Staging, connect
from tasks.wire import Item, batch_id_of, decode_items, parse_chord_id

log = get_task_logger(__name__)
DONE = "done"
# After so many calls' time a run puts itself off, well before the limits that Celery enforces.
CALLS_PER_RUN = 3
# When no more than this share of what a run tried is left, the run got on well.
SCATTERED_SHARE_MAX = 0.25
# A finished write is worth more patience with Redis than anything else: without its mark it is done again.
REDIS_RETRIES = 6

# Bounded by `put_off`, which knows the deadline; Celery's own counter must not cut in.
OPTIONS: dict[str, Any] = {
    "bind": True,
    "max_retries": None,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "ignore_result": True,
}


@app.task(name="flush_gcs", **OPTIONS)
def flush_gcs(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Recordings to Cloud Storage."""
    return run(self, batch, task, until)


@app.task(name="flush_clickhouse", **OPTIONS)
def flush_clickhouse(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Replay rows to ClickHouse."""
    return run(self, batch, task, until)


@app.task(name="flush_bigquery", **OPTIONS)
def flush_bigquery(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Event analytics to BigQuery."""
    return run(self, batch, task, until)


@app.task(name="flush_datadog", **OPTIONS)
def flush_datadog(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Product metrics to DataDog."""
    return run(self, batch, task, until)


@app.task(name="flush_dead_letter", **OPTIONS)
def flush_dead_letter(self: Task[Any, Any], *, batch: str, task: str, until: int) -> str:
    """Rejected messages to the dead-letter topic."""
    return run(self, batch, task, until)


@app.task(name="complete", bind=True, ignore_result=True, acks_late=True)
def complete(self: Task[Any, Any]) -> str:
    """All tasks of the chord returned: tells the reader, if their marks say so too."""
    return tell(str(self.request.id), failed=False)


@app.task(name="chord_failed", bind=True, ignore_result=True, acks_late=True)
def chord_failed(self: Task[Any, Any], chord_id: str) -> str:
    """A task of the chord gave up, or Celery lost its answer: the marks say which."""
    return tell(chord_id, failed=True)


class Tools:
    """What a flush task works with, in this process. Sinks are built when first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.staging = Staging(connect(settings, retries=REDIS_RETRIES), settings)
        self.breaker = Breaker(connect(settings, retries=0), settings)
        self._sinks: dict[str, Sink[Any]] = {}

    def sink(self, name: str) -> Sink[Any]:
        """The one sink of that name."""
        if name not in self._sinks:
            self._sinks[name] = build(name, self.settings)
        return self._sinks[name]


# Made after the fork, in the process that uses them: connections must not be shared with a parent.
tools: PerProcess[Tools] = PerProcess(lambda: Tools(load_as(Settings, refuse_unknown=False)))


class Later(Exception):
    """The run did not get to its end, the next one may go on from `progress`.

    `wait_seconds`: no sooner than that; None: by backoff. `counts`: it was a failure, of which a task has
    `task_retries_max`; one that was not let in, or got on well, has only the batch's deadline.
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
    """A flush task failed for good in this attempt of its batch. The reader parks the batch and tries again."""

    outcome = "gave_up"


def run(task: Task[Any, Any], batch: str, name: str, until: int) -> str:
    """One run of a flush task: the constant DONE, or Celery's Retry, or what it failed with."""
    mine, task_id = tools.get(), str(task.request.id)
    with watched(task.request, batch, name, mine.staging, mine.settings) as watch:
        try:
            begun = mine.staging.begin(batch, name, task_id)
            watch.already_done = begun.done
            if begun.done:
                return DONE
            if begun.starts > mine.settings.task_starts_max:
                raise GaveUp(
                    f"{name} of {batch} began {begun.starts - 1} times without an end: it kills its worker"
                )
            flush(mine, batch, name, begun, watch)
            mine.staging.mark(batch, name, task_id)
        except Later as later:
            put_off(task, mine, batch, name, until, later)
        except (Retry, Reject, Ignore):
            raise
        except Exception as error:
            mine.staging.put_off(batch, name, task_id, f"{type(error).__name__}: {error}", None)
            raise
    return DONE


def flush(mine: Tools, batch: str, name: str, begun: Begun, watch: Watch) -> None:
    """Writes one task's items, dead letters of the refused ones included. Raises Later, or what it failed with."""
    sink = mine.sink(name.split("/")[1])
    permit = mine.breaker.ask(sink.name)
    if not permit.granted:
        metrics.observe_breaker_refusal(sink.name)
        error = f"{sink.name} fails too often: not called until its breaker lets a probe through"
        raise Later(error, permit.wait_seconds, counts=False)
    try:
        payload = mine.staging.payload(batch, name)
        items = decode_items(sink.name, payload)
    except Exception:
        mine.breaker.give_back(sink.name, permit)  # the sink was not called: this says nothing about it
        raise
    watch.called, watch.items, watch.size_bytes = True, len(items), len(payload)
    progress = begun.progress or Progress(left=list(range(len(items))))
    ends_at = time.monotonic() + CALLS_PER_RUN * mine.settings.sink_timeout_seconds
    write = partial(_write, sink, items, f"{batch}:{name}", mine.settings.sink_timeout_seconds)
    before = len(progress.left)
    worked = True
    try:
        deliver(write, progress, len(items), lambda: time.monotonic() < ends_at)
        _bury(mine, batch, sink.name, items, progress)
    except TransientSinkError as error:
        # A sink that took some of it is not sick: 2 of 64 uploads failing is an ordinary day.
        worked = len(progress.left) < before or not progress.left
        if error.failed is not None and 0 < len(progress.left) <= SCATTERED_SHARE_MAX * before:
            # Nor does it keep the few waiting: they come back as soon as they may, and that is no failure.
            raise Later(str(error), error.retry_after_seconds or 0.0, progress, counts=False) from error
        raise Later(str(error), error.retry_after_seconds, progress) from error
    except OutOfTime as error:
        raise Later(str(error), 0.0, progress, counts=False) from error
    except SoftTimeLimitExceeded as error:
        worked = False
        raise Later(f"{sink.name}: did not return within the time limit", None, progress) from error
    finally:
        mine.breaker.tell(sink.name, permit, worked=worked)


def _write(
    sink: Sink[Any], items: Sequence[Item], token: str, deadline_seconds: float, positions: Sequence[int]
) -> None:
    """One call of the sink for some of the items. The token names exactly these."""
    if len(positions) < len(items):
        token = f"{token}:{xxhash.xxh3_64_hexdigest(msgspec.json.encode(list(positions)))}"
    sink.write([items[position] for position in positions], token, deadline_seconds)


def _bury(mine: Tools, batch: str, sink: str, items: Sequence[Item], progress: Progress) -> None:
    """Refused items become dead letters, durably, before the task may count as done."""
    if not progress.refused:
        return
    if sink == "dead_letter":
        raise PermanentSinkError(f"dead letters are refused: {progress.refused[0][1]}", configuration=True)
    manifest = mine.staging.manifest(batch)
    letters = [dead_letter(items[position], manifest, sink, error) for position, error in progress.refused]
    log.warning(
        "%s refused %s of %s items of %s: %s", sink, len(letters), len(items), batch, progress.refused[0][1]
    )
    token = f"{batch}:refused:{sink}:{xxhash.xxh3_64_hexdigest(msgspec.json.encode(progress.refused))}"
    mine.sink("dead_letter").write(letters, token, mine.settings.sink_timeout_seconds)
    metrics.observe_refused(sink, len(letters))


def put_off(task: Task[Any, Any], mine: Tools, batch: str, name: str, until: int, later: Later) -> NoReturn:
    """Ends the run: Celery's Retry, or GaveUp when the retries or the batch's time are used up."""
    settings = mine.settings
    tries = int(task.request.retries or 0)
    wait_seconds = backoff_seconds(tries, later.wait_seconds, settings)
    over = (later.counts and tries >= settings.task_retries_max) or time.time() + wait_seconds > until
    error = f"{later} (gave up after {tries + 1} runs)" if over else str(later)
    mine.staging.put_off(batch, name, str(task.request.id), error, later.progress)
    if over:
        raise GaveUp(error) from later
    log.info("%s of %s again in %.1f s: %s", name, batch, wait_seconds, later)
    if later.counts or task.request.is_eager:
        raise task.retry(exc=later, countdown=wait_seconds)
    # As `Task.retry` does it, but for the count.
    again = task.signature_from_request(countdown=wait_seconds, retries=tries)
    try:
        again.apply_async()
    except Exception as error:
        raise Reject(error, requeue=False) from error
    raise Retry(exc=later, when=wait_seconds, sig=again)  # type: ignore[arg-type]


def backoff_seconds(tries: int, asked_seconds: float | None, settings: Settings) -> float:
    """Full jitter below a doubling ceiling; what the server asked for is a floor, with jitter above it.

    Never longer than half of the visibility time-out: a waiting task is an unacknowledged message.
    """
    ceiling = min(settings.task_backoff_seconds * 2.0**tries, settings.task_backoff_seconds_max)
    wait_seconds = random.uniform(0, ceiling)
    if asked_seconds is not None:
        wait_seconds = asked_seconds + random.uniform(0, min(ceiling, max(asked_seconds, 0.1)))
    return min(wait_seconds, settings.task_visibility_seconds / 2)


def tell(chord_id: str, *, failed: bool) -> str:
    """Tells the batch's reader how the stage stands; the marks decide, not who asks."""
    chord = parse_chord_id(chord_id)
    completion = tools.get().staging.report(chord, failed=failed)
    metrics.observe_completion("nobody" if completion is None else completion.kind)
    if completion is None:
        log.warning("nobody waits for %s of %s any more", chord.stage, batch_id_of(chord.batch))
        return "nobody waits"
    return completion.kind


__all__ = ["app", "revive"]
