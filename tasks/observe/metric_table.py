"""Definitions of all worker metrics; docs/metrics.md is generated from them.

`tasks.observe.metrics` updates the metrics.
"""

from __future__ import annotations

from enum import StrEnum

from tasks.observe.meters import BYTES, COUNTS, SECONDS, Definition, Kind

WORKER = "replays.worker."


class RunOutcome(StrEnum):
    """How a run of a flush task ended."""

    DONE = "done"
    ALREADY_DONE = "already_done"  # the done mark was set before the run
    PUT_OFF = "put_off"  # the task is retried later
    GAVE_UP = "gave_up"  # the reader parks the batch
    FAILED = "failed"  # a retry cannot fix the error


DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        WORKER + "flushes",
        Kind.COUNTER,
        "runs",
        "Runs of flush tasks, by sink and outcome: done, already_done (the done mark was already set), "
        "put_off (retried later), gave_up (the reader parks the batch), failed (an error that a retry "
        "cannot fix).",
        ("sink", "outcome"),
    ),
    Definition(
        WORKER + "flush_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Duration of runs that called the sink.",
        ("sink",),
        SECONDS,
    ),
    Definition(WORKER + "flush_items", Kind.HISTOGRAM, "items", "Items per successful run.", ("sink",), COUNTS),
    Definition(
        WORKER + "flush_bytes", Kind.HISTOGRAM, "bytes", "Staged bytes per successful run.", ("sink",), BYTES
    ),
    Definition(
        WORKER + "retries",
        Kind.COUNTER,
        "runs",
        "Runs that ended with a Celery retry (backoff with full jitter).",
        ("sink",),
    ),
    Definition(
        WORKER + "breaker_refusals",
        Kind.COUNTER,
        "runs",
        "Runs postponed without a call because the sink's circuit breaker was open.",
        ("sink",),
    ),
    Definition(
        WORKER + "items_refused",
        Kind.COUNTER,
        "items",
        "Items permanently refused by a sink; they became dead letters with the sink's error.",
        ("sink",),
    ),
    Definition(
        WORKER + "completions",
        Kind.COUNTER,
        "chords",
        "Chord completions sent to readers: done, failed, or nobody (an older chord, or a batch that no "
        "longer exists).",
        ("kind",),
    ),
    Definition(
        WORKER + "unverified",
        Kind.COUNTER,
        "entries",
        "Redis entries ignored because they lack a valid seal, by purpose: manifest, payload, mark, "
        "progress, parked.",
        ("purpose",),
    ),
    Definition(
        WORKER + "busy_processes",
        Kind.GAUGE,
        "processes",
        "Pool processes or threads currently running a flush task, by sink.",
        ("sink",),
    ),
    Definition(
        WORKER + "heartbeat_seconds",
        Kind.GAUGE,
        "seconds",
        "Time since the worker's last heartbeat to Redis. A value over 15 means that Redis is unreachable.",
    ),
)
