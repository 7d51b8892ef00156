"""A whole world from one seed: brokers, Redis, the fleet, sinks, readers, operators, and faults.

Faults happen until `faults_end_at`. After that, every message must become durable in every sink and committed
within a limited time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from ingest.core import commands as do
from ingest.core import events as on
from ingest.testing.simulation.celery import Fleet
from ingest.testing.simulation.checkers import STALE_STATUS_SECONDS_MAX, Checkers
from ingest.testing.simulation.clock import Timeline
from ingest.testing.simulation.faults import Dice, Fault
from ingest.testing.simulation.kafka import (
    SHORT_RECORD_BYTES_MAX,
    Broker,
    Group,
    Kind,
    Log,
    Record,
    SimulatedSource,
)
from ingest.testing.simulation.marks import Marks
from ingest.testing.simulation.reader import (
    POISON_PREFIX,
    STEP_SECONDS,
    Parser,
    Reader,
    messages_of,
    without_reject_limits,
)
from ingest.testing.simulation.redis import Redis
from ingest.testing.simulation.shape import SINKS, Shape
from ingest.testing.simulation.sinks import Sinks
from ingest.testing.simulation.trace import Trace, Violation

FAULT_INTERVAL_SECONDS = 0.5
ADDED_PARTITIONS_MAX = 2
ADDED_MESSAGES = 5
CLOCK_AHEAD_SECONDS_MAX = 60
NEW_MESSAGES_MAX = 30


@dataclass(slots=True)
class ReaderSlot:
    """One replica of the deployment, with its current process and the number of processes that it has had."""

    name: str
    instance: str
    lives: int = 0
    reader: Reader | None = None


class World:
    """A world, created from a shape and run once."""

    def __init__(self, shape: Shape, *, recording: bool = False) -> None:
        self.shape = shape
        self.timeline = Timeline()
        self.trace = Trace(recording=recording)
        self.dice = Dice(shape.seed, shape.faults, self.timeline, shape.faults_end_at)
        self.redis = Redis(self.timeline)
        self.sinks = Sinks(self.dice, self.trace)
        group = Group(
            self.timeline, shape.partitions, shape.cooperative, shape.session_seconds, self._commit_stored
        )
        if self.dice.occurs(Fault.RECORD_REFUSED):
            group.record_bytes_max = SHORT_RECORD_BYTES_MAX
        self.broker = Broker([Log(partition) for partition in range(shape.partitions)], group, latest=shape.latest)
        self.checkers = Checkers(shape, self.broker, self.sinks, self.trace)
        self.broker.began = self.checkers.durability.check_new_start
        self.broker.resumed = self.checkers.durability.resumed
        self.marks = Marks(self.trace)
        self.fleet = Fleet(
            self.timeline,
            self.dice,
            self.redis,
            self.sinks,
            self.trace,
            shape.visibility_seconds,
            self.checkers.check_write,
        )
        self._messages = shape.messages
        self.slots = [
            ReaderSlot(f"reader{n}", f"instance{n}" if shape.static else "") for n in range(shape.readers)
        ]

    def run(self) -> float:
        """Runs the world to its end. Returns its duration in simulated seconds. Raises Violation."""
        self._produce()
        for slot in self.slots:
            self._start(slot)
        self.timeline.after(FAULT_INTERVAL_SECONDS, self._inject_faults)
        while True:
            self.timeline.run_until(self.timeline.now + 0.5)
            self.checkers.owned.check(self.timeline.now)
            self.checkers.parked.check(self.redis.live(), self.timeline.now)
            now = self.timeline.now
            lag = self.checkers.durability.lag()
            if now > self.shape.faults_end_at and lag == 0 and self.checkers.durability.loss() is None:
                break
            if now > self.shape.faults_end_at + self.shape.settle_seconds_max(self._messages):
                if lag == 0:
                    break
                raise Violation("settles_in_time", f"{lag} offsets uncommitted {now:.0f} s into the run")
        self._outlast_leases()
        self.checkers.at_end()
        for fault in self.dice.struck:
            self.trace.mark(f"fault:{fault.value}")
        return self.timeline.now

    def _outlast_leases(self) -> None:
        """Checks that no settled batch is shown as parked after its lease has ended. Raises Violation."""
        ends_at = self.timeline.now + STALE_STATUS_SECONDS_MAX + 1.0
        while self.redis.live() and self.timeline.now < ends_at:
            self.timeline.run_until(self.timeline.now + 0.5)
            self.checkers.parked.check(self.redis.live(), self.timeline.now)

    # Messages

    def _produce(self) -> None:
        """Creates the messages, some of which exist at the start.

        The other messages arrive until shortly before `faults_end_at`.
        """
        random = Random(f"{self.shape.seed}/messages")
        backlog = self.shape.messages // 3
        storm = random.random() < 0.2
        last = ""
        for n in range(self.shape.messages):
            kind = self._kind(random, storm=storm and n > self.shape.messages * 0.6)
            poison = random.choice(SINKS) if random.random() < 0.02 else ""
            identity = f"{POISON_PREFIX}-{poison}-{n}" if poison and kind is Kind.SEGMENT else str(n)
            if last and kind is Kind.SEGMENT and random.random() < 0.05:
                identity = last  # the SDK sent it twice
            if kind is Kind.SEGMENT:
                last = identity
            log = self.broker.logs[int(random.random() * self.shape.partitions)]
            skipped = int(random.random() * 3) if self.shape.gaps else 0
            if n < backlog:
                log.append(Record(kind, identity), skipped)
            else:
                seconds = random.random() * self.shape.faults_end_at * 0.9
                self.timeline.after(seconds, self._append, log.source.partition, Record(kind, identity), skipped)
        if self.shape.gaps:
            for log in self.broker.logs:
                for moment in (0.3, 0.6, 0.95):
                    self.timeline.after(self.shape.faults_end_at * moment, self._mark, log.source.partition)

    def _append(self, partition: int, record: Record, skipped: int) -> None:
        """Appends to the current topic."""
        self.broker.logs[partition].append(record, skipped)

    def _mark(self, partition: int) -> None:
        self.broker.logs[partition].mark()

    def _kind(self, random: Random, *, storm: bool) -> Kind:
        if random.random() < (0.9 if storm else 0.06):
            return Kind.REJECT
        draw = random.random()
        return Kind.ROWS_ONLY if draw < 0.05 else Kind.SHEDDABLE if draw < 0.1 else Kind.SEGMENT

    # Readers

    def _start(self, slot: ReaderSlot) -> None:
        slot.lives += 1
        rolled_back = slot.reader is not None and slot.reader.pipeline.halted is not None
        bad = slot.lives > 1 and not rolled_back and self.dice.occurs(Fault.BAD_RELEASE)
        limits = without_reject_limits(self.shape.limits) if rolled_back else self.shape.limits
        name = f"{slot.name}.{slot.lives}"
        reader = Reader(
            name,
            limits,
            SimulatedSource(self.broker, self.dice, self.trace, self.timeline, name, slot.instance),
            Parser(self.broker, slot.lives % 2, bad=bad, sheds=self.dice.occurs(Fault.SHEDDING)),
            self.redis,
            self.fleet,
            self.dice,
            self.timeline,
            self.trace,
            self,
            self._clock_ahead(),
        )
        slot.reader = reader
        self._add_line("world", f"{name} starts{' (bad release)' if bad else ''}")
        self._step(slot, reader)

    def _clock_ahead(self) -> float:
        """Returns the clock offset of a new reader, in seconds."""
        if not self.dice.occurs(Fault.CLOCK_SKEW):
            return 0.0
        return float(self.dice.pick(Fault.CLOCK_SKEW, CLOCK_AHEAD_SECONDS_MAX) + 1)

    def _step(self, slot: ReaderSlot, reader: Reader) -> None:
        """Repeatedly runs one iteration of the loop and sends one heartbeat.

        After the process has died, starts the next one.
        """
        if reader.alive and self.timeline.now >= reader.frozen_until:
            self.broker.group.record_heartbeat(reader.source.member_id)
            reader.watch_ownership(self.broker.group.view())
            if self.broker.former:
                reader.watch_topic(self.broker.topic_id)
            if not reader.busy:
                reader.step()
        if reader.alive or reader.busy:
            self.timeline.after(STEP_SECONDS * self.dice.uniform(0.7, 1.3), self._step, slot, reader)
        else:
            self._ended(slot, reader)

    def _ended(self, slot: ReaderSlot, reader: Reader) -> None:
        if reader.stop is not None:
            self.trace.mark("stopped_clean" if reader.stop.clean else "stopped_unclean")
        self._add_line("world", f"{reader.name} is gone: {reader.stop or 'killed'}")
        self.timeline.after(self.dice.uniform(0.2, 8.0), self._start, slot)

    def observe(self, reader: Reader, event: on.Event, commands: Sequence[do.Command]) -> None:
        """Checks invariants and records marks after a reader's decision."""
        now = self.timeline.now
        self.checkers.observe(reader, event, commands, now)
        self.marks.observe(reader, event, commands, now)
        if commands and any(isinstance(command, do.Halt) for command in commands):
            # An operator will roll back the release.
            self.timeline.after(self.dice.uniform(1.0, 3.0), reader.request_stop)

    def _commit_stored(self, partition: int, offset: int, record: str, topic_id: str) -> None:
        self._add_line("broker", f"stored {partition}: {offset} {record!r}")
        self.checkers.stored(partition, offset, topic_id)

    # Faults

    def _inject_faults(self) -> None:
        """Every half second, causes the faults that are not tied to a call."""
        now = self.timeline.now
        if now >= self.shape.faults_end_at:
            return
        self.timeline.after(FAULT_INTERVAL_SECONDS, self._inject_faults)
        for slot in self.slots:
            reader = slot.reader
            if reader is not None and reader.alive and not reader.stopping:
                self._inject_reader_faults(reader)
        strikes = self.dice.occurs
        if strikes(Fault.REDIS_WIPED):
            self._add_line("redis", "restarted empty")
            self.redis.wipe()
        if strikes(Fault.REDIS_DOWN):
            self._add_line("redis", "unavailable")
            self.redis.down_until = now + self.dice.uniform(0.5, 4.0)
        if strikes(Fault.STAGED_EVICTED) and self.redis.batches:
            keys = list(self.redis.batches)
            del self.redis.batches[keys[self.dice.pick(Fault.STAGED_EVICTED, len(keys))]]
        for fault, until in (
            (Fault.SINK_OUTAGE, self.sinks.down_until),
            (Fault.SINK_MISCONFIGURED, self.sinks.misconfigured_until),
        ):
            if strikes(fault):
                sink = (*SINKS, "dead_letter")[self.dice.pick(fault, len(SINKS) + 1)]
                self._add_line(sink, fault.value)
                until[sink] = min(self.shape.faults_end_at, now + self.dice.uniform(1.0, 6.0))
        if strikes(Fault.RETENTION):
            self._expire()
        if len(self.broker.logs) < self.shape.partitions + ADDED_PARTITIONS_MAX and strikes(Fault.PARTITION_ADDED):
            self._add_partition()
        if not self.broker.former and strikes(Fault.TOPIC_RECREATED):
            self._recreate_topic()
        self._act_as_operator()

    def _recreate_topic(self) -> None:
        """Recreates the topic, with fewer or more messages than before.

        The committed offsets are either deleted or kept.
        """
        generation, pick = len(self.broker.former) + 1, partial(self.dice.pick, Fault.TOPIC_RECREATED)
        logs = [Log(former.source.partition, generation) for former in self.broker.logs]
        longer, forgotten = pick(2), pick(2)
        self._add_line("broker", f"topic created again, {'longer' if longer else 'shorter'}, {forgotten=}")
        for log, former in zip(logs, self.broker.logs, strict=True):
            for n in range(min(former.high + 2, NEW_MESSAGES_MAX) if longer else 2):
                log.append(Record(Kind.SEGMENT, f"new-{log.source.partition}-{n}"))
                self._messages += 1
        self.broker.recreate(logs)
        if forgotten:
            self.broker.group.committed.clear()
        self.checkers.durability.recreated()

    def _add_partition(self) -> None:
        """Adds a partition that already contains messages when the group discovers it."""
        log = Log(len(self.broker.logs), len(self.broker.former))
        for n in range(ADDED_MESSAGES):
            log.append(Record(Kind.SEGMENT, f"added-{log.source.partition}-{n}"))
            self._messages += 1
        self.broker.logs.append(log)
        self.trace.mark("partition_added")
        self.timeline.after(self.dice.uniform(0.1, 3.0), self.broker.group.add_partition)

    def _inject_reader_faults(self, reader: Reader) -> None:
        strikes = self.dice.occurs
        if strikes(Fault.READER_CRASH):
            self._add_line("world", f"kill -9 {reader.name}")
            reader.kill()
        elif strikes(Fault.READER_FROZEN):
            self._add_line("world", f"kill -STOP {reader.name}")
            reader.frozen_until = self.timeline.now + self.dice.uniform(1.0, 9.0)
        elif strikes(Fault.READER_STOP):
            self._add_line("world", f"kill -TERM {reader.name}")
            reader.request_stop()

    def _expire(self) -> None:
        log = self.broker.logs[self.dice.pick(Fault.RETENTION, len(self.broker.logs))]
        share = min(1.0, self.dice.uniform(0.1, 1.5))
        low = max(log.low, int(log.low + (log.high - log.low) * share))
        self._add_line("broker", f"{log.source} expired up to {low}")
        log.low = low

    def _act_as_operator(self) -> None:
        """Simulates an operator who acts on parked batches."""
        if self.redis.unavailable:
            return
        for batch_id, (reader, batch) in self.redis.live().items():
            if self.dice.occurs(Fault.OPERATOR_RETRY):
                self.timeline.after(0.1, reader.put, on.RetryRequested(batch_id))
            elif self.dice.occurs(Fault.OPERATOR_ABANDON):
                messages = messages_of(batch)
                deleted = any(generation < len(self.broker.former) for _, _, generation in messages)
                if deleted or batch.offsets.start < self.broker.logs[batch.source.partition].low:
                    continue  # a message that cannot be read again cannot become a dead letter
                self.sinks.dead_letters.update(messages)
                event = on.BatchAbandoned(batch_id, batch.offsets, "abandoned by an operator")
                self.timeline.after(0.1, partial(reader.put, event))

    def _add_line(self, who: str, what: str) -> None:
        self.trace.add(self.timeline.now, who, what)
