"""Parsing in processes gives the same outcomes as in the loop, whatever happens to the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from ingest.core.model import Drop, Message, Outcome, Reject, Segment, TopicPartition
from ingest.core.parse import ParseRules, UsualLimits
from ingest.local.load.produce import PROFILES, values
from ingest.reader.parsing.inline import MESSAGES_PER_REQUEST, REQUESTS_MAX, InlineParser, ProcessParser
from ingest.reader.ports import UnusualMessage
from ingest.reader.tenant_gate import TenantGate, TenantRules
from ingest.testing.messages import click_event, envelope, frame, recording
from tasks.units import MiB
from tests.kit.paths import ROOT

SOURCE = TopicPartition("ingest-replay-recordings", 2)
RULES = ParseRules(sample_segment_rate=0.5, sample_event_rate=0.5)
DEADLINE_SECONDS = 20.0


def stopped_clock(seconds: float = 0.0) -> float:
    """Returns a clock that does not advance."""
    return seconds


def messages(bodies: Sequence[bytes], first_offset: int = 0) -> list[Message]:
    """Messages as polled."""
    return [
        Message(
            SOURCE,
            3,
            first_offset + number,
            value,
            key=b"k",
            headers=(("h", b"1"),),
            timestamp_ms=1_790_000_000_000,
        )
        for number, value in enumerate(bodies)
    ]


def outcomes(parser: InlineParser | ProcessParser, sent: Sequence[Message]) -> list[Outcome]:
    """Returns the outcomes of the messages, after a check that they are complete and in order."""
    events = list(parser.parse(sent))
    assert [(event.source, event.epoch, event.offset) for event in events] == [
        (message.source, message.epoch, message.offset) for message in sent
    ]
    return [event.outcome for event in events]


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition."""
    ends_at = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def is_gone(process_id: int) -> bool:
    """Returns whether the process is gone; a zombie counts as existing."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def inline_parser() -> InlineParser:
    """Parses the messages in this process."""
    return InlineParser(RULES, TenantGate(), stopped_clock)


@pytest.fixture
def start() -> Iterator[Callable[..., ProcessParser]]:
    """Starts parsers that are stopped after the test."""
    started: list[ProcessParser] = []

    def make(
        processes: int = 2, gate: TenantGate | None = None, rules: ParseRules = RULES, **more: Any
    ) -> ProcessParser:
        started.append(ProcessParser(rules, processes, gate or TenantGate(), stopped_clock, **more))
        return started[-1]

    yield make
    for parser in started:
        parser.close()


@pytest.fixture(scope="module")
def load() -> list[bytes]:
    """Returns messages of every kind that the generator can produce, including rejects and videos."""
    return list(values(PROFILES["small"], 150, seed=11, started_at=1_790_000_000))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_parse_like_the_loop(
    start: Callable[..., ProcessParser], inline_parser: InlineParser, load: list[bytes], processes: int
) -> None:
    """Processes return the same outcomes as the loop, byte for byte and in order.

    The polls have different sizes, including a single message and no messages.
    """
    parser = start(processes)

    for poll in (load[:70], load[70:71], [], load[71:]):
        sent = messages(poll)
        expected = outcomes(inline_parser, sent)
        assert outcomes(parser, sent) == expected
    assert any(isinstance(outcome, Reject) for outcome in expected)


def test_processes_encode_facts_as_protobuf_like_the_loop(
    start: Callable[..., ProcessParser], load: list[bytes]
) -> None:
    """With `bigquery_write=storage`, processes return the same protobuf rows as the loop, and no rows in JSON."""
    rules, sent = replace(RULES, bigquery_write="storage"), messages(load)

    found = outcomes(start(2, rules=rules), sent)

    assert found == outcomes(InlineParser(rules, TenantGate(), stopped_clock), sent)
    segments = [outcome for outcome in found if isinstance(outcome, Segment)]
    assert not any(segment.bigquery for segment in segments)
    assert sum(segment.proto_facts_count for segment in segments) > 100


def test_a_blob_that_came_compressed_is_not_sent_back(start: Callable[..., ProcessParser]) -> None:
    """A blob that was received compressed is a view of the reader's message; only a blob that the child compressed
    is sent back.
    """
    received, packed = messages([recording([click_event()]), recording([click_event()], replay_video=b"mp4" * 9)])

    first, second = outcomes(start(1), [received, packed])

    assert isinstance(first, Segment)
    assert isinstance(second, Segment)
    content = first.blobs[0].content
    assert isinstance(content, memoryview)
    assert content.obj is received.value
    assert zlib.decompress(second.blobs[0].content).startswith(b"\x01\x00\x00\x00\x1bmp4")


def test_shared_memory_grows_with_the_poll(
    start: Callable[..., ProcessParser], inline_parser: InlineParser
) -> None:
    """Shared memory stays large enough when message sizes grow from a few bytes to megabytes and shrink again."""
    parser = start(2)
    large = recording(
        b"[" + b",".join(b'{"type":3,"data":{"n":%d}}' % n for n in range(200_000)) + b"]", compressed=False
    )

    for bodies in ([recording()], [large, recording(), large], [recording([click_event()])] * 5):
        sent = messages(bodies)
        assert outcomes(parser, sent) == outcomes(inline_parser, sent)


def test_a_child_that_was_killed_is_replaced_and_nothing_is_lost(
    start: Callable[..., ProcessParser], inline_parser: InlineParser, load: list[bytes]
) -> None:
    """If one or both children are killed between two polls, they are replaced.

    The next poll returns the outcomes of all messages.
    """
    parser = start(2)
    sent = messages(load[:40])
    expected = outcomes(inline_parser, sent)
    assert outcomes(parser, sent) == expected

    for victims in (slice(0, 1), slice(1, 2), slice(0, 2)):
        before = parser.process_ids
        for victim in before[victims]:
            os.kill(victim, signal.SIGKILL)
        assert outcomes(parser, sent) == expected
        assert not set(before[victims]) & set(parser.process_ids)
        assert all(is_gone(victim) for victim in before[victims])


def test_a_child_that_hangs_is_replaced_and_nothing_is_lost(
    start: Callable[..., ProcessParser], inline_parser: InlineParser, load: list[bytes]
) -> None:
    """A child that does not respond in time is replaced, and no message is lost."""
    parser = start(2, answer_seconds_max=5.0)
    sent = messages(load[:20])
    expected = outcomes(inline_parser, sent)
    assert outcomes(parser, sent) == expected  # Both children have started.

    victim = parser.process_ids[0]
    os.kill(victim, signal.SIGSTOP)

    assert outcomes(parser, sent) == expected
    assert is_gone(victim)


def interrupted(sent: Sequence[Message], after: int, interrupt: Callable[[], None]) -> Iterator[Message]:
    """Yields the messages, and calls `interrupt` after this many have been taken."""
    for number, message in enumerate(sent):
        if number == after:
            interrupt()
        yield message


def test_a_child_that_dies_with_two_requests_loses_nothing(
    start: Callable[..., ProcessParser], inline_parser: InlineParser, load: list[bytes]
) -> None:
    """If a child dies while it has two unanswered requests, the messages of both are parsed again, in order.

    The child is stopped before the first request and killed before the second one, so it answers neither.
    """
    parser = start(1)
    sent = messages(load[:40])
    expected = outcomes(inline_parser, sent)
    assert outcomes(parser, sent) == expected  # The child has started.

    (victim,) = parser.process_ids
    os.kill(victim, signal.SIGSTOP)
    taken = interrupted(sent, MESSAGES_PER_REQUEST, lambda: os.kill(victim, signal.SIGKILL))

    assert [event.outcome for event in parser.parse(taken)] == expected
    assert is_gone(victim)
    assert outcomes(parser, sent) == expected


def test_with_a_fallback_parser_both_requests_of_a_dead_child_are_handed_on(
    start: Callable[..., ProcessParser], inline_parser: InlineParser, load: list[bytes]
) -> None:
    """If a child dies while it has two unanswered requests, the messages in both requests go to the fallback
    parser, and all later messages are parsed as usual.
    """
    parser = start(1, usual=UsualLimits())
    sent = messages(load[:40])
    expected = list(inline_parser.parse(sent))
    assert list(parser.parse(sent)) == expected

    (victim,) = parser.process_ids
    os.kill(victim, signal.SIGSTOP)
    taken = interrupted(sent, MESSAGES_PER_REQUEST, lambda: os.kill(victim, signal.SIGKILL))
    found = list(parser.parse(taken))

    lost = REQUESTS_MAX * MESSAGES_PER_REQUEST
    assert found[:lost] == [UnusualMessage(message) for message in sent[:lost]]
    assert found[lost:] == expected[lost:]


def test_a_child_that_hangs_with_two_requests_loses_nothing(
    start: Callable[..., ProcessParser], inline_parser: InlineParser, load: list[bytes]
) -> None:
    """If a child hangs while it has two unanswered requests, it is replaced and all messages are parsed."""
    parser = start(1, answer_seconds_max=3.0)
    sent = messages(load[:40])
    expected = outcomes(inline_parser, sent)
    assert outcomes(parser, sent) == expected

    (victim,) = parser.process_ids
    os.kill(victim, signal.SIGSTOP)

    assert outcomes(parser, sent) == expected
    assert is_gone(victim)


@pytest.mark.parametrize("taken", [1, MESSAGES_PER_REQUEST, MESSAGES_PER_REQUEST + 1])
def test_results_that_were_not_taken_are_discarded(
    start: Callable[..., ProcessParser], inline_parser: InlineParser, load: list[bytes], taken: int
) -> None:
    """If the caller stops early, the answers to requests that were sent in advance are not mistaken for answers to
    later requests.
    """
    parser = start(1)
    former, sent = messages(load[:40]), messages(load[40:60], first_offset=40)
    expected = outcomes(inline_parser, sent)

    events = iter(parser.parse(former))
    for _ in range(taken):
        next(events)
    events.close()  # type: ignore[attr-defined]

    assert outcomes(parser, sent) == expected


def test_a_call_ends_an_earlier_call_that_was_not_closed(
    start: Callable[..., ProcessParser], inline_parser: InlineParser, load: list[bytes]
) -> None:
    """A later call discards the requests of an earlier one, even if its iterator is still open, and closing that
    iterator does not affect the later call.
    """
    parser = start(2)
    sent = messages(load[40:120])
    expected = list(inline_parser.parse(sent))
    former = iter(parser.parse(messages(load[:80])))
    next(former)

    events = iter(parser.parse(sent))
    first = next(events)
    former.close()  # type: ignore[attr-defined]

    assert [first, *events] == expected


def test_a_bounded_number_of_messages_is_taken_in_advance(
    start: Callable[..., ProcessParser], load: list[bytes]
) -> None:
    """The parser may take messages before the caller has taken earlier results, but never more messages than fit
    into two requests per child.
    """
    parser = start(2)
    sent = messages(load[:100])
    taken = 0

    def count() -> Iterator[Message]:
        nonlocal taken
        for message in sent:
            taken += 1
            yield message

    for delivered, _event in enumerate(parser.parse(count())):
        assert taken - delivered <= 2 * REQUESTS_MAX * MESSAGES_PER_REQUEST

    assert taken == delivered + 1 == len(sent)


def test_long_requests_and_long_results_do_not_block_each_other(
    start: Callable[..., ProcessParser], inline_parser: InlineParser
) -> None:
    """Requests with long headers can be sent even while the child waits for the reader to take a long result,
    because the socket carries only the location of each request in shared memory.
    """
    header = ("trace", b"x" * 100_000)
    body = recording([click_event() for _ in range(2_000)])
    sent = [replace_headers(message, header) for message in messages([body] * (6 * MESSAGES_PER_REQUEST))]

    found = outcomes(start(1, answer_seconds_max=10.0), sent)

    assert found == outcomes(inline_parser, sent)


def replace_headers(message: Message, header: tuple[str, bytes]) -> Message:
    """Returns the message with this header."""
    return msgspec.structs.replace(message, headers=(header,))


def test_a_message_that_kills_the_process_twice_becomes_a_reject(start: Callable[..., ProcessParser]) -> None:
    """A message that inflates to more memory than a process may use becomes a reject that contains the message's
    bytes, and other messages are parsed.
    """
    body = b"[" + b",".join([b'{"type":3}'] * 6_000_000) + b"]"
    costly, good = envelope(frame(zlib.compress(body))), recording([click_event()])
    parser = start(2, memory_bytes_max=40 * MiB)

    first, second, third = outcomes(parser, messages([good, costly, good]))

    assert isinstance(first, Segment)
    assert isinstance(second, Reject)
    assert isinstance(third, Segment)
    assert second.reason == "parser_failed"
    assert second.value == costly
    assert (second.key, second.headers) == (b"k", (("h", b"1"),))
    assert second.offset == 1
    assert isinstance(outcomes(parser, messages([good]))[0], Segment)


def test_the_default_memory_limit_is_enough_for_the_largest_segment(
    start: Callable[..., ProcessParser],
) -> None:
    """The default memory limit is sufficient for a segment with 100 MiB of JSON, which is the inflate limit."""
    body = b"[" + b",".join([b'{"type":3,"data":{"source":1}}'] * 3_300_000) + b"]"

    (outcome,) = outcomes(start(1, rules=ParseRules()), messages([recording(body)]))

    assert isinstance(outcome, Segment)


def test_messages_shed_by_tenant_rules_are_not_sent_to_children(start: Callable[..., ProcessParser]) -> None:
    """Neither parser sends shed messages to a child, even if a poll consists only of such messages."""
    gate = TenantGate()
    gate.rules = TenantRules(killed=frozenset({11}))
    sent = messages([recording(project_id=11), recording(project_id=12)])

    for parser in (InlineParser(RULES, gate, stopped_clock), start(2, gate=gate)):
        dropped, kept = outcomes(parser, sent)
        assert isinstance(dropped, Drop)
        assert isinstance(kept, Segment)
        assert isinstance(outcomes(parser, sent[:1])[0], Drop)


def test_close_leaves_no_process(start: Callable[..., ProcessParser]) -> None:
    """After `close` no child remains, whether it was idle or never used."""
    parser = start(3)
    outcomes(parser, messages([recording()]))
    processes = parser.process_ids

    parser.close()

    assert all(is_gone(process) for process in processes)
    parser.close()  # Calling `close` twice is not an error.


def test_processes_end_with_a_reader_that_was_killed() -> None:
    """If the reader is killed, its processes end, because they detect that the other end of the socket is
    closed.
    """
    script = (
        "import time; from ingest.reader.parsing.inline import *\n"
        "from ingest.reader.tenant_gate import TenantGate\n"
        "parser = ProcessParser(ParseRules(), 2, TenantGate(), time.monotonic)\n"
        "print(*parser.process_ids, flush=True); time.sleep(60)"
    )
    reader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert reader.stdout is not None
        children = [int(word) for word in reader.stdout.readline().split()]
        assert len(children) == 2
    finally:
        reader.kill()
        reader.wait()

    wait_until(lambda: all(is_gone(child) for child in children))


def test_rows_do_not_depend_on_hash_seeds() -> None:
    """The same bytes produce the same rows, whatever the hash seed and the iteration order of sets are."""
    script = (
        "import hashlib\n"
        "from ingest.core.model import Message, TopicPartition\n"
        "from ingest.core.parse import ParseRules, parse\n"
        "from ingest.local.load.produce import PROFILES, values\n"
        "rules = ParseRules(sample_segment_rate=0.5, sample_event_rate=0.5)\n"
        "digest = hashlib.sha256()\n"
        "for offset, value in enumerate(values(PROFILES['small'], 60, seed=3, started_at=1_790_000_000)):\n"
        "    outcome = parse(Message(TopicPartition('t', 0), 1, offset, value), rules)\n"
        "    for row in (*getattr(outcome, 'clickhouse', ()), *getattr(outcome, 'bigquery', ())):\n"
        "        digest.update(row.json + row.id.encode())\n"
        "    digest.update(repr(getattr(outcome, 'metrics', ())).encode())\n"
        "print(digest.hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }

    assert len(digests) == 1
