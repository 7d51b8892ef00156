"""Parses messages in the reader process or in parser processes, as configured. Parsing is a pure function of a
message and the rules, so the result is the same in either process.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice

import msgspec
import structlog

from ingest.core import events as on
from ingest.core.model import Drop, DropReason, Message, Outcome, Reject, TopicPartition
from ingest.core.parse import ParseRules, UsualLimits, parse, parse_usual_message
from ingest.core.parse.envelope import identity_of, project_of
from ingest.reader.parsing.link import EXIT_OUT_OF_MEMORY, Arena, Hello, ask, receive_outcomes, send_frame
from ingest.reader.ports import UnusualMessage
from ingest.reader.tenant_gate import TenantGate
from tasks.units import MiB

log = structlog.get_logger(__name__)

ANSWER_SECONDS_MAX = 60.0
CLOSE_SECONDS_MAX = 0.5
# Maximum number of messages per request, and of unanswered requests per process. A request must contain enough
# messages to amortize its cost. With two requests per process, the process parses one of them while the reader
# takes the results of the other. Both numbers are low enough to stay within the in-flight limit.
MESSAGES_PER_REQUEST, REQUESTS_MAX = 8, 2
# This is more memory than parsing needs at the maximum decompressed size, with one arena. Each further arena is
# counted as twice the size of the largest request, because arenas grow by doubling. A process whose allocation
# would exceed the limit exits.
MEMORY_BYTES_BASE, MEMORY_RATIO_MAX, ARENA_RATIO_MAX = 512 * MiB, 6, 2

Clock = Callable[[], float]
IsSuspect = Callable[[TopicPartition], bool]
"""True if a partition may hold a message that crashes readers. All of its messages then go to the fallback
parser.
"""


class InlineParser:
    """Parses in the calling thread, after the tenant gate, so that dropped messages are not decompressed."""

    def __init__(
        self,
        rules: ParseRules,
        gate: TenantGate,
        clock: Clock,
        usual: UsualLimits | None = None,
        is_suspect: IsSuspect = lambda source: False,
    ) -> None:
        self._rules = rules
        self._gate = gate
        self._clock = clock
        self._usual = usual
        self._is_suspect = is_suspect

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed | UnusualMessage]:
        """Yields one result per message, in order. Takes a message only after the caller has taken the result of
        the previous message."""
        for message in messages:
            outcome = shed(message, self._gate, self._clock) or self._parse(message)
            yield answer(message, outcome)

    def _parse(self, message: Message) -> Outcome | None:
        if self._usual is None:
            return parse(message, self._rules)
        return None if self._is_suspect(message.source) else parse_usual_message(message, self._rules, self._usual)

    def close(self) -> None:
        """Does nothing."""


@dataclass(frozen=True, slots=True)
class _Round:
    """Messages that were sent to the children together. `shares`: the indexes of each child's messages. `outcomes`
    are complete once all children have answered."""

    messages: Sequence[Message]
    outcomes: list[Outcome | None]
    shares: Sequence[Sequence[int]]


class ProcessParser:
    """Parses in `processes` child processes. The messages of each poll are divided among them by size in bytes, in
    order.

    Values are passed in shared memory. Children parse the next request while the caller takes the results of the
    current one. A child that dies, hangs, or exceeds `memory_bytes_max` (default: an estimate of the maximum
    memory that parsing under `rules` needs) is replaced. The messages of its unanswered requests go to the
    fallback parser. Without a fallback parser (`usual` is None), these messages are parsed one by one, and a
    message that kills a child a second time becomes a reject.
    """

    def __init__(
        self,
        rules: ParseRules,
        processes: int,
        gate: TenantGate,
        clock: Clock,
        *,
        memory_bytes_max: int | None = None,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
        usual: UsualLimits | None = None,
        is_suspect: IsSuspect = lambda source: False,
    ) -> None:
        assert processes > 0
        self._has_fallback = usual is not None
        self._is_suspect = is_suspect
        self._gate = gate
        self._clock = clock
        if memory_bytes_max is None:
            arenas_bytes = (REQUESTS_MAX - 1) * ARENA_RATIO_MAX * MESSAGES_PER_REQUEST * rules.message_bytes_max
            memory_bytes_max = MEMORY_BYTES_BASE + MEMORY_RATIO_MAX * rules.inflated_bytes_max + arenas_bytes
        hello = Hello(asdict(rules), memory_bytes_max, usual=asdict(usual) if usual is not None else None)
        self._children = [Child(hello, answer_seconds_max, REQUESTS_MAX) for _ in range(processes)]
        self._calls = 0

    @property
    def process_ids(self) -> list[int]:
        """Ids of the current children."""
        return [child.process_id for child in self._children]

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed | UnusualMessage]:
        """Yields one result per message, in order. Takes enough messages at a time to keep all children busy: one
        request per child in addition to the one whose results the caller takes.

        If the caller closes the iterator early, or calls this method again, the results that it has not taken are
        discarded.
        """
        self._calls += 1
        call = self._calls
        self._discard()
        iterator = iter(messages)
        try:
            current = self._sent(iterator)
            while current is not None:
                following = self._sent(iterator)
                yield from self._received(current)
                assert call == self._calls, "another call has discarded these results"
                current = following
        finally:
            if call == self._calls:
                self._discard()

    def _discard(self) -> None:
        """Discards unanswered requests, so that their answers are not mistaken for answers to later requests."""
        for child in self._children:
            child.discard()

    def _sent(self, iterator: Iterator[Message]) -> _Round | None:
        """Takes messages and sends one request to each child; returns None if there are no messages."""
        messages = list(islice(iterator, MESSAGES_PER_REQUEST * len(self._children)))
        if not messages:
            return None
        outcomes: list[Outcome | None] = []
        for message in messages:
            outcomes.append(shed(message, self._gate, self._clock))
        wanted = [
            index
            for index, outcome in enumerate(outcomes)
            if outcome is None and not (self._has_fallback and self._is_suspect(messages[index].source))
        ]
        shares = self._shares(messages, wanted)
        for child, share in zip(self._children, shares, strict=True):
            if share:
                child.send([messages[index] for index in share])
        return _Round(messages, outcomes, shares)

    def _received(self, sent: _Round) -> Iterable[on.MessageParsed | UnusualMessage]:
        """Yields the results for these messages from all children, with a time limit for each child."""
        for child, share in zip(self._children, sent.shares, strict=True):
            if share:
                received = child.receive(retry=not self._has_fallback)
                for index, outcome in zip(share, received, strict=True):
                    sent.outcomes[index] = outcome
        for message, outcome in zip(sent.messages, sent.outcomes, strict=True):
            yield answer(message, outcome)

    def _shares(self, messages: Sequence[Message], wanted: Sequence[int]) -> list[list[int]]:
        """Splits the messages into contiguous runs of roughly equal size in bytes, one per child."""
        shares: list[list[int]] = [[] for _ in self._children]
        total = sum(len(messages[index].value) for index in wanted) or 1
        before = 0
        for index in wanted:
            size = len(messages[index].value)
            middle = before + size / 2
            shares[min(int(middle * len(shares) / total), len(shares) - 1)].append(index)
            before += size
        return shares

    def close(self) -> None:
        """Ends the children."""
        for child in self._children:
            child.close()


def shed(message: Message, gate: TenantGate, clock: Clock) -> Drop | None:
    """Returns the drop that tenant rules or erasures require, if any.

    Erasures are checked first, so that erased messages consume no rate-limit token and never become dead
    letters.
    """
    if not gate.active:
        return None
    if gate.erasures:
        identity = identity_of(message.value)
        if identity is not None and gate.erasures.covers(*identity):
            return Drop(DropReason.ERASED, identity[0])
    project_id = project_of(message.value)
    if project_id is None:
        return None
    reason = gate.refusal(project_id, clock())
    return Drop(reason, project_id) if reason else None


def answer(message: Message, outcome: Outcome | None) -> on.MessageParsed | UnusualMessage:
    """Returns the result for the loop: the outcome or, if there is none, the message marked as unusual."""
    if outcome is None:
        return UnusualMessage(message)
    return on.MessageParsed(message.source, message.epoch, message.offset, outcome)


class ChildFailed(Exception):
    """Raised if a parser process died or did not respond in time. `limit`: the exceeded limit; "" if unknown."""

    def __init__(self, text: str, limit: str = "") -> None:
        super().__init__(f"{limit} ({text})" if limit else text)
        self.limit = limit


@dataclass(slots=True)
class _Request:
    """Messages sent to a child. `outcomes`: set if the child failed after the request; None if the child will
    still answer.
    """

    messages: Sequence[Message]
    outcomes: list[Outcome | None] | None = None


class Child:
    """A parser process, its socket and shared memory. At most `requests_max` requests are unanswered at a time."""

    def __init__(self, hello: Hello, answer_seconds_max: float, requests_max: int = 1) -> None:
        self._hello = msgspec.msgpack.encode(hello)
        self._limits = {
            -signal.SIGXCPU: f"limit of {hello.cpu_seconds_max} s of CPU time",
            EXIT_OUT_OF_MEMORY: f"limit of {hello.memory_bytes_max // MiB} MiB of memory",
        }
        self._answer_seconds_max = answer_seconds_max
        self._arenas = [Arena() for _ in range(requests_max)]
        self._turn = 0
        self._requests: deque[_Request] = deque()
        self._exit_status: int | None = None
        self._start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def _start(self) -> None:
        self._socket, child_socket = socket.socketpair()
        self._socket.settimeout(self._answer_seconds_max)
        descriptors = (child_socket.fileno(), *(arena.fd for arena in self._arenas))
        command = [sys.executable, "-m", "ingest.reader.parsing.child", *map(str, descriptors)]
        self._process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
        child_socket.close()
        send_frame(self._socket, self._hello)

    def send(self, messages: Sequence[Message]) -> None:
        """Sends a request. The caller must take its answer with `receive` or `answers`, after the answers to
        earlier requests.
        """
        assert len(self._requests) < len(self._arenas), "every arena is in use"
        self._requests.append(_Request(messages))
        self._ask(messages)

    def _ask(self, messages: Sequence[Message]) -> None:
        self._turn = (self._turn + 1) % len(self._arenas)
        with suppress(OSError):  # the failure is detected and handled when the answer is received
            ask(self._socket, self._arenas, self._turn, messages)

    def receive(self, *, retry: bool) -> list[Outcome | None]:
        """Returns the outcomes of the oldest request. If the process fails, all of its requests fail. With
        `retry`, each of their messages is then sent again in its own request; otherwise, the outcomes are None.
        """
        request = self._requests.popleft()
        if request.outcomes is not None:
            return request.outcomes
        try:
            return self._answers_to(request.messages)
        except ChildFailed as failure:
            count = sum(len(each.messages) for each in (request, *self._requests))
            log.error("parser_process_failed", error=str(failure), messages=count)
        outcomes = self._outcomes_after_failure(request.messages, retry)
        for other in self._requests:
            other.outcomes = self._outcomes_after_failure(other.messages, retry)
        return outcomes

    def _outcomes_after_failure(self, messages: Sequence[Message], retry: bool) -> list[Outcome | None]:
        return [self._parse_alone(message) if retry else None for message in messages]

    def answers(self) -> list[Outcome | None]:
        """Returns the outcomes of the only request. Raises ChildFailed after replacing the process."""
        (request,) = self._requests
        self._requests.clear()
        return self._answers_to(request.messages)

    def discard(self) -> None:
        """Forgets all requests. Replaces the process if it may still answer one of them."""
        if any(request.outcomes is None for request in self._requests):
            self._stop()
            self._start()
        self._requests.clear()

    def _answers_to(self, messages: Sequence[Message]) -> list[Outcome | None]:
        try:
            return receive_outcomes(self._socket, messages)
        except (OSError, EOFError, msgspec.MsgspecError) as failure:
            self._stop()
            self._start()
            limit = self._limits.get(self._exit_status or 0, "")
            raise ChildFailed(
                f"{type(failure).__name__}: {failure}, exit status {self._exit_status}", limit
            ) from failure

    def _parse_alone(self, message: Message) -> Outcome:
        self._ask([message])
        try:
            (outcome,) = self._answers_to([message])
            assert outcome is not None
            return outcome
        except ChildFailed as failure:
            error = f"the message ended the parsing process: {failure}"
            return Reject.of(message, "parser_failed", error, project_of(message.value))

    def _stop(self) -> None:
        self._socket.close()
        try:
            self._process.wait(timeout=CLOSE_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._exit_status = self._process.returncode

    def kill(self) -> None:
        """Kills the process. Any thread may call this method. The thread that uses the child must still call
        `close` afterwards."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process."""
        self._stop()
        for arena in self._arenas:
            arena.close()
