"""The loop handles events in order, executes commands, and, during a drain, waits until the core releases the
partition.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Message, TopicPartition
from ingest.core.pipeline import Pipeline
from ingest.reader.ports import UnusualMessage
from ingest.reader.runtime import IDLE_SECONDS, Runtime
from ingest.testing.runtime import PARTITION
from tests.kit.batches import segment
from tests.kit.core_reader import limits


def parsed(message: Message) -> on.MessageParsed:
    return on.MessageParsed(message.source, message.epoch, message.offset, segment(message.offset))


class Bench:
    """Implements every protocol of the runtime in one object.

    The clock of the bench advances only while the loop waits.
    """

    def __init__(self, **bounds: float) -> None:
        self.now = 0.0
        self.actions: list[object] = []
        self.fetched: deque[list[Message]] = deque()
        self.events: deque[on.Event] = deque()
        self.seen: list[on.Event] = []
        self.while_waiting: Callable[[], None] = lambda: None
        self.pipeline = Pipeline(limits(**bounds))
        self.unusual: set[int] = set()
        self.deferred: list[Message] = []
        clock = lambda: self.now  # noqa: E731
        self.runtime = Runtime(self.pipeline, self, self, self, self, clock, self._observe, fallback_parser=self)

    def _observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        self.seen.append(event)

    def poll(self, timeout_seconds: float) -> Sequence[Message]:
        self.actions.append("poll")
        self.now += timeout_seconds
        return self.fetched.popleft() if self.fetched else []

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed | UnusualMessage]:
        return (UnusualMessage(m) if m.offset in self.unusual else parsed(m) for m in messages)

    def get(self, block: bool = True, timeout: float | None = None) -> on.Event:
        if block and not self.events:
            self.now += timeout or 0.0
            self.while_waiting()
        if not self.events:
            raise queue.Empty
        return self.events.popleft()

    def submit(self, given: do.Dispatch | do.Park | do.Renew | do.Discard | do.Recut | Message) -> None:
        if isinstance(given, Message):
            self.deferred.append(given)
        else:
            self.actions.append(given)

    def commit(self, command: do.Commit) -> None:
        self.actions.append(command)
        self.events.append(on.Committed(command.source, command.epoch, command.offset, command.record))

    def pause(self, sources: tuple[TopicPartition, ...]) -> None:
        self.actions.append(do.Pause(sources))

    def resume(self, sources: tuple[TopicPartition, ...]) -> None:
        self.actions.append(do.Resume(sources))

    def stop(self, deadline_seconds: float) -> None:
        self.actions.append("dispatcher stopped")

    def close(self) -> None:
        self.actions.append("source closed")

    def actions_of(self, kind: type) -> list[object]:
        return [done for done in self.actions if isinstance(done, kind)]


def bench_with_a_batch_in_flight(**bounds: float) -> Bench:
    bench = Bench(**bounds)
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append([Message(PARTITION, 1, offset, b"") for offset in (0, 1)])
    bench.runtime.step()
    bench.runtime.step()
    assert len(bench.actions_of(do.Dispatch)) == 1
    return bench


def settle(bench: Bench) -> None:
    (flight,) = bench.pipeline.in_flight
    for stage in flight.stages:
        bench.events.append(on.FlushSucceeded(flight.batch.id, 1, stage))


def test_a_step_handles_events_then_the_time_then_messages() -> None:
    """A step first handles pending events, then handles a clock tick, and finally polls for new messages."""
    bench = Bench()
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.events.append(on.RetryRequested("t-0-0-1"))
    bench.fetched.append([Message(PARTITION, 1, 0, b"")])
    bench.now = 1.0

    bench.runtime.step()

    assert [type(event).__name__ for event in bench.seen[1:]] == ["RetryRequested", "Ticked", "MessageParsed"]


def test_at_a_bound_the_loop_does_not_poll_until_the_consumer_is_paused() -> None:
    """When the number of batches in flight reaches its limit, the loop pauses the consumer before it polls again.

    The loop polls the paused consumer, so that the group does not consider the reader dead. Nothing is fetched
    while the consumer is paused.
    """
    bench = bench_with_a_batch_in_flight(in_flight_batches_max=1, pause_after_seconds=0.2)
    bench.actions.clear()

    while not bench.actions_of(do.Pause):
        bench.runtime.step()
        assert "poll" not in bench.actions or bench.actions_of(do.Pause)
    bench.runtime.step()

    assert bench.actions[-1] == "poll"
    assert bench.now < 1.0


def test_a_full_loop_waits_for_events_instead_of_spinning() -> None:
    """When the number of batches in flight is at its limit, the loop waits for events instead of spinning."""
    bench = bench_with_a_batch_in_flight(in_flight_batches_max=1, pause_after_seconds=99.0)
    before = bench.now

    for _ in range(10):
        bench.runtime.step()

    assert bench.now - before >= 10 * IDLE_SECONDS - 1e-6


def test_a_drain_returns_when_the_core_releases_the_partition() -> None:
    """A drain returns when the core releases the partition.

    The drain runs inside the rebalance callback, in which completions and commits continue, but polling does not.
    """
    bench = bench_with_a_batch_in_flight(drain_deadline_seconds=20.0)
    bench.actions.clear()
    waits = iter(range(100))
    bench.while_waiting = lambda: settle(bench) if next(waits) == 3 else None
    started = bench.now

    bench.runtime.drain((PARTITION,))

    assert [c.offset for c in bench.actions_of(do.Commit) if isinstance(c, do.Commit)][-1] == 2
    assert bench.now - started < 1.0
    assert "poll" not in bench.actions
    assert bench.pipeline.sources == ()


def test_a_drain_that_nothing_settles_ends_at_the_deadline() -> None:
    """A drain in which nothing settles ends at its deadline, so that the group does not wait longer than the
    session timeout.
    """
    bench = bench_with_a_batch_in_flight(drain_deadline_seconds=3.0)
    started = bench.now

    bench.runtime.drain((PARTITION,))

    assert 3.0 <= bench.now - started <= 3.0 + 2 * IDLE_SECONDS


def test_draining_a_partition_twice_waits_for_the_second_release_too() -> None:
    """If a partition is drained twice, the second drain waits for its own release, and not for that of the first
    drain.
    """
    bench = Bench(drain_deadline_seconds=3.0)
    for epoch in (1, 2):
        bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, epoch),)))
        if epoch == 2:
            bench.fetched.append([Message(PARTITION, 2, offset, b"") for offset in (0, 1)])
            bench.runtime.step()
            bench.runtime.step()
        started = bench.now
        bench.runtime.drain((PARTITION,))

    assert bench.now - started >= 3.0


def test_run_ends_with_the_shells_closed() -> None:
    """If SIGTERM arrives while nothing is in flight, the run ends and its resources are closed."""
    bench = Bench()
    bench.events.append(on.ShutdownRequested())

    stop = bench.runtime.run()

    assert stop.clean
    assert bench.actions[-2:] == ["dispatcher stopped", "source closed"]


def test_a_halt_keeps_the_loop_running() -> None:
    """After a halt the loop keeps running, so the process stays in its group, but takes no messages."""
    bench = Bench(reject_window=10, reject_unattributed_ratio_max=0.01)
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.pipeline.halted = "by a test"

    for _ in range(3):
        bench.runtime.step()

    assert bench.actions.count("poll") == 3
    assert bench.runtime.stopped is None


def test_an_observer_that_raises_does_not_stop_ingestion() -> None:
    """Even if the observer raises an exception on every event, batches are dispatched."""
    bench = Bench(batch_messages_max=2)

    def broken(event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        raise RuntimeError("no such metric")

    runtime = Runtime(bench.pipeline, bench, bench, bench, bench, lambda: bench.now, broken)
    runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append([Message(PARTITION, 1, offset, b"") for offset in (0, 1)])
    runtime.step()
    runtime.step()

    assert len(bench.actions_of(do.Dispatch)) == 1
    assert runtime.guard.failures["observe"] >= 4


def test_a_loop_that_ends_by_an_exception_closes_its_shells_without_a_drain() -> None:
    """If a step raises an exception, the dispatcher is stopped and the source is closed.

    If partitions are revoked while the source is being closed, the loop neither waits for the batches in flight
    nor commits an offset.
    """
    bench = bench_with_a_batch_in_flight(drain_deadline_seconds=1000.0)
    commits = len(bench.actions_of(do.Commit))

    def poll(timeout_seconds: float) -> Sequence[Message]:
        raise RuntimeError("the client is broken")

    def close() -> None:
        bench.runtime.drain((PARTITION,))
        bench.actions.append("source closed")

    bench.poll, bench.close = poll, close  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the client is broken"):
        bench.runtime.run()

    assert bench.actions[-2:] == ["dispatcher stopped", "source closed"]
    assert len(bench.actions_of(do.Commit)) == commits
    assert bench.now < 1000.0


def test_a_shell_that_fails_to_close_does_not_keep_the_other_open() -> None:
    """Even if stopping the dispatcher raises an exception, the source is closed."""
    bench = Bench()

    def stop(deadline_seconds: float) -> None:
        raise RuntimeError("cannot stop")

    bench.stop = stop  # type: ignore[method-assign]
    bench.runtime.close()

    assert bench.actions == ["source closed"]


# More messages than capacity


def messages(*offsets: int, epoch: int = 1, source: TopicPartition = PARTITION) -> list[Message]:
    return [Message(source, epoch, offset, b"") for offset in offsets]


def parsed_offsets(bench: Bench) -> list[int]:
    return [event.offset for event in bench.seen if isinstance(event, on.MessageParsed)]


def test_a_poll_is_taken_up_to_the_bound_and_the_rest_later_in_order() -> None:
    """If a poll returns six messages of 100 bytes and `in_flight_bytes_max` is 250, at most three messages are
    taken at a time.
    """
    bench = Bench(in_flight_bytes_max=250, batch_messages_max=1, pause_after_seconds=0.1)
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append(messages(0, 1, 2, 3, 4, 5))
    most = 0

    bench.runtime.step()
    assert parsed_offsets(bench) == [0, 1, 2]
    for _ in range(100):
        most = max(most, bench.pipeline.held_bytes)
        for flight in bench.pipeline.in_flight:
            bench.events.extend(on.FlushSucceeded(flight.batch.id, 1, stage) for stage in flight.stages)
        bench.runtime.step()

    assert parsed_offsets(bench) == [0, 1, 2, 3, 4, 5]
    assert most == 300


def test_waiting_messages_are_parsed_only_when_taken() -> None:
    """Messages are parsed only when they are taken, so that waiting messages are not held in parsed form."""
    bench = Bench(in_flight_bytes_max=250, batch_messages_max=100)
    read: list[int] = []

    def lazily(fetched: Iterable[Message]) -> Iterable[on.MessageParsed]:
        for message in fetched:
            read.append(message.offset)
            yield on.MessageParsed(message.source, message.epoch, message.offset, segment(message.offset))

    bench.parse = lazily  # type: ignore[method-assign, assignment]
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append(messages(0, 1, 2, 3, 4, 5))

    bench.runtime.step()

    assert read == [0, 1, 2]


def test_a_held_partition_keeps_its_messages_and_the_others_continue() -> None:
    """Messages of a held partition are kept in the partition's own queue, and the other partitions continue."""
    other = TopicPartition(PARTITION.topic, 1)
    bench = Bench(batch_messages_max=1, in_flight_batches_max=100, pending_ranges_max=8)
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1), on.Assignment(other, 2))))
    bench.fetched.append([*messages(*range(10)), *messages(0, 1, epoch=2, source=other)])

    bench.runtime.step()

    assert bench.pipeline.position(PARTITION) == (8, None)
    assert bench.pipeline.position(other) == (2, None)


