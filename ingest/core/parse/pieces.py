"""Splits a long recording into pieces that are decoded one after the other, in bounded memory.

The decoder builds an object per element of an array, so a hundred megabytes of the shortest events would take a
gigabyte. A piece is a run of whole events. The end of an event is recognized from the characters that SDKs write
there. Strings cannot contain these characters, because quotes in strings are escaped. However, the same characters
can end an object inside an event; a piece that ends there cannot be decoded, so a longer piece is tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE_BYTES = 1024 * 1024
# Recordings up to this size are decoded as one piece, because that needs little memory.
SINGLE_PIECE_BYTES_MAX = 3 * PIECE_BYTES // 2
# A piece that ends inside an event is retried with a larger size, by this factor each time, and finally with the
# rest of the recording.
GROWTH_FACTOR = 8
# Maximum number of candidates inspected per search for the end of an event.
PROBES_MAX = 32

_STAMP, _BETWEEN = b'"timestamp":', b'},{"type":'
_HEAD_BYTES = 40
# Browser events end with their timestamp, and mobile events begin with it.
_ends = re.compile(rb'"timestamp": ?[0-9.]{1,32}\}, ?\{"type":').match
_begins = re.compile(rb'\}, ?\{"type": ?[0-9]{1,3}, ?"timestamp":').search


def stops(raw: bytes | bytearray, start: int) -> Iterator[int]:
    """Yields candidate ends for the piece that begins at `start`, ascending; the last is the end of the array.

    Each candidate except the last is at a comma between two objects.
    """
    if len(raw) - start > SINGLE_PIECE_BYTES_MAX:
        usual, longer, longest = (start + PIECE_BYTES * GROWTH_FACTOR**times for times in range(3))
        stop = _end_of_event(raw, start, usual, longer)
        if stop < 0:
            # No end with a timestamp was found: use any boundary between two objects.
            stop = raw.find(_BETWEEN, usual, longer) + 1
        if 0 < stop < len(raw):
            yield stop
        stop = _end_of_event(raw, max(stop, start), longer, longest)
        if 0 < stop < len(raw):
            yield stop
    yield len(raw)


def piece(raw: bytes | bytearray, start: int, stop: int) -> bytes | bytearray:
    """Returns the events in [start, stop) as an array."""
    if start == 0 and stop == len(raw):
        return raw
    events = memoryview(raw)[start:stop]
    return b"".join((b"[" if start else b"", events, b"]" if stop < len(raw) else b""))


def _end_of_event(raw: bytes | bytearray, start: int, nearest: int, latest: int) -> int:
    """Returns the last position between `start` and `nearest` at which an event ends or, if none is found, the
    first one between `nearest` and `latest`; -1 if none is found there either."""
    end = _last_end(raw, start, nearest)
    return end if end > start else _next_end(raw, nearest, latest)


def _last_end(raw: bytes | bytearray, start: int, stop: int) -> int:
    """Returns the last position in (start, stop) at which an event ends; -1 if none is found in PROBES_MAX
    attempts."""
    at = stop
    for _ in range(PROBES_MAX):
        at = raw.rfind(_STAMP, start, at)
        if at < 0:
            return -1
        end = _find_end_near(raw, at)
        if start < end < stop:
            return end
    return -1


def _next_end(raw: bytes | bytearray, start: int, stop: int) -> int:
    """Returns the first position after `start` at which an event ends; -1 if none is found in PROBES_MAX
    attempts."""
    at = start
    for _ in range(PROBES_MAX):
        at = raw.find(_STAMP, at, stop)
        if at < 0:
            return -1
        end = _find_end_near(raw, at)
        if end > start:
            return end
        at += len(_STAMP)
    return -1


def _find_end_near(raw: bytes | bytearray, at: int) -> int:
    """Returns the end of the event with this timestamp, or of the event before it; -1 if neither can be
    determined."""
    ended = _ends(raw, at)
    if ended is not None:
        return raw.index(b"}", at) + 1
    begun = _begins(raw, max(at - _HEAD_BYTES, 0), at + len(_STAMP))
    return begun.start() + 1 if begun is not None else -1
