"""The flow from Kafka to the sinks as the operator's page draws it: its bottleneck, and what needs attention.

All functions are pure functions of a Status. `Alert.name` is the heading of the alert's section in
docs/runbook.md. The rules are those of the Prometheus alerts without their `for` durations: the page shows the
current state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ingest.core.flight import Phase
from ingest.operate.status import SinkStatus, Status
from tasks.breaker import BreakerPhase
from tasks.faults import Server, start_reader_advice, start_worker_advice

LAG_SECONDS_MAX = 60.0
BOTTLENECK_LAG_SECONDS_MIN = 10.0
QUEUE_TASKS_MIN = 50
REDIS_SHARE_MAX = 0.75
SHOWN_NAMES_MAX = 5
READER = "reader"


class Severity(StrEnum):
    """Whether an operator must act now."""

    ACTION_REQUIRED = "act"
    WATCH = "watch"


@dataclass(frozen=True, slots=True)
class Alert:
    """One condition that needs attention. `name`: the heading of its section in docs/runbook.md."""

    name: str
    text: str
    severity: Severity = Severity.ACTION_REQUIRED


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Where the flow is slowest: READER, the name of a sink, or empty. `why` is one line."""

    where: str = ""
    why: str = ""


def alerts(status: Status) -> list[Alert]:
    """Returns what needs attention, most severe first, and causes before their consequences."""
    parts = (_server_alerts, _reader_alerts, _sink_alerts, _redis_alerts, _batch_alerts, _lag_alerts)
    found = [alert for part in parts for alert in part(status)]
    return sorted(found, key=lambda one: one.severity is not Severity.ACTION_REQUIRED)


def _server_alerts(status: Status) -> Iterator[Alert]:
    for fault in status.faults:
        yield Alert(
            "ReplaysNothingAssigned" if fault.server is Server.KAFKA else "ReplaysSinkSick", f"{fault.line}."
        )


def _reader_alerts(status: Status) -> Iterator[Alert]:
    heard = [one for one in status.readers if not one.silent]
    silent = [one.reader for one in status.readers if one.silent]
    if not heard and any(fault.server is Server.KAFKA for fault in status.faults):
        yield Alert("ReplaysNoReader", "No reader reports: a reader starts to read once Kafka can be used.")
    elif not heard:
        advice = start_reader_advice(local=status.from_local_stack)
        yield Alert("ReplaysNoReader", f"No reader is running: {advice}; nothing is ingested.")
    elif silent:
        yield Alert("ReplaysReaderDown", f"Silent readers: {_join_names(silent)}.")
    for one in heard:
        if one.snapshot.halted:
            yield Alert("ReplaysHalted", f"{one.reader} halted: {one.snapshot.halted}")
    if status.unowned:
        owners = _join_names([str(one.partition) for one in status.unowned])
        yield Alert("ReplaysPartitionUnowned", f"Partitions without an owner: {owners}.")
    paused = [one.reader for one in heard if one.snapshot.paused]
    if paused:
        yield Alert(
            "ReplaysBackpressure", f"Paused at the in-flight limit: {_join_names(paused)}.", Severity.WATCH
        )
    shed = [str(each.project_id) for one in heard for each in one.snapshot.rejects.worst if each.shed]
    if shed:
        text = f"Most messages of these projects are rejected: {_join_names(shed)}."
        yield Alert("ReplaysProjectShed", text, Severity.WATCH)


def _sink_alerts(status: Status) -> Iterator[Alert]:
    if not any(not worker.silent for worker in status.workers):
        advice = start_worker_advice(local=status.from_local_stack)
        yield Alert("ReplaysNobodyFlushes", f"No worker is running: {advice}.")
    elif status.queues_without_worker:
        queues = _join_names(list(status.queues_without_worker))
        yield Alert("ReplaysQueueWithoutWorker", f"Queues that no worker consumes: {queues}.")
    for sink in status.sinks:
        if sink.breaker is not BreakerPhase.CLOSED:
            error = f": {sink.error}" if sink.error else ""
            yield Alert(
                "ReplaysSinkSick", f"The breaker of {sink.sink} is {sink.breaker.replace('_', ' ')}{error}"
            )


def _batch_alerts(status: Status) -> Iterator[Alert]:
    if status.parked:
        oldest = min(one.first_parked_at or one.parked_at for one in status.parked)
        count = len(status.parked)
        newest = max(status.parked, key=lambda one: one.parked_at)
        yield Alert(
            "ReplaysBatchParked",
            f"{count} batch{'' if count == 1 else 'es'} parked, the first for {status.at - oldest:,.0f} s. "
            f"Last error: {newest.error}",
        )


def _redis_alerts(status: Status) -> Iterator[Alert]:
    redis = status.redis
    if redis.max_bytes and redis.used_bytes > REDIS_SHARE_MAX * redis.max_bytes:
        yield Alert("ReplaysRedisFull", f"Redis uses {redis.used_bytes / redis.max_bytes:.0%} of maxmemory.")


def _lag_alerts(status: Status) -> Iterator[Alert]:
    heard = [one for one in status.readers if not one.silent]
    slow = max((p.lag_seconds for one in heard for p in one.snapshot.partitions), default=0.0)
    if slow > LAG_SECONDS_MAX:
        yield Alert("ReplaysLag", f"The oldest message that is not committed is {slow:,.0f} s old.")


def bottleneck(status: Status) -> Bottleneck:
    """Returns the bottleneck; its fields are empty if nothing is waiting."""
    heard = [one for one in status.readers if not one.silent]
    if not heard:
        return Bottleneck(READER, "no reader is running")
    halted = next((one for one in heard if one.snapshot.halted), None)
    if halted is not None:
        return Bottleneck(READER, "halted")
    used = [sink for sink in status.sinks if sink.switched_on]
    for sink in used:
        if not sink.workers:
            return Bottleneck(sink.sink, "no worker consumes its queue")
    for sink in used:
        if sink.breaker is not BreakerPhase.CLOSED:
            return Bottleneck(sink.sink, f"breaker {sink.breaker.replace('_', ' ')}")
    longest = max(used, key=_slowness_key, default=None)
    waits = longest is not None and longest.queue_depth >= QUEUE_TASKS_MIN
    paused = any(one.snapshot.paused for one in heard)
    if longest is not None and (waits or paused):
        return Bottleneck(longest.sink, f"{longest.queue_depth:,} tasks wait")
    slow = max((p.lag_seconds for one in heard for p in one.snapshot.partitions), default=0.0)
    flushing = any(flight.phase is Phase.FLUSHING for one in heard for flight in one.snapshot.flights)
    if slow > BOTTLENECK_LAG_SECONDS_MIN:
        if longest is not None and flushing and longest.queue_depth:
            return Bottleneck(longest.sink, f"{longest.queue_depth:,} tasks wait")
        return Bottleneck(READER, f"{slow:,.0f} s behind, with free workers")
    return Bottleneck()


def _slowness_key(sink: SinkStatus) -> tuple[int, float]:
    return sink.queue_depth, sink.flush_max_seconds or 0.0


def _join_names(names: list[str]) -> str:
    """Returns the first few of these names, as text."""
    more = f" and {len(names) - SHOWN_NAMES_MAX} more" if len(names) > SHOWN_NAMES_MAX else ""
    return ", ".join(names[:SHOWN_NAMES_MAX]) + more
