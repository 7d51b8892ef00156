"""Which events of a recording are worth a look.

`scan` walks the JSON array once and hands on only what can say something: Sentry's custom events (type 5),
viewports (type 4) and, when asked, canvas mutations (type 3, source 9). The decoder checks everything else and
builds nothing of it, at about the price of skipping white space.

Recordings are odd now and then: an event that is no object, a type that nobody knows, a document nested deeper
than the decoder goes, an emoji that was cut in half. Each of these costs a second, slower pass, and at most the
event that it is in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Union

import msgspec

CUSTOM, META, INCREMENTAL = 5, 4, 3
CANVAS_MUTATION = 9
# Every type of rrweb that is not looked into: DOM content loaded, load, full snapshot, incremental, plugin, asset.
_UNREAD_TYPES = (0, 1, 2, 3, 6, 7)
# Bounds of the slow way. A list of raw slices takes 64 bytes an event, and an event can be as short as `0,`;
# a token takes 0.2 microseconds.
RAWS_MAX = 1_000_000
TOKENS_MAX = 2_000_000
SCALARS_BYTES_MAX = 1024 * 1024
# An exception takes a microsecond: a recording of nothing else but rubbish is given up after this much of it.
MALFORMED_MAX = 10_000


class Custom(msgspec.Struct, gc=False, tag_field="type", tag=CUSTOM):
    """An event of the SDK: `data` is JSON."""

    timestamp: Any = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class Meta(msgspec.Struct, gc=False, tag_field="type", tag=META):
    """A viewport: `data` is JSON."""

    timestamp: Any = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class Canvas(msgspec.Struct, gc=False):
    """A canvas mutation: how many bytes its whole event takes as JSON."""

    timestamp: Any
    size_bytes: int


Event = Custom | Meta | Canvas


class Scanned(msgspec.Struct, gc=False):
    """What was found: (index in the array, event) in order, how many events there are in all, and what was wrong.

    cut: there was more than the slow way takes apart.
    """

    events: list[tuple[int, Event]]
    count: int
    malformed: int = 0
    too_deep: int = 0
    cut: bool = False


class _Any(msgspec.Struct, gc=False):
    type: Any = None
    timestamp: Any = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Source(msgspec.Struct, gc=False):
    source: Any = None


_unread: Any = tuple(
    msgspec.defstruct(f"Unread{number}", [], gc=False, tag_field="type", tag=number) for number in _UNREAD_TYPES
)
_known: Any = Union[(Custom, Meta, *_unread)]
_decode_events: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[_known]).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder(_Any).decode
_decode_source = msgspec.json.Decoder(_Source).decode
_WRONG_SHAPE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_READ = frozenset((Custom, Meta))


def scan(raw: bytes, canvas: bool) -> Scanned:
    """The events worth a look. Canvas mutations, for which every event has to be looked at, only if `canvas`.

    Raises msgspec.DecodeError when `raw` is no JSON array.
    """
    try:
        return _scan(raw, canvas)
    except msgspec.DecodeError:
        if b"\\ud" not in raw and b"\\uD" not in raw:
            raise
    return _scan(without_lone_surrogates(raw), canvas)


def _scan(raw: bytes, canvas: bool) -> Scanned:
    if not canvas:
        try:
            events = _decode_events(raw)
        except (msgspec.ValidationError, UnicodeDecodeError, RecursionError):
            pass  # some event is odd
        else:
            read = [(index, event) for index, event in enumerate(events) if type(event) in _READ]
            return Scanned(read, len(events))
    if raw.count(b",") <= RAWS_MAX:
        try:
            return _sort(_decode_raws(raw), canvas)
        except RecursionError:
            pass  # some event is nested too deeply
    return _sort(_taken_apart(raw), canvas)


def _sort(items: Iterable[Any], canvas: bool) -> Scanned:
    """Decodes event by event. `items` yields slices, and None last when there were more."""
    scanned = Scanned([], 0)
    for index, item in enumerate(items):
        if item is None or scanned.malformed >= MALFORMED_MAX:
            scanned.cut = True
            break
        scanned.count += 1
        try:
            event = _decode_any(item)
        except RecursionError:
            scanned.too_deep += 1
            continue
        except _WRONG_SHAPE:
            scanned.malformed += 1
            continue
        kind = event.type
        if kind == CUSTOM and type(kind) is int:
            scanned.events.append((index, Custom(event.timestamp, event.data)))
        elif kind == META and type(kind) is int:
            scanned.events.append((index, Meta(event.timestamp, event.data)))
        elif type(kind) is not int:
            scanned.malformed += 1
        elif canvas and kind == INCREMENTAL and _source(event.data) == CANVAS_MUTATION:
            scanned.events.append((index, Canvas(event.timestamp, len(memoryview(item)))))
    return scanned


def _source(data: msgspec.Raw) -> Any:
    try:
        return _decode_source(data).source
    except _WRONG_SHAPE:
        return None


# The slow way: brackets and strings are all that it knows of JSON, so no depth is too deep for it.

_tokens = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL).finditer
_QUOTE, _OPENING = b'"', b"[{"


def _taken_apart(raw: bytes) -> Iterator[bytes | None]:
    """Slices of the array's elements; None last when there were more than the bounds allow.

    Raises msgspec.DecodeError when the array does not end.
    """
    depth = start = 0
    end = raw.find(b"[") + 1
    for number, token in enumerate(_tokens(raw, end)):
        first = token[0][:1]
        if number >= TOKENS_MAX:
            yield None
            return
        if first in _OPENING:
            depth += 1
            if depth == 1:
                start = token.start()
                yield from _scalars(raw, end, start)
        elif first != _QUOTE:
            depth -= 1
            if depth < 0:
                yield from _scalars(raw, end, token.start())
                return
            if depth == 0:
                end = token.end()
                yield raw[start:end]
        elif depth == 0:
            yield from _scalars(raw, end, token.start())
            end = token.end()
            yield token[0]
    raise msgspec.DecodeError("the array does not end")


def _scalars(raw: bytes, start: int, stop: int) -> Iterator[bytes | None]:
    """The elements between two others: each is a malformed event, so only their number matters."""
    for part in raw[start : min(stop, start + SCALARS_BYTES_MAX)].split(b","):
        if part.strip():
            yield part
    if stop > start + SCALARS_BYTES_MAX:
        yield None


# Lone surrogates: a text that was cut within an emoji. JavaScript writes "\ud83d", which the decoder refuses.

_escapes = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


def without_lone_surrogates(text: bytes) -> bytes:
    """JSON with the replacement character for each half of a surrogate pair, of the same length."""
    return _escapes.sub(lambda match: match[1] or rb"\ufffd", text)
