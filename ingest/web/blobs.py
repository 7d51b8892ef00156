"""The events of a stored recording, as a timeline and a player need them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from ingest.core.parse.budget import Budget, Spent
from ingest.core.parse.rules import ParseRules
from ingest.core.parse.undecoded import Undecoded, undecoded
from ingest.core.stored_recording import BlobError
from tasks.units import MiB

STORED_BYTES_MAX = 2 * ParseRules().message_bytes_max
# What taking recordings apart may cost for one answer, in the parser's units of about a microsecond.
VIEWER_UNITS = 1_000_000.0
# Measured: an event whose head is decoded, and a byte of it.
UNITS_EVENT, UNITS_BYTE = 1.0, 0.001
PLAYED_BYTES_MAX = 64 * MiB  # browsers do not play more than this in one piece

PLAYED_TYPES = frozenset((0, 1, 2, 3, 4, 6))
MILLISECONDS_MIN = 1e11  # above it a number is milliseconds: as seconds it would be the year 5138


class CutShort(BlobError):
    """Reading on would cost too much. What was read before counts."""


class _Head(msgspec.Struct):
    """What every rrweb event begins with."""

    type: int
    timestamp: float


def split(recording: bytes, budget: Budget | None = None) -> Iterator[Undecoded]:
    """The events of a recording, undecoded, some at a time. Raises BlobError: it is no JSON array; and CutShort.

    An emoji that the SDK cut in half is a replacement character in them, since nothing else reads it.
    """
    budget = Budget(VIEWER_UNITS) if budget is None else budget
    try:
        for event in undecoded(recording, budget):
            budget.spend(UNITS_EVENT + UNITS_BYTE * memoryview(event).nbytes)
            yield event
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BlobError(f"not a JSON array: {error}") from None
    except Spent:
        raise CutShort("its rest is not read: it would cost too much") from None


@dataclass(frozen=True, slots=True)
class Playable:
    """`content`: a JSON array, bytes. `left_out`: why its rest is not in it, "" when all is."""

    content: bytes
    left_out: str = ""


def playable(recording: bytes) -> Playable:
    """The events that a player draws: no custom events, nothing of an unknown kind.

    The SDK stamps its spans in seconds, everything else in milliseconds; a player that was given both would
    show a session of fifty years. Raises BlobError.
    """
    kept: list[bytes] = []
    size_bytes, left_out = 0, ""
    try:
        for event in split(recording):
            try:
                head = msgspec.json.decode(event, type=_Head)
            except (msgspec.DecodeError, RecursionError):
                continue
            if head.type not in PLAYED_TYPES or head.timestamp <= MILLISECONDS_MIN:
                continue
            size_bytes += memoryview(event).nbytes + 1
            if size_bytes > PLAYED_BYTES_MAX:
                left_out = f"there are more than {PLAYED_BYTES_MAX // MiB} MiB to play"
                break
            kept.append(bytes(event))
    except CutShort as error:
        left_out = str(error)
    return Playable(b"[" + b",".join(kept) + b"]", left_out)
