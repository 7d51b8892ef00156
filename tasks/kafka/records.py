"""One Kafka record as a plain value."""

from __future__ import annotations

from operator import methodcaller
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from confluent_kafka import Message

Headers = tuple[tuple[str, bytes | None], ...]
"""In order; a name may occur more than once."""


UNREADABLE: Headers = (("headers_unreadable", b"a name is not UTF-8"),)
"""Placeholder for headers that the client cannot decode. It then returns none of the headers."""


# For an undecodable name, the client returns a list with an exception set. A method call that CPython has
# specialized would miss the exception, which would then be raised later, at an unrelated place. `methodcaller`
# raises SystemError instead.
_headers = methodcaller("headers")


class Record(msgspec.Struct, frozen=True, gc=False):
    """`timestamp_ms`: the timestamp set by the broker or the producer; 0 if there is none.

    `tombstone`: the value is null, and `value` is empty.
    """

    topic: str
    partition: int
    offset: int
    value: bytes
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int = 0
    tombstone: bool = False


def record_of(message: Message) -> Record:
    """Converts a polled message that is not an error."""
    kind, timestamp_ms = message.timestamp()
    value = as_bytes(message.value())
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        value=value or b"",
        key=as_bytes(message.key()),
        headers=headers_of(message),
        timestamp_ms=timestamp_ms if kind else 0,
        tombstone=value is None,
    )


def headers_of(message: Message) -> Headers:
    """Returns the headers of a message. Never raises.

    If a header's name is not UTF-8, the first call of the client's `headers` method fails and leaves a list with a
    null pointer in the message. A second call would return this list, whose use crashes the process, so the method
    is called only once per message.
    """
    try:
        found = _headers(message) or ()
    except (SystemError, UnicodeError):
        return UNREADABLE
    return tuple((pair[0], as_bytes(pair[1])) for pair in found)


def as_bytes(value: str | bytes | None) -> bytes | None:
    """Converts the value to bytes, because the client's type also allows text."""
    return value.encode() if isinstance(value, str) else value
