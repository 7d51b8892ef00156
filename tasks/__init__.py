"""The flush fleet. `celery -A tasks worker` finds the app in `tasks.celery`; importing this does nothing."""
