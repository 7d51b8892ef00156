"""Connects Flower's events with the task history (`tasks.flower.history`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.flower.history import History
from tasks.settings import Settings

log = logging.getLogger(__name__)


class _NoMetrics:
    """Replaces Flower's metrics during the replay: the previous process already counted the replayed events."""

    def observe_task(self, *_: Any) -> None: ...

    def observe_worker(self, *_: Any) -> None: ...


def restore_and_record_history(events: Any, settings: Settings) -> Callable[[], None]:
    """Replays the history into Flower's state, records every further event, and returns a function
    that stops recording.

    Without a path there is no history. Raises HistoryError.
    """
    if not settings.flower_history_path:
        return lambda: None
    history = History(
        Path(settings.flower_history_path),
        age_seconds_max=settings.flower_history_seconds_max,
        bytes_max=settings.flower_history_bytes_max,
    )
    state = events.state
    metrics, state.metrics = state.metrics, _NoMetrics()
    try:
        count = history.replay(state.event, state.max_tasks_in_memory)
    finally:
        state.metrics = metrics
        state.counter.clear()
    log.info("%s events of earlier tasks from %s", count, history.path)
    original = events.on_event

    def on_event(event: dict[str, Any]) -> None:
        history.add(dict(event))
        original(event)

    events.on_event = on_event
    history.start()
    return history.stop
