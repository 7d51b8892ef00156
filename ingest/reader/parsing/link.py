"""Protocol between the reader and a parser process.

Messages are passed in shared memory: the reader copies each value once, and the parser process parses it in place.
Requests and results are sent over a socket pair as length-prefixed msgpack. A request only states where the
messages are in shared memory. Results omit bytes that the reader already has: a blob that is a slice of its
message is sent as a position, and a dead letter is sent without its value.

A process may have several requests at a time, each with its own arena, and answers them in order. Requests are a
few bytes long, so sending a request never blocks, even if the process is waiting for the reader to take a long
result.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import msgspec

from ingest.core.model import Blob, Message, Outcome, Reject, Segment, TopicPartition
from ingest.core.parse import ParseRules, UsualLimits, parse, parse_usual_message
from tasks.units import MiB

ARENA_BYTES_MIN = 1 * MiB
FRAME_BYTES_MAX = 1 << 31
NEEDLE_BYTES = 64
EXIT_OUT_OF_MEMORY = 77
"""Exit status of a process that exceeded its memory limit."""
_LENGTH = struct.Struct("<Q")


class Hello(msgspec.Struct, array_like=True):
    """The first frame: rules and limits of the process; 0 means no limit.

    `memory_bytes_max`: additional memory after startup; `cpu_seconds_max`: CPU time per request. `usual`:
    messages above these limits are left to the fallback parser.
    """

    rules: dict[str, Any]
    memory_bytes_max: int
    cpu_seconds_max: int = 0
    usual: dict[str, Any] | None = None


class Item(msgspec.Struct, array_like=True, gc=False):
    """A message without its value, which is at [start, stop) of the arena."""

    source: TopicPartition
    epoch: int
    offset: int
    start: int
    stop: int
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


class Work(msgspec.Struct, array_like=True, gc=False):
    """A request: the index and the size of the arena that holds the values, and the range of the encoded items in
    that arena.
    """

    arena: int
    arena_bytes: int
    start: int
    stop: int


class Answer(msgspec.Struct, array_like=True, gc=False):
    """The outcome of one message: a segment or a reject. Both are None if the message is left to the fallback
    parser.

    `blob_at`: the slice of the message's value that is the first blob.
    """

    segment: Segment | None
    reject: Reject | None
    blob_at: tuple[int, int] | None = None


class Arena:
    """Memory shared with a child through the descriptor of an anonymous file. The memory grows but never
    shrinks."""

    def __init__(self) -> None:
        self.fd = _anonymous_file()
        self.size_bytes = 0
        self._map: mmap.mmap | None = None

    def put(self, values: Sequence[bytes]) -> None:
        """Writes the values contiguously, from the beginning."""
        needed_bytes = sum(map(len, values))
        if self._map is None or needed_bytes > self.size_bytes:
            self.size_bytes = max(ARENA_BYTES_MIN, self.size_bytes, 1 << (needed_bytes - 1).bit_length())
            os.ftruncate(self.fd, self.size_bytes)
            self._map = mmap.mmap(self.fd, self.size_bytes)
        start = 0
        for value in values:
            self._map[start : start + len(value)] = value
            start += len(value)

    def close(self) -> None:
        """Releases the memory. Repeated calls have no effect."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("replays-parse")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_encode = msgspec.msgpack.Encoder().encode
_decode_work = msgspec.msgpack.Decoder(Work).decode
_decode_items = msgspec.msgpack.Decoder(list[Item]).decode
_decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode


# The reader


def ask(link: socket.socket, arenas: Sequence[Arena], turn: int, messages: Sequence[Message]) -> None:
    """Sends messages through the arena at index `turn`. An unanswered request must not be using that arena. Raises
    OSError if the process has ended.
    """
    places = [0, *accumulate(len(message.value) for message in messages)]
    items = _encode(
        [
            Item(sent.source, sent.epoch, sent.offset, start, stop, sent.key, sent.headers, sent.timestamp_ms)
            for sent, (start, stop) in zip(messages, pairwise(places), strict=True)
        ]
    )
    arena = arenas[turn]
    arena.put([*(message.value for message in messages), items])
    send_frame(link, _encode(Work(turn, arena.size_bytes, places[-1], places[-1] + len(items))))


