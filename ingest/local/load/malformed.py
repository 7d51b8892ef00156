"""Builds messages that cannot be parsed. Each kind of flaw has a builder and an expected reject reason.

The reasons are the stable names in `ingest.core.parse.REASONS`; a test verifies that the two lists are equal.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from ingest.local.load.manifest import Entry
from ingest.local.load.relay import ENVELOPE_TYPE, Message
from tasks.units import MiB

BODY = zlib.compress(
    b'[{"type":4,"data":{"href":"https://shop.fernhill.example/","width":1,"height":1},"timestamp":1}]'
)
Maker = Callable[[random.Random], bytes]


def _envelope(rng: random.Random, **changes: Any) -> dict[str, Any]:
    """Returns a valid envelope with changes; a field set to `...` is omitted."""
    whole = {
        "type": ENVELOPE_TYPE,
        "replay_id": f"{rng.getrandbits(128):032x}",
        "key_id": 7,
        "org_id": 1,
        "project_id": 11,
        "received": 1_700_000_000,
        "retention_days": 30,
        "payload": b'{"segment_id":0}\n' + BODY,
        "replay_event": None,
        "replay_video": None,
        "version": 1,
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def _packed(**changes: Any) -> Maker:
    return lambda rng: msgspec.msgpack.encode(_envelope(rng, **changes))


def _payload(head: bytes, body: bytes = BODY) -> Maker:
    return _packed(payload=head + body)


def _cut_envelope(rng: random.Random) -> bytes:
    return msgspec.msgpack.encode(_envelope(rng))[: 40 + rng.randrange(40)]


def _random_bytes(rng: random.Random) -> bytes:
    return b"\xc1" + rng.randbytes(60)  # 0xC1 is the only byte that msgpack never uses


GOOD_HEAD = b'{"segment_id":3}\n'

# (flaw, reject reason, builder)
MAKERS: tuple[tuple[str, str, Maker], ...] = (
    ("noise", "not_msgpack", _random_bytes),
    ("envelope cut off", "not_msgpack", _cut_envelope),
    ("a msgpack string", "schema", lambda rng: msgspec.msgpack.encode("hello")),
    ("another type", "schema", _packed(type="replay_recording_chunk")),
    ("no replay_id", "schema", _packed(replay_id=...)),
    ("no org_id", "schema", _packed(org_id=...)),
    ("project_id as text", "schema", _packed(project_id="11")),
    ("negative project_id", "schema", _packed(project_id=-1)),
    ("payload as text", "schema", _packed(payload="hello")),
    ("replay_id is no UUID", "schema", _packed(replay_id="not-a-replay")),
    ("no header line", "no_header", _packed(payload=b"hello")),
    ("header is not JSON", "bad_header", _payload(b"{segment_id:3}\n")),
    ("header is a list", "bad_header", _payload(b"[3]\n")),
    ("no segment_id", "bad_header", _payload(b'{"sequence":3}\n')),
    ("segment_id null", "bad_header", _payload(b'{"segment_id":null}\n')),
    ("segment_id as text", "bad_header", _payload(b'{"segment_id":"three"}\n')),
    ("segment_id NaN", "bad_header", _payload(b'{"segment_id":NaN}\n')),
    ("segment_id negative", "bad_header", _payload(b'{"segment_id":-1}\n')),
    ("gzip", "body_not_zlib", _payload(GOOD_HEAD, gzip.compress(b"[]", mtime=0))),
    ("plain text body", "body_not_zlib", _payload(GOOD_HEAD, b"hello")),
    ("empty body", "body_not_zlib", _payload(GOOD_HEAD, b"")),
    ("zlib cut off", "body_truncated", _payload(GOOD_HEAD, BODY[:-20])),
)


def malformed(rng: random.Random, number: int, at: int) -> Message:
    """Returns the malformed message with this number; numbers cycle through all builders."""
    flaw, reason, make = MAKERS[number % len(MAKERS)]
    return _message(make(rng), reason, flaw, at)


def zip_bomb(rng: random.Random, inflated_bytes: int = 101 * MiB) -> Message:
    """Returns a small message that inflates beyond the limit. Building the message takes about 300 ms."""
    packer = zlib.compressobj(9)
    block = b" " * MiB
    body = packer.compress(b"[") + b"".join(packer.compress(block) for _ in range(inflated_bytes // MiB))
    value = _payload(GOOD_HEAD, body + packer.flush())(rng)
    return _message(value, "body_too_large", "zip bomb", 0)


def _message(value: bytes, reason: str, flaw: str, at: int) -> Message:
    digest = hashlib.sha256(value).hexdigest()
    entry = Entry(kind="reject", reason=reason, flaw=flaw, at=at, blob_sha256=digest, value_bytes=len(value))
    return Message(value, entry)