def test_a_gap_in_the_log_waits_for_messages_fetched_before() -> None:
    """A gap in the log is reported only after the messages that were fetched before it, because the fetched copies
    may be the only ones.
    """
    bench = Bench(in_flight_bytes_max=250, batch_messages_max=1, pause_after_seconds=0.1)
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append(messages(0, 1, 2, 3, 4, 5))
    bench.runtime.step()

    bench.runtime.feed(on.OffsetOutOfRange(PARTITION, 2, wanted=6, resumed_at=9))
    bench.fetched.append(messages(9, epoch=2))
    for _ in range(100):
        for flight in bench.pipeline.in_flight:
            epoch = flight.batch.epoch
            bench.events.extend(on.FlushSucceeded(flight.batch.id, epoch, stage) for stage in flight.stages)
        bench.runtime.step()

    assert parsed_offsets(bench) == [0, 1, 2, 3, 4, 5, 9]


def test_waiting_messages_of_a_revoked_partition_are_dropped() -> None:
    """Waiting messages of a revoked partition are dropped, because the next owner reads them again from the
    committed offset.
    """
    bench = Bench(in_flight_bytes_max=250, batch_messages_max=1)
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append(messages(0, 1, 2, 3, 4, 5))
    bench.runtime.step()

    bench.runtime.feed(on.PartitionsLost((PARTITION,)))
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 2, committed=1),)))
    bench.fetched.append(messages(1, epoch=2))
    bench.runtime.step()
    bench.runtime.step()

    assert parsed_offsets(bench) == [0, 1, 2, 1]


