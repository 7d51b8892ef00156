"""Finds the elements of a JSON array that the decoder cannot split, because an event is nested too deeply or holds
a NaN.

Only brackets and strings are interpreted. The array is processed in blocks, each by a few calls that run in C; no
Python code runs per bracket or string.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from itertools import accumulate

import msgspec

from ingest.core.parse.budget import Budget

BLOCK_BYTES = 32 * 1024
# Maximum number of brackets processed one by one.
SINGLE_BRACKETS_MAX = 8
# Measured costs in budget units: per byte of a block, per string, per bracket or string where elements may end,
# per element.
_UNITS_PER_BYTE, _UNITS_PER_STRING, _UNITS_PER_MARK, _UNITS_PER_ELEMENT = 0.0025, 0.03, 0.045, 3.0

_OPENING, _CLOSING = b"[{", b"]}"
_OTHER_BYTES = bytes(set(range(256)) - set(_OPENING + _CLOSING + b'"'))
_STEPS = [(code in _OPENING) - (code in _CLOSING) for code in range(256)]
_bracket = re.compile(rb"[\[\]{}]")
_NONE, _CLOSED = -1, -2


def elements(raw: bytes | bytearray, start: int, budget: Budget) -> Iterator[tuple[int, int]]:
    """Yields the half-open range of each object and array. `start`: a position where an element may begin.

    The last item is (position of the closing bracket, -1). Raises msgspec.DecodeError if there is no closing
    bracket, and BudgetSpent if the budget is exhausted.
    """
    depth, inside, begin = 0, 0, _NONE
    while start < len(raw):
        text = _block(raw, start)
        parts = text.split(b'"')
        marks = b'"'.join(parts[inside::2]).translate(None, _OTHER_BYTES)
        budget.earn(start + len(text))
        budget.spend(_UNITS_PER_BYTE * len(text) + _UNITS_PER_STRING * len(parts))
        closing = marks.count(b"]") + marks.count(b"}")
        if depth > closing:  # no element ends in this block
            depth += len(marks) - marks.count(b'"') - 2 * closing
        else:
            budget.spend(_UNITS_PER_MARK * len(marks))
            depths = list(accumulate(map(_STEPS.__getitem__, marks), initial=depth))
            places = _Places(parts, inside, marks)
            begin = yield from _ends(marks, depths, places, start, begin, budget)
            if begin == _CLOSED:
                return
            depth = depths[-1]
        inside ^= (len(parts) - 1) & 1
        start += len(text)
    raise msgspec.DecodeError("the array does not end")


def _ends(
    marks: bytes, depths: list[int], places: _Places, start: int, begin: int, budget: Budget
) -> Generator[tuple[int, int], None, int]:
    """Yields the elements that end in the block at `start`. Returns the start of the element that is still open,
    _NONE or _CLOSED."""
    at = 0
    while True:
        if begin == _NONE:
            bracket = _bracket.search(marks, at)
            if bracket is None:
                return _NONE
            at = bracket.start()
            begin = start + places.of(at)
            if depths[at + 1] < 0:
                yield begin, -1
                return _CLOSED
            at += 1
        try:
            at = depths.index(0, at)
        except ValueError:
            return begin
        budget.spend(_UNITS_PER_ELEMENT)
        yield begin, start + places.of(at - 1) + 1
        begin = _NONE


def _block(raw: bytes | bytearray, start: int) -> bytes:
    """Returns the next block, with each escaped quote or backslash replaced by `__`. A block does not end
    within an escape."""
    text = bytes(raw[start : start + BLOCK_BYTES])
    if (len(text) - len(text.rstrip(b"\\"))) & 1:
        text += raw[start + len(text) : start + len(text) + 1]
    return text.replace(rb"\\", b"__").replace(rb"\"", b"__")


class _Places:
    """Positions of brackets in a block, to be queried in ascending order."""

    def __init__(self, parts: list[bytes], inside: int, marks: bytes) -> None:
        self._parts = parts
        self._marks = marks
        self._offsets = list(accumulate(map(len, parts), initial=0))
        self._part = inside
        self._at = 0  # position after the last mark found in that part
        self._mark = 0

    def of(self, mark: int) -> int:
        """Returns the position of the bracket at index `mark` of the marks."""
        quotes = self._marks.count(b'"', self._mark, mark)
        if quotes:
            self._part += 2 * quotes
            self._at, self._mark = 0, self._marks.rfind(b'"', self._mark, mark) + 1
        part = self._parts[self._part]
        while mark - self._mark >= SINGLE_BRACKETS_MAX:
            passed = part[self._at : self._at + mark - self._mark]
            self._at += len(passed)
            self._mark += len(passed.translate(None, _OTHER_BYTES))
        for bracket in _bracket.finditer(part, self._at):
            self._at, self._mark = bracket.end(), self._mark + 1
            if self._mark > mark:
                break
        return self._offsets[self._part] + self._part + self._at - 1
