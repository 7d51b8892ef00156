"""One Kafka record as a plain value: what every part of the system that reads a topic hands on."""

from __future__ import annotations

from operator import methodcaller
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from confluent_kafka import Message

Headers = tuple[tuple[str, bytes | None], ...]
"""In their order; a name may occur more than once."""


UNREADABLE: Headers = (("headers_unreadable", b"a name is not UTF-8"),)
"""Stands for the headers of a message of which the client cannot read one name; then it hands out none of them."""


# For a name that it cannot decode the client returns a list with an exception set. A call that the interpreter has
# specialized does not look for that, and the exception surfaces somewhere later; this one raises SystemError.
_headers = methodcaller("headers")


class Record(msgspec.Struct, frozen=True, gc=False):
    """`timestamp_ms`: the broker's or the producer's, 0 when there is none. `tombstone`: the value is null.

    `value` is empty then.
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
    """A polled message that is not an error."""
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
    """Never raises: a message with any headers is a message.

    Of a name that is not UTF-8 the client makes a null pointer. It must not be asked twice: then it hands the null
    pointer out, and touching that ends the process.
    """
    try:
        found = _headers(message) or ()
    except (SystemError, UnicodeError):
        return UNREADABLE
    return tuple((pair[0], as_bytes(pair[1])) for pair in found)


def as_bytes(value: str | bytes | None) -> bytes | None:
    """The client types what it hands out as either; it is bytes unless somebody produced text."""
    return value.encode() if isinstance(value, str) else value
