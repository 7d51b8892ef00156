"""Parses messages in the reader process or in parser processes, as configured. Parsing is a pure function of a
message and the rules, so the result is the same in either process.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice

import msgspec
import structlog

from ingest.core import events as on
from ingest.core.model import Drop, DropReason, Message, Outcome, Reject, TopicPartition
from ingest.core.parse import ParseRules, Usual, parse, parse_usual
from ingest.core.parse.envelope import identity_of, project_of
from ingest.reader.parsing.link import EXIT_MEMORY, Arena, Hello, ask, receive_outcomes, send_frame
from ingest.reader.ports import Unusual
from ingest.reader.tenant_gate import TenantGate
from tasks.units import MiB

log = structlog.get_logger(__name__)

ANSWER_SECONDS_MAX = 60.0
CLOSE_SECONDS_MAX = 0.5
# This is more memory than parsing needs at the maximum decompressed size. The kernel ends a process that exceeds
# the limit.
MEMORY_BYTES_BASE, MEMORY_RATIO_MAX = 512 * MiB, 6

# Messages per process and request: enough to amortize the request, but few enough to stay within the in-flight
# limit.
MESSAGES_PER_REQUEST = 16

Clock = Callable[[], float]
Wary = Callable[[TopicPartition], bool]
"""True if a partition may hold a message that crashes readers. All of its messages then go to the second line."""


class InlineParser:
    """Parses in the calling thread, after the tenant gate, so that dropped messages are not decompressed."""

    def __init__(
        self,
        rules: ParseRules,
        gate: TenantGate,
        clock: Clock,
        usual: Usual | None = None,
        wary: Wary = lambda source: False,
    ) -> None:
        self._rules = rules
        self._gate = gate
        self._clock = clock
        self._usual = usual
        self._suspects = wary

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed | Unusual]:
        """Yields one result per message, in order. Takes a message only after the caller has taken the result of
        the previous message."""
        for message in messages:
            outcome = shed(message, self._gate, self._clock) or self._parse(message)
            yield answer(message, outcome)

    def _parse(self, message: Message) -> Outcome | None:
        if self._usual is None:
            return parse(message, self._rules)
        return None if self._suspects(message.source) else parse_usual(message, self._rules, self._usual)

    def close(self) -> None:
        """Does nothing."""


class ProcessParser:
    """Parses in `processes` children. The messages of each poll are split among them by bytes, in order.

    Values are passed in shared memory. A child that dies, hangs, or exceeds `memory_bytes_max` (default:
        the likely maximum for the rules) is replaced. Its messages go to the second line. Without a second line
        (`usual` is None), they are parsed one by one, and a message that ends a child again becomes a reject.
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
        usual: Usual | None = None,
        wary: Wary = lambda source: False,
    ) -> None:
        assert processes > 0
        self._has_second_line = usual is not None
        self._suspects = wary
        self._gate = gate
        self._clock = clock
        if memory_bytes_max is None:
            memory_bytes_max = MEMORY_BYTES_BASE + MEMORY_RATIO_MAX * rules.inflated_bytes_max
        hello = Hello(asdict(rules), memory_bytes_max, usual=asdict(usual) if usual is not None else None)
        self._children = [Child(hello, answer_seconds_max) for _ in range(processes)]

    @property
    def process_ids(self) -> list[int]:
        """Ids of the current children."""
        return [child.process_id for child in self._children]

    def parse(self, messages: Iterable[Message]) -> Iterable[on.MessageParsed | Unusual]:
        """Yields one result per message, in order. Takes enough messages at a time to keep all children busy."""
        iterator = iter(messages)
        while batch := list(islice(iterator, MESSAGES_PER_REQUEST * len(self._children))):
            yield from self._parse(batch)

    def _parse(self, messages: Sequence[Message]) -> Iterable[on.MessageParsed | Unusual]:
        """Parses these messages in all children, with a time limit for each child."""
        outcomes: list[Outcome | None] = []
        for message in messages:
            outcomes.append(shed(message, self._gate, self._clock))
        wanted = [
            index
            for index, outcome in enumerate(outcomes)
            if outcome is None and not (self._has_second_line and self._suspects(messages[index].source))
        ]
        shares = self._shares(messages, wanted)
        for child, share in zip(self._children, shares, strict=True):
            if share:
                child.send([messages[index] for index in share])
        for child, share in zip(self._children, shares, strict=True):
            if share:
                received = child.receive_or_none() if self._has_second_line else child.receive()
                for index, outcome in zip(share, received, strict=True):
                    outcomes[index] = outcome
        for message, outcome in zip(messages, outcomes, strict=True):
            yield answer(message, outcome)

    def _shares(self, messages: Sequence[Message], wanted: Sequence[int]) -> list[list[int]]:
        """Splits the messages into contiguous runs of about equal bytes, one per child."""
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

    Erasures are checked first, so that erased messages take no token and never become dead letters.
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


