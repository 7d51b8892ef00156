"""Headers of dead letters.

A letter is a rejected message, or an item (blob, row, metric) that a sink refused. The same topic also has
*marks*: a mark records that a letter was replayed.

    version      FORMAT
    reason       a stable name
    error        the same as text
    topic, partition, offset   of the original message; offset -1 for an item of a whole batch
    batch_id     the message's batch
    first_seen   of a message: its Kafka timestamp, Unix milliseconds
    originals    of a message: its own headers, encoded
    seal         with a shared key: `sealed`, over everything else in the record
    sink, kind, item   of a refused item: the sink that refused it, its kind, its name within the sink

A message's own headers are chosen by its producer, so they are encoded in the value of one header. In the first
format, they were stored alongside our own headers. In both formats, `reason` is written by this system and shows
whether a letter is a refused item, so that headers of a rejected message are never mistaken for a refused item's
sink, kind or name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from tasks.kafka.records import Headers
from tasks.seals import Purpose, Seals

FORMAT: Final = b"2"

VERSION: Final = "version"
REASON: Final = "reason"
ERROR: Final = "error"
TOPIC: Final = "topic"
PARTITION: Final = "partition"
OFFSET: Final = "offset"
BATCH_ID: Final = "batch_id"
FIRST_SEEN: Final = "first_seen"
ORIGINALS: Final = "originals"
SEAL: Final = "seal"
SINK: Final = "sink"
KIND: Final = "kind"
ITEM: Final = "item"
NAMES: Final = frozenset(
    (VERSION, REASON, ERROR, TOPIC, PARTITION, OFFSET, BATCH_ID, FIRST_SEEN, ORIGINALS, SEAL, SINK, KIND, ITEM)
)
FIRST_FORMAT_OURS: Final = frozenset((REASON, ERROR, TOPIC, PARTITION, OFFSET, BATCH_ID, FIRST_SEEN))
"""Headers that the first format replaced; only these are ours in its letters."""

MARK: Final = "replayed"
DIGEST: Final = "digest"
REPLAYED_FROM: Final = "replayed_from"
"""Header of a replayed message, so that it is recognized if it is rejected again."""

REFUSED: Final = "sink_refused"
"""The reason of every refused item."""
ABANDONED: Final = "abandoned"
"""The reason of a message of an abandoned batch."""
NO_OFFSET: Final = -1


class Kind(StrEnum):
    """The kind of a refused item."""

    BLOB = "blob"
    ROW = "row"
    METRIC = "metric"


@dataclass(frozen=True, slots=True)
class Origin:
    """The original message of a letter."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}-{self.offset}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused item. Texts are not validated; `tasks.refused.revive` checks them."""

    sink: str
    kind: str
    item: str


@dataclass(frozen=True, slots=True)
class Label:
    """The parsed headers of a letter. If the letter contains a message, `refusal` is None, and `originals` has the
    message's own headers.
    """

    reason: str
    error: str
    origin: Origin
    batch_id: str
    first_seen_ms: int | None = None
    originals: Headers = ()
    refusal: Refusal | None = None

    def encode(self) -> Headers:
        """Returns all headers of the record."""
        texts = {
            REASON: self.reason,
            ERROR: self.error,
            TOPIC: self.origin.topic,
            PARTITION: str(self.origin.partition),
            OFFSET: str(self.origin.offset),
            BATCH_ID: self.batch_id,
        }
        if self.first_seen_ms is not None:
            texts[FIRST_SEEN] = str(self.first_seen_ms)
        if self.refusal is not None:
            texts |= {SINK: self.refusal.sink, KIND: self.refusal.kind, ITEM: self.refusal.item}
        own = ((VERSION, FORMAT), *((name, text.encode("utf-8", "replace")) for name, text in texts.items()))
        return (*own, (ORIGINALS, _packed(self.originals))) if self.originals else own


def decode(headers: Headers) -> Label | None:
    """Returns the label of a letter of either format; None for other records."""
    named = dict(headers)
    if _text(named.get(REASON)) == "":
        return None
    if named.get(VERSION) == FORMAT and len(named) == len(headers) and NAMES.issuperset(named):
        originals = _unpacked(named.get(ORIGINALS))
        if originals is not None:
            return _label(named, originals)
    return _label(named, tuple(pair for pair in headers if pair[0] not in FIRST_FORMAT_OURS))


