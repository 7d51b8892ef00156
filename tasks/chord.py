"""The fan-out: one stage of one batch as a flat chord.

    flush_gcs(blobs/gcs/0) ─┐
    flush_gcs(blobs/gcs/1) ─┼─▶ complete           all of them returned
    ...                    ─┘   chord_failed       one of them gave up

The tasks run on their sinks' queues; `complete` and `chord_failed` on `control`, so that news of a batch never
waits behind the work of others. Messages carry names only, the bytes are staged
(docs/decisions/003-claim-check.md). What the two need to know is the
chord's name, which is the task id of `complete`; Celery hands it to `chord_failed` as its argument.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from celery import Celery, chord

from tasks import messages as messages
from tasks.configuration import configuration, secure
from tasks.names import ControlTask, flush_task
from tasks.settings import Settings
from tasks.wire import ChordName, TaskName

TOKEN_BYTES = 6


@dataclass(frozen=True, slots=True)
class FanOut:
    """A chord that is about to be started: the flush tasks (their names in the staged batch), at least one.

    `until`: unix seconds after which a task that failed is not retried any more. `traceparent` (W3C) travels as a
    header, and only while the batch is traced.
    """

    name: ChordName
    tasks: tuple[str, ...]
    until: int
    traceparent: str = ""

    def __post_init__(self) -> None:
        assert self.tasks, self.name


def new_token() -> str:
    """Names one chord. It goes into no row, no object and no deduplication token."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def publisher(settings: Settings) -> Celery:
    """An app that only sends, for the reader: it knows no task and loads no sink."""
    app = Celery("replays-ingest", set_as_current=False)
    app.conf.update(configuration(settings), imports=())
    if settings.task_security_key_file is not None:
        secure(app)
    return app


def start(app: Celery, fan_out: FanOut) -> None:
    """Starts the chord. Raises what kombu and redis raise, within a few time-outs of Redis.

    Then some of the tasks may be queued already, which is harmless.
    """
    name = fan_out.name
    options: dict[str, Any] = {"headers": {"traceparent": fan_out.traceparent}} if fan_out.traceparent else {}
    header = [
        app.signature(
            flush_task(TaskName.parse(task).sink),
            kwargs={"batch": name.batch, "task": task, "until": fan_out.until},
            immutable=True,
            task_id=f"{name.token}-{number}",
            ignore_result=True,
            **options,
        )
        for number, task in enumerate(fan_out.tasks)
    ]
    failed = app.signature(ControlTask.CHORD_FAILED.value)
    complete = app.signature(ControlTask.COMPLETE.value, immutable=True, task_id=str(name), link_error=[failed])
    chord(header, complete, app=app, task_id=name.token).apply_async()