def answer(message: Message, outcome: Outcome | None) -> on.MessageParsed | Unusual:
    """Returns the result for the loop: the outcome, or the message as unusual if there is no outcome."""
    if outcome is None:
        return Unusual(message)
    return on.MessageParsed(message.source, message.epoch, message.offset, outcome)


class ChildFailed(Exception):
    """Raised if a parser process died or did not respond in time. `limit`: the exceeded limit; "" if unknown."""

    def __init__(self, text: str, limit: str = "") -> None:
        super().__init__(f"{limit} ({text})" if limit else text)
        self.limit = limit


class Child:
    """A parser process, its socket and shared memory."""

    def __init__(self, hello: Hello, answer_seconds_max: float) -> None:
        self._hello = msgspec.msgpack.encode(hello)
        self._limits = {
            -signal.SIGXCPU: f"limit of {hello.cpu_seconds_max} s of CPU time",
            EXIT_MEMORY: f"limit of {hello.memory_bytes_max // MiB} MiB of memory",
        }
        self._answer_seconds_max = answer_seconds_max
        self._arena = Arena()
        self._sent: Sequence[Message] = ()
        self._exit_status: int | None = None
        self._start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def _start(self) -> None:
        self._socket, child_socket = socket.socketpair()
        self._socket.settimeout(self._answer_seconds_max)
        descriptors = (child_socket.fileno(), self._arena.fd)
        command = [sys.executable, "-m", "ingest.reader.parsing.child", *map(str, descriptors)]
        self._process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
        child_socket.close()
        send_frame(self._socket, self._hello)

    def send(self, messages: Sequence[Message]) -> None:
        self._sent = messages
        with suppress(OSError):  # `receive` detects and handles the failure
            ask(self._socket, self._arena, messages)

    def receive(self) -> list[Outcome | None]:
        """Returns the outcomes of the last request. After a failure, each message is sent again in its own
        request."""
        try:
            return self.answers()
        except ChildFailed as failure:
            log.error("parser_process_failed", error=str(failure), messages=len(self._sent))
        return [self._parse_alone(message) for message in self._sent]

    def receive_or_none(self) -> list[Outcome | None]:
        """Returns the outcomes of the last request. After a failure, all outcomes are None."""
        try:
            return self.answers()
        except ChildFailed as failure:
            log.error("parser_process_failed", error=str(failure), messages=len(self._sent))
        return [None for _ in self._sent]

    def answers(self) -> list[Outcome | None]:
        """Returns the outcomes of the last request. Raises ChildFailed after replacing the process."""
        try:
            return receive_outcomes(self._socket, self._sent)
        except (OSError, EOFError, msgspec.MsgspecError) as failure:
            self._stop()
            self._start()
            limit = self._limits.get(self._exit_status or 0, "")
            raise ChildFailed(
                f"{type(failure).__name__}: {failure}, exit status {self._exit_status}", limit
            ) from failure

    def _parse_alone(self, message: Message) -> Outcome:
        self.send([message])
        try:
            (outcome,) = self.answers()
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
        """Kills the process. Any thread may call this method, but the thread that uses the child must call
        `close`."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process."""
        self._stop()
        self._arena.close()
