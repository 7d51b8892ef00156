"""Delivers items to one sink as a flush task does, without Celery or Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.bisection import deliver
from tasks.sinks.base import Sink
from tasks.staging import Progress
from tasks.wire import Item, part_of

WRITE_SECONDS_MAX = 20.0


def deliver_to(sink: Sink[Any], items: Sequence[Item], progress: Progress | None = None) -> Progress:
    """Delivers the items and returns the progress, which lists the refused items. Delivery errors are raised."""
    progress = progress or Progress(left=list(range(len(items))))
    deliver(
        lambda positions: sink.write(part_of(items, positions), f"t{positions}", WRITE_SECONDS_MAX),
        lambda positions: sink.examine(part_of(items, positions), WRITE_SECONDS_MAX),
        progress,
        len(items),
        lambda: True,
    )
    assert not progress.left
    return progress
