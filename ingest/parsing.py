"""Where parsing runs: in the loop's own process, or in processes beside it, by a setting.

Parsing is a pure function of a message and the rules, so nothing else of the application can tell.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import msgspec
import structlog

from ingest.core import events as on
from ingest.core.model import DeadLetter, Drop, Message, Outcome, Reject, Segment
from ingest.core.parse import ParseRules, parse
from ingest.core.parse.envelope import project_of
from ingest.core.tenants import TenantGate

log = structlog.get_logger(__name__)

CHUNK_SECONDS_MAX = 60.0
FRAME_BYTES_MAX = 1 << 31
_LENGTH = struct.Struct("<Q")

Clock = Callable[[], float]


class Parsed(msgspec.Struct, array_like=True, gc=False):
    """An outcome on its way between processes: exactly one of the two."""

    segment: Segment | None
    reject: Reject | None


class InlineParser:
    """Parses in the calling thread, after the tenant gate: what is shed is not inflated."""

    def __init__(self, rules: ParseRules, gate: TenantGate, clock: Clock) -> None:
        self._rules = rules
        self._gate = gate
        self._clock = clock

    def parse(self, messages: Sequence[Message]) -> Iterable[on.MessageParsed]:
        """One event a message, in order."""
        for message in messages:
            outcome = shed(message, self._gate, self._clock) or parse(message, self._rules)
            yield on.MessageParsed(message.source, message.epoch, message.offset, outcome)

    def close(self) -> None:
        """Nothing is held."""


class ProcessParser:
    """Parses in `processes` children; each poll's messages are split among them by bytes, order is kept.

    Messages travel as msgpack over a socket pair, no pickle. A child that dies or hangs is replaced and its
    messages are parsed one by one: the one that kills a child again becomes a reject, kept as a dead letter.
    """

    def __init__(self, rules: ParseRules, processes: int, gate: TenantGate, clock: Clock) -> None:
        assert processes > 0
        self._gate = gate
        self._clock = clock
        self._children = [_Child(rules) for _ in range(processes)]

    def parse(self, messages: Sequence[Message]) -> Iterable[on.MessageParsed]:
        """One event a message, in order. Waits for all children, CHUNK_SECONDS_MAX at most for each."""
        outcomes: list[Outcome | None] = [shed(message, self._gate, self._clock) for message in messages]
        wanted = [index for index, outcome in enumerate(outcomes) if outcome is None]
        shares = self._shares(messages, wanted)
        for child, share in zip(self._children, shares, strict=True):
            if share:
                child.send([messages[index] for index in share])
        for child, share in zip(self._children, shares, strict=True):
            if share:
                for index, received in zip(share, child.receive(), strict=True):
                    outcomes[index] = received
        for message, outcome in zip(messages, outcomes, strict=True):
            assert outcome is not None
            yield on.MessageParsed(message.source, message.epoch, message.offset, outcome)

    def _shares(self, messages: Sequence[Message], wanted: Sequence[int]) -> list[list[int]]:
        """Contiguous runs of about the same number of bytes, one a child."""
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
    """The drop that the tenant rules ask for, if any. Costs nothing while there are no rules."""
    if not gate.active:
        return None
    project_id = project_of(message.value)
    if project_id is None:
        return None
    reason = gate.refusal(project_id, clock())
    return Drop(reason, project_id) if reason else None


class ChildFailed(Exception):
    """A parsing process died or did not answer in time."""


class _Child:
    """One parsing process and the socket to it."""

    def __init__(self, rules: ParseRules) -> None:
        self._rules = rules
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[Parsed]).decode
        self._sent: Sequence[Message] = ()
        self._start()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(CHUNK_SECONDS_MAX)
        command = [sys.executable, "-m", "ingest.parse_process", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        send_frame(self._socket, msgspec.json.encode(asdict(self._rules)))

    def send(self, messages: Sequence[Message]) -> None:
        self._sent = messages
        with suppress(OSError):  # `receive` finds out, and knows what to do
            send_frame(self._socket, self._encode(messages))

    def receive(self) -> list[Outcome]:
        """The outcomes of what was sent last."""
        try:
            return self._receive()
        except ChildFailed as failure:
            log.error("parser_process_failed", error=str(failure), messages=len(self._sent))
            return [self._alone(message) for message in self._sent]

    def _receive(self) -> list[Outcome]:
        try:
            parsed = self._decode(receive_frame(self._socket))
        except (OSError, EOFError, msgspec.MsgspecError) as failure:
            self.close()
            self._start()
            raise ChildFailed(f"{type(failure).__name__}: {failure}") from failure
        outcomes: list[Any] = [item.segment if item.reject is None else item.reject for item in parsed]
        return outcomes

    def _alone(self, message: Message) -> Outcome:
        self.send([message])
        try:
            return self._receive()[0]
        except ChildFailed as failure:
            error = f"the message ended the parsing process: {failure}"
            letter = DeadLetter(
                key=message.key,
                value=message.value,
                headers=message.headers,
                reason="parser_failed",
                error=error,
                offset=message.offset,
                first_seen_ms=message.timestamp_ms,
            )
            return Reject("parser_failed", error, letter)

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5)


def send_frame(link: socket.socket, data: bytes) -> None:
    """One length-prefixed frame."""
    link.sendall(_LENGTH.pack(len(data)))
    link.sendall(data)


def receive_frame(link: socket.socket) -> bytearray:
    """One length-prefixed frame. EOFError: the other end is gone."""
    (length,) = _LENGTH.unpack(_receive_exactly(link, _LENGTH.size))
    if length > FRAME_BYTES_MAX:
        raise EOFError(f"a frame of {length} bytes is not one of ours")
    return _receive_exactly(link, length)


def _receive_exactly(link: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view, filled = memoryview(data), 0
    while filled < length:
        count = link.recv_into(view[filled:])
        if count == 0:
            raise EOFError("the connection was closed")
        filled += count
    return data
