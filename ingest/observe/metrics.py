"""Updates the reader's metrics from events and commands: the loop calls `Metrics.observe(event, commands, now)`
after each event.

An update costs a few additions per message. All other metrics are updated once per second, from a snapshot.
`ingest.observe.metric_table` defines the metrics.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.flight import Phase
from ingest.core.model import Batch, CutReason, Drop, DropReason, Message, Reject, Segment, Stage, TopicPartition
from ingest.core.pipeline import Pipeline
from ingest.observe.costs import Costs, ProjectCost
from ingest.observe.journal import BatchEnd, Journal, Journey
from ingest.observe.lag import Lag, LogEnds
from ingest.observe.metric_table import CONSUMER, DEFINITIONS, READER
from ingest.observe.snapshot import RejectState, Snapshot, take
from ingest.settings import Settings
from tasks.observe.meters import Kind, Meters, dogstatsd
from tasks.seals import Purpose, warn

SNAPSHOT_SECONDS = 1.0
FUTURE_SECONDS_MAX = 86_400.0  # a `received` time further in the future is a clock error, not a latency

_R = READER

_EXCEEDED_METRICS = {
    CutReason.COUNT: CONSUMER + "exceeded_max_message_count",
    CutReason.BYTES: CONSUMER + "exceeded_buffer_byte_size",
    CutReason.AGE: CONSUMER + "exceeded_last_buffer_commit_time",
}


class ParseOutcome(StrEnum):
    """The outcome of a message. Values of the label `outcome` of the metric `messages_parsed`."""

    SEGMENT = "segment"
    REJECT = "reject"
    DROP = "drop"


class DispatchReason(StrEnum):
    """The reason why a chord was started. Values of the label `why` of the metric `dispatches`."""

    FIRST = "first"
    RETRY = "retry"
    DEADLINE = "deadline"


class CommitResult(StrEnum):
    """The result of a commit. Values of the label `outcome` of the metric `commits`."""

    STORED = "stored"
    FAILED = "failed"


class Rebalance(StrEnum):
    """The kind of a rebalance event. Values of the label `kind` of the metric `rebalances`."""

    ASSIGNED = "assigned"
    REVOKED = "revoked"
    LOST = "lost"


# Metrics with one label, and the values of that label. The series of each value must exist from startup, with the
# value 0.
_TOUCHED: dict[str, Iterable[str]] = {
    "batches_cut": CutReason,
    "stage_seconds": Stage,
    "stage_failures": Stage,
    "messages_parsed": ParseOutcome,
    "drops": DropReason,
    "rebalances": Rebalance,
    "commits": CommitResult,
    "in_flight_batches": Phase,
}


class Metrics:
    """The reader's instruments. Only the loop's thread may call `observe` and `polled`; any thread may call
    `snapshot`.

    `reasons` and `warnings`: all possible label values of the metrics `rejects` and `warnings`; the series of each
    value exist from startup. `on_end` is called with each batch that ended. `wall_clock` returns Unix seconds, for
    message ages; `cpu` returns the CPU seconds of the calling thread.
    """

    def __init__(
        self,
        settings: Settings,
        reasons: Iterable[str] = (),
        warnings: Iterable[str] = (),
        on_end: Callable[[Journey], None] = lambda journey: None,
        wall_clock: Callable[[], float] = time.time,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self.registry = CollectorRegistry()
        self.meters = Meters(DEFINITIONS, self.registry, dogstatsd(settings))
        self.snapshot = Snapshot(now=0.0)
        self._settings = settings
        self._on_end = on_end
        self._wall_clock = wall_clock
        self._journal = Journal()
        self._pipeline: Pipeline | None = None
        self._log_ends: LogEnds | None = None
        self._lag = Lag()
        self._snapshot_due = 0.0
        self._messages: defaultdict[int, int] = defaultdict(int)
        self._bytes: defaultdict[int, int] = defaultdict(int)
        self._warnings: defaultdict[str, int] = defaultdict(int)
        self._parsed: defaultdict[ParseOutcome, int] = defaultdict(int)
        self._parse_seconds = 0.0
        self._polled_at: float | None = None
        self._commits_sent: dict[TopicPartition, float] = {}
        self._known_partitions: set[int] = set()
        self._known_projects: set[str] = set()
        self._known_unowned: set[int] = set()
        self._dropped = 0
        self._cpu = cpu
        self._cpu_at = 0.0
        self._costs = Costs(settings.cost_projects_max)
        self._costed_at: float | None = None
        self.costs: tuple[ProjectCost, ...] = ()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._prepare(reasons, warnings)

    def _prepare(self, reasons: Iterable[str], warnings: Iterable[str]) -> None:
        """Creates series at zero, so that alerts see their first increment."""
        meters, settings = self.meters, self._settings
        for definition in DEFINITIONS:
            if definition.kind is not Kind.GAUGE and not definition.labels:
                meters.touch(definition.name)
        named: dict[str, Iterable[str]] = {"rejects": reasons, "warnings": warnings, **_TOUCHED}
        for name, values in named.items():
            for value in values:
                meters.touch(_R + name, value)
        for stage in Stage:
            for why in DispatchReason:
                meters.touch(_R + "dispatches", stage, why)
        meters.set(_R + "in_flight_batches_max", settings.in_flight_batches_max)
        meters.set(_R + "in_flight_bytes_max", settings.in_flight_bytes_max)

    def watch(self, pipeline: Pipeline, log_ends: LogEnds) -> None:
        """Sets the source of the snapshot, which is queried once per second."""
        self._pipeline, self._log_ends = pipeline, log_ends

    # Queries

    def query_log_end_offsets(self) -> None:
        """Requests the log end offsets from the brokers, because a paused reader does not fetch.

        The request blocks, so the loop's thread must not make it.
        """
        if self._log_ends is not None:
            self._lag.update_log_ends(self._log_ends.query_log_ranges())

    def by_label(self, name: str) -> dict[str, float]:
        """Returns the values of a counter by label ("" if it has none)."""
        base = name.replace(".", "_") + "_total"
        return {
            next(iter(sample.labels.values()), ""): sample.value
            for metric in self.registry.restricted_registry([base]).collect()
            for sample in metric.samples
            if sample.name == base
        }

    def total(self, name: str) -> float:
        """Returns a counter's total over all labels."""
        return sum(self.by_label(name).values())

    def quantile(self, name: str, share: float) -> float | None:
        """Returns the upper edge of the histogram bucket that contains this quantile; None if there is no such
        bucket."""
        base = name.replace(".", "_") + "_bucket"
        buckets = [
            (float(sample.labels["le"]), sample.value)
            for metric in self.registry.restricted_registry([base]).collect()
            for sample in metric.samples
            if sample.name == base
        ]
        if not buckets or not buckets[-1][1]:
            return None
        edge = next(edge for edge, below in buckets if below >= share * buckets[-1][1])
        return edge if edge != float("inf") else None  # unknown, because the value is above all buckets

    # Updates from the loop

    def observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        """Processes one event and the commands that resulted from it. The first branch runs for every message, so
        it must stay cheap."""
        if type(event) is on.MessageParsed:
            outcome = event.outcome
            self._messages[event.source.partition] += 1
            cost, at = self._costs.second[outcome.project_id], self._cpu()
            cost.cpu_seconds += at - self._cpu_at
            cost.size_bytes += outcome.size_bytes
            self._cpu_at = at
            if type(outcome) is Segment:
                self._parsed[ParseOutcome.SEGMENT] += 1
                cost.rows += len(outcome.clickhouse) + len(outcome.bigquery) + outcome.proto_facts_count
                if outcome.warnings:
                    for warning in outcome.warnings:  # a hostile message may have thousands of warnings
                        self._warnings[warning] += 1
            elif type(outcome) is Reject:
                self._parsed[ParseOutcome.REJECT] += 1
                self.meters.count(_R + "rejects", 1, outcome.reason)
            elif type(outcome) is Drop:
                self._parsed[ParseOutcome.DROP] += 1
                self.meters.count(_R + "drops", 1, outcome.reason)
            if not commands:
                return
        else:
            self._event(event, now)
        for command in commands:
            self._command(command, event, now)
        for journey in self._journal.observe(event, commands, now):
            if journey.outcome in (BatchEnd.RELEASED, BatchEnd.LOST):
                self.meters.count(_R + "batches_released")
            self._on_end(journey)
        self._cpu_at = self._cpu()  # CPU time for batches and ticks is not attributed to a project

    def _event(self, event: on.Event, now: float) -> None:
        count = self.meters.count
        match event:
            case on.Ticked():
                if now >= self._snapshot_due:
                    self._snapshot_due = now + SNAPSHOT_SECONDS
                    self._take_snapshot(now)
            case on.MessageDeferred():
                count(_R + "messages_deferred")
            case on.FlushSucceeded():
                journey = self._journal.get(event.batch_id)
                if journey is not None and journey.epoch == event.epoch and journey.stage_started_at is not None:
                    self.meters.observe(_R + "stage_seconds", now - journey.stage_started_at, event.stage)
            case on.FlushFailed() | on.DispatchFailed():
                count(_R + "stage_failures", 1, event.stage)
            case on.Committed():
                count(_R + "commits", 1, CommitResult.STORED)
                self._commit_completed(event.source, now)
            case on.CommitFailed():
                count(_R + "commits", 1, CommitResult.FAILED)
                self._commit_completed(event.source, now)
            case on.PartitionsAssigned():
                count(_R + "rebalances", 1, Rebalance.ASSIGNED)
                count(_R + "partitions_recreated", sum(bool(given.replaced) for given in event.assignments))
                self._snapshot_due = now
            case on.PartitionsRevoked():
                count(_R + "rebalances", 1, Rebalance.REVOKED)
                self._snapshot_due = now
            case on.PartitionsLost():
                count(_R + "rebalances", 1, Rebalance.LOST)
                self._snapshot_due = now
            case on.OffsetOutOfRange():
                count(_R + "offsets_out_of_range", 1, str(event.source.partition))
                count(_R + "messages_expired", max(0, event.resumed_at - event.wanted) if event.wanted >= 0 else 0)
            case on.RetryRequested():
                count(_R + "retries_requested")
            case on.BatchAbandoned():
                count(_R + "batches_abandoned")
            case _:
                pass

    def _command(self, command: do.Command, event: on.Event, now: float) -> None:
        match command:
            case do.Dispatch():
                self._dispatched(command)
            case do.Commit():
                self._commits_sent[command.source] = now
            case do.Park():
                self.meters.count(_R + "batches_parked")
            case do.Recut():
                self.meters.count(_R + "batches_recut")
            case do.Discard():
                self.meters.count(_R + "batches_settled")
                if not isinstance(event, on.BatchAbandoned):
                    self._end_to_end(command.batch)
            case do.Halt() | do.Pause() | do.Resume():
                self._snapshot_due = now
            case _:
                pass

    def _dispatched(self, command: do.Dispatch) -> None:
        batch, meters = command.batch, self.meters
        journey = self._journal.get(batch.id)
        if journey is None or journey.epoch != batch.epoch:
            meters.count(_R + "batches_cut", 1, batch.cut_by)
            if batch.cut_by in _EXCEEDED_METRICS:
                meters.count(_EXCEEDED_METRICS[batch.cut_by])
            meters.observe(CONSUMER + "buffer_message_count", len(batch.segments) + len(batch.rejects))
            meters.observe(CONSUMER + "buffer_size_in_bytes", batch.size_bytes)
            meters.observe(_R + "batch_age_seconds", batch.cut_at - batch.opened_at)
            why = DispatchReason.FIRST
        elif journey.failed_last:
            why = DispatchReason.RETRY
        else:
            why = DispatchReason.DEADLINE if journey.stage is command.stage else DispatchReason.FIRST
        meters.count(_R + "dispatches", 1, command.stage, why)

    def _commit_completed(self, source: TopicPartition, now: float) -> None:
        sent_at = self._commits_sent.pop(source, None)
        if sent_at is not None:
            self.meters.observe(_R + "commit_seconds", now - sent_at)

    def _end_to_end(self, batch: Batch) -> None:
        wall_clock = self._wall_clock()
        for received, segments in Counter(segment.received for segment in batch.segments).items():
            if received <= wall_clock + FUTURE_SECONDS_MAX:
                self.meters.observe(_R + "end_to_end_seconds", max(0.0, wall_clock - received), times=segments)

    def unowned(self, lag_messages: Mapping[int, int]) -> None:
        """Sets the lag of each partition without an owner, -1 if unknown. All calls must come from the same
        thread."""
        known = {partition: lag for partition, lag in lag_messages.items() if lag >= 0}
        for partition, lag in known.items():
            self.meters.set(_R + "unowned_lag_messages", lag, str(partition))
        for partition in self._known_unowned - known.keys():
            self.meters.forget(_R + "unowned_lag_messages", str(partition))
        self._known_unowned = set(known)

    def count_stuck_loop(self, stacks: object) -> None:
        """Counts a stuck loop. `stacks` is unused: StuckDetector passes the stack traces to its callback."""
        self.meters.count(_R + "stuck")

    def loop_failed(self, loop: str) -> None:
        """Counts an exception in a step of a background loop. Any thread."""
        self.meters.count(_R + "loop_failures", 1, loop)

    def unverified(self, purpose: Purpose) -> None:
        """Counts a Redis entry that was ignored because it has no valid seal. Any thread."""
        warn(purpose)
        self.meters.count(_R + "unverified", 1, purpose)

    def observer_failed(self, observer: str) -> None:
        """Counts an exception in an observer. Any thread."""
        self.meters.count(_R + "observer_failures", 1, observer)

    # Updates from the parser

    def polled(self, messages: Sequence[Message]) -> None:
        """Counts the messages of one poll, which are in offset order within each partition."""
        at = time.perf_counter()
        if self._polled_at is not None:
            self.meters.observe(_R + "poll_gap_seconds", at - self._polled_at)
        self._polled_at = at
        for message in messages:
            self._bytes[message.source.partition] += len(message.value)
        self._lag.polled(messages)
        self._cpu_at = self._cpu()

    def add_parse_seconds(self, seconds: float) -> None:
        """Adds the parsing time of one poll."""
        self._parse_seconds += seconds

    # Once per second

    def _take_snapshot(self, now: float) -> None:
        self._flush_tallies()
        self._count_costs(now)
        if self._pipeline is None or self._log_ends is None:
            return
        before = self.snapshot
        raw = take(self._pipeline, now)
        self._lag.update_log_ends(self._log_ends.log_ranges())
        wall_clock = self._wall_clock()
        partitions = tuple(self._lag.of(state, wall_clock) for state in raw.partitions)
        self.snapshot = msgspec.structs.replace(raw, partitions=partitions)
        elapsed = now - before.now if before.now else 0.0
        if before.paused:
            self.meters.count(_R + "paused_seconds", elapsed)
        if not before.has_room:
            self.meters.count(_R + "full_seconds", elapsed)
        self._gauges(self.snapshot)

    def _flush_tallies(self) -> None:
        meters = self.meters
        for partition, messages in self._messages.items():
            meters.count(_R + "messages_consumed", messages, str(partition))
        for partition, size_bytes in self._bytes.items():
            meters.count(_R + "bytes_consumed", size_bytes, str(partition))
        for warning, times in self._warnings.items():
            meters.count(_R + "warnings", times, warning)
        for outcome, messages in self._parsed.items():
            meters.count(_R + "messages_parsed", messages, outcome)
        for tally in (self._messages, self._bytes, self._warnings, self._parsed):
            tally.clear()
        if self._parse_seconds:
            meters.count(_R + "parse_seconds", self._parse_seconds)
            self._parse_seconds = 0.0

    def _count_costs(self, now: float) -> None:
        """Updates a limited set of series: the most expensive projects, and one for all other projects."""
        added, gone = self._costs.tick(0.0 if self._costed_at is None else now - self._costed_at)
        self._costed_at = now
        for project, cost in added.items():
            self.meters.count(_R + "project_cpu_seconds", max(0.0, cost.cpu_seconds), project)
            self.meters.count(_R + "project_bytes", cost.size_bytes, project)
            self.meters.count(_R + "project_rows", cost.rows, project)
        for project in gone:
            for name in ("project_cpu_seconds", "project_bytes", "project_rows"):
                self.meters.forget(_R + name, project)
        self.costs = self._costs.recent()

    def _gauges(self, snapshot: Snapshot) -> None:
        set_ = self.meters.set
        for state in snapshot.partitions:
            partition = str(state.partition)
            set_(_R + "lag_messages", state.lag_messages, partition)
            set_(_R + "lag_seconds", state.lag_seconds, partition)
            set_(_R + "lag_position_messages", max(0, state.high - state.position), partition)
            if state.committed is not None:
                set_(_R + "committed_offset", state.committed, partition)
        self._forget_partitions({state.partition for state in snapshot.partitions})
        set_(_R + "partitions_assigned", len(snapshot.partitions))
        for phase in Phase:
            set_(_R + "in_flight_batches", len(snapshot.in_phase(phase)), phase)
        set_(_R + "in_flight_bytes", snapshot.held_bytes)
        set_(_R + "staged_bytes", sum(flight.size_bytes for flight in snapshot.flights if flight.attempt))
        parked = [flight.age_seconds for flight in snapshot.in_phase(Phase.PARKED)]
        set_(_R + "parked_oldest_seconds", max(parked, default=0.0))
        set_(_R + "paused", snapshot.paused)
        set_(_R + "halted", snapshot.halted is not None)
        set_(_R + "reject_ratio", snapshot.reject_ratio)
        self._reject_gauges(snapshot.rejects)

    def _reject_gauges(self, rejects: RejectState) -> None:
        """Updates a limited set of series: the projects with the most rejects, and one for all other projects."""
        named = {str(counts.project_id): counts for counts in rejects.worst}
        for project, counts in named.items():
            self.meters.set(_R + "project_rejects", counts.rejects, project)
            self.meters.set(_R + "project_shed", counts.shed, project)
        for project in self._known_projects - named.keys():
            self.meters.forget(_R + "project_rejects", project)
            self.meters.forget(_R + "project_shed", project)
        self._known_projects = set(named)
        self.meters.set(_R + "project_rejects", rejects.other, "other")
        self.meters.set(_R + "project_rejects", rejects.unattributed, "none")
        self.meters.set(_R + "projects_shed", rejects.shed)
        self.meters.count(_R + "drops", rejects.dropped - self._dropped, DropReason.SHED)
        self._dropped = rejects.dropped

    def _forget_partitions(self, assigned: set[int]) -> None:
        for partition in self._known_partitions - assigned:
            for name in ("lag_messages", "lag_seconds", "lag_position_messages", "committed_offset"):
                self.meters.forget(_R + name, str(partition))
            self._lag.forget(partition)
        self._known_partitions = assigned
