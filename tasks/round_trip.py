"""A task published and consumed again through the fleet's own broker configuration: used by `check`.

It has a queue of its own, which no worker consumes and which is deleted afterwards.
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
    """The task did not come back. The text says why."""


def publish_and_consume(settings: Settings, seconds_max: float) -> None:
    """Returns when the task came back as it was sent, signed if messages are signed.

    Raises NotDelivered, and what kombu and redis raise.
    """
    app = publisher(settings)
    token = secrets.token_hex(6)
    name = f"check.{token}"
    with app.connection_for_write() as connection, connection.channel() as channel:
        queue = Queue(name, routing_key=name)(channel)
        queue.declare()
        try:
            own: Any = Queue(name)  # Celery takes a queue that it does not know, which its annotation leaves out
            app.send_task(name, kwargs={"token": token}, task_id=token, queue=own, connection=connection)
            ends_at = time.monotonic() + seconds_max
            while (message := queue.get(accept=app.conf.accept_content)) is None:
                if time.monotonic() >= ends_at:
                    raise NotDelivered(f"a task that was published did not come back within {seconds_max:g} s")
                time.sleep(POLL_SECONDS)
            message.ack()
            _, kwargs, _ = message.payload
            if message.headers.get("id") != token or kwargs != {"token": token}:
                raise NotDelivered("a task came back as another one than was published")
        finally:
            queue.delete()
    app.close()
