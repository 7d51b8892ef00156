"""Where a long recording can be cut into pieces that are read one after the other, in bounded memory.

The decoder takes an array as a whole and builds something for each element, so a hundred megabytes of the shortest
events would take a gigabyte. A piece is a run of whole events. Where an event ends is guessed by what SDKs write
there, which no text can contain since quotes in texts are escaped. An object inside an event may look the same:
then the piece does not decode, and a longer one is tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE_BYTES = 1024 * 1024
# Up to this a recording is one piece: what can be built of it is little.
WHOLE_BYTES_MAX = 3 * PIECE_BYTES // 2
# A piece that turned out to end within an event is tried this much longer, and then with all the rest.
GROWTH = 8
# Places that are looked at for one end.
PROBES_MAX = 32

_STAMP, _BETWEEN = b'"timestamp":', b'},{"type":'
_HEAD_BYTES = 40
# An event of a browser ends with its time, one of a phone begins with it.
_ends = re.compile(rb'"timestamp": ?[0-9.]{1,32}\}, ?\{"type":').match
_begins = re.compile(rb'\}, ?\{"type": ?[0-9]{1,3}, ?"timestamp":').search


def stops(raw: bytes | bytearray, start: int) -> Iterator[int]:
    """Ends for the piece that begins at `start`, each of them later than the one before; the last is the end of
    all.

    At each but the last there is a comma between two objects.
    """
    if len(raw) - start > WHOLE_BYTES_MAX:
        usual, longer, longest = (start + PIECE_BYTES * GROWTH**times for times in range(3))
        stop = _end_of_event(raw, start, usual, longer)
        if stop < 0:
            stop = raw.find(_BETWEEN, usual, longer) + 1  # an event without its time, or a guess
        if 0 < stop < len(raw):
            yield stop
        stop = _end_of_event(raw, max(stop, start), longer, longest)
        if 0 < stop < len(raw):
            yield stop
    yield len(raw)


def piece(raw: bytes | bytearray, start: int, stop: int) -> bytes | bytearray:
    """The events in [start, stop) as an array of their own."""
    if start == 0 and stop == len(raw):
        return raw
    events = memoryview(raw)[start:stop]
    return b"".join((b"[" if start else b"", events, b"]" if stop < len(raw) else b""))


def _end_of_event(raw: bytes | bytearray, start: int, soonest: int, latest: int) -> int:
    """An end after `start` as close to `soonest` as there is one, before it if possible; else -1."""
    end = _last_end(raw, start, soonest)
    return end if end > start else _next_end(raw, soonest, latest)


def _last_end(raw: bytes | bytearray, start: int, stop: int) -> int:
    """The last end of an event in (start, stop); -1 when there is none among the places that are looked at."""
    at = stop
    for _ in range(PROBES_MAX):
        at = raw.rfind(_STAMP, start, at)
        if at < 0:
            return -1
        end = _end_near(raw, at)
        if start < end < stop:
            return end
    return -1


def _next_end(raw: bytes | bytearray, start: int, stop: int) -> int:
    """The first end of an event in [start, stop); -1 when there is none among the places that are looked at."""
    at = start
    for _ in range(PROBES_MAX):
        at = raw.find(_STAMP, at, stop)
        if at < 0:
            return -1
        end = _end_near(raw, at)
        if end > start:
            return end
        at += len(_STAMP)
    return -1


def _end_near(raw: bytes | bytearray, at: int) -> int:
    """Where an event ends that this time belongs to, or the one before it; -1 when that cannot be seen."""
    ended = _ends(raw, at)
    if ended is not None:
        return raw.index(b"}", at) + 1
    begun = _begins(raw, max(at - _HEAD_BYTES, 0), at + len(_STAMP))
    return begun.start() + 1 if begun is not None else -1
