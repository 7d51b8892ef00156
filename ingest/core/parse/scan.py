"""Decodes the relevant events of a recording in one pass.

Iterating a `Scan` reads the JSON array once. The scan builds only Sentry's custom events (type 5), viewports (type
4) and, if requested, canvas mutations (type 3, source 9), with only the fields that are used. The decoder
validates all other events without building them, at about the cost of skipping white space.

Long recordings are read in pieces. A malformed piece requires a second, slower pass, which is charged to the
budget. An event is malformed if it is not an object, or has an unknown type, a number instead of a string, nesting
too deep for the decoder, a NaN, or a truncated emoji.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Union

import msgspec

from ingest.core.parse import odd
from ingest.core.parse.budget import Budget, BudgetSpent
from ingest.core.parse.elements import elements
from ingest.core.parse.events import (
    CANVAS_MUTATION,
    CUSTOM,
    INCREMENTAL,
    META,
    Canvas,
    Custom,
    Event,
    MalformedEvent,
    Meta,
)
from ingest.core.parse.picked import number_of
from ingest.core.parse.pieces import SINGLE_PIECE_BYTES_MAX, piece, stops
from ingest.core.parse.shapes import NULL
from ingest.core.parse.surrogates import without_lone_surrogates

# rrweb types that are skipped: DOM content loaded, load, full snapshot, incremental, plugin, asset.
_UNREAD_TYPES = (0, 1, 2, 3, 6, 7)
# Number of events decoded at a time in a piece that contains a malformed event. Chunks are small, because all
# events of the chunk with the malformed event are decoded one by one, which is expensive.
CHUNK_EVENTS = 64
# Pieces up to this size are decoded without counting their elements. A list of decoded events takes up to 5 times
# as much memory as its JSON.
LONG_RECORDING_BYTES_MIN = 10 * 1024 * 1024
# A longer piece is decoded into events only if it has at most this many objects (112 bytes of memory each), and
# into raw values only if it has at most this many commas (72 bytes per value, which may be as short as `0,`).
OBJECTS_MAX, COMMAS_MAX = 300_000, 400_000
SCALARS_BYTES_MAX = 64 * 1024
# Measured costs in budget units: per array element, per byte decoded again, per event read, per exception.
_UNITS_PER_ELEMENT, _UNITS_PER_REDECODED_BYTE, _UNITS_PER_EVENT, _UNITS_PER_MALFORMED = 0.05, 0.001, 1.0, 3.0
_UNITS_PER_INCREMENTAL_EVENT = 0.7


class _LeanCustomEvent(msgspec.Struct, gc=False, tag_field="type", tag=CUSTOM):
    data: msgspec.Raw = NULL
    timestamp: msgspec.Raw = NULL


class _LeanMetaEvent(msgspec.Struct, gc=False, tag_field="type", tag=META):
    data: msgspec.Raw = NULL
    timestamp: msgspec.Raw = NULL


class _Source(msgspec.Struct, gc=False):
    source: msgspec.Raw = NULL


class _LeanIncrementalEvent(msgspec.Struct, gc=False, tag_field="type", tag=INCREMENTAL):
    data: _Source | None = None
    timestamp: msgspec.Raw = NULL


_unread: dict[int, Any] = {
    number: msgspec.defstruct(f"Unread{number}", [], gc=False, tag_field="type", tag=number)
    for number in _UNREAD_TYPES
}
_Decode = Callable[[Any], list[Any]]
_usual: Any = Union[(Custom, Meta, *_unread.values())]
_lean: Any = Union[(_LeanCustomEvent, _LeanMetaEvent, *_unread.values())]
_canvas: Any = Union[
    (_LeanCustomEvent, _LeanMetaEvent, *(_unread | {INCREMENTAL: _LeanIncrementalEvent}).values())
]
# An array of at most this many elements; a longer array fails to decode.
_FEW_ELEMENTS = 4
_few: Any = msgspec.defstruct(
    "Few",
    [(f"element{number}", msgspec.Raw, NULL) for number in range(_FEW_ELEMENTS)],
    array_like=True,
    forbid_unknown_fields=True,
    gc=False,
)
_decode_usual: _Decode = msgspec.json.Decoder(list[_usual]).decode
_decode_lean: _Decode = msgspec.json.Decoder(list[_lean]).decode
_decode_canvas: _Decode = msgspec.json.Decoder(list[_canvas]).decode
_decode_few: Callable[[Any], Any] = msgspec.json.Decoder(_few).decode
_decode_raws: _Decode = msgspec.json.Decoder(list[msgspec.Raw]).decode
_READ_TYPES = frozenset((Custom, Meta))
_LEAN_READ_TYPES = frozenset((_LeanCustomEvent, _LeanMetaEvent, _LeanIncrementalEvent))
_ODD_EVENT_ERRORS = (msgspec.ValidationError, UnicodeDecodeError)

_not_a_number = re.compile(rb"NaN|Infinity").search
_array = re.compile(rb"[ \t\r\n]*+\[").match
_comma = re.compile(rb"[ \t\r\n]*+,").match
_blank = re.compile(rb"[ \t\r\n]*+").fullmatch


class _NotSeparable(Exception):
    """Raised if the decoder cannot separate the elements of a piece, or there are too many for the memory
    limit."""


class Scan:
    """Iterating over a scan yields (index in the array, event) in order, and counts events.

    Raises msgspec.DecodeError if `raw` is not a JSON array; the caller must then discard the events that were
    already yielded. Raises BudgetSpent if continuing would exceed the budget.
    """

    def __init__(self, raw: bytes | bytearray, canvas: bool, budget: Budget) -> None:
        self.count = 0
        self.malformed = 0
        self.too_deep = 0
        self._raw = raw
        self._canvas = canvas
        self._budget = budget
        self._decode = _decode_canvas if canvas else _decode_lean

    def __iter__(self) -> Iterator[tuple[int, Event]]:
        if not self._canvas and len(self._raw) <= SINGLE_PIECE_BYTES_MAX:
            try:
                found = _decode_usual(self._raw)
            except (*_ODD_EVENT_ERRORS, RecursionError, msgspec.DecodeError):
                pass  # an event is malformed, or the recording is not JSON
            else:
                return self._usual(found)
        return self._parse_in_pieces()

    def _usual(self, found: list[Any]) -> Iterator[tuple[int, Event]]:
        """Yields the relevant events of a recording that was decoded as a whole, as nearly all recordings are."""
        self.count = len(found)
        read = [(index, event) for index, event in enumerate(found) if type(event) in _READ_TYPES]
        self._budget.earn(len(self._raw))
        units = _UNITS_PER_ELEMENT * len(found) + _UNITS_PER_EVENT * len(read)
        if units > self._budget.left:
            return self._events_within_budget(read, units)
        self._budget.left -= units
        return iter(read)

    def _events_within_budget(self, read: list[tuple[int, Event]], units: float) -> Iterator[tuple[int, Event]]:
        for event in read:
            self._budget.spend(units / len(read))
            yield event
        self._budget.spend(units)

    def _parse_in_pieces(self) -> Iterator[tuple[int, Event]]:
        start = yield from self._piece(0)
        while start < len(self._raw):
            start = yield from self._piece(start)

    def _piece(self, start: int) -> Generator[tuple[int, Event], None, int]:
        """Yields the events of the piece that begins here. Returns the start of the next piece."""
        stop = start
        for stop in stops(self._raw, start):
            try:
                found = self._decoded(start, stop)
            except (RecursionError, _NotSeparable):
                break
            except msgspec.DecodeError:
                if _not_a_number(self._raw, start, stop):
                    break
                if stop == len(self._raw):
                    raise
                # The piece ends inside an event: try a longer one.
                self._budget.spend(_UNITS_PER_REDECODED_BYTE * (stop - start))
            else:
                yield from found
                return stop + 1
        return (yield from self._by_element(start, stop))

    def _decoded(self, start: int, stop: int) -> Iterator[tuple[int, Event]]:
        """Returns the events of that piece. Raises RecursionError, _NotSeparable or msgspec.DecodeError, always
        before the first event."""
        text = piece(self._raw, start, stop)
        try:
            return self._found_in(text, stop)
        except msgspec.DecodeError:
            self._budget.earn(stop)
            changed = without_lone_surrogates(text, self._budget)
            if changed is None:
                raise
        self._budget.spend(_UNITS_PER_REDECODED_BYTE * len(changed))
        return self._found_in(changed, stop)

    def _found_in(self, text: bytes | bytearray, stop: int) -> Iterator[tuple[int, Event]]:
        if len(text) >= LONG_RECORDING_BYTES_MIN:
            few = _elements_if_few(text)
            if few:
                self._budget.earn(stop)
                return self._parse_one_by_one(few)
        if not self._canvas and (len(text) < LONG_RECORDING_BYTES_MIN or text.count(b"{") <= OBJECTS_MAX):
            try:
                found = _decode_lean(text)
            except _ODD_EVENT_ERRORS:
                self._budget.earn(stop)
                self._budget.spend(_UNITS_PER_REDECODED_BYTE * len(text))
            else:
                self._budget.earn(stop)
                return self._all(found)
        if text.count(b",") > COMMAS_MAX:
            raise _NotSeparable
        items = _decode_raws(text)
        self._budget.earn(stop)
        return self._parse_by_chunk(items)

    def _all(self, found: Sequence[Any], items: Sequence[msgspec.Raw] = ()) -> Iterator[tuple[int, Event]]:
        """Yields the relevant events among those given. `items` is the events' JSON, if canvas mutations are
        requested."""
        self._budget.spend(_UNITS_PER_ELEMENT * len(found))
        first = self.count
        self.count += len(found)
        for place, lean in enumerate(found):
            if type(lean) in _LEAN_READ_TYPES:
                event = self._read(lean, items[place] if items else None)
                if event is not None:
                    yield first + place, event

    def _parse_by_chunk(self, items: Sequence[msgspec.Raw]) -> Iterator[tuple[int, Event]]:
        """Decodes in chunks, so that a malformed event affects only its chunk."""
        for start in range(0, len(items), CHUNK_EVENTS):
            chunk = items[start : start + CHUNK_EVENTS]
            text = b",".join(chunk)
            self._budget.spend(_UNITS_PER_REDECODED_BYTE * len(text))
            try:
                found = self._decode(b"[" + text + b"]")
            except _ODD_EVENT_ERRORS:
                yield from self._parse_one_by_one(chunk)
            else:
                yield from self._all(found, chunk)

    def _parse_one_by_one(self, items: Iterable[msgspec.Raw]) -> Iterator[tuple[int, Event]]:
        for item in items:
            event = self._odd_event(item)
            self.count += 1
            if event is not None:
                yield self.count - 1, event

    def _by_element(self, start: int, stop: int) -> Generator[tuple[int, Event], None, int]:
        """Decodes events one by one, up to the first that ends at `stop` or later. Returns the start of the next
        piece."""
        raw = self._raw
        if start == 0:
            opened = _array(raw)
            if opened is None:
                raise msgspec.DecodeError("not an array")
            start = opened.end()
        after, is_first = start, True
        for begin, end in elements(raw, start, self._budget):
            self._scalars(after, begin, is_first=is_first, is_last=end < 0)
            if end < 0:
                if _blank(raw, begin + 1) is None:
                    raise msgspec.DecodeError("characters after the array")
                break
            event = self._odd_event(memoryview(raw)[begin:end])
            self.count += 1
            if event is not None:
                yield self.count - 1, event
            after, is_first = end, False
            comma = _comma(raw, end) if end >= stop else None
            if comma is not None:
                return comma.end()
        return len(raw)

    def _scalars(self, start: int, stop: int, *, is_first: bool, is_last: bool) -> None:
        """Counts the scalars between two elements as malformed events. Raises BudgetSpent if there are more
        scalars than the budget allows."""
        if stop - start > SCALARS_BYTES_MAX:
            raise BudgetSpent
        text = bytes(self._raw[start:stop]).strip(b" \t\r\n")
        if not is_first:
            if not text.startswith(b",") and not (is_last and not text):
                raise msgspec.DecodeError("a comma is missing")
            text = text[1:].strip(b" \t\r\n")
        if not text:
            return
        if not is_last:
            if not text.endswith(b","):
                raise msgspec.DecodeError("a comma is missing")
            text = text[:-1]
        count = len(_decode_raws(b"[" + text + b"]"))
        self._budget.spend(_UNITS_PER_REDECODED_BYTE * len(text) + _UNITS_PER_ELEMENT * count)
        self.count += count
        self.malformed += count

    # One event

    def _read(self, lean: Any, item: msgspec.Raw | None = None) -> Event | None:
        """Reads an event whose outer shape is correct. `item` is the event's JSON, if canvas mutations are
        requested."""
        if isinstance(lean, _LeanIncrementalEvent):
            self._budget.spend(_UNITS_PER_INCREMENTAL_EVENT)
            if item is None or lean.data is None or number_of(lean.data.source) != CANVAS_MUTATION:
                return None
            self._budget.spend(_UNITS_PER_EVENT)
            return Canvas(memoryview(item).nbytes, number_of(lean.timestamp))
        try:
            if isinstance(lean, _LeanMetaEvent):
                return Meta(odd.viewport_of(lean.data, self._budget), number_of(lean.timestamp))
            data = odd.data_of(lean.data, self._budget)
        except (msgspec.MsgspecError, UnicodeDecodeError, MalformedEvent):
            self._count_malformed()
            return None
        return None if data is None else Custom(data, number_of(lean.timestamp))

    def _odd_event(self, item: msgspec.Raw | memoryview) -> Event | None:
        """Reads an event of any shape. Raises msgspec.DecodeError if the event is not JSON."""
        try:
            return self._odd_or_repaired_event(item)
        except RecursionError:
            self.too_deep += 1
        except (msgspec.ValidationError, UnicodeDecodeError, MalformedEvent):
            self._count_malformed()
        except msgspec.DecodeError:
            if not _not_a_number(item):
                raise
            self._count_malformed()
        return None

    def _odd_or_repaired_event(self, item: msgspec.Raw | memoryview) -> Event | None:
        try:
            return odd.event_of(item, self._canvas, self._budget)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            changed = without_lone_surrogates(bytes(item), self._budget)
            if changed is None:
                raise
        return odd.event_of(changed, self._canvas, self._budget)

    def _count_malformed(self) -> None:
        self.malformed += 1
        self._budget.spend(_UNITS_PER_MALFORMED)


def _elements_if_few(text: bytes | bytearray) -> Sequence[msgspec.Raw]:
    """Returns the elements of a long piece that mostly consists of one long event; none if there are more than a
    few."""
    try:
        few = msgspec.structs.astuple(_decode_few(text))
    except msgspec.ValidationError:
        return ()
    return [item for item in few if item is not NULL]
