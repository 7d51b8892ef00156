"""Extracts the events of a stored recording for the timeline and the player."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from ingest.core.parse.budget import Budget, BudgetSpent
from ingest.core.parse.rules import ParseRules
from ingest.core.parse.undecoded import Undecoded, undecoded
from ingest.core.stored_recording import BlobError
from tasks.units import MiB

STORED_BYTES_MAX = 2 * ParseRules().message_bytes_max
# Budget per response for splitting recordings, in the parser's cost units (about one microsecond each).
VIEWER_UNITS = 1_000_000.0
# Measured costs per decoded event head and per byte, in parser units.
UNITS_EVENT, UNITS_BYTE = 1.0, 0.001
PLAYABLE_BYTES_MAX = 64 * MiB  # browsers do not play larger recordings

PLAYABLE_TYPES = frozenset((0, 1, 2, 3, 4, 6))
UNIX_MILLISECONDS_MIN = 1e11  # larger numbers are milliseconds; in seconds, this would be the year 5138


class BudgetExhausted(BlobError):
    """Raised when the budget is exhausted. The caller keeps the events read so far."""


class _Head(msgspec.Struct):
    """Fields that every rrweb event has."""

    type: int
    timestamp: float


def split(recording: bytes, budget: Budget | None = None) -> Iterator[Undecoded]:
    """Yields the undecoded events of a recording. Raises BlobError if the recording is not a JSON array, and
    BudgetExhausted if the budget is exhausted.

    An emoji that the SDK truncated becomes a replacement character, because no decoder accepts half an emoji.
    """
    budget = Budget(VIEWER_UNITS) if budget is None else budget
    try:
        for event in undecoded(recording, budget):
            budget.spend(UNITS_EVENT + UNITS_BYTE * memoryview(event).nbytes)
            yield event
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BlobError(f"not a JSON array: {error}") from None
    except BudgetSpent:
        raise BudgetExhausted("the rest was not read, because it is too expensive") from None


@dataclass(frozen=True, slots=True)
class PlayerEvents:
    """`content`: a JSON array as bytes. `left_out`: why events are missing at the end; "" if complete."""

    content: bytes
    left_out: str = ""


def player_events(recording: bytes) -> PlayerEvents:
    """Returns the events for the player, except those of custom or unknown kinds.

    Events with a time in seconds (spans) are left out as well: next to times in milliseconds, they would make a
    session seem fifty years long. Raises BlobError.
    """
    playable_events: list[bytes] = []
    size_bytes, left_out = 0, ""
    try:
        for event in split(recording):
            try:
                head = msgspec.json.decode(event, type=_Head)
            except (msgspec.DecodeError, RecursionError):
                continue
            if head.type not in PLAYABLE_TYPES or head.timestamp <= UNIX_MILLISECONDS_MIN:
                continue
            size_bytes += memoryview(event).nbytes + 1
            if size_bytes > PLAYABLE_BYTES_MAX:
                left_out = f"there are more than {PLAYABLE_BYTES_MAX // MiB} MiB to play"
                break
            playable_events.append(bytes(event))
    except BudgetExhausted as error:
        left_out = str(error)
    return PlayerEvents(b"[" + b",".join(playable_events) + b"]", left_out)
