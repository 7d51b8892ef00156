"""Names on the broker: tasks and their queues. Readers, workers, Flower and manifests of a deployment use them."""

from __future__ import annotations

from enum import StrEnum

from tasks.wire import SinkName

CONTROL_QUEUE = "control"
FLUSH = "flush_"


class ControlTask(StrEnum):
    """Tasks that write to no sink. They run on CONTROL_QUEUE."""

    COMPLETE = "complete"  # the chord's body
    CHORD_FAILED = "chord_failed"  # its errback
    RETRY_BATCH = "retry_batch"
    ABANDON_BATCH = "abandon_batch"


def flush_task(sink: SinkName) -> str:
    """The task that writes to this sink."""
    return f"{FLUSH}{sink}"


def sink_of(task: str) -> SinkName | None:
    """The sink of a flush task, by the task's name; None for any other task."""
    name = task.removeprefix(FLUSH)
    return SinkName(name) if task.startswith(FLUSH) and name in set(SinkName) else None


def flush_queue(sink: SinkName) -> str:
    """The queue of one sink: fleets scale and fail apart."""
    return f"flush.{sink}"
