"""The events of a recording that can say something, decoded in one pass.

`scan` walks the JSON array once and builds only Sentry's custom events (type 5) and viewports (type 4), of these
only the fields that are read, and, when asked, canvas mutations (type 3, source 9). The decoder checks everything
else and builds nothing of it, at about the price of skipping white space.

Recordings are odd now and then: an event that is no object, a type that nobody knows, a number where a text should
be, a document nested deeper than the decoder goes, an emoji that was cut in half. Each of these costs a second,
slower pass, and at most what it is found in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Union

import msgspec

from ingest.core.parse.shapes import Number, Text, fitted

CUSTOM, META, INCREMENTAL = 5, 4, 3
CANVAS_MUTATION = 9
# Every type of rrweb that is not looked into: DOM content loaded, load, full snapshot, incremental, plugin, asset.
_UNREAD_TYPES = (0, 1, 2, 3, 6, 7)
# Bounds of the slow way. A list of raw slices takes 64 bytes an event, and an event can be as short as `0,`;
# a token takes 0.2 microseconds.
RAWS_MAX = 2_000_000
TOKENS_MAX = 2_000_000
SCALARS_BYTES_MAX = 1024 * 1024
# An exception takes a microsecond: a recording of nothing else but rubbish is given up after this much of it.
MALFORMED_MAX = 10_000

_NULL = msgspec.Raw(b"null")


class Side(msgspec.Struct, gc=False):
    """The request or the response of a fetch. Sizes come as numbers and as text."""

    size: Any = None


class Heap(msgspec.Struct, gc=False):
    """Bytes."""

    jsHeapSizeLimit: Number = None
    totalJSHeapSize: Number = None
    usedJSHeapSize: Number = None


class SpanData(msgspec.Struct, gc=False):
    """All that is read of the data of any span. The bodies that a request may carry are skipped."""

    method: Text = None
    statusCode: Number = None
    requestBodySize: Any = None
    responseBodySize: Any = None
    request: Side | None = None
    response: Side | None = None
    size: Number = None
    encodedBodySize: Number = None
    decodedBodySize: Number = None
    rating: Text = None
    value: Number = None
    memory: Heap | None = None
    jsHeapSizeLimit: Number = None
    totalJSHeapSize: Number = None
    usedJSHeapSize: Number = None


WRONG_DATA = SpanData()
"""Stands for data that are no object: some spans say enough without."""


class SpanPayload(msgspec.Struct, gc=False):
    """Times in unix seconds."""

    op: Text = None
    description: Text = None
    startTimestamp: Number = None
    endTimestamp: Number = None
    data: SpanData | None = None


class CrumbPayload(msgspec.Struct, gc=False):
    """`timestamp` in unix seconds; `data` is JSON, and decoded only for categories that need it."""

    category: Text = None
    message: Text = None
    level: Text = None
    timestamp: Number = None
    data: msgspec.Raw = _NULL


class Span(msgspec.Struct, gc=False, tag_field="tag", tag="performanceSpan"):
    """Something that took time."""

    payload: SpanPayload


class Crumb(msgspec.Struct, gc=False, tag_field="tag", tag="breadcrumb"):
    """Something that happened."""

    payload: CrumbPayload


class Options(msgspec.Struct, gc=False, tag_field="tag", tag="options"):
    """How the SDK is set up: a JSON object."""

    payload: msgspec.Raw


class Video(msgspec.Struct, gc=False, tag_field="tag", tag="video"):
    """What the segment's video is like: a JSON object."""

    payload: msgspec.Raw


class Custom(msgspec.Struct, gc=False, tag_field="type", tag=CUSTOM):
    """An event of the SDK, by its own clock: milliseconds, on spans seconds."""

    data: Span | Crumb | Options | Video
    timestamp: Number = None


class Viewport(msgspec.Struct, gc=False):
    """The page and the size of its window, in pixels."""

    href: Text = None
    width: Number = None
    height: Number = None


class Meta(msgspec.Struct, gc=False, tag_field="type", tag=META):
    """A viewport, in milliseconds."""

    data: Viewport
    timestamp: Number = None


class Canvas(msgspec.Struct, gc=False):
    """A canvas mutation: how many bytes its whole event takes as JSON."""

    size_bytes: int
    timestamp: Number = None


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


class Malformed(Exception):
    """This event has not the shape that its kind has."""


_unread: Any = tuple(
    msgspec.defstruct(f"Unread{number}", [], gc=False, tag_field="type", tag=number) for number in _UNREAD_TYPES
)
_known: Any = Union[(Custom, Meta, *_unread)]
_decode_events: Callable[[bytes | bytearray], list[Any]] = msgspec.json.Decoder(list[_known]).decode
_decode_event: Callable[[Any], Any] = msgspec.json.Decoder(_known).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_WRONG_SHAPE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_READ = frozenset((Custom, Meta))


