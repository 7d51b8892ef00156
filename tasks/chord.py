"""Fan-out: one stage of one batch as a flat chord.

    flush_gcs(blobs/gcs/0) ─┐
    flush_gcs(blobs/gcs/1) ─┼─▶ complete           all of them returned
    ...                    ─┘   chord_failed       one of them failed

The tasks run on their sinks' queues. `complete` and `chord_failed` run on the queue `control`, so that completions
never wait behind flush tasks. Messages carry only names; the bytes are staged (docs/decisions/003-claim-check.md).
Both callbacks need the chord's name, which is the task id of `complete`; Celery passes it to `chord_failed` as an
argument.
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
    """A chord to start, with at least one flush task. Tasks are identified by their names in the staged batch.

    `until`: Unix time, in seconds, after which failed tasks are no longer retried. `traceparent` (W3C) is sent as
    a header if the batch is traced.
    """

    name: ChordName
    tasks: tuple[str, ...]
    until: int
    traceparent: str = ""

    def __post_init__(self) -> None:
        assert self.tasks, self.name


def new_token() -> str:
    """Returns a new token that identifies a chord. The token is not part of any row, object or deduplication
    token.
    """
    return secrets.token_urlsafe(TOKEN_BYTES)


def publisher(settings: Settings) -> Celery:
    """Returns a send-only app for the reader, without tasks or sinks."""
    app = Celery("replays-ingest", set_as_current=False)
    app.conf.update(configuration(settings), imports=())
    if settings.task_security_key_file is not None:
        secure(app)
    return app


def start(app: Celery, fan_out: FanOut) -> None:
    """Starts the chord.

    Raises kombu or redis errors within a few Redis timeouts; some tasks may already be queued by then, which is
    harmless.
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
