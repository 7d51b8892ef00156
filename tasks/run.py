"""One run of a flush task: checks the done mark and the circuit breaker, loads the staged bytes, writes them, and
sets the done mark.

A failed run is retried (`tasks.retries`) or fails its chord; the reader then parks the batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import xxhash
from celery import Task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from tasks.bisection import TimeLimitReached, Write, deliver
from tasks.breaker import Breaker, Permit, log_state
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.observe import metrics
from tasks.observe.watch import Watch, observed_run
from tasks.refused import dead_letter
from tasks.retries import GaveUp, RetryLater, put_off
from tasks.sinks.base import RecordingSink, Sink
from tasks.staging import Progress, Run
from tasks.task_record import StagedRecord
from tasks.tools import WorkerContext, tools
from tasks.wire import Item, Manifest, SinkName, TaskName, decode_items, part_of, reference

log = get_task_logger(__name__)
DONE = "done"
# A run is postponed once it has taken this many times the call timeout, well before Celery's time limits.
CALLS_PER_RUN = 3
# A run does not count as failed if it leaves at most this share of its items unwritten.
SCATTERED_FAILURES_SHARE_MAX = 0.25


class Held(Exception):
    """No item is at fault and a retry cannot help, so the batch is parked. `progress` records which items are
    durable."""

    def __init__(self, error: str, progress: Progress | None = None) -> None:
        super().__init__(error)
        self.progress = progress


def run(task: Task[Any, Any], batch: str, name: str, until: int) -> str:
    """Runs a flush task once. Returns DONE. Raises Celery's Retry if the task is to be retried, otherwise the
    error that made the task fail.
    """
    worker, task_id = tools.get(), str(task.request.id)
    sink = TaskName.parse(name).sink
    with observed_run(task.request, batch, name, worker.staging, worker.settings) as watch:
        try:
            started = worker.staging.begin(batch, name, task_id, worker.breaker.request(sink))
            watch.already_done = started is None
            if started is None:
                return DONE
            permit = started.permit or worker.breaker.request_permit(sink)
            if started.starts > worker.settings.task_starts_max:
                worker.breaker.release_permit(sink, permit)
                raise GaveUp(
                    f"{name} of {batch} started {started.starts - 1} times without finishing: it kills its worker"
                )
            flush(worker, batch, name, started, permit, watch)
            finish(worker, batch, name, task_id, started.content, permit)
        except RetryLater as retry_later:
            put_off(task, worker.staging, worker.settings, batch, name, until, retry_later)
        except Held as held:
            worker.staging.put_off(batch, name, task_id, str(held), held.progress)
            raise
        except (Retry, Reject, Ignore):
            raise
        except Exception as error:
            poison, text = isinstance(error, GaveUp), f"{type(error).__name__}: {error}"
            worker.staging.put_off(batch, name, task_id, text, None, is_poison=poison)
            raise
    return DONE


def finish(worker: WorkerContext, batch: str, name: str, task_id: str, content: str, permit: Permit) -> None:
    """Sets the done mark and reports the success to the sink's breaker, in one round trip if possible."""
    sink, state = TaskName.parse(name).sink, ""
    try:
        result = worker.breaker.result(sink, permit, worked=True)
        state = worker.staging.mark(batch, name, task_id, content, result)
    finally:
        if state:
            log_state(sink, permit, state)
        else:
            worker.breaker.report(sink, permit, worked=True)


