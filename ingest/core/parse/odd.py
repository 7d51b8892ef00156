"""Decodes one event of any shape.

Fields of the wrong type are left out; if that is not possible, the whole event is left out.

`ingest.core.parse.scan` uses this module for events that were not decoded as a whole, because they are malformed
or part of a long recording. All work is charged to the budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from ingest.core.parse.budget import Budget
from ingest.core.parse.events import (
    CANVAS_MUTATION,
    CUSTOM,
    INCREMENTAL,
    META,
    WRONG_DATA,
    BreadcrumbData,
    BreadcrumbPayload,
    Canvas,
    Custom,
    Event,
    MalformedEvent,
    Meta,
    Options,
    Span,
    SpanPayload,
    Video,
    Viewport,
)
from ingest.core.parse.picked import NUMBER_BYTES_MAX, number_of, picked_from, picked_struct, text_of
from ingest.core.parse.shapes import NULL, is_null

# Data up to this size is decoded as a whole if possible.
USUAL_BYTES_MAX = 64 * 1024
# Measured costs in budget units: per byte that is decoded again; per event; per byte of an event's data; per
# field-by-field decoding, including the exception that may precede it; for long data, per byte and per quotation
# mark.
_UNITS_PER_BYTE, _UNITS_PER_EVENT, _UNITS_PER_DATA_BYTE, _UNITS_PER_PICKED = 0.001, 1.0, 0.006, 25.0
_UNITS_PER_LONG_BYTE, _UNITS_PER_QUOTE = 0.0015, 0.03

_BRACE = ord("{")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
Data = Span | BreadcrumbData | Options | Video


class _Any(msgspec.Struct, gc=False):
    type: msgspec.Raw = NULL
    timestamp: msgspec.Raw = NULL
    data: msgspec.Raw = NULL


class _AnyData(msgspec.Struct, gc=False):
    tag: msgspec.Raw = NULL
    payload: msgspec.Raw = NULL


class _AnySource(msgspec.Struct, gc=False):
    source: msgspec.Raw = NULL


# `_Long` decodes data with any tag in one pass. `_Payload` declares every field of breadcrumbs and spans that the
# parser uses.
_payload_fields = dict.fromkeys((*BreadcrumbPayload.__struct_fields__, *SpanPayload.__struct_fields__))
_Payload: Any = msgspec.defstruct("Payload", [(name, msgspec.Raw, NULL) for name in _payload_fields], gc=False)
_Long: Any = msgspec.defstruct("Long", [("tag", msgspec.Raw, NULL), ("payload", _Payload | None, None)], gc=False)

_decode_event = msgspec.json.Decoder(_Any).decode
_decode_any_data = msgspec.json.Decoder(_AnyData).decode
_decode_source = msgspec.json.Decoder(_AnySource).decode
_decode_viewport = msgspec.json.Decoder(Viewport).decode
_decode_data: Callable[[Any], Data] = msgspec.json.Decoder(Data).decode
_decode_long: Callable[[Any], Any] = msgspec.json.Decoder(_Long).decode


_integer = re.compile(rb"-?[0-9]+").fullmatch


def event_of(item: Any, canvas: bool, budget: Budget) -> Event | None:
    """Returns the event; None if events of its kind are not used. Raises MalformedEvent and msgspec errors if the
    event has the wrong shape."""
    view = memoryview(item)
    if view[0] != _BRACE:
        raise MalformedEvent("an event is an object")
    budget.spend(_UNITS_PER_EVENT + _UNITS_PER_BYTE * view.nbytes)
    loose = _decode_event(item)
    if not _integer(memoryview(loose.type)[:NUMBER_BYTES_MAX]):
        raise MalformedEvent("the type of an event is a number")
    kind = number_of(loose.type)
    if kind == CUSTOM:
        data = data_of(loose.data, budget)
        return None if data is None else Custom(data, number_of(loose.timestamp))
    if kind == META:
        return Meta(viewport_of(loose.data, budget), number_of(loose.timestamp))
    if canvas and kind == INCREMENTAL and _source(loose.data) == CANVAS_MUTATION:
        return Canvas(view.nbytes, number_of(loose.timestamp))
    return None


def data_of(raw: msgspec.Raw, budget: Budget) -> Data | None:
    """Returns the data of a custom event, without the fields that have the wrong type; None for unknown tags.

    Raises MalformedEvent and msgspec errors.
    """
    size_bytes = memoryview(raw).nbytes
    if size_bytes <= USUAL_BYTES_MAX:
        budget.spend(_UNITS_PER_EVENT + _UNITS_PER_DATA_BYTE * size_bytes)
        try:
            return _decode_data(raw)
        except msgspec.ValidationError:
            budget.spend(_UNITS_PER_PICKED + _UNITS_PER_BYTE * size_bytes)
    else:
        budget.spend(_UNITS_PER_PICKED + _UNITS_PER_LONG_BYTE * size_bytes)
        budget.spend(_UNITS_PER_QUOTE * bytes(raw).count(b'"'))
    return _picked_data(raw)


def _picked_data(raw: msgspec.Raw) -> Data | None:
    try:
        found = _decode_long(raw)
        tag, payload = text_of(found.tag), found.payload
    except msgspec.ValidationError:  # the payload is not an object
        tag, payload = text_of(_decode_any_data(raw).tag), None
    if tag == "options":
        return Options(_decode_any_data(raw).payload)
    if tag == "video":
        return Video(_decode_any_data(raw).payload)
    if tag not in ("breadcrumb", "performanceSpan"):
        return None
    if payload is None:
        raise MalformedEvent("the payload of an event is not an object")
    if tag == "breadcrumb":
        return BreadcrumbData(picked_from(BreadcrumbPayload, payload))
    span = picked_from(SpanPayload, payload)
    if span.data is None and not is_null(payload.data):
        span.data = WRONG_DATA
    return Span(span)


def viewport_of(raw: msgspec.Raw, budget: Budget) -> Viewport:
    """Returns the data of a viewport, without the fields that have the wrong type. Raises msgspec errors."""
    size_bytes = memoryview(raw).nbytes
    budget.spend(_UNITS_PER_EVENT + _UNITS_PER_BYTE * size_bytes)
    if size_bytes <= USUAL_BYTES_MAX:
        try:
            return _decode_viewport(raw)
        except msgspec.ValidationError:
            pass
    budget.spend(_UNITS_PER_PICKED + _UNITS_PER_LONG_BYTE * size_bytes)
    return picked_struct(Viewport, raw)


def _source(data: msgspec.Raw) -> float | None:
    try:
        return number_of(_decode_source(data).source)
    except _UNREADABLE:
        return None
