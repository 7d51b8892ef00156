"""Decodes the Kafka value, which is one msgpack map (the topic's schema in sentry-kafka-schemas,
ingest-replay-recordings v1)."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from ingest.core.parse.rules import MessageRejected

INT64_MAX = 2**63 - 1
UINT16_MAX = 2**16 - 1
# Relay writes about twelve keys. The limit is needed because duplicate keys are decoded repeatedly.
KEYS_MAX = 1000

NAME_BYTES_MAX = 256
LONG_VALUE_BYTES_MIN = 1024 * 1024

# The first byte of a msgpack map with more than 15 keys, and the width in bytes of the key count that follows it.
_LENGTH_BYTES = {0xDE: 2, 0xDF: 4}

_replay_id = re.compile(r"[0-9a-fA-F]{32}").fullmatch


class Envelope(msgspec.Struct, gc=False):
    """The message as Relay sends it. The three binary fields are views of the Kafka value, not copies.

    `received`: Unix seconds, set by Relay and not validated. Unknown keys are ignored.
    """

    type: Literal["replay_recording_not_chunked"]
    replay_id: str
    org_id: int
    project_id: int
    received: int
    retention_days: int
    payload: memoryview
    key_id: int | None = None
    replay_event: memoryview | None = None
    replay_video: memoryview | None = None
    version: int = 0


class _LongEnvelope(Envelope, gc=False):
    """An envelope whose two string fields are not decoded, because in a long message either may make up most of
    the message.
    """

    type: msgspec.Raw  # type: ignore[assignment]
    replay_id: msgspec.Raw  # type: ignore[assignment]


class _Names(msgspec.Struct, gc=False):
    """The two string fields of a long message."""

    type: Literal["replay_recording_not_chunked"]
    replay_id: str


class _Project(msgspec.Struct, gc=False):
    project_id: int


class _Identity(msgspec.Struct, gc=False):
    project_id: int
    replay_id: str
    received: int


_decode_identity = msgspec.msgpack.Decoder(_Identity).decode
_decode = msgspec.msgpack.Decoder(Envelope).decode
_decode_long = msgspec.msgpack.Decoder(_LongEnvelope).decode
_decode_names = msgspec.msgpack.Decoder(_Names).decode
_decode_project = msgspec.msgpack.Decoder(_Project).decode


def open_envelope(value: bytes) -> Envelope:
    """Returns the fields of one message. Raises MessageRejected with the reason `not_msgpack` or `schema`."""
    try:
        is_usual = len(value) <= LONG_VALUE_BYTES_MIN and not (value and value[0] in _LENGTH_BYTES)
        envelope = _decode(value) if is_usual else _open_long_envelope(value)
    except msgspec.ValidationError as error:
        raise MessageRejected("schema", str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MessageRejected("not_msgpack", str(error)) from None
    if not _replay_id(envelope.replay_id):
        raise MessageRejected("schema", "replay_id is not 32 hexadecimal digits")
    envelope.replay_id = envelope.replay_id.lower()
    if (
        0 <= envelope.org_id <= INT64_MAX
        and 0 <= envelope.project_id <= INT64_MAX
        and 0 <= envelope.received <= INT64_MAX
        and 0 <= envelope.retention_days <= UINT16_MAX
    ):
        return envelope
    raise MessageRejected("schema", f"{_out_of_range(envelope)} is out of range")


def _out_of_range(envelope: Envelope) -> str:
    """The name of the first field that is out of range."""
    for name, number, number_max in (
        ("org_id", envelope.org_id, INT64_MAX),
        ("project_id", envelope.project_id, INT64_MAX),
        ("received", envelope.received, INT64_MAX),
        ("retention_days", envelope.retention_days, UINT16_MAX),
    ):
        if not 0 <= number <= number_max:
            return name
    raise AssertionError(envelope)


def _open_long_envelope(value: bytes) -> Envelope:
    """Like `open_envelope`, for a message that may have long values outside its three binary fields. Such
    long values are not decoded. Raises MessageRejected and msgspec errors."""
    if _keys(value) > KEYS_MAX:
        raise MessageRejected("schema", f"more than {KEYS_MAX} keys")
    long = _decode_long(value)
    for name, text in (("type", long.type), ("replay_id", long.replay_id)):
        if memoryview(text).nbytes > NAME_BYTES_MAX:
            raise MessageRejected("schema", f"{name} is too long")
    names = _decode_names(b"\x82\xa4type" + long.type + b"\xa9replay_id" + long.replay_id)
    return Envelope(**(msgspec.structs.asdict(long) | msgspec.structs.asdict(names)))


def _keys(value: bytes) -> int:
    """Returns the number of keys that the header of a large map declares; 0 for a small map or any other value."""
    size_bytes = _LENGTH_BYTES.get(value[0], 0) if value else 0
    return int.from_bytes(value[1 : 1 + size_bytes], "big")


def project_of(value: bytes) -> int | None:
    """Returns the project of a message, for rules applied before parsing; None if unknown."""
    try:
        project_id = _decode_project(value).project_id if _keys(value) <= KEYS_MAX else -1
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return project_id if 0 <= project_id <= INT64_MAX else None


def identity_of(value: bytes) -> tuple[int, str, int] | None:
    """(project, replay id, received) of a message, for erasures; None if the message is a reject."""
    try:
        if _keys(value) > KEYS_MAX:
            return None
        found = _decode_identity(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return found.project_id, found.replay_id.lower(), found.received
