"""The Celery app of the flush fleet, nothing else: `celery -A tasks worker` finds it here."""

from __future__ import annotations

from celery import Celery

from tasks import messages as messages
from tasks import watch

app = Celery("tasks")
app.config_from_object("celeryconfig")
watch.connect()
