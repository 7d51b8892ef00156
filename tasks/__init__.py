"""Flush workers. `celery -A tasks worker` finds the app in `tasks.celery`; importing this package has no side
effects."""