def scan(raw: bytes | bytearray, canvas: bool) -> Scanned:
    """The events worth a look. Canvas mutations, for which every event has to be looked at, only if `canvas`.

    Raises msgspec.DecodeError when `raw` is no JSON array.
    """
    try:
        return _scan(raw, canvas)
    except msgspec.DecodeError:
        if b"\\ud" not in raw and b"\\uD" not in raw:
            raise
    return _scan(without_lone_surrogates(raw), canvas)


def elements(raw: bytes | bytearray) -> Sequence[msgspec.Raw | bytes | bytearray]:
    """Every element of the array, undecoded, within the bounds of the slow way where that is needed.

    Raises msgspec.DecodeError when `raw` is no JSON array.
    """
    try:
        return _decode_raws(raw)
    except RecursionError:
        return [element for element in _taken_apart(raw) if element is not None]
    except msgspec.DecodeError:
        if b"\\ud" not in raw and b"\\uD" not in raw:
            raise
    raw = without_lone_surrogates(raw)
    try:
        return _decode_raws(raw)
    except RecursionError:
        return [element for element in _taken_apart(raw) if element is not None]


def _scan(raw: bytes | bytearray, canvas: bool) -> Scanned:
    try:
        events = _decode_events(raw)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        elements_max = raw.count(b",") + 1  # some event is odd
    else:
        elements_max = len(events)
        if not canvas or elements_max > RAWS_MAX:
            return Scanned(
                [(index, event) for index, event in enumerate(events) if type(event) in _READ], len(events)
            )
        del events
    if elements_max <= RAWS_MAX:
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
            event = _one(item, canvas)
        except RecursionError:
            scanned.too_deep += 1
        except (msgspec.MsgspecError, UnicodeDecodeError, Malformed):
            scanned.malformed += 1
        else:
            if event is not None:
                scanned.events.append((index, event))
    return scanned


# One event, whatever it may be


class _Any(msgspec.Struct, gc=False):
    type: Any = None
    timestamp: Any = None
    data: msgspec.Raw = _NULL


class _AnyData(msgspec.Struct, gc=False):
    tag: Any = None
    payload: msgspec.Raw = _NULL


class _AnyCrumb(msgspec.Struct, gc=False):
    category: Any = None
    message: Any = None
    level: Any = None
    timestamp: Any = None
    data: msgspec.Raw = _NULL


class _Source(msgspec.Struct, gc=False):
    source: Any = None


_decode_any_event = msgspec.json.Decoder(_Any).decode
_decode_any_data = msgspec.json.Decoder(_AnyData).decode
_decode_any_crumb = msgspec.json.Decoder(_AnyCrumb).decode
_decode_source = msgspec.json.Decoder(_Source).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def _one(item: Any, canvas: bool) -> Event | None:
    """The event, if it is one that is read. Raises Malformed and what msgspec raises: it has the wrong shape."""
    loose = _decode_any_event(item)
    kind = loose.type
    if type(kind) is not int:
        raise Malformed("the type of an event is a number")
    if kind == CUSTOM:
        try:
            custom: Custom = _decode_event(item)
        except msgspec.ValidationError:
            data = _odd_data(loose.data)
            return None if data is None else Custom(data, _number(loose.timestamp))
        return custom
    if kind == META:
        return Meta(fitted(Viewport, _decode_object(loose.data)), _number(loose.timestamp))
    if canvas and kind == INCREMENTAL and _source(loose.data) == CANVAS_MUTATION:
        return Canvas(len(memoryview(item)), _number(loose.timestamp))
    return None


def _odd_data(raw: msgspec.Raw) -> Span | Crumb | Options | Video | None:
    """What fits of the data of a custom event; None when nobody knows its tag."""
    data = _decode_any_data(raw)
    if data.tag == "breadcrumb":
        crumb = _decode_any_crumb(data.payload)
        fields = {name: getattr(crumb, name) for name in ("category", "message", "level", "timestamp")}
        payload = fitted(CrumbPayload, fields)
        payload.data = crumb.data
        return Crumb(payload)
    if data.tag == "performanceSpan":
        found = _decode_object(data.payload)
        span = fitted(SpanPayload, found)
        if span.data is None and found.get("data") is not None:
            span.data = WRONG_DATA
        return Span(span)
    if data.tag == "options":
        return Options(data.payload)
    return Video(data.payload) if data.tag == "video" else None


def _number(value: Any) -> Any:
    """The number, or None for what is none."""
    try:
        return msgspec.convert(value, Number)
    except msgspec.ValidationError:
        return None


def _source(data: msgspec.Raw) -> Any:
    try:
        return _decode_source(data).source
    except _WRONG_SHAPE:
        return None


# The slow way: brackets and strings are all that it knows of JSON, so no depth is too deep for it.

_tokens = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL).finditer
_QUOTE, _OPENING = b'"', b"[{"


def _taken_apart(raw: bytes | bytearray) -> Iterator[bytes | bytearray | None]:
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


def _scalars(raw: bytes | bytearray, start: int, stop: int) -> Iterator[bytes | bytearray | None]:
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


def without_lone_surrogates(text: bytes | bytearray) -> bytes:
    """JSON with the replacement character for each half of a surrogate pair, of the same length."""
    return _escapes.sub(lambda match: match[1] or rb"\ufffd", text)
