"""Publishes and consumes a task with the workers' broker configuration; used by `check`.

Uses its own queue, which no worker consumes and which is deleted afterwards.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from kombu import Queue

from tasks.chord import publisher
from tasks.settings import Settings

POLL_SECONDS = 0.05


class NotDelivered(Exception):
    """The task was not received. The message states why."""


def publish_and_consume(settings: Settings, seconds_max: float) -> None:
    """Returns once the task has been received unchanged, and signed if messages are signed.

    Raises NotDelivered, and errors of kombu and redis.
    """
    app = publisher(settings)
    token = secrets.token_hex(6)
    name = f"check.{token}"
    with app.connection_for_write() as connection, connection.channel() as channel:
        queue = Queue(name, routing_key=name)(channel)
        queue.declare()
        try:
            own: Any = Queue(name)  # Celery accepts an unknown queue, contrary to its annotation
            app.send_task(name, kwargs={"token": token}, task_id=token, queue=own, connection=connection)
            ends_at = time.monotonic() + seconds_max
            while (message := queue.get(accept=app.conf.accept_content)) is None:
                if time.monotonic() >= ends_at:
                    raise NotDelivered(f"a published task was not received within {seconds_max:g} s")
                time.sleep(POLL_SECONDS)
            message.ack()
            _, kwargs, _ = message.payload
            if message.headers.get("id") != token or kwargs != {"token": token}:
                raise NotDelivered("the received task differs from the published one")
        finally:
            queue.delete()
    app.close()
