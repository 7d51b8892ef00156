"""Decodes a struct from a JSON object field by field, for objects of any size and shape.

Fields stay JSON until their type is known, so that no value exceeds the limits: strings are truncated to
SHORT_CHARACTERS_MAX characters and lists to LIST_MAX elements, and long inner objects are left out. Only the
fields whose values do not have the expected type are lost.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import msgspec

from ingest.core.parse.shapes import NULL, SHORT_CHARACTERS_MAX, Number, Short, Text

LIST_MAX = 256
INNER_OBJECT_BYTES_MAX = 1024 * 1024
NUMBER_BYTES_MAX = 64
# The longest encoding of one character is a pair of escaped surrogates.
ESCAPED_BYTES = 12
TEXT_BYTES_MAX = SHORT_CHARACTERS_MAX * ESCAPED_BYTES

Shape = TypeVar("Shape", bound=msgspec.Struct)

_QUOTE, _TRUE, _FALSE, _BRACKET, _BRACE = b'"tf[{'
_NUMERIC = b"-0123456789"

_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode = msgspec.json.Decoder().decode
_decode_number = msgspec.json.Decoder(Number).decode
_decode_pair = msgspec.json.Decoder(tuple[msgspec.Raw, msgspec.Raw]).decode
_first_elements: Any = msgspec.defstruct(
    "First", [(f"element{number}", msgspec.Raw, NULL) for number in range(LIST_MAX)], array_like=True, gc=False
)
_decode_first: Callable[[Any], Any] = msgspec.json.Decoder(_first_elements).decode


def picked_struct(shape: type[Shape], text: bytes | bytearray | memoryview | msgspec.Raw) -> Shape:
    """Returns the struct. Fields whose values have the wrong type keep their defaults. Raises msgspec errors."""
    return picked_from(shape, _decoder(shape)(text))


def picked_from(shape: type[Shape], found: Any) -> Shape:
    """Like `picked_struct`, for an object decoded as `unpicked(shape)`."""
    values = {}
    for name, kind, inner in _fields(shape):
        raw = getattr(found, name)
        if raw is not NULL:
            try:
                values[name] = _value(raw, kind, inner)
            except _DECODE_ERRORS:
                continue
    return shape(**values)


@cache
def unpicked(shape: type[msgspec.Struct]) -> Any:
    """Returns a struct type with the fields of `shape`, each as raw JSON; an absent field is NULL."""
    names = [field.name for field in msgspec.structs.fields(shape)]
    return msgspec.defstruct(shape.__name__, [(name, msgspec.Raw, NULL) for name in names], gc=False)


@cache
def _decoder(shape: type[msgspec.Struct]) -> Callable[[Any], Any]:
    return msgspec.json.Decoder(unpicked(shape)).decode


@cache
def _fields(shape: type[msgspec.Struct]) -> list[tuple[str, Any, type[msgspec.Struct] | None]]:
    """Returns (name, type, struct) for each field. `struct`: the struct that the type allows, if any."""
    found = []
    for field in msgspec.structs.fields(shape):
        structs = [
            kind
            for kind in typing.get_args(field.type)
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        ]
        found.append((field.name, field.type, structs[0] if structs else None))
    return found


def _value(raw: msgspec.Raw, kind: Any, inner: type[msgspec.Struct] | None) -> Any:
    """Returns the value. If the value does not have the type `kind`, returns None or raises a msgspec error."""
    if kind is msgspec.Raw:
        return raw
    if inner is not None:
        return picked_struct(inner, raw) if memoryview(raw).nbytes <= INNER_OBJECT_BYTES_MAX else None
    if kind == Short:
        return _short(raw)
    if kind == Text:
        return text_of(raw)
    if kind == Number:
        return number_of(raw)
    if kind == list[Any] | None:
        elements = msgspec.structs.astuple(_decode_first(raw))
        return [_element(element) for element in elements if element is not NULL]
    return scalar_of(raw)


def scalar_of(raw: msgspec.Raw) -> str | float | bool | None:
    """Returns a string, a number that sinks can hold, true or false; None for anything else."""
    first = memoryview(raw)[0]
    if first == _QUOTE:
        return text_of(raw)
    if first in (_TRUE, _FALSE):
        return bool(_decode(raw))
    return None if first in (_BRACKET, _BRACE) else number_of(raw)


def number_of(raw: msgspec.Raw) -> float | None:
    """Returns a number that sinks can hold; None for anything else."""
    if memoryview(raw).nbytes > NUMBER_BYTES_MAX:
        return None
    try:
        number: float | None = _decode_number(raw)
    except msgspec.ValidationError:
        return None
    return number


def text_of(raw: msgspec.Raw) -> str | None:
    """Decodes a string, truncated to SHORT_CHARACTERS_MAX characters. Returns None for any other JSON value."""
    view = memoryview(raw)
    if view[0] != _QUOTE:
        return None
    text: str = _decode(raw) if view.nbytes <= TEXT_BYTES_MAX else _head(bytes(view[:TEXT_BYTES_MAX]))
    return text[:SHORT_CHARACTERS_MAX]


def _short(raw: msgspec.Raw) -> str | None:
    """Returns the value as text. Numbers are converted to text, because Relay accepts numbers in text fields
    such as a user's id."""
    view = memoryview(raw)
    if view[0] == _QUOTE:
        return text_of(raw)
    if view[0] not in _NUMERIC or view.nbytes > SHORT_CHARACTERS_MAX:
        return None
    return str(_decode(raw))


def _element(raw: msgspec.Raw) -> Any:
    """Decodes a string, or a pair of strings as a list. Returns None for any other JSON value."""
    if memoryview(raw)[0] != _BRACKET:
        return text_of(raw)
    try:
        return [_short(side) for side in _decode_pair(raw)]
    except _DECODE_ERRORS:
        return None


def _head(text: bytes) -> str:
    """Decodes the beginning of a long string, which may have been cut within an escape or a character."""
    for stop in range(len(text), len(text) - ESCAPED_BYTES, -1):
        try:
            head: str = _decode(text[:stop] + b'"')
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        return head
    raise msgspec.DecodeError("not a text")