def receive_outcomes(link: socket.socket, messages: Sequence[Message]) -> list[Outcome | None]:
    """Receives the answer to the oldest unanswered request, and returns one outcome per message. `messages`: the
    messages of that request. The outcome of a message that is left to the fallback parser is None.

    Raises EOFError, msgspec.MsgspecError, and OSError (also on timeout).
    """
    answers = _decode_answers(receive_frame(link))
    if len(answers) != len(messages):
        raise EOFError(f"{len(answers)} answers to {len(messages)} messages")
    return [_restored(answer, message) for answer, message in zip(answers, messages, strict=True)]


def _restored(answer: Answer, message: Message) -> Outcome | None:
    if answer.segment is None:
        if answer.reject is None:
            return None
        return msgspec.structs.replace(answer.reject, value=message.value, tombstone=message.tombstone)
    if answer.blob_at is None:
        return answer.segment
    (blob,) = answer.segment.blobs
    start, stop = answer.blob_at
    content = memoryview(message.value)[start:stop]
    return msgspec.structs.replace(answer.segment, blobs=(Blob(blob.name, content, blob.offset),))


# The parser process


class Parser:
    """Answers requests, parsing values in place."""

    def __init__(self, rules: ParseRules, arena_fds: Sequence[int], usual: UsualLimits | None = None) -> None:
        self._rules = rules
        self._usual = usual
        self._fds = arena_fds
        self._maps = [mmap.mmap(-1, 1) for _ in arena_fds]

    def answer(self, frame: bytearray) -> bytes:
        """Returns the result frame for a request frame."""
        work = _decode_work(frame)
        if work.arena_bytes != len(self._maps[work.arena]):
            self._maps[work.arena] = mmap.mmap(self._fds[work.arena], work.arena_bytes, access=mmap.ACCESS_READ)
        arena = self._maps[work.arena]
        items = _decode_items(memoryview(arena)[work.start : work.stop])
        return _encode([self._parsed(item, arena) for item in items])

    def _parsed(self, item: Item, arena: mmap.mmap) -> Answer:
        value: Any = memoryview(arena)[item.start : item.stop]
        message = Message(item.source, item.epoch, item.offset, value, item.key, item.headers, item.timestamp_ms)
        outcome = (
            parse_usual_message(message, self._rules, self._usual) if self._usual else parse(message, self._rules)
        )
        if outcome is None:
            return Answer(None, None)
        if isinstance(outcome, Reject):
            return Answer(None, msgspec.structs.replace(outcome, value=b""))
        (blob,) = outcome.blobs
        place = _place(arena, item, blob.content) if isinstance(blob.content, memoryview) else None
        if place is not None:
            outcome = msgspec.structs.replace(outcome, blobs=(Blob(blob.name, b"", blob.offset),))
        return Answer(outcome, None, place)


def _place(arena: mmap.mmap, item: Item, content: memoryview) -> tuple[int, int] | None:
    """Returns the position of these bytes within the message's value, if the value contains them."""
    start = arena.find(bytes(content[:NEEDLE_BYTES]), item.start, item.stop)
    stop = start + len(content)
    if start < 0 or arena[start:stop] != bytes(content):
        return None
    return start - item.start, stop - item.start


# Frames


def send_frame(link: socket.socket, data: bytes) -> None:
    """Sends one length-prefixed frame."""
    link.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(link: socket.socket) -> bytearray:
    """Receives one length-prefixed frame. Raises EOFError if the connection was closed."""
    (length,) = _LENGTH.unpack(_receive_exactly(link, _LENGTH.size))
    if length > FRAME_BYTES_MAX:
        raise EOFError(f"invalid frame of {length} bytes")
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