def flush(worker: WorkerContext, batch: str, name: str, started: Run, permit: Permit, watch: Watch) -> None:
    """Writes one task's items, and dead letters for the refused items. Raises RetryLater if the task is to be
    retried, otherwise the error that made the task fail.

    Reports a failure to the sink's breaker; a success is reported with the done mark.
    """
    target = TaskName.parse(name).sink
    if not permit.granted:
        metrics.observe_breaker_refusal(target)
        error = permit.error or f"{target}: its calls fail"
        text = f"{error} (not called now, its breaker is open)"
        raise RetryLater(text, probe_seconds=permit.wait_seconds, counts=False)
    try:
        sink = worker.sink(target)
        payload = worker.staging.payload(batch, name, started)
        items = decode_items(target, payload)
    except Exception:
        worker.breaker.release_permit(target, permit)  # the sink was not called, so its state is unknown
        raise
    watch.called, watch.items, watch.size_bytes = True, len(items), len(payload)
    progress = started.progress or Progress(left=list(range(len(items))))
    seconds = worker.settings.sink_timeout_seconds
    ends_at = time.monotonic() + CALLS_PER_RUN * seconds
    write = _writer(worker, batch, name, sink, items)
    examine = partial(_examine, sink, items, seconds / 2)
    before = len(progress.left)
    with _failures_reported(worker.breaker, target, permit) as call:
        try:
            deliver(write, examine, progress, len(items), lambda: time.monotonic() < ends_at)
            _write_dead_letters(worker, started.manifest, target, items, progress)
        except PermanentSinkError as error:
            raise Held(str(error), progress) from error
        except TransientSinkError as error:
            call.error = str(error)
            # A partial success does not count as a failure of the sink: 2 failed uploads out of 64 are normal.
            call.worked = len(progress.left) < before or not progress.left
            if error.failed is not None and 0 < len(progress.left) <= SCATTERED_FAILURES_SHARE_MAX * before:
                # The failed items are retried as soon as the sink allows, and the run does not count as failed.
                raise RetryLater(str(error), error.retry_after_seconds or 0.0, progress, counts=False) from error
            raise RetryLater(str(error), error.retry_after_seconds, progress) from error
        except TimeLimitReached as error:
            raise RetryLater(str(error), 0.0, progress, counts=False) from error
        except SoftTimeLimitExceeded as error:
            call.worked, call.error = False, f"{target}: did not return within the time limit"
            raise RetryLater(call.error, None, progress) from error


@dataclass(slots=True)
class _Call:
    """The result of a run's calls to its sink: whether the sink responded, and its last error."""

    worked: bool = True
    error: str = ""


@contextmanager
def _failures_reported(breaker: Breaker, target: SinkName, permit: Permit) -> Iterator[_Call]:
    """Reports a failed run to the breaker. If the breaker is then open, a run that is to be repeated waits for the
    next probe.
    """
    call = _Call()
    try:
        yield call
    except BaseException as error:
        probe_seconds = breaker.report(target, permit, worked=call.worked, error=call.error)
        if isinstance(error, RetryLater):
            error.probe_seconds = probe_seconds
        raise


def _writer(worker: WorkerContext, batch: str, name: str, sink: Sink[Any], items: Sequence[Item]) -> Write:
    """Returns the function that writes some of the task's items."""
    seconds = worker.settings.sink_timeout_seconds
    if isinstance(sink, RecordingSink):
        record = StagedRecord(worker.staging, worker.settings, batch, name)
        return partial(_write_recorded, sink, items, record, seconds)
    return partial(_write, sink, items, f"{batch}:{name}", seconds)


def _write(
    sink: Sink[Any], items: Sequence[Item], token: str, deadline_seconds: float, positions: Sequence[int]
) -> None:
    """Calls the sink once for some of the items. The token identifies exactly these items."""
    if len(positions) < len(items):
        token = f"{token}:{xxhash.xxh3_64_hexdigest(msgspec.json.encode(list(positions)))}"
    sink.write(part_of(items, positions), token, deadline_seconds)


def _write_recorded(
    sink: RecordingSink,
    items: Sequence[Any],
    record: StagedRecord,
    deadline_seconds: float,
    positions: Sequence[int],
) -> None:
    """Calls the sink once for some of the items, and passes it the record of the task."""
    sink.write_recorded(part_of(items, positions), positions, record, deadline_seconds)


def _examine(sink: Sink[Any], items: Sequence[Item], deadline_seconds: float, positions: Sequence[int]) -> None:
    """Checks that the destination of these items is healthy."""
    sink.examine(part_of(items, positions), deadline_seconds)


def _write_dead_letters(
    worker: WorkerContext, manifest: Manifest, sink: SinkName, items: Sequence[Item], progress: Progress
) -> None:
    """Writes dead letters for the refused items, before the task counts as done."""
    if not progress.refused:
        return
    if sink is SinkName.DEAD_LETTER:
        raise PermanentSinkError(f"dead letters are refused: {progress.refused[0][1]}", configuration=True)
    batch = reference(manifest)
    letters = [dead_letter(items[position], manifest, sink, error) for position, error in progress.refused]
    log.warning(
        "%s refused %s of %s items of %s: %s", sink, len(letters), len(items), batch, progress.refused[0][1]
    )
    token = f"{batch}:refused:{sink}:{xxhash.xxh3_64_hexdigest(msgspec.json.encode(progress.refused))}"
    worker.sink(SinkName.DEAD_LETTER).write(letters, token, worker.settings.sink_timeout_seconds)
    metrics.observe_refused_items(sink, len(letters))
