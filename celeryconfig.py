"""Celery's configuration, read by `tasks.celery`. Numbers come from `tasks.settings`."""
