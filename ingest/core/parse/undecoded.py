"""Yields every event of a stored recording as sent, in bounded memory.

This module is used to view recordings, not to create rows.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence

import msgspec

from ingest.core.parse.budget import Budget
from ingest.core.parse.elements import elements
from ingest.core.parse.pieces import piece, stops
from ingest.core.parse.surrogates import without_lone_surrogates

# Maximum number of events held in memory. Each takes 112 bytes plus its text, which may be as short as `0,`.
COMMAS_MAX = 400_000
# Measured cost, in budget units, per byte decoded again.
_UNITS_PER_REDECODED_BYTE = 0.001

_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_not_a_number = re.compile(rb"NaN|Infinity").search
_array = re.compile(rb"[ \t\r\n]*+\[").match
_comma = re.compile(rb"[ \t\r\n]*+,").match
Undecoded = msgspec.Raw | bytes


class _TooManyScalars(Exception):
    """Raised if there are too many elements for the memory limit."""


def undecoded(raw: bytes | bytearray, budget: Budget) -> Iterator[Undecoded]:
    """Yields the elements of the array as bytes, in order, in chunks.

    Lone surrogates become replacement characters. If the array is nested too deeply for the decoder, or contains a
    NaN or too many elements for the memory limit, elements that are scalars may be left out. Raises
    msgspec.DecodeError or UnicodeDecodeError if `raw` is not a JSON array, and BudgetSpent if the budget is used
    up; elements that were already yielded are valid.
    """
    start = 0
    while start < len(raw):
        start = yield from _piece(raw, start, budget)


def _piece(raw: bytes | bytearray, start: int, budget: Budget) -> Generator[Undecoded, None, int]:
    """Yields the events of the piece that begins here. Returns the start of the next piece."""
    stop = start
    for stop in stops(raw, start):
        try:
            found = _decoded(piece(raw, start, stop), budget)
        except (RecursionError, _TooManyScalars):
            break
        except (msgspec.DecodeError, UnicodeDecodeError):
            if _not_a_number(raw, start, stop):
                break
            if stop == len(raw):
                raise
            # The piece ends inside an event: try a longer one.
            budget.spend(_UNITS_PER_REDECODED_BYTE * (stop - start))
        else:
            budget.earn(stop)
            yield from found
            return stop + 1
    return (yield from _by_element(raw, start, stop, budget))


def _decoded(text: bytes | bytearray, budget: Budget) -> Sequence[msgspec.Raw]:
    if text.count(b",") > COMMAS_MAX:
        raise _TooManyScalars
    try:
        return _decode_raws(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        changed = without_lone_surrogates(text, budget)
        if changed is None:
            raise
    return _decode_raws(changed)


def _by_element(raw: bytes | bytearray, start: int, stop: int, budget: Budget) -> Generator[Undecoded, None, int]:
    """Yields events one by one, up to the first that ends at `stop` or later. Returns the start of the next
    piece."""
    if start == 0:
        opened = _array(raw)
        if opened is None:
            raise msgspec.DecodeError("not an array")
        start = opened.end()
    for begin, end in elements(raw, start, budget):
        if end < 0:
            break
        yield _read_whole(raw, begin, end, budget)
        comma = _comma(raw, end) if end >= stop else None
        if comma is not None:
            return comma.end()
    return len(raw)


def _read_whole(raw: bytes | bytearray, begin: int, end: int, budget: Budget) -> bytes:
    text = bytes(memoryview(raw)[begin:end])
    changed = without_lone_surrogates(text, budget)
    return text if changed is None else bytes(changed)
