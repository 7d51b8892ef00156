"""Task and queue names, used by readers, workers, Flower and deployment manifests."""

from __future__ import annotations

from enum import StrEnum

from tasks.wire import SinkName

CONTROL_QUEUE = "control"
FLUSH = "flush_"


class ControlTask(StrEnum):
    """Tasks that do not write to a sink; they run on CONTROL_QUEUE."""

    COMPLETE = "complete"  # the chord's callback
    CHORD_FAILED = "chord_failed"  # its errback
    RETRY_BATCH = "retry_batch"
    ABANDON_BATCH = "abandon_batch"


def flush_task(sink: SinkName) -> str:
    """Returns the task that writes to this sink."""
    return f"{FLUSH}{sink}"


def sink_of(task: str) -> SinkName | None:
    """Returns the sink that the named flush task writes to. Returns None for other tasks."""
    name = task.removeprefix(FLUSH)
    return SinkName(name) if task.startswith(FLUSH) and name in set(SinkName) else None


def flush_queue(sink: SinkName) -> str:
    """Returns the queue of one sink. Each sink has its own queue, so that its workers scale and fail
    independently.
    """
    return f"flush.{sink}"
