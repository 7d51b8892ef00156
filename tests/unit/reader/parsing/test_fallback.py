"""The fallback parser: messages that are not clearly cheap are parsed in a child process with limits, and every
message gets a result.
"""

from __future__ import annotations

import os
import queue
import resource
import signal
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ingest.core import events as on
from ingest.core.model import Message, Reject, Segment
from ingest.core.parse import ParseRules, UsualLimits, parse, parse_usual_message
from ingest.reader.parsing.deadlines import Deadlines
from ingest.reader.parsing.fallback import FallbackParser
from ingest.reader.parsing.inline import InlineParser, ProcessParser
from ingest.reader.ports import UnusualMessage
from ingest.reader.tenant_gate import TenantGate
from ingest.testing import messages as make
from ingest.testing.runtime import PARTITION
from tasks.units import KiB, MiB

RULES = ParseRules()
USUAL = UsualLimits()
LONG_DEADLINES = Deadlines(cpu_seconds=30, answer_seconds=60.0, probe_seconds=600.0)
MANY_EVENTS = zlib.compress(b"[" + b",".join([b'{"type":3}'] * 6_000_000) + b"]", 1)


def message(value: bytes, offset: int = 0) -> Message:
    return Message(PARTITION, 1, offset, value, b"k", (("h", b"1"),))


class Bench:
    """A fallback parser, and the queue that receives its results."""

    def __init__(self, deadlines: Deadlines = LONG_DEADLINES, **more: Any) -> None:
        self.answers: queue.SimpleQueue[on.MessageParsed] = queue.SimpleQueue()
        self.line = FallbackParser(RULES, deadlines, self.answers.put, **more)

    def parsed(self, *sent: Message) -> list[on.MessageParsed]:
        for record in sent:
            self.line.submit(record)
        return [self.answers.get(timeout=120) for _ in sent]


@pytest.fixture
def start() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def start_bench(*arguments: Any, **more: Any) -> Bench:
        benches.append(Bench(*arguments, **more))
        return benches[-1]

    yield start_bench
    for bench in benches:
        bench.line.close()


def test_it_parses_like_the_parser(start: Callable[..., Bench]) -> None:
    """The fallback parser returns the same segments and rejects as the main parser, in the order of the
    messages.
    """
    sent = [
        message(make.recording([make.click_event()]), 0),
        message(b"garbage", 1),
        message(make.recording([make.mutation_event(1000)]), 2),
    ]

    answers = start().parsed(*sent)

    assert [answer.offset for answer in answers] == [0, 1, 2]
    assert [answer.outcome for answer in answers] == [parse(record, RULES) for record in sent]


def test_nothing_runs_before_it_is_needed(start: Callable[..., Bench]) -> None:
    """No child runs before it is needed, because most readers never need the fallback parser."""
    assert start().line.process_id is None


def test_a_message_that_needs_too_much_memory_becomes_a_letter(start: Callable[..., Bench]) -> None:
    """A message that exceeds the memory limit becomes a dead letter, and the next child parses the next
    message.
    """
    bench = start(memory_bytes_max=40 * MiB)
    costly = message(make.envelope(make.frame(MANY_EVENTS)))

    first, second = bench.parsed(costly, message(make.recording(), 1))

    assert isinstance(first.outcome, Reject)
    assert first.outcome.reason == "parser_failed"
    assert "limit of 40 MiB of memory" in first.outcome.error
    assert first.outcome.project_id == 11
    assert (first.outcome.value, first.outcome.key) == (costly.value, b"k")
    assert isinstance(second.outcome, Segment)


def test_a_message_that_uses_too_much_cpu_time_becomes_a_letter(start: Callable[..., Bench]) -> None:
    """A message that exceeds the CPU limit becomes a dead letter, and the next message is parsed."""
    bench = start(Deadlines(cpu_seconds=1, answer_seconds=60.0, probe_seconds=600.0))
    bench.parsed(message(make.recording()))
    spinning = bench.line.process_id
    assert spinning is not None

    (answer,) = spend_cpu_in(bench, spinning)

    assert isinstance(answer.outcome, Reject)
    assert "limit of 1 s of CPU time" in answer.outcome.error
    assert isinstance(bench.parsed(message(make.recording()))[0].outcome, Segment)


def test_the_cpu_time_limit_is_per_message(start: Callable[..., Bench]) -> None:
    """The CPU time limit applies to each message.

    The kernel counts CPU time per process, so earlier messages must not use up the limit.
    """
    bench = start(Deadlines(cpu_seconds=1, answer_seconds=60.0, probe_seconds=600.0))
    bench.parsed(message(make.recording()))
    process_id = bench.line.process_id
    assert process_id is not None
    first, _ = resource.prlimit(process_id, resource.RLIMIT_CPU)

    for offset in range(30):
        (answer,) = bench.parsed(message(make.envelope(make.frame(MANY_EVENTS)), offset))
        assert isinstance(answer.outcome, Segment)
        if resource.prlimit(process_id, resource.RLIMIT_CPU)[0] > first:
            return
    pytest.fail(f"the limit is still {first} s")


def spend_cpu_in(bench: Bench, process_id: int) -> list[on.MessageParsed]:
    """Sends the signal that the kernel sends at the limit, because no message within the other limits uses a
    second of CPU time.
    """
    os.kill(process_id, signal.SIGXCPU)
    return bench.parsed(message(make.recording([make.click_event()]), 7))


def test_the_first_kill_of_a_child_rejects_nothing(start: Callable[..., Bench]) -> None:
    """If a child is killed only once, its message is not rejected, because the kernel may have killed the child
    for a reason unrelated to the message.
    """
    bench = start()
    bench.parsed(message(make.recording()))
    victim = bench.line.process_id
    assert victim is not None

    os.kill(victim, signal.SIGKILL)

    (answer,) = bench.parsed(message(make.recording([make.click_event()]), 1))
    assert isinstance(answer.outcome, Segment)
    assert bench.line.process_id != victim


