"""Seals: authenticate what programs leave for each other in Redis and in the dead-letter topic.

Whoever can write Redis can write what a worker writes there. With `REPLAYS_SHARED_KEY`, what an offset or a write
rests on carries an HMAC-SHA256 over its purpose and all that it depends on; what does not verify counts as absent.

    purpose      over                                                     where the seal is
    manifest     key, manifest                                            hash field `seal/manifest`
    mark         key, task, SHA-256 of the payload                        the mark's value
    progress     key, task, progress                                      hash field `seal/left/...`
    completion   stream, completion                                       stream field `s`
    parked       key, entry                                               `seal` in the entry
    decision     key, entry of the copy of operators' decisions           `seal` in the entry
    letter       topic, key, value, headers; marks of replays too         header `seal`

A payload is hashed once where it is encoded and once where it is written; the manifest holds the digest. Each part
has its length in front, so that bytes cannot move from one to the next. The first key seals, all keys verify.

Does no I/O. docs/decisions/037-shared-key.md says what is not sealed, and why.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

VERSION = "1"
KEY_CHARACTERS_MIN = 32
SEAL = "seal"
log = logging.getLogger(__name__)


class Purpose(StrEnum):
    """What a seal is for. One that was made for another purpose does not verify."""

    MANIFEST = "manifest"
    MARK = "mark"
    PROGRESS = "progress"
    COMPLETION = "completion"
    PARKED = "parked"
    DECISION = "decision"
    PAYLOAD = "payload"
    LETTER = "letter"


Unverified = Callable[[Purpose], None]


def warn(purpose: Purpose) -> None:
    """One line: something does not carry a seal of the shared key, and is ignored."""
    log.warning("a %s without a seal of the shared key is ignored", purpose)


@dataclass(frozen=True, slots=True)
class Seals:
    """Makes and verifies seals. Without keys it makes none and accepts everything.

    `keys`: the first one seals, all verify. `unsealed_accepted`: what has no seal at all verifies, for as long as
    programs without the key run; a wrong seal never does.
    """

    keys: tuple[bytes, ...] = field(default=(), repr=False)
    unsealed_accepted: bool = False

    @property
    def active(self) -> bool:
        """Whether there is a key."""
        return bool(self.keys)

    def seal(self, purpose: Purpose, *parts: bytes | str) -> bytes:
        """The seal, ASCII; empty without a key."""
        return _seal(self.keys[0], purpose, parts) if self.keys else b""

    def verifies(self, seal: bytes | None, purpose: Purpose, *parts: bytes | str) -> bool:
        """Whether the seal was made for exactly this, by one of the keys. Takes the same time whichever fits."""
        if not self.keys:
            return True
        if not seal:
            return self.unsealed_accepted
        fits = [hmac.compare_digest(seal, _seal(key, purpose, parts)) for key in self.keys]
        return any(fits)

    def seal_object(self, purpose: Purpose, place: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object as it is stored at that place, its seal inside; unchanged without a key."""
        if not self.keys:
            return dict(about)
        return {**about, SEAL: self.seal(purpose, place, _canonical(about)).decode()}

    def open_object(self, purpose: Purpose, place: str, text: bytes) -> dict[str, Any] | None:
        """The JSON object without its seal; None for one that does not verify, or is no object."""
        try:
            about: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        seal = about.pop(SEAL, None)
        sealed = seal.encode("utf-8", "replace") if isinstance(seal, str) else None
        return about if self.verifies(sealed, purpose, place, _canonical(about)) else None

    def content(self, payload: bytes) -> str:
        """SHA-256 of a payload, in hexadecimal; empty without a key, when nobody asks for it."""
        return hashlib.sha256(payload).hexdigest() if self.keys else ""


UNSEALED = Seals()
"""Without a key."""


def keys_of(text: str) -> tuple[bytes, ...]:
    """The keys of a setting, separated by commas or white space. Raises ValueError for one that is too short."""
    keys = tuple(part.encode() for part in text.replace(",", " ").split())
    if any(len(key) < KEY_CHARACTERS_MIN for key in keys):
        raise ValueError(
            f"each key needs {KEY_CHARACTERS_MIN} characters at least: set one from a generator of random ones"
        )
    if len(set(keys)) < len(keys):
        raise ValueError("a key is there twice")
    return keys


def _canonical(about: Mapping[str, Any]) -> bytes:
    """The same bytes for equal objects, whatever wrote them down."""
    return msgspec.json.encode(about, order="deterministic")


def _seal(key: bytes, purpose: Purpose, parts: Sequence[bytes | str]) -> bytes:
    made = hmac.new(key, f"replays-ingest {VERSION} {purpose}".encode(), "sha256")
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "big"))
        made.update(data)
    return made.hexdigest().encode()