def test_messages_after_an_unusual_one_wait_and_other_partitions_continue() -> None:
    """Messages after an unusual message wait for its result and then follow in order.

    The loop and the other partitions continue.
    """
    other = TopicPartition(PARTITION.topic, 1)
    bench = Bench(batch_messages_max=100)
    bench.unusual = {1}
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1), on.Assignment(other, 2))))
    bench.fetched.append([*messages(0, 1, 2, 3), *messages(4, 5, epoch=2, source=other)])

    bench.runtime.step()
    bench.fetched.append(messages(6, epoch=2, source=other))
    bench.runtime.step()
    assert parsed_offsets(bench) == [0, 4, 5, 6]
    assert [message.offset for message in bench.deferred] == [1]
    bench.events.append(parsed(bench.deferred[0]))
    bench.runtime.step()

    assert parsed_offsets(bench) == [0, 4, 5, 6, 1, 2, 3]


def test_outcomes_after_an_unusual_message_are_kept_in_order() -> None:
    """If some of the messages in the parser processes' response are unusual, all messages are still taken in
    order.
    """
    bench = Bench(batch_messages_max=100)
    bench.unusual = {1, 3}
    lazily = bench.parse
    bench.parse = lambda fetched: list(lazily(list(fetched)))  # type: ignore[method-assign]
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append(messages(0, 1, 2, 3, 4))

    bench.runtime.step()
    for answered in range(2):
        bench.events.append(parsed(bench.deferred[answered]))
        bench.runtime.step()

    assert parsed_offsets(bench) == [0, 1, 2, 3, 4]
    assert [message.offset for message in bench.deferred] == [1, 3]


