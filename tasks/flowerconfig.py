"""Flower's configuration, read by `celery -A tasks flower` and by `replays-ingest flower`. See tasks/flower.py."""

from tasks.flower import load, options

globals().update(options(load()))
