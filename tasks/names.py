"""Names on the broker: tasks and their queues. Readers, workers, Flower and manifests of a deployment use them."""

from __future__ import annotations

from enum import StrEnum

CONTROL_QUEUE = "control"
FLUSH = "flush_"


class ControlTask(StrEnum):
    """Tasks that write to no sink. They run on CONTROL_QUEUE."""

    COMPLETE = "complete"  # the chord's body
    CHORD_FAILED = "chord_failed"  # its errback
    RETRY_BATCH = "retry_batch"
    ABANDON_BATCH = "abandon_batch"


def flush_task(sink: str) -> str:
    """The task that writes to this sink."""
    return f"{FLUSH}{sink}"


def sink_of(task: str) -> str:
    """The sink of a flush task, by the task's name; empty for any other task."""
    return task.removeprefix(FLUSH) if task.startswith(FLUSH) else ""


def flush_queue(sink: str) -> str:
    """The queue of one sink: fleets scale and fail apart."""
    return f"flush.{sink}"
