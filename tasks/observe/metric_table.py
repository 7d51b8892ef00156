"""Every metric of a flush worker, named and explained once: the table that docs/metrics.md is made from.

What feeds them is in `tasks.observe.metrics`.
"""

from __future__ import annotations

from enum import StrEnum

from tasks.observe.meters import BYTES, COUNTS, SECONDS, Definition, Kind

WORKER = "replays.worker."


class RunOutcome(StrEnum):
    """How a run of a flush task ended."""

    DONE = "done"
    ALREADY_DONE = "already_done"  # its mark was set: a repetition
    PUT_OFF = "put_off"  # tried again later
    GAVE_UP = "gave_up"  # the reader parks the batch
    FAILED = "failed"  # an error that no retry cures


DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        WORKER + "flushes",
        Kind.COUNTER,
        "runs",
        "Runs of flush tasks, by sink and outcome: done, already_done (its mark was set: a repetition), put_off "
        "(tried again later), gave_up (the reader parks the batch), failed (an error that no retry mends).",
        ("sink", "outcome"),
    ),
    Definition(
        WORKER + "flush_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Runs that got as far as calling the sink: from the start of the run to its end.",
        ("sink",),
        SECONDS,
    ),
    Definition(
        WORKER + "flush_items", Kind.HISTOGRAM, "items", "Items of a run that was done.", ("sink",), COUNTS
    ),
    Definition(
        WORKER + "flush_bytes", Kind.HISTOGRAM, "bytes", "Staged bytes of a run that was done.", ("sink",), BYTES
    ),
    Definition(
        WORKER + "retries",
        Kind.COUNTER,
        "runs",
        "Runs that ended with Celery's retry (backoff with full jitter).",
        ("sink",),
    ),
    Definition(
        WORKER + "breaker_refusals",
        Kind.COUNTER,
        "runs",
        "Runs put off without a call, since the sink's circuit breaker was open.",
        ("sink",),
    ),
    Definition(
        WORKER + "items_refused",
        Kind.COUNTER,
        "items",
        "Items that a sink will never take; they became dead letters with the sink's error.",
        ("sink",),
    ),
    Definition(
        WORKER + "completions",
        Kind.COUNTER,
        "chords",
        "Ends of chords told to a reader: done, failed, or nobody (an older chord, or a batch that is gone).",
        ("kind",),
    ),
    Definition(
        WORKER + "unverified",
        Kind.COUNTER,
        "entries",
        "What Redis held without a seal of the shared key, and was ignored, by purpose: manifest, payload, mark, "
        "progress, parked.",
        ("purpose",),
    ),
    Definition(
        WORKER + "busy_processes",
        Kind.GAUGE,
        "processes",
        "Pool processes (or threads) that run a flush task now, by sink.",
        ("sink",),
    ),
    Definition(
        WORKER + "heartbeat_seconds",
        Kind.GAUGE,
        "seconds",
        "Since the worker last showed itself to the broker. Over 15: it lost Redis.",
    ),
)
