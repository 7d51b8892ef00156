"""Every metric of the reader, named and explained once, as a view over (event, commands, now).

`DEFINITIONS` is the table that docs/metrics.md is made from. `Metrics.observe` is called by the loop after
each event; what happens for every message is a handful of additions, everything else waits for the
snapshot that is taken once a second.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, CutReason, Drop, Message, Reject, Segment, Stage, TopicPartition
from ingest.core.pipeline import Phase, Pipeline
from ingest.core.tenants import DROP_REASONS
from ingest.observe.journal import Journal, Journey
from ingest.observe.snapshot import PartitionState, Snapshot, take
from ingest.settings import Settings
from tasks.observe.meters import BYTES, COUNTS, LONG_SECONDS, Definition, Meters, dogstatsd

SNAPSHOT_SECONDS = 1.0
TIMES_KEPT = 2048  # (offset, Kafka timestamp) pairs a partition: the lag in seconds is read off them
FUTURE_SECONDS_MAX = 86_400.0  # a `received` further ahead than that is a broken clock, not a latency

_R = "replays.reader."
_B = "replays.recording_consumer."

DEFINITIONS: tuple[Definition, ...] = (
    # Messages
    Definition(_R + "messages_consumed", "counter", "messages", "Messages taken from Kafka.", ("partition",)),
    Definition(_R + "bytes_consumed", "counter", "bytes", "Their values, as they came.", ("partition",)),
    Definition(
        _R + "messages_parsed",
        "counter",
        "messages",
        "Messages parsed, by outcome: segment, reject (kept as a dead letter) or drop (shed by a tenant rule).",
        ("outcome",),
    ),
    Definition(
        _R + "parse_seconds",
        "counter",
        "seconds",
        "Time spent parsing (waiting for parser processes counts). Over messages_parsed: the mean of one.",
    ),
    Definition(_R + "rejects", "counter", "messages", "Messages that will never parse, by reason.", ("reason",)),
    Definition(
        _R + "warnings",
        "counter",
        "warnings",
        "What was wrong with a message without making it a reject, by stable name.",
        ("warning",),
    ),
    Definition(
        _R + "drops", "counter", "messages", "Messages shed on purpose by a tenant rule, by rule.", ("reason",)
    ),
    Definition(
        _R + "reject_ratio",
        "gauge",
        "ratio",
        "Rejects among the last reject_window messages; past reject_ratio_max the reader halts.",
        across_processes="livemax",
    ),
    # Lag
    Definition(
        _R + "lag_messages",
        "gauge",
        "messages",
        "Log end minus committed offset: what is not durable yet. Grows: the fleet or this reader is too slow.",
        ("partition",),
    ),
    Definition(
        _R + "lag_position_messages",
        "gauge",
        "messages",
        "Log end minus the next offset to take: what was not even read yet.",
        ("partition",),
    ),
    Definition(
        _R + "lag_seconds",
        "gauge",
        "seconds",
        "Age (Kafka timestamp) of the oldest message that is not committed; 0 when all are.",
        ("partition",),
    ),
    Definition(_R + "committed_offset", "gauge", "offset", "The group's committed offset.", ("partition",)),
    Definition(_R + "partitions_assigned", "gauge", "partitions", "Partitions that are ours."),
    # Batches
    Definition(
        _B + "buffer_message_count", "histogram", "messages", "Messages in a batch, at its cut.", buckets=COUNTS
    ),
    Definition(
        _B + "buffer_size_in_bytes", "histogram", "bytes", "Staged bytes of a batch, at its cut.", buckets=BYTES
    ),
    Definition(_B + "exceeded_max_message_count", "counter", "batches", "Cut since batch_messages_max was met."),
    Definition(_B + "exceeded_buffer_byte_size", "counter", "batches", "Cut since batch_bytes_max was met."),
    Definition(
        _B + "exceeded_last_buffer_commit_time", "counter", "batches", "Cut since batch_age_seconds_max was met."
    ),
    Definition(
        _R + "batches_cut",
        "counter",
        "batches",
        "Batches cut and dispatched, by why: count, bytes, age, planned (a predecessor's boundary), drain.",
        ("reason",),
    ),
    Definition(_R + "batch_age_seconds", "histogram", "seconds", "First message of a batch to its cut."),
    Definition(
        _R + "dispatches",
        "counter",
        "chords",
        "Chords started, by stage and why: first, retry (the last one failed) or deadline (no word of it).",
        ("stage", "why"),
    ),
    Definition(
        _R + "stage_seconds",
        "histogram",
        "seconds",
        "Start of a stage's last chord to its completion, all sinks of the stage together.",
        ("stage",),
    ),
    Definition(
        _R + "stage_failures", "counter", "chords", "Chords that gave up or could not be started.", ("stage",)
    ),
    Definition(_R + "batches_settled", "counter", "batches", "Batches durable in every sink."),
    Definition(_R + "batches_parked", "counter", "batches", "Times that a batch was parked after a failure."),
    Definition(_R + "batches_abandoned", "counter", "batches", "Batches that an operator gave up."),
    Definition(_R + "batches_released", "counter", "batches", "Batches left to the next owner, unsettled."),
    Definition(_R + "retries_requested", "counter", "batches", "Retries that an operator asked for."),
    Definition(
        _R + "in_flight_batches",
        "gauge",
        "batches",
        "Batches cut and unsettled, by phase: recording, waiting (for a slot), flushing, parked.",
        ("phase",),
    ),
    Definition(_R + "in_flight_batches_max", "gauge", "batches", "Its bound; at it consumption stops."),
    Definition(_R + "in_flight_bytes", "gauge", "bytes", "Bytes of open and unsettled batches."),
    Definition(_R + "in_flight_bytes_max", "gauge", "bytes", "Its bound; at it consumption stops."),
    Definition(_R + "staged_bytes", "gauge", "bytes", "Bytes of our batches that lie in Redis."),
    Definition(
        _R + "parked_oldest_seconds",
        "gauge",
        "seconds",
        "Since the oldest parked batch was cut; its partition's commits stand still for that long.",
        across_processes="livemax",
    ),
    Definition(
        _R + "end_to_end_seconds",
        "histogram",
        "seconds",
        "Relay's `received` (whole seconds) of a segment to its durability in every sink; one value a segment.",
        buckets=LONG_SECONDS,
    ),
    # Consumer
    Definition(_R + "paused", "gauge", "0 or 1", "1: the consumer was told to pause.", across_processes="livemax"),
    Definition(_R + "paused_seconds", "counter", "seconds", "Time spent paused."),
    Definition(
        _R + "full_seconds", "counter", "seconds", "Time without room for messages, paused or about to be."
    ),
    Definition(
        _R + "halted",
        "gauge",
        "0 or 1",
        "1: stopped by itself until a person looks (too many rejects).",
        across_processes="livemax",
    ),
    Definition(_R + "commit_seconds", "histogram", "seconds", "Offset commit to the broker's answer."),
    Definition(
        _R + "commits", "counter", "commits", "Commits answered, by outcome: stored, failed.", ("outcome",)
    ),
    Definition(
        _R + "rebalances",
        "counter",
        "events",
        "Group changes seen, by kind: assigned, revoked, lost (evicted: no commit was possible).",
        ("kind",),
    ),
    Definition(
        _R + "offsets_out_of_range",
        "counter",
        "events",
        "The offset to read was not in the log any more (retention) or not yet (topic made anew).",
        ("partition",),
    ),
    Definition(
        _R + "messages_expired", "counter", "messages", "Offsets that were skipped so: LOST, they were never read."
    ),
    Definition(
        _R + "poll_gap_seconds",
        "histogram",
        "seconds",
        "Between two polls of the consumer; at max.poll.interval.ms the group evicts this reader.",
    ),
    Definition(
        _R + "loop_turned_seconds",
        "gauge",
        "seconds",
        "Since the loop last went round, now. Over a few seconds: it is stuck.",
        across_processes="livemax",
    ),
    Definition(_R + "stuck", "counter", "events", "Times that the loop stood still and all stacks were logged."),
    # What the reader sees of the fleet, every heartbeat
    Definition(
        _R + "redis_up", "gauge", "0 or 1", "1: Redis answered the last heartbeat.", across_processes="livemax"
    ),
    Definition(_R + "redis_used_bytes", "gauge", "bytes", "used_memory of Redis: staged batches, queues, chords."),
    Definition(_R + "redis_max_bytes", "gauge", "bytes", "maxmemory of Redis; 0: unbounded."),
    Definition(_R + "queue_depth", "gauge", "tasks", "Tasks waiting in a queue of the fleet.", ("queue",)),
    Definition(
        _R + "breaker_state",
        "gauge",
        "0, 1 or 2",
        "A sink's circuit breaker: 0 closed (healthy), 1 half open (probing), 2 open (the sink is sick).",
        ("sink",),
    ),
    Definition(_R + "info", "gauge", "1", "Version and name of this reader, as labels.", ("version", "reader")),
)

_EXCEEDED = {
    CutReason.COUNT: _B + "exceeded_max_message_count",
    CutReason.BYTES: _B + "exceeded_buffer_byte_size",
    CutReason.AGE: _B + "exceeded_last_buffer_commit_time",
}


class Watermarks(Protocol):
    """The source, as far as lag is concerned."""

    def lag(self, cached: bool = True) -> dict[TopicPartition, tuple[int, int]]:
        """(low, high) of each assigned partition; `cached=False` asks the broker."""


class Parser(Protocol):
    """What `Metrics.timed` wraps."""

    def parse(self, messages: Sequence[Message]) -> Iterable[on.MessageParsed]: ...


class Metrics:
    """The reader's instruments. `observe` and `timed` belong to the loop's thread; `snapshot` is for everybody.

    `reasons` and `warnings` are the stable names that exist, so that their series do from the start. `tell`
    gets each batch whose life ended. `wall` is unix seconds: ages of messages are told by the wall clock.
    """

    def __init__(
        self,
        settings: Settings,
        reasons: Iterable[str] = (),
        warnings: Iterable[str] = (),
        tell: Callable[[Journey], None] = lambda journey: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.registry = CollectorRegistry()
        self.meters = Meters(DEFINITIONS, self.registry, dogstatsd(settings))
        self.snapshot = Snapshot(now=0.0)
        self.watermarks: dict[int, int] = {}
        self._settings = settings
        self._tell = tell
        self._wall = wall
        self._journal = Journal()
        self._pipeline: Pipeline | None = None
        self._source: Watermarks | None = None
        self._snapshot_due = 0.0
        self._messages: defaultdict[int, int] = defaultdict(int)
        self._bytes: defaultdict[int, int] = defaultdict(int)
        self._warnings: defaultdict[str, int] = defaultdict(int)
        self._segments = self._rejects = self._drops = 0
        self._parse_seconds = 0.0
        self._polled_at: float | None = None
        self._times: dict[int, deque[tuple[int, int]]] = {}
        self._newest_ms: dict[int, int] = {}
        self._commits_sent: dict[TopicPartition, float] = {}
        self._known_partitions: set[int] = set()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._prepare(reasons, warnings)

    def _prepare(self, reasons: Iterable[str], warnings: Iterable[str]) -> None:
        """Series that must exist at zero, so that an alert sees their first increment."""
        meters, settings = self.meters, self._settings
        for definition in DEFINITIONS:
            if definition.kind != "gauge" and not definition.labels:
                meters.touch(definition.name)
        for name, values in (
            (_R + "rejects", reasons),
            (_R + "warnings", warnings),
            (_R + "batches_cut", CutReason),
            (_R + "stage_seconds", Stage),
            (_R + "stage_failures", Stage),
            (_R + "messages_parsed", ("segment", "reject", "drop")),
            (_R + "drops", DROP_REASONS),
            (_R + "rebalances", ("assigned", "revoked", "lost")),
            (_R + "commits", ("stored", "failed")),
            (_R + "in_flight_batches", Phase),
        ):
            for value in values:
                meters.touch(name, str(value))
        for stage in Stage:
            for why in ("first", "retry", "deadline"):
                meters.touch(_R + "dispatches", stage.value, why)
        meters.set(_R + "in_flight_batches_max", settings.in_flight_batches_max)
        meters.set(_R + "in_flight_bytes_max", settings.in_flight_bytes_max)

    def watch(self, pipeline: Pipeline, source: Watermarks) -> None:
        """Where gauges come from, once a second."""
        self._pipeline, self._source = pipeline, source

    # What others ask

    def look_at_log(self, *, cached: bool) -> None:
        """Learns where the partitions end. `cached=False` makes requests, so never on the loop's thread."""
        if self._source is not None:
            for source, (_, high) in self._source.lag(cached).items():
                self.watermarks[source.partition] = max(high, self.watermarks.get(source.partition, 0))

    def by_label(self, name: str) -> dict[str, float]:
        """A counter's values by its one label (or "")."""
        base = name.replace(".", "_") + "_total"
        return {
            next(iter(sample.labels.values()), ""): sample.value
            for metric in self.registry.restricted_registry([base]).collect()
            for sample in metric.samples
            if sample.name == base
        }

    def total(self, name: str) -> float:
        """A counter over all of its labels."""
        return sum(self.by_label(name).values())

    def quantile(self, name: str, share: float) -> float | None:
        """The upper edge of the bucket that holds this share of a histogram; None while it is empty."""
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
        return edge if edge != float("inf") else None  # beyond all buckets: no number would be true

    # What the loop tells

    def observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        """One turn of the loop. The first branch runs for every message and must stay cheap."""
        if type(event) is on.MessageParsed:
            outcome = event.outcome
            self._messages[event.source.partition] += 1
            if type(outcome) is Segment:
                self._segments += 1
                if outcome.warnings:
                    for warning in outcome.warnings:  # up to thousands in a hostile one
                        self._warnings[warning] += 1
            elif type(outcome) is Reject:
                self._rejects += 1
                self.meters.count(_R + "rejects", 1, outcome.reason)
            elif type(outcome) is Drop:
                self._drops += 1
                self.meters.count(_R + "drops", 1, outcome.reason)
            if not commands:
                return
        else:
            self._event(event, now)
        for command in commands:
            self._command(command, event, now)
        for journey in self._journal.observe(event, commands, now):
            if journey.outcome in ("released", "lost"):
                self.meters.count(_R + "batches_released")
            self._tell(journey)

    def _event(self, event: on.Event, now: float) -> None:
        count = self.meters.count
        match event:
            case on.Ticked():
                if now >= self._snapshot_due:
                    self._snapshot_due = now + SNAPSHOT_SECONDS
                    self._take_snapshot(now)
            case on.FlushSucceeded():
                journey = self._journal.get(event.batch_id)
                if journey is not None and journey.epoch == event.epoch and journey.stage_started_at is not None:
                    self.meters.observe(_R + "stage_seconds", now - journey.stage_started_at, event.stage.value)
            case on.FlushFailed():
                count(_R + "stage_failures", 1, event.stage.value)
            case on.Committed():
                count(_R + "commits", 1, "stored")
                self._commit_answered(event.source, now)
            case on.CommitFailed():
                count(_R + "commits", 1, "failed")
                self._commit_answered(event.source, now)
            case on.PartitionsAssigned():
                count(_R + "rebalances", 1, "assigned")
                self._snapshot_due = now
            case on.PartitionsRevoked():
                count(_R + "rebalances", 1, "revoked")
                self._snapshot_due = now
            case on.PartitionsLost():
                count(_R + "rebalances", 1, "lost")
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
            meters.count(_R + "batches_cut", 1, batch.cut_by.value)
            if batch.cut_by in _EXCEEDED:
                meters.count(_EXCEEDED[batch.cut_by])
            meters.observe(_B + "buffer_message_count", len(batch.segments) + len(batch.rejects))
            meters.observe(_B + "buffer_size_in_bytes", batch.size_bytes)
            meters.observe(_R + "batch_age_seconds", batch.cut_at - batch.opened_at)
            why = "first"
        elif journey.failed_last:
            why = "retry"
        else:
            why = "deadline" if journey.stage is command.stage else "first"
        meters.count(_R + "dispatches", 1, command.stage.value, why)

    def _commit_answered(self, source: TopicPartition, now: float) -> None:
        sent_at = self._commits_sent.pop(source, None)
        if sent_at is not None:
            self.meters.observe(_R + "commit_seconds", now - sent_at)

    def _end_to_end(self, batch: Batch) -> None:
        wall = self._wall()
        for received, segments in Counter(segment.received for segment in batch.segments).items():
            if received <= wall + FUTURE_SECONDS_MAX:
                self.meters.observe(_R + "end_to_end_seconds", max(0.0, wall - received), times=segments)

    def stuck(self, stacks: object) -> None:
        """The loop stood still and its stacks were logged."""
        self.meters.count(_R + "stuck")

    # What the parser tells

    def timed(self, parser: Parser, also: Callable[[Sequence[Message]], None] = lambda messages: None) -> Parser:
        """The same parser, measured: time spent, bytes, Kafka timestamps, and the gap between polls.

        `also` sees each poll's messages, too.
        """
        return _Timed(parser, self, also)

    def polled(self, messages: Sequence[Message]) -> None:
        """One poll returned these, in offset order a partition."""
        at = time.perf_counter()
        if self._polled_at is not None:
            self.meters.observe(_R + "poll_gap_seconds", at - self._polled_at)
        self._polled_at = at
        seen: set[int] = set()
        for message in messages:
            partition = message.source.partition
            self._bytes[partition] += len(message.value)
            if message.timestamp_ms:
                self._newest_ms[partition] = message.timestamp_ms
                if partition not in seen:
                    seen.add(partition)
                    times = self._times.setdefault(partition, deque(maxlen=TIMES_KEPT))
                    times.append((message.offset, message.timestamp_ms))

    def parsed_for(self, seconds: float) -> None:
        """Parsing what one poll returned took so long."""
        self._parse_seconds += seconds

    # Once a second

    def _take_snapshot(self, now: float) -> None:
        self._flush_tallies()
        if self._pipeline is None:
            return
        before = self.snapshot
        raw = take(self._pipeline, now)
        self.look_at_log(cached=True)
        wall = self._wall()
        partitions = tuple(self._with_lag(state, wall) for state in raw.partitions)
        self.snapshot = Snapshot(
            now, partitions, raw.flights, raw.held_bytes, raw.has_room, raw.paused, raw.stopping, raw.halted,
            raw.reject_ratio,
        )  # fmt: skip
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
        for tally in (self._messages, self._bytes, self._warnings):
            tally.clear()
        parsed = (("segment", self._segments), ("reject", self._rejects), ("drop", self._drops))
        for outcome, messages in parsed:
            if messages:
                meters.count(_R + "messages_parsed", messages, outcome)
        self._segments = self._rejects = self._drops = 0
        if self._parse_seconds:
            meters.count(_R + "parse_seconds", self._parse_seconds)
            self._parse_seconds = 0.0

    def _with_lag(self, state: PartitionState, wall: float) -> PartitionState:
        """Adds what is known of the log's end. Without a committed offset all that is behind `position` counts."""
        times = self._times.get(state.partition)
        high = self.watermarks.get(state.partition, -1)
        done = state.committed if state.committed is not None else (times[0][0] if times else state.position)
        lag_messages = max(0, high - done) if high >= 0 else max(0, state.position - done)
        lag_seconds = 0.0
        if lag_messages:
            while times and times[0][0] < done:
                times.popleft()
            oldest_ms = times[0][1] if times else self._newest_ms.get(state.partition, 0)
            lag_seconds = max(0.0, wall - oldest_ms / 1000) if oldest_ms else 0.0
        return PartitionState(state.partition, state.position, state.committed, high, lag_messages, lag_seconds)

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
            set_(_R + "in_flight_batches", len(snapshot.in_phase(phase)), phase.value)
        set_(_R + "in_flight_bytes", snapshot.held_bytes)
        set_(_R + "staged_bytes", sum(flight.size_bytes for flight in snapshot.flights if flight.attempt))
        parked = [flight.age_seconds for flight in snapshot.in_phase(Phase.PARKED)]
        set_(_R + "parked_oldest_seconds", max(parked, default=0.0))
        set_(_R + "paused", snapshot.paused)
        set_(_R + "halted", snapshot.halted is not None)
        set_(_R + "reject_ratio", snapshot.reject_ratio)

    def _forget_partitions(self, ours: set[int]) -> None:
        for partition in self._known_partitions - ours:
            for name in ("lag_messages", "lag_seconds", "lag_position_messages", "committed_offset"):
                self.meters.forget(_R + name, str(partition))
            self._times.pop(partition, None)
            self._newest_ms.pop(partition, None)
            self.watermarks.pop(partition, None)
        self._known_partitions = ours


class _Timed:
    """A parser with a stopwatch around it: what the consumer of its events does is not counted."""

    def __init__(self, parser: Parser, metrics: Metrics, also: Callable[[Sequence[Message]], None]) -> None:
        self._parser = parser
        self._also = also
        self._metrics = metrics

    def parse(self, messages: Sequence[Message]) -> Iterable[on.MessageParsed]:
        self._metrics.polled(messages)
        self._also(messages)
        return self._measured(messages) if messages else ()

    def _measured(self, messages: Sequence[Message]) -> Iterator[on.MessageParsed]:
        clock, busy_seconds = time.perf_counter, 0.0
        try:
            started_at = clock()
            for event in self._parser.parse(messages):
                busy_seconds += clock() - started_at
                yield event
                started_at = clock()
        finally:
            self._metrics.parsed_for(busy_seconds)