def _label(named: dict[str, bytes | None], originals: Headers) -> Label:
    reason = _text(named.get(REASON))
    refused = reason == REFUSED
    refusal = Refusal(_text(named.get(SINK)), _text(named.get(KIND)), _text(named.get(ITEM)))
    return Label(
        reason=reason,
        error=_text(named.get(ERROR)),
        origin=Origin(_text(named.get(TOPIC)), _number(named.get(PARTITION)), _number(named.get(OFFSET))),
        batch_id=_text(named.get(BATCH_ID)),
        first_seen_ms=_number(named[FIRST_SEEN]) if FIRST_SEEN in named and not refused else None,
        originals=() if refused else originals,
        refusal=refusal if refused else None,
    )


@dataclass(frozen=True, slots=True)
class Mark:
    """Records that a letter was replayed. `letter_id`: `partition-offset`; `digest`: digest of the letter's bytes,
    empty in marks of the first format."""

    letter_id: str
    digest: str = ""

    def encode(self) -> Headers:
        """Returns the headers of the mark's record, which has neither key nor value."""
        return ((MARK, self.letter_id.encode()), (DIGEST, self.digest.encode()))


def decode_mark(headers: Headers, key: bytes | None, value: bytes) -> Mark | None:
    """Returns the mark in this record, or None if the record is a letter, which always has headers that a mark
    does not have."""
    named = dict(headers)
    if (
        key
        or value
        or MARK not in named
        or len(named) != len(headers)
        or not {MARK, DIGEST, SEAL}.issuperset(named)
    ):
        return None
    return Mark(_text(named[MARK]), _text(named.get(DIGEST)))


class SealStatus(StrEnum):
    """Result of verifying the seal of a dead-letter record."""

    YES = "yes"
    UNKNOWN = "unknown"  # there is no shared key, or records without a seal are accepted
    NO = "no"


def sealed(seals: Seals, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> Headers:
    """Returns the headers for the dead-letter topic, with a seal if there is a shared key."""
    if not seals.active:
        return headers
    return (*headers, (SEAL, seals.seal(Purpose.LETTER, *_sealed_parts(topic, key, value, headers))))


def examine(seals: Seals, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> SealStatus:
    """Verifies the seal of a record of the dead-letter topic."""
    found = [given for name, given in headers if name == SEAL]
    seal = found[0] if len(found) == 1 else b"several" if found else None
    rest = tuple(pair for pair in headers if pair[0] != SEAL)
    if not seals.verifies(seal, Purpose.LETTER, *_sealed_parts(topic, key, value, rest)):
        return SealStatus.NO
    return SealStatus.YES if seals.active and seal else SealStatus.UNKNOWN


def _sealed_parts(topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> list[bytes | str]:
    """Returns the parts that a seal covers, in a form that distinguishes None from an empty value."""
    parts: list[bytes | str] = [topic]
    for part in (
        key,
        value,
        *(text for name, given in headers for text in (name.encode("utf-8", "replace"), given)),
    ):
        parts += ("0", b"") if part is None else ("1", part)
    return parts


def digest(key: bytes | None, value: bytes) -> str:
    """Returns a digest of a message. A replayed letter has the same digest as the new letter that is written if
    the replayed message is rejected again.
    """
    sum_ = hashlib.blake2b(key or b"", digest_size=16, person=b"key" if key is not None else b"no key")
    sum_.update(len(key or b"").to_bytes(8, "big"))
    sum_.update(value)
    return sum_.hexdigest()


# [name, value, name, value, ...]: needs only two more bytes per header than Kafka's own format, so that a letter
# fits into a topic with a similar message size limit.


def _packed(originals: Headers) -> bytes:
    parts: list[bytes | None] = []
    for name, value in originals:
        parts += (name.encode("utf-8", "replace"), value)
    return msgspec.msgpack.encode(parts)


def _unpacked(packed: bytes | None) -> Headers | None:
    """Decodes the result of `_packed`. Returns None for bytes in any other format."""
    if packed is None:
        return ()
    try:
        parts = msgspec.msgpack.decode(packed, type=list[bytes | None])
    except msgspec.MsgspecError:
        return None
    names, values = parts[::2], parts[1::2]
    if len(names) != len(values) or None in names:
        return None
    return tuple((_text(name), value) for name, value in zip(names, values, strict=True))


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _number(value: bytes | None) -> int:
    text = _text(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else NO_OFFSET