def parse_ahead(bench: Bench) -> None:
    """Makes the parser take two more messages before it returns the outcomes of the previous two, as parser
    processes do.
    """
    lazily = bench.parse

    def parse(fetched: Iterable[Message]) -> Iterator[on.MessageParsed | UnusualMessage]:
        iterator = iter(fetched)
        current = list(islice(iterator, 2))
        while current:
            following = list(islice(iterator, 2))
            yield from lazily(current)
            current = following

    bench.parse = parse  # type: ignore[method-assign,assignment]


def test_messages_taken_in_advance_stay_in_order_if_there_is_no_more_room() -> None:
    """If the limit of bytes in flight is reached while the parser holds prefetched messages, later messages are
    queued after these.
    """
    bench = Bench(in_flight_bytes_max=250, batch_messages_max=1)
    parse_ahead(bench)
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append(messages(*range(12)))

    for _ in range(100):
        bench.runtime.step()
        for flight in bench.pipeline.in_flight:
            epoch = flight.batch.epoch
            bench.events.extend(on.FlushSucceeded(flight.batch.id, epoch, stage) for stage in flight.stages)

    assert parsed_offsets(bench) == list(range(12))


def test_messages_taken_in_advance_of_an_unusual_one_stay_in_order() -> None:
    """If a message must be parsed in its own process while the parser still holds prefetched messages, later
    messages are queued behind the prefetched ones.
    """
    bench = Bench(batch_messages_max=100)
    bench.unusual = {1}
    parse_ahead(bench)
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append(messages(*range(8)))

    bench.runtime.step()
    bench.events.append(parsed(bench.deferred[0]))
    bench.runtime.step()

    assert parsed_offsets(bench) == list(range(8))


def test_a_gap_in_the_log_waits_for_an_unusual_message() -> None:
    """After a gap in the log, the reader waits for the fallback parser's result for a message before the gap,
    because the copy of this message in memory may be the only one.
    """
    bench = Bench(batch_messages_max=100)
    bench.unusual = {1}
    bench.runtime.feed(on.PartitionsAssigned((on.Assignment(PARTITION, 1),)))
    bench.fetched.append(messages(0, 1))
    bench.runtime.step()

    bench.runtime.feed(on.OffsetOutOfRange(PARTITION, 2, wanted=2, resumed_at=9))
    bench.fetched.append(messages(9, epoch=2))
    bench.runtime.step()
    bench.events.append(parsed(bench.deferred[0]))
    bench.runtime.step()
    bench.runtime.step()

    assert parsed_offsets(bench) == [0, 1, 9]
