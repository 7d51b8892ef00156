"""The fan-out: one stage of one batch as a flat chord.

    flush_gcs(blobs/gcs/0) ─┐
    flush_gcs(blobs/gcs/1) ─┼─▶ complete           all of them returned
    ...                    ─┘   chord_failed       one of them gave up

The tasks run on their sinks' queues; `complete` and `chord_failed` on `control`, so that news of a batch never
waits behind the work of others. Messages carry names only, the bytes are staged (DESIGN D3). What the two need to
know is the chord's name, which is the task id of `complete`; Celery hands it to `chord_failed` as its argument.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from celery import Celery, chord

from celeryconfig import configuration
from tasks import messages as messages
from tasks import wire
from tasks.settings import Settings

TOKEN_BYTES = 6


def new_token() -> str:
    """Names one chord. It goes into no row, no object and no deduplication token."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def publisher(settings: Settings) -> Celery:
    """An app that only sends, for the reader: it knows no task and loads no sink."""
    app = Celery("replays-ingest", set_as_current=False)
    app.conf.update(configuration(settings), imports=())
    if settings.task_security_key_file is not None:
        app.setup_security()
    return app


def start(
    app: Celery,
    batch: str,
    tasks: Sequence[str],
    stage: str,
    attempt: int,
    token: str,
    until: int,
    traceparent: str = "",
) -> None:
    """Starts the chord of these flush tasks (their names in the staged batch), at least one.

    `until`: unix seconds after which a task that failed is not retried any more. Raises what kombu and redis
    raise, within a few time-outs of Redis; then some of the tasks may be queued already, which is harmless.
    `traceparent` (W3C) travels as a header, and only while the batch is traced.
    """
    header = [
        app.signature(
            f"flush_{name.split('/')[1]}",
            kwargs={"batch": batch, "task": name, "until": until},
            immutable=True,
            task_id=f"{token}-{number}",
            ignore_result=True,
            **({"headers": {"traceparent": traceparent}} if traceparent else {}),
        )
        for number, name in enumerate(tasks)
    ]
    failed = app.signature("chord_failed")
    body_id = wire.chord_id(batch, stage, attempt, token)
    complete = app.signature("complete", immutable=True, task_id=body_id, link_error=[failed])
    chord(header, complete, app=app, task_id=token).apply_async()