def test_a_message_that_times_out_twice_becomes_a_letter(start: Callable[..., Bench]) -> None:
    """A message that times out twice becomes a dead letter, and the wait never exceeds the deadline."""
    bench = start(Deadlines(cpu_seconds=30, answer_seconds=0.001, probe_seconds=600.0))

    (answer,) = bench.parsed(message(make.envelope(make.frame(MANY_EVENTS))))

    assert isinstance(answer.outcome, Reject)
    assert answer.outcome.reason == "parser_failed"
    assert "TimeoutError" in answer.outcome.error or "timed out" in answer.outcome.error


def test_close_stops_the_child_and_returns_no_more_results(start: Callable[..., Bench]) -> None:
    """`close` stops the child, even while it is parsing a message, and returns no more results."""
    bench = start()
    bench.parsed(message(make.recording()))
    process_id = bench.line.process_id
    assert process_id is not None
    bench.line.submit(message(make.envelope(make.frame(MANY_EVENTS))))

    bench.line.close()

    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    assert bench.answers.empty()


def test_deadlines_of_child_reject_and_probe_are_ordered() -> None:
    """Whatever the deadline of the liveness probe, the child reaches its CPU limit first, then the message is
    rejected, and only then would the probe fail.
    """
    for probe_seconds in (6.0, 7.5, 60.0, 3600.0):
        deadlines = Deadlines.before(probe_seconds)
        assert deadlines.cpu_seconds >= 1
        assert deadlines.cpu_seconds + 1 <= deadlines.answer_seconds
        assert 2 * deadlines.answer_seconds < deadlines.probe_seconds


# Which messages are ordinary


@pytest.mark.parametrize(
    "value",
    [
        make.recording([make.click_event(), make.hydration_error_event()]),
        make.recording([make.mutation_event(2000)]),
        make.video_recording(bytes(100_000)),
        make.recording(b"not json"),
        b"garbage",
        make.envelope(make.frame(b"x")),
    ],
    ids=["clicks", "mutations", "video", "no json", "garbage", "no zlib"],
)
def test_an_ordinary_message_is_parsed_to_the_same_outcome(value: bytes) -> None:
    """An ordinary message has the same outcome in the loop and in a child process: the limit only decides where it
    is parsed.
    """
    assert parse_usual_message(message(value), RULES, USUAL) == parse(message(value), RULES)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_recording_that_inflates_beyond_the_limit_is_not_ordinary(compressed: bool) -> None:
    """A recording whose uncompressed size exceeds the limit goes to the fallback parser, whether it was sent
    compressed or not.
    """
    value = make.recording([make.mutation_event(5000)], compressed=compressed)

    assert parse_usual_message(message(value), RULES, UsualLimits(inflated_bytes_max=64 * KiB)) is None
    assert isinstance(parse(message(value), RULES), Segment)


def test_a_recording_over_a_tighter_limit_is_rejected_at_once() -> None:
    """If `inflated_bytes_max` is lower in the parse rules than in `UsualLimits`, a recording above it is rejected
    at once, because a child process would also reject the recording.
    """
    value = make.recording([make.mutation_event(5000)])
    rules = ParseRules(inflated_bytes_max=64 * KiB)

    assert isinstance(parse_usual_message(message(value), rules, USUAL), Reject)


def test_a_recording_that_is_slow_to_parse_is_not_ordinary() -> None:
    """A recording with many values of the wrong type goes to the fallback parser, because each value is checked
    separately.
    """
    event = make.custom_event("performanceSpan", {"op": 5, "data": [1] * 30, "description": {}})
    value = make.recording([event] * 3000)

    assert parse_usual_message(message(value), RULES, USUAL) is None


def test_both_parsers_hand_on_messages_that_are_not_ordinary() -> None:
    """The inline parser and the process parser both pass unusual messages to the fallback parser, and parse all
    other messages directly.
    """
    good, long = make.recording([make.click_event()]), make.recording([make.mutation_event(5000)])
    usual = UsualLimits(inflated_bytes_max=64 * KiB)
    processes = ProcessParser(RULES, 1, TenantGate(), lambda: 0.0, usual=usual)
    try:
        for parser in (InlineParser(RULES, TenantGate(), lambda: 0.0, usual), processes):
            first, second, third = parser.parse([message(good, 0), message(long, 1), message(good, 2)])
            assert isinstance(first, on.MessageParsed)
            assert second == UnusualMessage(message(long, 1))
            assert isinstance(third, on.MessageParsed)
    finally:
        processes.close()


def test_a_message_that_killed_a_parser_goes_to_the_fallback_parser() -> None:
    """A message that killed a parser process goes to the fallback parser, and to no other parser process."""
    parser = ProcessParser(RULES, 1, TenantGate(), lambda: 0.0, usual=USUAL)
    try:
        (before,) = parser.parse([message(make.recording())])
        os.kill(parser.process_ids[0], signal.SIGKILL)
        (after,) = parser.parse([message(make.recording())])
    finally:
        parser.close()

    assert isinstance(before, on.MessageParsed)
    assert isinstance(after, UnusualMessage)


def test_after_failed_starts_everything_goes_to_the_fallback_parser() -> None:
    """After failed starts, every message goes to the fallback parser, because any message may have caused the
    failures.
    """
    parser = InlineParser(RULES, TenantGate(), lambda: 0.0, USUAL, is_suspect=lambda source: source == PARTITION)

    (answer,) = parser.parse([message(make.recording())])

    assert isinstance(answer, UnusualMessage)
