"""Seals authenticate entries in Redis and in the dead-letter topic.

With `REPLAYS_SHARED_KEY`, every entry on which offsets or writes depend has an HMAC-SHA256 of its purpose and
content. Entries that do not verify are treated as missing.

    purpose      over                                                     where the seal is
    manifest     key, manifest                                            hash field `seal/manifest`
    mark         key, task, SHA-256 of the payload                        the mark's value
    progress     key, task, progress                                      hash field `seal/left/...`
    appends      key, task, record of appends                             hash field `seal/appends/...`
    completion   stream, completion                                       stream field `s`
    parked       key, entry                                               `seal` in the entry
    decision     key, entry of the copy of operators' decisions           `seal` in the entry
    letter       topic, key, value, headers; marks of replays too         header `seal`

A payload is hashed once when it is encoded and once when it is written; the manifest contains the digest. Each
part is prefixed with its length, so that bytes cannot move between parts. The first key creates seals; all keys
verify them.

This module does no I/O. docs/decisions/037-shared-key.md lists what is not sealed, and why.
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
    """Purpose of a seal. A seal for another purpose does not verify."""

    MANIFEST = "manifest"
    MARK = "mark"
    PROGRESS = "progress"
    APPENDS = "appends"
    COMPLETION = "completion"
    PARKED = "parked"
    DECISION = "decision"
    PAYLOAD = "payload"
    LETTER = "letter"


Unverified = Callable[[Purpose], None]


def warn(purpose: Purpose) -> None:
    """Logs that an entry without a valid seal is ignored."""
    log.warning("ignoring an entry (%s) that is not sealed with the shared key", purpose)


@dataclass(frozen=True, slots=True)
class Seals:
    """Creates and verifies seals. Without keys, all seals are empty and every entry is accepted.

    `keys`: the first key creates seals, and all keys verify them. `unsealed_accepted`: entries without a seal are
    accepted, because processes without the key are still running; invalid seals are never accepted.
    """

    keys: tuple[bytes, ...] = field(default=(), repr=False)
    unsealed_accepted: bool = False

    @property
    def active(self) -> bool:
        """Whether there is a key."""
        return bool(self.keys)

    def seal(self, purpose: Purpose, *parts: bytes | str) -> bytes:
        """Returns the seal as ASCII bytes; empty if there is no key."""
        return _seal(self.keys[0], purpose, parts) if self.keys else b""

    def verifies(self, seal: bytes | None, purpose: Purpose, *parts: bytes | str) -> bool:
        """Returns True if the seal matches these parts with one of the keys. Runs in constant time."""
        if not self.keys:
            return True
        if not seal:
            return self.unsealed_accepted
        fits = [hmac.compare_digest(seal, _seal(key, purpose, parts)) for key in self.keys]
        return any(fits)

    def seal_object(self, purpose: Purpose, place: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the JSON object with its seal added; unchanged without a key."""
        if not self.keys:
            return dict(document)
        return {**document, SEAL: self.seal(purpose, place, _canonical(document)).decode()}

    def open_object(self, purpose: Purpose, place: str, text: bytes) -> dict[str, Any] | None:
        """Returns the JSON object without its seal; None if the seal does not verify or the value is not an
        object.
        """
        try:
            document: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        seal = document.pop(SEAL, None)
        sealed = seal.encode("utf-8", "replace") if isinstance(seal, str) else None
        return document if self.verifies(sealed, purpose, place, _canonical(document)) else None

    def content(self, payload: bytes) -> str:
        """Returns the SHA-256 digest of a payload in hexadecimal, or "" if there is no key."""
        return hashlib.sha256(payload).hexdigest() if self.keys else ""


UNSEALED = Seals()
"""Seals without a key, which accept every entry."""


def keys_of(text: str) -> tuple[bytes, ...]:
    """Parses the keys in a setting, which are separated by commas or white space. Raises ValueError if one is too
    short.
    """
    keys = tuple(part.encode() for part in text.replace(",", " ").split())
    if any(len(key) < KEY_CHARACTERS_MIN for key in keys):
        raise ValueError(
            f"each key needs at least {KEY_CHARACTERS_MIN} characters: generate one with `openssl rand -hex 32`"
        )
    if len(set(keys)) < len(keys):
        raise ValueError("a key is given twice")
    return keys


def _canonical(document: Mapping[str, Any]) -> bytes:
    """Returns the canonical bytes of an object."""
    return msgspec.json.encode(document, order="deterministic")


def _seal(key: bytes, purpose: Purpose, parts: Sequence[bytes | str]) -> bytes:
    mac = hmac.new(key, f"replays-ingest {VERSION} {purpose}".encode(), "sha256")
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        mac.update(len(data).to_bytes(8, "big"))
        mac.update(data)
    return mac.hexdigest().encode()
