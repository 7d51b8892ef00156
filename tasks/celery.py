"""The Celery app of the flush fleet, nothing else: `celery -A tasks worker` finds it here."""

from __future__ import annotations

from typing import Any

from celery import Celery

from tasks import messages as messages
from tasks import watch

app = Celery("tasks")
app.config_from_object("celeryconfig")


@app.on_after_configure.connect
def verify(sender: Celery, **_: Any) -> None:
    """With `task_security_*` set, only signed messages are read from here on, and ours are signed."""
    if sender.conf.task_serializer == "auth":
        sender.setup_security()


watch.connect()
